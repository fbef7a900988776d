"""All that a report shows, read from the database once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import create_trial

from search import confirmation, ranking
from search.advice import Advice, Evidence, advise_on
from search.confirmation import Confirmation
from storage import costs, first_trials, queries, records, studies
from storage.costs import Cost, StudyCosts
from storage.first_trials import FirstTrial
from storage.history import evenly
from storage.overview import TrialLine, overview
from storage.queries import RankedTrial, StudyStatus
from storage.records import RecordedTrial, Span
from storage.shared import SharedStorage
from storage.studies import StudyRecord

# Of so many judged trials an importance says something; more than so many would only take longer.
FEWEST_RANKED, MOST_RANKED = 20, 500
# A knob that fewer of the trials have is left out: of another space's trials some are on record.
ALWAYS = 0.8
TOP = 5


@dataclass(frozen=True)
class ReportData:
    """A study at one moment.

    `best`: confirmed recipes first. `answer`: what fresh seeds have shown, None where nobody asked; `again`: what they
    have cost, which is not in `cost`. `made_at`: seconds since 1970.
    """

    study: StudyRecord
    status: StudyStatus
    trials: Sequence[RecordedTrial]
    lines: Sequence[TrialLine]
    best: Sequence[RankedTrial]
    answer: Confirmation | None
    cost: StudyCosts
    again: Cost | None
    spans: Sequence[Span]
    first: Sequence[FirstTrial]
    made_at: float

    @cached_property
    def evidence(self) -> Evidence:
        return Evidence(self.study, self.trials, self.answer)

    @cached_property
    def advice(self) -> Advice:
        return advise_on(self.evidence)

    @cached_property
    def importances(self) -> dict[str, float]:
        return importances(self.evidence)

    @cached_property
    def settled(self) -> list[RecordedTrial]:
        """In the order in which they ended."""
        over = [one for one in self.trials if one.settled_at is not None]
        return sorted(over, key=lambda one: (one.settled_at or 0.0, one.number))

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What each knob was drawn from last, in the order in which they were first drawn."""
        found: dict[str, BaseDistribution] = {}
        for one in self.trials:
            found |= one.distributions
        return found

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than another."""
        return value > than if self.study.direction == "maximize" else value < than


def gather(storage: SharedStorage, study: StudyRecord) -> ReportData:
    """Read it all. A study that runs meanwhile is shown as it was within a second or so."""
    answer = confirmation.read(storage, study)
    return ReportData(
        study=study,
        status=queries.status(storage, study),
        lines=overview(storage, study),
        best=[one.trial for one in ranking.ranking(storage, study, TOP, answer)],
        answer=answer,
        cost=costs.of_study(storage, study),
        again=costs.of_study(storage, studies.find(storage, answer.name)).total if answer is not None else None,
        spans=records.spans(storage, study),
        first=first_trials.noted(storage, study.study_id),
        trials=records.trials(storage, study),  # the last: whatever the others speak of is among them
        made_at=time.time(),
    )


def importances(evidence: Evidence) -> dict[str, float]:
    """How much of the differences between trials each knob explains, the most first; empty where trials are too few.

    fANOVA (Hutter et al. 2014) as Optuna has it, of the knobs that all trials have, on all judged trials with their
    standing as the value, as pruned ones have no final value. Of very many trials an even choice is looked at.
    """
    knobs = [knob for knob in evidence.knobs if len(knob.rows) >= ALWAYS * len(evidence.judged)]
    rows = [index for index in range(len(evidence.judged)) if all(index in knob.rows for knob in knobs)]
    if len(rows) < FEWEST_RANKED or len(knobs) < 2:
        return {}
    drawn = {knob.name: knob.distribution for knob in knobs}
    study = trials_alone()
    for index in evenly(rows, MOST_RANKED):
        params = {name: evidence.judged[index].params[name] for name in drawn}
        study.add_trial(create_trial(value=-float(evidence.standing[index]), params=params, distributions=drawn))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # all trials alike
        return {}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def trials_alone() -> optuna.Study:
    """A study that nobody stores, made without the line that Optuna logs of one."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        return optuna.create_study()
    finally:
        optuna.logging.set_verbosity(level)
