"""What a person types, or edits, to act on a finding: commands that keep what the study was narrowed to already."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search import printing
from search.loading import builtin_objectives
from search.wishes import (
    COMPLEMENTS,
    LIMITS,
    Around,
    Choices,
    Fixed,
    Range,
    complement,
    from_json,
    merged,
    parse_settings,
    wish,
)
from storage.studies import NOTEBOOK, StudyRecord

# What `dialin run` takes where nobody says otherwise.
AUTO, USUAL_PRUNER = "auto", "hyperband"
# Nobody searches more than that factor beyond the end of a log range at once: a whole half of it may be far more.
FURTHEST = 10.0
# A person's names for knobs that are sampled as 1 - value.
PEOPLES = {sampled: name for name, sampled in COMPLEMENTS.items()}


def again(study: StudyRecord, changes: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """The command for a new study of the same objective, with these knobs otherwise, as `Objective.knobs` has them.

    Knobs are named as they are sampled; what is 1 - value comes as people say it. Trials are as long as they were:
    what a study has shown holds for its length, which need not be the objective's own.
    """
    told = dict(_as_people_say(name, value) for name, value in changes.items())
    knobs = merged(from_json(study.space), told)
    options = _strategy(study) | dict(options)
    if study.epochs:
        options.setdefault("--epochs", str(study.epochs))
    elif study.direction == "maximize":  # of a bare function, which may not say so itself
        options.setdefault("--direction", study.direction)
    if study.objective.startswith(NOTEBOOK):
        return _in_python(knobs, options)
    words = [
        "dialin",
        "run",
        study.objective,
        *(word for name, value in knobs.items() for word in _option(name, value)),
    ]
    return shlex.join([*words, *(word for option in options.items() for word in option)])


def go_on(study: StudyRecord, trials: int) -> str:
    """The command that trains so many trials more: what is left of the budget first, and limits that let it."""
    words, taken = [printing.resume_command(study)], max(1, study.taken)
    if trials > study.trials - study.taken:
        words.append(f"--trials +{trials - max(0, study.trials - study.taken)}")
    if study.time_is_spent:
        words.append(f"--budget +{math.ceil(trials * study.spent_seconds / taken / 60)}m")
    if study.epochs_are_spent:
        words.append(f"--total-epochs +{math.ceil(trials * study.spent_epochs / taken)}")
    return " ".join(words)


def _strategy(study: StudyRecord) -> dict[str, str]:
    """What the study was begun with, where that is not what is taken by itself."""
    if study.sampler == AUTO:
        return {}
    return {"--sampler": study.sampler} | ({"--pruner": study.pruner} if study.pruner != USUAL_PRUNER else {})


def _as_people_say(name: str, value: Any) -> tuple[str, Any]:
    if name not in PEOPLES:
        return name, value
    turned = complement(wish(name, value))
    if isinstance(turned, Range):
        return PEOPLES[name], (turned.low, turned.high)
    return PEOPLES[name], [*turned.values] if isinstance(turned, Choices) else _only(turned)


def _only(wanted: Any) -> Any:
    return wanted.value if isinstance(wanted, Fixed) else wanted


def _option(name: str, value: Any) -> list[str]:
    wanted = wish(name, value)
    if isinstance(wanted, Fixed):
        return ["--fix", f"{name}={_text(wanted.value)}"]
    if isinstance(wanted, Around):
        return ["--around", f"{name}={_text(wanted.center)}:{_text(wanted.factor)}"]
    if isinstance(wanted, Range):
        return ["--range", f"{name}={_text(wanted.low)}:{_text(wanted.high)}"]
    return ["--range", f"{name}={','.join(map(_text, wanted.values))}"]


def _in_python(knobs: Mapping[str, Any], options: Mapping[str, str]) -> str:
    fixed = {name: value for name, value in knobs.items() if isinstance(wish(name, value), Fixed)}
    ranges = {name: value for name, value in knobs.items() if name not in fixed}
    said = [f"{what}={kept!r}" for what, kept in (("fix", fixed), ("ranges", ranges)) if kept]
    said += [f"{name.removeprefix('--').replace('-', '_')}={_literal(value)}" for name, value in options.items()]
    return f"search.run({', '.join(['objective', *said])})"


def _text(value: Any) -> str:
    """As short as it can be said and still is that very number."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short


def rounded(value: float, digits: int = 2) -> float:
    """To so many significant digits: nobody wants to type more of the end of a range."""
    return float(f"{value:.{digits - 1}e}") if value else 0.0


def widened(name: str, distribution: BaseDistribution, upwards: bool) -> tuple[float, float] | None:
    """The half of a range next to one end, and as much beyond it; None where the knob can go no further.

    A knob of the recipe may go as far as it has a meaning, one of the model's as far as its author lets it: of that
    nothing is known but that a range from 0, and a count from 1, has its natural end there.
    """
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    least, most = -math.inf if low < 0 else 0.0, math.inf
    if isinstance(distribution, IntDistribution) and low >= 1:
        least = 1.0  # a count
    if name in LIMITS:
        least, most = LIMITS[name][:2]
    if distribution.log:
        middle, reach = math.sqrt(low * high), min(FURTHEST, math.sqrt(high / low))
        new = (middle, high * reach) if upwards else (low / reach, middle)
    else:
        middle, reach = (low + high) / 2, (high - low) / 2
        new = (middle, high + reach) if upwards else (low - reach, middle)
    if name in LIMITS and not math.isinf(most):  # never the limit itself: momentum is less than 1
        most -= 0.05 * (most - high)
    lowest = _on_the_grid(distribution, _short(distribution, max(new[0], least)), math.floor)
    if lowest < least:
        lowest = _on_the_grid(distribution, least, math.ceil)
    ends = lowest, _on_the_grid(distribution, _short(distribution, min(new[1], most)), math.ceil)
    further = ends[1] > high if upwards else ends[0] < low
    return ends if further else None


def _short(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    """With two digits; of a linear range with two of its width: 2010 and 2020 are not the same year."""
    if distribution.log:
        return rounded(value)
    unit = 10.0 ** (math.floor(math.log10(distribution.high - distribution.low)) - 1)
    return float(f"{round(value / unit) * unit:.12g}")


def _on_the_grid(
    distribution: FloatDistribution | IntDistribution, value: float, whole: Callable[[float], int]
) -> int | float:
    """The number of whole steps next to this one, where the knob has steps."""
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        return value
    step = distribution.step or 1
    value = float(f"{distribution.low + whole(round((value - distribution.low) / step, 9)) * step:.12g}")
    return int(value) if isinstance(distribution, IntDistribution) else value


def near(distribution: BaseDistribution, value: Any) -> Any:
    """A value of a knob as a person would type it, and as the knob can have it."""
    if not isinstance(distribution, FloatDistribution):
        return value
    short = _on_the_grid(distribution, _short(distribution, value), round)
    return short if distribution.low <= short <= distribution.high else value


def following(numbers: Sequence[Any], upwards: bool) -> Any:
    """The number after the last one or before the first one, by the same factor, or step where one is not above 0.

    None beyond a natural end: 0, and 1 of counts.
    """
    end, inner = (numbers[-1], numbers[-2]) if upwards else (numbers[0], numbers[1])
    further = end * end / inner if min(end, inner) > 0 else 2 * end - inner
    least = -math.inf if end < 0 else 0.0
    if isinstance(end, int):
        further, least = round(further), 1.0 if end >= 1 else least
    else:
        further = rounded(further, 3)
    return None if further < least or further == end else further


def suggestion(name: str, distribution: BaseDistribution, low: float, high: float) -> str:
    """The call of `trial.suggest_...` with another range."""
    if isinstance(distribution, CategoricalDistribution):
        return f"trial.suggest_categorical({name!r}, [...])"
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    kind = "int" if isinstance(distribution, IntDistribution) else "float"
    usual = 1 if kind == "int" else None
    step = f", step={_text(distribution.step)}" if distribution.step != usual else ""
    log = ", log=True" if distribution.log else ""
    return f"trial.suggest_{kind}({name!r}, {_text(low)}, {_text(high)}{step}{log})"


def file_of(study: StudyRecord) -> str:
    """Where a person edits the objective, in words."""
    if study.objective.startswith(NOTEBOOK):
        return "the objective"
    name = study.objective.partition(":")[0]
    return f"a copy of objectives/{name}.py" if name in builtin_objectives() else name


def shown(name: str, value: Any) -> str:
    """A knob's value as people say it."""
    if name in PEOPLES and isinstance(value, float):
        value = 1 - value
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _literal(value: str) -> str:
    """An option's value as Python has it."""
    return value if value.isdecimal() else repr(value)


def can_be_typed(choice: Any) -> bool:
    """Whether `--range NAME=A,B` and `--fix NAME=A` are read as this very choice."""
    if not isinstance(choice, str):
        return choice is None or isinstance(choice, bool | int | float)
    return (
        choice == choice.strip() != ""
        and not {*choice} & {",", ":", "="}
        and parse_settings([f"x={choice}"])["x"] == choice
    )


def keeping(study: StudyRecord, knob: str, kept: Sequence[Any]) -> dict[str, Any]:
    """What of a finding says that these choices of a knob are kept. Not everything that a knob can be can be typed."""
    value = [*kept] if len(kept) > 1 else kept[0]
    if all(map(can_be_typed, kept)):
        return {"space": {knob: value}}
    return {"actions": (f"in {file_of(study)}: knobs={{{knob!r}: {value!r}}}",)}
