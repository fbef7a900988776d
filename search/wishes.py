"""What a person wishes for a knob, in Python, as text and as JSON: one value, a range, some choices, or about a value.

`lr=0.01` and 0.01 fix, `lr=1e-4:1e-2` and (1e-4, 1e-2) are a range, `optimizer=adam,adamw` and a list choose among.
`search.narrowing` makes distributions of them; the command line's `--fix` and `--range` come in here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from search.errors import ObjectiveError

# A person's names for what is sampled as 1 - value.
COMPLEMENTS: Mapping[str, str] = {
    "momentum": "one_minus_momentum",
    "beta1": "one_minus_beta1",
    "beta2": "one_minus_beta2",
}
# Two names for one knob: whoever wishes for the one cannot wish for the other.
PAIRS = (("lr", "lr_multiple"), ("weight_decay", "l2"), *COMPLEMENTS.items())
# What is possible at all, lowest and highest, and whether the ends belong to it. These knobs' own ranges say what
# practice searches; a person may go beyond them. Of all other knobs the range is the limit.
_Limit: TypeAlias = tuple[float, float, bool, bool]
LIMITS: Mapping[str, _Limit] = {
    "lr": (0, math.inf, False, False),
    "lr_multiple": (0, math.inf, False, False),
    "weight_decay": (0, math.inf, True, False),
    "l2": (0, math.inf, True, False),
    "warmup": (0, 1, True, True),
    "momentum": (0, 1, False, False),
    "beta1": (0, 1, True, False),
    "beta2": (0, 1, True, False),
    "one_minus_momentum": (0, 1, False, False),
    "one_minus_beta1": (0, 1, False, True),
    "one_minus_beta2": (0, 1, False, True),
}


@dataclass(frozen=True)
class Fixed:
    """One value: nothing is searched."""

    value: Any

    def __str__(self) -> str:
        return f"{self.value}"


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class Choices:
    """One of `values`."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


@dataclass(frozen=True)
class Around:
    """Anywhere within two factors of `center`, and in 95 of 100 draws within one: log-normal, cut off at the ends."""

    center: float
    factor: float = 10.0

    def __str__(self) -> str:
        return f"around {self.center:g} (factor {self.factor:g})"

    @property
    def range(self) -> Range:
        """What is searched where the knob has no narrower range of its own."""
        return Range(self.center / self.factor**2, self.center * self.factor**2)


def around(center: float, factor: float = 10.0) -> Around:
    """For `Objective.knobs`: the knob's good values are believed to be near `center`, give or take a factor.

    Draws are log-normal: 95 of 100 lie between center / factor and center * factor. Nothing beyond
    center / factor**2 and center * factor**2 is searched, nor beyond the knob's own range. Of `momentum` and the betas
    it is 1 - value that lies within the factor.

    ObjectiveError: `center` is not above 0, or `factor` not above 1.
    """
    for name, value, least in (("center", center, 0.0), ("factor", factor, 1.0)):
        if not is_number(value) or not least < value < math.inf:
            raise ObjectiveError(f"around(center, factor): {name} must be a number above {least:g}, but got {value!r}")
    return Around(float(center), float(factor))


Wish: TypeAlias = Fixed | Range | Choices | Around


def wish(name: str, value: Any) -> Wish:
    """What a value of `Objective.knobs` means: a scalar fixes, (low, high) is a range, a list chooses among, `around`.

    Raises:
        ObjectiveError: it is none of them, is out of order, or lists nothing.
    """
    if isinstance(value, Around):
        return around(value.center, value.factor)
    if isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value)):
        low, high = value
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ObjectiveError(f"{name} cannot range over {low}:{high}: both ends must be finite")
        if low > high:
            raise ObjectiveError(f"the range {name}={low:g}:{high:g} is out of order: write {high:g}:{low:g}")
        return Range(low, high) if low < high else Fixed(low)
    if isinstance(value, list | tuple):
        if not value:
            raise ObjectiveError(f"{name} has nothing to choose from")
        values = tuple(_scalar(name, one) for one in value)
        if len({*map(str, values)}) < len(values):
            raise ObjectiveError(f"{name}={Choices(values)} names one choice twice")
        return Choices(values) if len(values) > 1 else Fixed(values[0])
    return Fixed(_scalar(name, value))


def _scalar(name: str, value: Any) -> Any:
    if not isinstance(value, str | int | float | bool | None) or (isinstance(value, float) and math.isnan(value)):
        raise ObjectiveError(
            f"knobs: {name} must be a number or a name, a range (low, high) or a list of choices, but got {value!r:.80}"
        )
    return value


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_of(name: str, value: Any, whole: bool = False) -> int | float:
    if not is_number(value):
        raise ObjectiveError(f"{name} is a number, but got {value!r}")
    if whole and not (math.isfinite(value) and value == int(value)):
        raise ObjectiveError(f"{name} is a whole number, but got {value!r}")
    return int(value) if whole else float(value)


def limited(name: str, wanted: Wish) -> Wish:
    """The wish in floats, where the knob has limits. Raises ObjectiveError beyond them."""
    if name not in LIMITS:
        return wanted
    low, high, with_low, with_high = LIMITS[name]

    def checked(value: Any) -> float:
        number = number_of(name, value)
        above = number > low or (with_low and number == low)
        below = number < high or (with_high and number == high)
        if not (above and below):
            at_least = f"{'at least' if with_low else 'above'} {low:g}"
            at_most = f" and {'at most' if with_high else 'below'} {high:g}" if high < math.inf else ""
            raise ObjectiveError(f"{name} must be {at_least}{at_most}, but got {number:g}")
        return number

    if isinstance(wanted, Around):
        return Around(checked(wanted.center), wanted.factor)
    if isinstance(wanted, Range):
        return Range(checked(wanted.low), checked(wanted.high))
    if isinstance(wanted, Choices):
        return Choices(tuple(map(checked, wanted.values)))
    return Fixed(checked(wanted.value))


def complement(wanted: Wish) -> Wish:
    def other(value: float) -> float:
        return round(1 - value, 12)  # 0.1 and not 0.09999999999999998

    if isinstance(wanted, Around):
        return Around(other(wanted.center), wanted.factor)
    if isinstance(wanted, Range):
        return Range(other(wanted.high), other(wanted.low))
    if isinstance(wanted, Choices):
        return Choices(tuple(map(other, wanted.values)))
    return Fixed(other(wanted.value))


def value_of(wanted: Wish) -> Any:
    if isinstance(wanted, Range):
        return (wanted.low, wanted.high)
    if isinstance(wanted, Around):
        return wanted
    return list(wanted.values) if isinstance(wanted, Choices) else wanted.value


def within_limits(name: str, wanted: Around) -> Range:
    """What is searched of a knob that has limits and no range of its own."""
    low, high, _with_low, with_high = LIMITS[name]
    most = high if with_high or math.isinf(high) else 0.999 * high
    return Range(max(wanted.range.low, low), min(wanted.range.high, most))


def merged(knobs: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`knobs`, with those of `over` in place of what is said of the same knob."""
    dropped = {name for pair in PAIRS if {*pair} & {*over} for name in pair}
    return {name: value for name, value in knobs.items() if name not in dropped} | dict(over)


# -- Text and JSON


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """`["lr=0.05", "optimizer=momentum"]` as values by name.

    Raises:
        ObjectiveError: a word is not NAME=VALUE, or names something twice.
    """
    return _by_name(words, "NAME=VALUE", "lr=0.05", _one_value)


def parse_fix(words: Iterable[str]) -> dict[str, Any]:
    """What `--fix NAME=VALUE` says. Raises ObjectiveError."""
    return _by_name(words, "--fix NAME=VALUE", "--fix lr=0.05", _one_value)


def parse_was(words: Iterable[str]) -> dict[str, Any]:
    """What `--was NAME=VALUE` says. Raises ObjectiveError."""
    return _by_name(words, "--was NAME=VALUE", "--was layers=2", _one_value)


def parse_range(words: Iterable[str]) -> dict[str, Any]:
    """What `--range NAME=LOW:HIGH` (a tuple) or `--range NAME=A,B,C` (a list) says. Raises ObjectiveError."""
    return _by_name(words, "--range NAME=LOW:HIGH", "--range lr=1e-4:1e-2 or --range optimizer=adam,adamw", _several)


def parse_around(words: Iterable[str]) -> dict[str, Any]:
    """What `--around NAME=VALUE` or `--around NAME=VALUE:FACTOR` says. Raises ObjectiveError."""
    return _by_name(words, "--around NAME=VALUE[:FACTOR]", "--around lr=1e-3:10", _around)


def parse_space(fix: Iterable[str], ranges: Iterable[str], near: Iterable[str] = ()) -> dict[str, Any]:
    """All together, as `Objective.knobs` has them. Raises ObjectiveError, also when a name is given twice."""
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for option, more in (("--fix", parse_fix(fix)), ("--range", parse_range(ranges)), ("--around", parse_around(near))):
        for name, value in more.items():
            if name in given:
                raise ObjectiveError(f"{name} is given by {given[name]} and by {option}: leave one out")
            found[name], given[name] = value, option
    return found


def to_json(knobs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`Objective.knobs` as it is stored with a study."""
    forms: dict[str, dict[str, Any]] = {}
    for name, value in knobs.items():
        wanted = wish(name, value)
        if isinstance(wanted, Range):
            forms[name] = {"low": wanted.low, "high": wanted.high}
        elif isinstance(wanted, Choices):
            forms[name] = {"choices": list(wanted.values)}
        elif isinstance(wanted, Around):
            forms[name] = {"around": wanted.center, "factor": wanted.factor}
        else:
            forms[name] = {"fixed": wanted.value}
    return forms


def from_json(space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `to_json` made, as `Objective.knobs` has it."""
    knobs: dict[str, Any] = {}
    for name, form in space.items():
        if "fixed" in form:
            knobs[name] = form["fixed"]
        elif "around" in form:
            knobs[name] = Around(form["around"], form["factor"])
        else:
            knobs[name] = list(form["choices"]) if "choices" in form else (form["low"], form["high"])
    return knobs


def _by_name(words: Iterable[str], form: str, example: str, parse: Callable[[str, str], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not (name and equals and text):
            raise ObjectiveError(f"{word!r} is not {form}: write it as {example}")
        if name in found:
            raise ObjectiveError(f"{name} is given twice")
        found[name] = parse(name, text)
    return found


def _one_value(name: str, text: str) -> Any:
    if "," in text:
        raise ObjectiveError(f"{name}={text} is more than one value: --range {name}={text} chooses among them")
    if ":" in text:
        raise ObjectiveError(f"{name}={text} is a range and not a value: --range {name}={text} searches it")
    return _literal(text)


def _around(name: str, text: str) -> Any:
    parts = [_literal(part.strip()) for part in text.split(":")]
    if len(parts) > 2 or not all(map(is_number, parts)):
        raise ObjectiveError(f"{name}={text} is not VALUE or VALUE:FACTOR: write numbers, as in {name}=1e-3:10")
    return around(*parts)


def _several(name: str, text: str) -> Any:
    if "," in text:
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise ObjectiveError(f"{name}={text} has an empty choice")
        return [_literal(part) for part in parts]
    ends = text.split(":")
    if len(ends) == 1:
        raise ObjectiveError(f"{name}={text} is one value: --fix {name}={text} fixes it, LOW:HIGH is a range")
    values = tuple(_literal(end.strip()) for end in ends)
    if len(values) != 2 or not all(map(is_number, values)):
        raise ObjectiveError(f"{name}={text} is not a range: write two numbers, as in {name}=0.1:0.5")
    wish(name, values)
    return values


def _literal(text: str) -> Any:
    """`8` is an int, `1e-3` a float, `true` and `none` what they say, anything else a name."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
