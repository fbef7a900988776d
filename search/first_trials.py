"""The recipes that a study of an objective starts with, best available first.

Recipes that won in finished studies of the same database, then those that ship with the package, then the defaults of
the optimizers. Called by `search.preflight`, once, when a study is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search import optimizers, schedules, space
from search.knobs import Knob
from search.objective import Objective
from search.portfolio import shipped
from search.transfer import Proposal, is_recipe, won
from storage.first_trials import FirstTrial

if TYPE_CHECKING:
    from storage.history import PastStudy

# So many first trials at most: of past studies, with the shipped ones, with the defaults.
WON, WITH_SHIPPED, MOST = 4, 6, 8


def first_trials(
    objective: Objective, reference: str, past: Sequence[PastStudy], transfer: bool = True
) -> tuple[FirstTrial, ...]:
    """What the first trials of a new study suggest, and where each is from; a bare function's suggest nothing.

    `past` are finished studies of the database. Without `transfer` there are only the defaults of the optimizers.
    """
    if objective.function is not None:
        return ()
    found: list[FirstTrial] = []
    if transfer:
        best = won(past, reference, objective.searched.name, WON)
        _add(found, _fitted(best, objective), WON)
        _add(found, _fitted([Proposal(one.settings, one.origin) for one in shipped()], objective), WITH_SHIPPED)
    points = space.starting_points(objective)
    _add(found, (FirstTrial(params, _default(params, objective)) for params in points), MOST)
    return tuple(found)


def _add(found: list[FirstTrial], more: Iterator[FirstTrial], most: int) -> None:
    """No recipe twice, and no more than so many."""
    for one in more:
        if len(found) >= most:
            return
        if one.params not in [other.params for other in found]:
            found.append(one)


def _default(params: Mapping[str, Any], objective: Objective) -> str:
    """Where the optimizer is fixed, it is no parameter."""
    return f"default of {params.get('optimizer') or next(iter(optimizers.resolve_all(objective.optimizers)))}"


def _fitted(proposals: Sequence[Proposal], objective: Objective) -> Iterator[FirstTrial]:
    own = _model_knobs(objective) if any(one.model for one in proposals) else []
    for proposal in proposals:
        params = fitted(proposal.settings, objective)
        if params is not None:
            model = {
                knob.name: proposal.model[knob.name]
                for knob in own
                if knob.name in proposal.model and _can_be(proposal.model[knob.name], knob.distribution)
            }
            yield FirstTrial(params | model, proposal.origin)


def _model_knobs(objective: Objective) -> list[Knob]:
    """Those whose range is always the same: of the others nobody knows what they can be beside the rest."""
    try:
        return [knob for knob in space.model_knobs(objective) if not knob.varies]
    except Exception:  # a model that cannot be made of some rare combination is searched all the same
        return []


def fitted(settings: Mapping[str, Any], objective: Objective) -> dict[str, Any] | None:
    """The parameters in the objective's space of a recipe in torch's units (`Recipe.as_dict`).

    Numbers outside a narrowed range, and batch sizes that are not searched, become the nearest that is. None where
    the optimizer or the schedule is not searched: with another one it would be another recipe.
    """
    rows, shapes = optimizers.resolve_all(objective.optimizers), schedules.resolve_all(objective.schedules)
    if not is_recipe(settings) or settings["optimizer"] not in rows or settings["schedule"] not in shapes:
        return None
    row = rows[settings["optimizer"]]
    wanted = {name: value for name, value in settings.items() if isinstance(value, str | int | float)}
    wanted["lr_multiple"] = settings["lr"] / row.base_lr
    wanted["l2"] = settings["weight_decay"] / (space.DECOUPLED if row.decoupled else 1.0)
    if "momentum" in settings:
        wanted["one_minus_momentum"] = 1 - settings["momentum"]
    for name, beta in zip(("one_minus_beta1", "one_minus_beta2"), settings.get("betas", ()), strict=False):
        wanted[name] = 1 - beta
    try:
        return space.nearest_params(wanted, objective)
    except TypeError:  # a knob of a row that is no number where one is wanted
        return None


def _can_be(value: Any, distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(value == one and type(value) is type(one) for one in distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    steps = (value - distribution.low) / (distribution.step or 1.0)
    on_grid = distribution.step is None or abs(steps - round(steps)) < 1e-8
    return distribution.low <= value <= distribution.high and on_grid
