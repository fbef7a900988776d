"""What a person types about single knobs, checked against an objective: `lr=0.05 optimizer=momentum width=32`.

`dialin run --fix`, `dialin try` and `dialin train` come in here, and the worker of a study that was narrowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search import optimizers, schedules, space
from search.errors import ObjectiveError
from search.knobs import Knob
from search.narrowing import LISTS, NarrowedTrial, NothingLeftError, model_wishes, narrow, refuse_beyond
from search.optimizers import Optimizer
from search.space import Recipe
from search.wishes import COMPLEMENTS, from_json, merged, wish

if TYPE_CHECKING:
    from search.objective import Objective

# Models that are tried before a name is called unknown: a knob may exist only beside a rare choice of another.
MODELS_TRIED = 32
# What every recipe has, in units of either kind.
ALWAYS = ("lr", "lr_multiple", "weight_decay", "l2", "warmup", *LISTS)


def narrowed_by(objective: Objective, knobs: Mapping[str, Any]) -> Objective:
    """The objective with these wishes over its own. Raises ObjectiveError when one cannot be."""
    return replace(objective, knobs=merged(objective.knobs, knobs)) if knobs else objective


def of_study(objective: Objective, stored: Mapping[str, Any]) -> Objective:
    """The objective as a study with this stored narrowing searches it."""
    return narrowed_by(objective, from_json(stored))


def check_knobs(objective: Objective) -> None:
    """Are all wishes for knobs that the objective has? The model is tried only when some are for its own.

    Raises:
        ObjectiveError: nothing takes a name, or a model's knob can be nothing of what is wished for.
    """
    if objective.function is not None:
        return  # what it suggests is known only when it trains
    own = model_wishes(objective)
    for name in {*objective.knobs} - {*own}:
        _refuse_unused(objective, name)
    if own and not objective.trains_itself:
        _check_models(objective, own)


def _refuse_unused(objective: Objective, name: str) -> None:
    ours = COMPLEMENTS.get(name, name)
    if name in ALWAYS or ours in {knob.name for knob in space.recipe_knobs(objective)}:
        return
    users = [row.name for row in optimizers.OPTIMIZERS.values() if ours in {knob.name for knob in row.knobs}]
    shapes = [row.name for row in schedules.SCHEDULES.values() if ours in {knob.name for knob in row.knobs}]
    kind = "optimizer" if users else "schedule"
    takers = users or shapes
    raise ObjectiveError(f"{name} is only for {kind} {', '.join(takers)}: choose one too, as in {kind}={takers[0]}")


def _check_models(objective: Objective, own: Mapping[str, Any]) -> None:
    asked: dict[str, list[BaseDistribution]] = {}
    with torch.random.fork_rng(devices=[]):
        for tried, trial in enumerate(space.random_trials(MODELS_TRIED), start=1):
            shown = NarrowedTrial(trial, own)
            with suppress(optuna.TrialPruned):
                objective.model(cast("optuna.Trial", shown))
            for name, distribution in shown.asked.items():
                asked.setdefault(name, []).append(distribution)
            if tried >= space.MODELS_TRIED and {*own} <= {*asked}:
                break
    for name in own:
        if name in asked:
            _refuse_impossible(name, own, asked[name])
    for name in own:
        if name not in asked:
            raise _unknown(name, objective, asked)


def _refuse_impossible(name: str, own: Mapping[str, Any], asked: list[BaseDistribution]) -> None:
    """A range that depends on other knobs need not always leave something; one that never does is a mistake."""
    refused: NothingLeftError | None = None
    for distribution in asked:
        try:
            narrow(own, name, distribution)
            break
        except NothingLeftError as error:
            refused = error
    else:
        assert refused is not None
        raise refused
    if all(distribution == asked[0] for distribution in asked):
        refuse_beyond(name, wish(name, own[name]), asked[0])


def _unknown(name: str, objective: Objective, others: Iterable[str]) -> ObjectiveError:
    recipe = [knob.name for knob in space.recipe_knobs(objective)]
    aliases = [theirs for theirs, ours in COMPLEMENTS.items() if ours in recipe]
    known = [*dict.fromkeys(["optimizer", "lr", *aliases, "weight_decay", *recipe, *others])]
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    guess = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return ObjectiveError(f"nothing is called {name!r} here: {guess}")


# -- Parameters of one trial


def params_of(objective: Objective, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's parameters for a trial with these settings, for a study to enqueue; the rest is sampled.

    `objective` is as the study searches it (`of_study`). The model is tried for the names of its own knobs.

    Raises:
        ObjectiveError: a name that is not searched, a value outside what the study samples, or a real rate or
            momentum without the optimizer that it is meant for.
    """
    if objective.function is not None:
        return dict(settings)  # what it suggests is known only when it trains
    rows, shapes = optimizers.resolve_all(objective.optimizers), schedules.resolve_all(objective.schedules)
    row = _row_of("optimizer", settings, rows)
    shape = _row_of("schedule", settings, shapes)
    knobs = {knob.name: knob for knob in space.describe(objective)}
    params: dict[str, Any] = {}
    for name, value in settings.items():
        ours, number = _in_our_units(name, value, row, knobs)
        if ours not in knobs:
            if objective.trains_itself and name not in (*ALWAYS, *COMPLEMENTS):
                params[name] = value
                continue
            raise _unknown(name, objective, knobs)
        _refuse_without_row(name, ours, row, rows)
        _refuse_without_row(name, ours, shape, shapes)
        knob = knobs[ours]
        params |= _checked(name, value, knob, number, row)
    return params


def _row_of(kind: str, settings: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
    """The row that is asked for, or the only one; None while it is open."""
    name = settings.get(kind, next(iter(rows)) if len(rows) == 1 else None)
    if name is not None and name not in rows:
        raise ObjectiveError(f"{kind} {name} is not searched here: choose among {', '.join(rows)}")
    return rows[name] if name is not None else None


def _in_our_units(name: str, value: Any, row: Optimizer | None, knobs: Mapping[str, Knob]) -> tuple[str, Any]:
    if name in COMPLEMENTS and isinstance(value, int | float):
        return COMPLEMENTS[name], round(1 - value, 12)
    factors = {"lr": "lr_multiple", "weight_decay": "l2"}
    if name not in factors or name in knobs or not isinstance(value, int | float):
        return name, value
    if row is None:
        raise ObjectiveError(f"{name}={value} depends on the optimizer: name it too, as in optimizer=momentum")
    return factors[name], value / _unit(factors[name], row)


def _unit(name: str, row: Optimizer | None) -> float:
    """What one unit of the sampled parameter is in torch's units."""
    if row is None:
        return 1.0
    return {"lr_multiple": row.base_lr, "l2": space.DECOUPLED if row.decoupled else 1.0}.get(name, 1.0)


def _refuse_without_row(name: str, ours: str, row: Any, rows: Mapping[str, Any]) -> None:
    """A knob of some rows only is for a trial that has such a row."""
    users = [other.name for other in rows.values() if ours in {knob.name for knob in other.knobs}]
    if not users or len(users) == len(rows) or (row is not None and row.name in users):
        return
    kind = "optimizer" if isinstance(next(iter(rows.values())), Optimizer) else "schedule"
    raise ObjectiveError(f"{name} is only for {kind} {', '.join(users)}: choose one too, as in {kind}={users[0]}")


def _checked(name: str, value: Any, knob: Knob, number: Any, row: Optimizer | None) -> dict[str, Any]:
    """The parameter, or nothing for a knob that has no other value anyway."""
    try:
        chosen = narrow({knob.name: number}, knob.name, knob.distribution)
    except NothingLeftError:
        d, unit = knob.distribution, _unit(knob.name, row) if name != knob.name else 1.0
        can_be = knob.range
        if isinstance(d, FloatDistribution):
            ends = (d.low * unit, d.high * unit)
            low, high = (1 - ends[1], 1 - ends[0]) if name in COMPLEMENTS else ends
            can_be = f"{low:.3g} .. {high:.3g}" + (f" for {row.name}" if unit != 1.0 and row else "")
        raise ObjectiveError(f"{name}={value} is outside what this study searches: {can_be}") from None
    if knob.fixed:
        return {}
    return {knob.name: chosen.choices[0] if isinstance(chosen, CategoricalDistribution) else chosen.low}  # type: ignore[attr-defined]


# -- One recipe


def recipe_of(objective: Objective, settings: Mapping[str, Any]) -> tuple[Recipe, Objective]:
    """The recipe with these settings, in which every other knob takes its default, and the objective fixed to it.

    Whatever trial the fixed objective is asked with, this recipe comes out; the model's own knobs are still open.

    Raises:
        ObjectiveError: as `check_knobs`; a setting for another optimizer or schedule than the recipe's.
    """
    fixed = narrowed_by(objective, settings)
    row, shape = space.recipe_from_params(defaults := space.default_params(fixed), fixed).rows
    fixed = replace(fixed, optimizers=(row,), schedules=(shape,))
    check_knobs(fixed)
    fixed = narrowed_by(
        fixed, {name: value for name, value in defaults.items() if name not in ("optimizer", "schedule")}
    )
    return space.recipe_from_params({}, fixed), fixed


def middle_trial() -> optuna.Trial:
    """A trial in memory that suggests the middle of every range, and the first of choices."""
    [trial] = space.trials_in_memory(1, _MiddleSampler())
    return trial


class _MiddleSampler(optuna.samplers.BaseSampler):
    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        return middle(param_distribution)


def middle(distribution: BaseDistribution) -> Any:
    """The middle of a range, of a logarithmic one the geometric; the first of choices."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    value = (low * high) ** 0.5 if distribution.log else (low + high) / 2
    if distribution.step:
        value = low + round((value - low) / distribution.step) * distribution.step
    return min(max(value, low), high)
