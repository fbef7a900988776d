"""What Dialin relies on that Optuna keeps private, all of it, so that a new Optuna is checked against one file.

Written against Optuna 5.0.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

# Under Hyperband samplers see the trials of one bracket.
from optuna.pruners import _filter_study
from optuna.search_space import IntersectionSearchSpace

# The cache that Optuna puts before its SQL storage. `storage.trial_cache` reads into it in its own way: it overrides
# `get_trial` and `get_all_trials`, and calls `_add_trials_to_cache` and `_get_cached_trial`.
from optuna.storages._cached_storage import _CachedStorage as CachedStorage
from optuna.storages._cached_storage import _StudyInfo as CachedStudy

# The tables, which Dialin's own refer to; `BaseModel.metadata` creates them.
from optuna.storages._rdb import models as _models

# Schema versions (alembic) of Optuna's tables.
from optuna.storages._rdb.storage import _VersionManager

# What a constraint is kept under.
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY

# What `Study.tell` does before it reads the trial once more for who called it.
from optuna.study._tell import _tell_with_warning
from sqlalchemy.orm import configure_mappers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState

# Besides these names `storage.backend` overrides and calls methods of `RDBStorage` that are private:
#   _create_new_trial, _get_prepared_new_trial   a trial is made inside ONE session, where the claim joins in
#   _set_trial_*_without_commit                  writes that leave the commit to the caller
# and `storage.suggesting` overrides `Trial._suggest` and looks at what a trial keeps for it (`_fixed_params`,
# `_cached_frozen_trial`), and makes a sampler forget the search space that it has inferred,
# and relies on the system attribute "fixed_params", in which `enqueue_trial` leaves what a WAITING trial will suggest.

# Names (or how they begin) of the system attributes in which samplers keep their own state with a trial: CMA-ES its
# optimizer, TPE and GP what they have drawn together.
SAMPLERS_NOTES = ("cma:", "sepcma:", "cmawm:", "x_for_tell", "tpe:relative_params", "gp:relative_params")

# How the system attributes are called in which `Trial.set_constraint` leaves a constraint's value.
CONSTRAINT = f"{_CONSTRAINTS_KEY}:"

FIXED_PARAMS = "fixed_params"

models: Any = _models  # their columns are declared without types


class VersionManager(_VersionManager):
    """Optuna's, whose list of versions is read once a process: ten files are run for it, three times a new database.

    That was two thirds of the CPU that it takes to open a new database (0.1 s) or one that is there (0.035 s).
    """

    _versions: ClassVar[Any] = None

    def _create_alembic_script(self) -> Any:
        if VersionManager._versions is None:
            VersionManager._versions = super()._create_alembic_script()
        return VersionManager._versions


__all__ = [
    "CONSTRAINT",
    "FIXED_PARAMS",
    "SAMPLERS_NOTES",
    "CachedStorage",
    "CachedStudy",
    "VersionManager",
    "draw_alone",
    "forget_space",
    "forget_study",
    "forget_trial",
    "frozen_of",
    "models",
    "read_once",
    "suggest_unless_asked",
    "tell",
    "trial_id_of",
]


def read_once() -> None:
    """Have what every opening of a database wants and reads once: a process that is forked from this one has it too."""
    configure_mappers()
    nowhere = object.__new__(VersionManager)  # its constructor asks a database
    nowhere.url = "sqlite://"
    nowhere.get_head_version()


def forget_study(storage: CachedStorage, study_id: int) -> None:
    """Drop what the cache holds of a study, as its `delete_study` does before it deletes. Its lock is held."""
    gone = storage._studies.pop(study_id, None)
    for number in list(gone.trials) if gone is not None else ():
        forget_trial(storage, study_id, number)


def forget_trial(storage: CachedStorage, study_id: int, number: int) -> None:
    """The same of one trial."""
    if study_id in storage._studies:
        storage._studies[study_id].trials.pop(number, None)
    trial_id = storage._study_id_and_number_to_trial_id.pop((study_id, number), None)
    if trial_id is not None and storage._trial_id_to_study_id_and_number.get(trial_id) == (study_id, number):
        del storage._trial_id_to_study_id_and_number[trial_id]


def draw_alone(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """What the study's sampler draws for one knob by itself, as `Trial._suggest` asks it."""
    frozen = trial._get_latest_trial()
    return trial.study.sampler.sample_independent(_filter_study(trial.study, frozen), frozen, name, distribution)


def forget_space(sampler: BaseSampler) -> None:
    """Have a sampler infer anew what all trials have in common: it only ever takes away from what it found before."""
    for name, pruned_too in (("_search_space", True), ("_search_space", False), ("_intersection_search_space", False)):
        known = getattr(sampler, name, None)
        if isinstance(known, IntersectionSearchSpace) and known._include_pruned is pruned_too:
            setattr(sampler, name, IntersectionSearchSpace(include_pruned=pruned_too))


def trial_id_of(trial: BaseTrial) -> int:
    """The database's key of a trial; `trial.number` counts within its study."""
    return int(trial._trial_id)  # type: ignore[attr-defined]  # set by every trial class, declared by none


def frozen_of(trial: Trial) -> FrozenTrial:
    """A copy of the trial as its own object knows it: read when it was made, and kept up with what it suggests.

    While a worker holds the trial nobody else writes parameters or values.
    """
    return copy.deepcopy(trial._cached_frozen_trial)


def tell(study: Study, trial: Trial, value: float | None, state: TrialState) -> None:
    """`Study.tell`, which returns nothing and spares that read."""
    _tell_with_warning(study=study, trial=trial, value_or_values=value, state=state)


def suggest_unless_asked(trial: Trial, params: Mapping[str, Any]) -> bool:
    """Have a trial suggest `params`, as one that was enqueued with them; one that was enqueued with others stays so.

    Whether it will.
    """
    if trial._fixed_params:
        return False
    trial._fixed_params = dict(params)
    return True


def renumber(trial: Trial, number: int) -> None:
    """Have a trial in memory say that it is the one of this number."""
    trial._cached_frozen_trial.number = number
