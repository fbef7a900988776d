"""What has changed in the space of a study whose objective was edited, found out when somebody goes on with it.

`describe` writes a space down where torch and the person's code are (`search.preflight`), `changed` compares two of
them, `in_words` says it, `view_of` makes what samplers are to see of it. Plain values, kept with the study as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial

from search.knobs import Knob
from search.wishes import Around
from storage.errors import UsageError
from storage.priors import Prior
from storage.shared import SharedStorage
from storage.space_view import UNITS, Added, SpaceView
from storage.studies import StudyRecord
from storage.words import counted

if TYPE_CHECKING:
    from search.objective import Objective

# The system attribute of Optuna's study in which its space is kept.
KEY = "dialin:space"
# Samplers that learn from where trials were: they begin with draws from a prior, and then see real values. Measured (24
# trials, a quadratic bowl over log lr and another knob): of ranks they find a best that lies far from the prior late.
LEARNING = ("tpe", "gp", "auto")
NOTHING: Mapping[str, Any] = MappingProxyType({})
# The condition of a model's knob that some models do not have.
SOMETIMES = "some models"
# Knobs whose values are known of every trial that has trained, whatever was sampled in their place.
RECORDED = {*UNITS, *UNITS.values(), "warmup", "optimizer", "schedule", "batch_size"}


@dataclass(frozen=True)
class Space:
    """The space of one state of an objective, as far as it is known before anything trains.

    Attributes:
        sha256: of the source that it was read from.
        knobs: those of the recipe and of the model, but for ranges that depend on other knobs; by name.
        recipe: the names of those that are the recipe's. whole: whether the model's own are known too.
        units: of each optimizer, as SpaceView has them.
        added, gone: what has changed since the study's first trials.
        moved: whether anything has.
    """

    sha256: str = ""
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    recipe: frozenset[str] = frozenset()
    whole: bool = False
    units: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    added: Mapping[str, Added] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    moved: bool = False

    @property
    def own(self) -> bool:
        """Whether it is of an objective that trains itself, whose knobs are known only when it does."""
        return not self.recipe

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        knobs = {
            name: {"drawn": distribution_to_json(one.distribution), "default": one.default, "condition": one.condition}
            for name, one in self.knobs.items()
        }
        added = {name: {"value": one.value, "told": one.told, "only": one.only} for name, one in self.added.items()}
        told = {"sha256": self.sha256, "whole": self.whole, "moved": self.moved}
        told |= {"recipe": sorted(self.recipe), "gone": sorted(self.gone), "knobs": knobs, "added": added}
        return told | {"units": {name: dict(units) for name, units in self.units.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Space:
        """What `as_dict` made."""
        knobs = {
            name: Knob(name, json_to_distribution(one["drawn"]), one["default"], condition=one["condition"])
            for name, one in values["knobs"].items()
        }
        added = {
            name: Added(one["value"], one["told"], (one["only"][0], tuple(one["only"][1])) if one["only"] else None)
            for name, one in values["added"].items()
        }
        kept = {name: values[name] for name in ("sha256", "whole", "units", "moved")}
        recipe, gone = frozenset(values["recipe"]), frozenset(values["gone"])
        return cls(knobs=knobs, added=added, recipe=recipe, gone=gone, **kept)


@dataclass(frozen=True)
class Change:
    """A study's space after somebody has edited its objective, and what is to be said about it, a line each."""

    space: Space
    lines: tuple[str, ...] = ()


def describe(objective: Objective, sha256: str, whole: bool) -> Space:
    """The space of an objective. `whole`: also the model's own knobs, for which some models are made.

    Of an objective that trains itself nothing is known: what it suggests under a name of the recipe's may be its own.
    """
    from search import space

    if objective.trains_itself:
        return Space(sha256, whole=True)
    recipe = space.recipe_knobs(objective)
    knobs = [*recipe, *(space.model_knobs(objective) if whole else ())]
    fixed = {knob.name: knob for knob in knobs if not knob.varies}
    return Space(sha256, fixed, frozenset(knob.name for knob in recipe), whole, space.units(objective))


def before(stored: Mapping[str, Any] | None, trials: Iterable[FrozenTrial]) -> tuple[Space, bool]:
    """A study's space as it was before, and whether all of it is known.

    What was not written down when the study was made, the model's own knobs, is what its trials were drawn from.
    """
    space = Space.from_dict(stored) if stored is not None else Space()
    if space.whole:
        return space, True
    drawn: dict[str, list[BaseDistribution]] = {}
    sampled = [trial for trial in trials if trial.params]
    for trial in sampled:
        for name, distribution in trial.distributions.items():
            drawn.setdefault(name, []).append(distribution)
    found = {
        name: Knob(name, some[0], condition="" if len(some) == len(sampled) else SOMETIMES)
        for name, some in drawn.items()
        if all(one == some[0] for one in some)
    }
    return replace(space, knobs={**found, **space.knobs}), stored is not None and bool(sampled)


def changed(old: Space, known: bool, new: Space, was: Mapping[str, Any]) -> Change:
    """What has changed between two spaces, as `before` and `describe` give them.

    Args:
        known: whether all of the old space is known.
        was: what a person says of knobs that older trials lack.

    Raises:
        UsageError: a person speaks of a knob that there is not, or that older trials have.
    """
    own = new.own
    if not new.whole:  # what the model suggests is as it was, until a trial suggests something else
        kept = {name: knob for name, knob in old.knobs.items() if name not in old.recipe}
        new = replace(new, knobs={**kept, **new.knobs}, whole=old.whole)
    new_names = [name for name in new.knobs if name not in old.knobs and (known or name in was)]
    freed = [name for name, knob in new.knobs.items() if name in old.knobs and old.knobs[name].fixed and not knob.fixed]
    lacking = [*new_names, *freed]
    for name in was:
        if not own and name not in lacking and name not in old.added:
            raise UsageError(
                f"--was {name}: " + ("older trials have a value of their own" if name in new.knobs else "no such knob")
            )
    added = {name: one for name, one in old.added.items() if own or name in new.knobs}
    added |= {name: Added(_value_before(name, old, new), only=_only(new.knobs[name])) for name in lacking}
    added |= {name: Added(value, told=True) for name, value in was.items()}
    gone = {name for name, one in old.knobs.items() if name not in new.knobs and one.condition != SOMETIMES and not own}
    moved = [
        name
        for name, one in new.knobs.items()
        if name in old.knobs and one.distribution != old.knobs[name].distribution
    ]
    space = replace(
        new,
        units={**old.units, **new.units},
        added=added,
        gone=frozenset(old.gone | gone) - {*new.knobs},
        moved=bool(old.moved or moved or added or gone or (own and old.sha256 != new.sha256)),
    )
    lines = [_move_line(old.knobs[name], new.knobs[name]) for name in moved]
    lines += [_added_line(name, added[name]) for name in dict.fromkeys([*new_names, *was])]
    return Change(space, (*lines, *(f"{name} is gone" for name in sorted(gone))))


def _value_before(name: str, old: Space, new: Space) -> Any:
    """Of a knob that was fixed its value, else its default; what a trial's own record says goes before both."""
    if name not in old.knobs:
        return new.knobs[name].default
    fixed = old.knobs[name].distribution
    return fixed.choices[0] if isinstance(fixed, CategoricalDistribution) else getattr(fixed, "low", None)


def _only(knob: Knob) -> tuple[str, tuple[str, ...]] | None:
    """The condition of a knob of some rows only (`optimizer: adam, adamw`) as a value."""
    row, _, names = knob.condition.partition(": ")
    return (row, tuple(names.split(", "))) if names else None


def _move_line(old: Knob, new: Knob) -> str:
    before, now = old.distribution, new.distribution
    if isinstance(before, CategoricalDistribution) and isinstance(now, CategoricalDistribution):
        dropped = [str(one) for one in before.choices if one not in now.choices]
        more = [str(one) for one in now.choices if one not in before.choices]
        said = [f"without {', '.join(dropped)}"] if dropped else []
        said += [f"with {', '.join(more)}"] if more else []
        return f"{new.name} is now {' and '.join(said) or 'in another order'}"
    return f"{new.name} was {old.range}, and is now {new.range}"


def _added_line(name: str, added: Added) -> str:
    if name in RECORDED and not added.told:
        return f"{name} is new: of older trials it is on record"
    if added.value is not None:
        return f"{name} is new: older trials count as {name}={_typed(added.value)}"
    return f"{name} is new: --was {name}=VALUE says what it was in older trials, which inform without it till then"


def _typed(value: Any) -> str:
    """A value as a person types it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def view_of(space: Space, learns: bool = False) -> SpaceView:
    """What samplers see of a study with this space. `learns`: more may have moved than is known."""
    if not space.moved:
        return SpaceView(learns=learns)
    current = {name: knob.distribution for name, knob in space.knobs.items()}
    return SpaceView(current, space.added, space.gone, space.units, learns=learns)


# -- With a study


def stored(storage: SharedStorage, study: StudyRecord) -> dict[str, Any] | None:
    """A study's space as it was last written down; None in a study of an older Dialin."""
    found: dict[str, Any] | None = storage.get_study_system_attrs(study.study_id).get(KEY)
    return found


def attrs(space: Space) -> dict[str, Any]:
    """A study's space as it is kept with it."""
    return {KEY: space.as_dict()}


def note(storage: SharedStorage, study: StudyRecord, space: Space) -> None:
    """Keep a study's space with it."""
    storage.set_study_system_attr(study.study_id, KEY, space.as_dict())


def of_study(
    storage: SharedStorage,
    study: StudyRecord,
    known: Mapping[str, Any] | None,
    now: Space,
    was: Mapping[str, Any] = NOTHING,
) -> Change | None:
    """What has changed in the space of a study, `known` as it was stored; None: nothing.

    Raises:
        UsageError: as `changed`.
    """
    needed = known is None or (now.whole and not known["whole"])
    trials = storage.get_all_trials(study.study_id, deepcopy=False) if needed else []
    old, complete = before(known, trials)
    change = changed(old, complete, now, was)
    if change.space == old:
        return None
    if not change.lines:
        return change
    ended = [one for one in storage.get_all_trials(study.study_id, deepcopy=False) if one.state.is_finished()]
    sampled = [trial for trial in ended if trial.params]
    left = len(view_of(change.space)(sampled))
    line = f"{left} of {counted(len(sampled), 'trial')} fit and inform what is sampled"
    return replace(
        change, lines=(*change.lines, line if left == len(sampled) else f"{line}; the others stay on record")
    )


def open_for(
    storage: SharedStorage,
    study: StudyRecord,
    now: Space,
    beliefs: Mapping[str, Around],
    say: Callable[[str], None],
) -> None:
    """Have a worker's samplers see the study's trials as this worker's own objective draws them.

    `say`: told what is another than it was when the study's space was last written down.
    """
    known = stored(storage, study)
    change = of_study(storage, study, known, now)
    for line in change.lines if change is not None else ():
        say(line)
    space = change.space if change is not None else Space.from_dict(known or now.as_dict())
    storage.view = view_of(space, learns=now.own or (known is not None and now.sha256 != known["sha256"]))
    storage.view.ranks = study.sampler not in LEARNING
    storage.view.priors = {name: Prior(near.center, near.factor) for name, near in beliefs.items()}
