"""Confirmations: studies that train the best recipes of another study again, each several times and with fresh seeds.

A system attribute of such a study, its link, says which study it confirms and with which recipes; each of its trials
says in a user attribute whose recipe it has. All its trials are enqueued, so that any number of workers trains exactly
what was asked for. What came of it is in `storage.confirmed`. Called by `search.confirming`, by the workers of a
confirmation, and by whoever looks for one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage import attributes, studies
from storage.engine import insert_for
from storage.errors import UsageError
from storage.first_trials import is_plain
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.queries import ranking
from storage.shared import SharedStorage
from storage.studies import StudyRecord, StudySpec
from storage.tables import StudyRow, StudyState, TrialRow

# A trial's user attribute: the number of the trial, in the confirmed study, whose recipe it has.
RECIPE = "confirms"

# Of the user attributes of a search's trial those that a worker compares with what the objective draws today.
NOTED = ("settings", "model")
# What a worker enqueues again, since its ticket was returned; and what whoever asks again does too. A seed with which a
# recipe diverged is none of them: to draw another one would be to choose among seeds.
MENDED = (Outcome.ERROR,)
ASKED_AGAIN = (Outcome.ERROR, Outcome.OUT_OF_MEMORY, Outcome.LOST)


@dataclass(frozen=True)
class Recipe:
    """A recipe by its trial in the confirmed study: what that suggested, and what was noted of it in real units."""

    trial: int
    params: Mapping[str, Any] = field(hash=False)
    noted: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def is_like(self, other: Recipe) -> bool:
        """Whether it is the same recipe, of another trial: somebody may have asked for it twice."""
        return (self.params, self.noted) == (other.params, other.noted)


@dataclass(frozen=True)
class Link:
    """What a confirmation confirms: the study by its name and its uid, which stays the same when it is copied.

    The `top` recipes that were best when it was asked for, `seeds` times each.
    """

    study: str
    uid: str
    top: int
    seeds: int
    recipes: tuple[Recipe, ...]

    def with_all_of(self, other: Link) -> Link:
        """What both ask for: what is on record of a confirmation stays."""
        more = [one for one in other.recipes if not any(one.is_like(mine) for mine in self.recipes)]
        top, seeds = max(self.top, other.top), max(self.seeds, other.seeds)
        return replace(self, top=top, seeds=seeds, recipes=(*self.recipes, *more))


def recipes(storage: SharedStorage, study: StudyRecord, top: int) -> list[Recipe]:
    """The recipes of a study's best trials, best first; one that several trials have is one."""
    found: list[Recipe] = []
    for trial_id, number in _ranked(storage, study):
        if len(found) == top:
            break
        trial = storage.get_trial(trial_id)
        noted = {name: told for name, told in trial.user_attrs.items() if name in NOTED}
        recipe = Recipe(number, trial.params, noted)
        if not any(recipe.is_like(other) for other in found):
            found.append(recipe)
    return found


@patient
def _ranked(storage: SharedStorage, study: StudyRecord) -> list[tuple[int, int]]:
    columns = ranking(study).with_only_columns(models.TrialModel.trial_id, models.TrialModel.number)
    with storage.backend.read() as session:
        return [(trial_id, number) for trial_id, number in session.execute(columns).all()]


# -- Which study confirms which


@patient
def link_of(storage: SharedStorage, study_id: int) -> Link | None:
    """What a study confirms; None: it is no confirmation, or what it says is not whole."""
    with storage.backend.read() as session:
        return _link(session, study_id)


def _link(session: Session, study_id: int) -> Link | None:
    return _read_link(study_attribute(session, study_id, attributes.CONFIRMS))


def study_attribute(session: Session, study_id: int, key: str) -> str | None:
    """A system attribute of a study as it is stored."""
    attr = models.StudySystemAttributeModel
    found: str | None = session.scalar(select(attr.value_json).where(attr.study_id == study_id, attr.key == key))
    return found


def _read_link(text: str | None) -> Link | None:
    """Checked, since anybody may write there."""
    try:
        told = json.loads(text or "null")
        several = tuple(Recipe(one["trial"], one["params"], one["noted"]) for one in told["recipes"])
        link = Link(str(told["study"]), str(told["uid"]), int(told["top"]), int(told["seeds"]), several)
    except (ValueError, TypeError, KeyError, OverflowError):  # JSON as Python reads it has an Infinity
        return None
    whole = (
        isinstance(one.trial, int)
        and isinstance(one.noted, dict)
        and isinstance(one.params, dict)
        and all(map(is_plain, one.params.values()))
        for one in several
    )
    return link if all(whole) else None


@patient
def of(storage: SharedStorage, source: StudyRecord) -> StudyRecord | None:
    """The confirmation of a study, the newest where there are several."""
    with storage.backend.read() as session:
        name = _name_of(session, source.uid)
    return studies.find(storage, name) if name is not None else None


def _name_of(session: Session, uid: str) -> str | None:
    attr, study = models.StudySystemAttributeModel, models.StudyModel
    query = select(study.study_name, attr.value_json).join(attr, attr.study_id == study.study_id)
    rows = session.execute(query.where(attr.key == attributes.CONFIRMS).order_by(study.study_id.desc())).all()
    links = ((name, _read_link(text)) for name, text in rows)
    return next((name for name, link in links if link is not None and link.uid == uid), None)


@patient
def source_of(storage: SharedStorage, confirmation: StudyRecord) -> StudyRecord | None:
    """The study that a confirmation confirms; None where it was deleted."""
    link, study = link_of(storage, confirmation.study_id), models.StudyModel
    query = select(study.study_name).join(StudyRow, StudyRow.study_id == study.study_id)
    with storage.backend.read() as session:
        name = session.scalar(query.where(StudyRow.uid == link.uid)) if link is not None else None
    return studies.find(storage, name) if name is not None else None


# -- What it trains


class _AlreadyThere(Exception):
    """Somebody else has asked at the same moment."""


def begin(storage: SharedStorage, spec: StudySpec, link: Link) -> StudyRecord:
    """A new confirmation with all its trials enqueued, in one transaction; the one that is there already, if any.

    It is called after the study that it confirms, with a number where another study has that name.
    """
    name = f"{link.study}-confirm"
    source = studies.find(storage, link.study)

    def along(session: Session, study_id: int) -> None:
        models.StudyModel.find_or_raise_by_id(source.study_id, session, for_update=True)
        if _name_of(session, link.uid) is not None:
            raise _AlreadyThere
        _ask(storage, link, session, study_id)

    for free in (name, None):
        try:
            return studies.create(storage, spec, name=free, stem=name, along=along)
        except _AlreadyThere:
            break
        except UsageError:  # the name is taken
            continue
    there = of(storage, source)
    if there is None:
        raise UsageError(f"the confirmation of {link.study} was deleted at this moment: ask again")
    return ask(storage, there, link)


def ask(storage: SharedStorage, confirmation: StudyRecord, link: Link) -> StudyRecord:
    """Have a confirmation train all that `link` says too; what it lacks of that is enqueued.

    Raises:
        UsageError: it is gone.
    """

    def attempt(session: Session, _again: bool) -> None:
        models.StudyModel.find_or_raise_by_id(confirmation.study_id, session, for_update=True)
        _ask(storage, link, session, confirmation.study_id)

    try:
        storage.backend.write_once(attempt)
    except KeyError:
        raise UsageError(f"study {confirmation.name!r} is gone: somebody deleted it") from None
    return studies.find(storage, confirmation.name)


def _ask(storage: SharedStorage, link: Link, session: Session, study_id: int) -> None:
    """Optuna's study is locked. Its budget is what was started and counts, and what waits."""
    known = _link(session, study_id)
    link = link if known is None else known.with_all_of(link)
    write_study_attribute(session, study_id, attributes.CONFIRMS, asdict(link))
    _fill(storage, session, study_id, link, without=ASKED_AGAIN)
    row = session.scalars(select(StudyRow).where(StudyRow.study_id == study_id).with_for_update()).one()
    row.trials = row.taken + _waiting(session, study_id)
    row.state, row.reason, row.errors_in_a_row = StudyState.RUNNING, "", 0


@patient
def fill_up(storage: SharedStorage, study_id: int) -> bool:
    """Enqueue again what ended in a mistake of the objective's, whose ticket was returned; whether any trial waits."""
    with storage.backend.read() as session:
        link = _link(session, study_id)
        if link is None or not _lacking(link, _had(session, study_id, MENDED)):
            return _waiting(session, study_id) > 0
    with storage.backend.write() as session:
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        _fill(storage, session, study_id, link, without=MENDED)
        return _waiting(session, study_id) > 0


def lacking(storage: SharedStorage, confirmation: StudyRecord, link: Link, without: Collection[Outcome]) -> int:
    """How many trials are neither trained, nor enqueued, nor in training that `link` says there are to be.

    Those that ended `without` the outcomes are not there.
    """
    return sum(_lacking(link, _read_had(storage, confirmation.study_id, without)).values())


@patient
def _read_had(storage: SharedStorage, study_id: int, without: Collection[Outcome]) -> Counter[int]:
    with storage.backend.read() as session:
        return _had(session, study_id, without)


def _fill(storage: SharedStorage, session: Session, study_id: int, link: Link, without: Collection[Outcome]) -> None:
    """Round by round, so that one which is interrupted has as many seeds of each recipe."""
    lack = _lacking(link, _had(session, study_id, without))
    most = max(lack.values(), default=0)
    for left in range(most, 0, -1):
        for recipe in link.recipes:
            if lack[recipe.trial] >= left:
                told = {RECIPE: recipe.trial, **recipe.noted}
                origin = f"trial {recipe.trial} of {link.study}"
                storage.backend.enqueue(session, study_id, recipe.params, origin=origin, told=told)


def _lacking(link: Link, had: Mapping[int, int]) -> Counter[int]:
    return +Counter({recipe.trial: link.seeds - had.get(recipe.trial, 0) for recipe in link.recipes})


def _had(session: Session, study_id: int, without: Collection[Outcome]) -> Counter[int]:
    """Trials of each recipe, in whatever state."""
    trial, attr = models.TrialModel, models.TrialUserAttributeModel
    query = (
        select(attr.value_json, trial.state, TrialRow.outcome)
        .join(trial, trial.trial_id == attr.trial_id)
        .outerjoin(TrialRow, TrialRow.trial_id == trial.trial_id)
        .where(trial.study_id == study_id, attr.key == RECIPE)
    )
    found: Counter[int] = Counter()
    for text, state, outcome in session.execute(query).all():
        ended = Outcome(outcome or Outcome.of(state)) if state.is_finished() else None
        if (recipe := recipe_number(text)) is not None and ended not in without:
            found[recipe] += 1
    return found


def recipe_number(text: str) -> int | None:
    """A recipe's trial as it is noted with one of ours; None: somebody else wrote that."""
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, int) else None


def _waiting(session: Session, study_id: int) -> int:
    trial = models.TrialModel
    query = select(func.count()).where(trial.study_id == study_id, trial.state == TrialState.WAITING)
    return session.scalar(query) or 0


def write_study_attribute(session: Session, study_id: int, key: str, value: Any) -> None:
    """Set a system attribute of a study, whether it was set before or not."""
    table = models.StudySystemAttributeModel
    row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
    statement = insert_for(session.connection().dialect.name, table.__table__).values(row)
    replaced = {"value_json": statement.excluded.value_json}
    session.execute(statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=replaced))
