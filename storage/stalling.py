"""When to stop: how much the next trials of a study are likely to improve on its best, and the least a person wants.

The estimate needs no model of the space. Values of the last trials above a high threshold are taken for exponentially
distributed, as the extremes of most distributions are in the limit (peaks over threshold: Pickands 1975; Coles 2001,
chapter 4). A metric that cannot exceed some value has a shorter tail: then the gain is less than estimated, and a study
ends later than it could. Samplers that get better are seen soon, as only the last trials count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.closing import close
from storage.constraints import feasible
from storage.optuna_internals import models
from storage.outcomes import Outcome
from storage.patience import patient
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.tables import TrialRow

# The system attribute of Optuna's study with the least gain that is wanted of so many trials more.
KEY = "dialin:min_gain"
AHEAD = 20
# So many of the last settled trials are looked at; before so many, and so many complete ones, nothing is said.
WINDOW, LEAST, LEAST_COMPLETE = 40, 20, 8
# So many values make the tail, and at most half of those there are.
TAIL = 10


@dataclass(frozen=True)
class Outlook:
    """What the next `AHEAD` trials are likely to bring.

    Attributes:
        wanted: the least gain for which the study goes on; None: it goes on whatever they bring.
        gain: expected improvement of the best value; None: too early to tell.
        chance: that there is any.
    """

    wanted: float | None = None
    gain: float | None = None
    chance: float = 1.0

    @property
    def stalled(self) -> bool:
        """Whether less is to be expected than is wanted."""
        return self.wanted is not None and self.gain is not None and self.gain < self.wanted


def expected(values: Sequence[float | None], best: float, ahead: int = AHEAD) -> tuple[float, float] | None:
    """Expected improvement on `best` by the next trials, and the chance of any; None: too early to tell.

    Args:
        values: of the last trials, higher is better; None for one that did not get as far as a value.
        best: the study's, at least the highest of `values`.
    """
    complete = sorted((value for value in values if value is not None), reverse=True)
    if len(values) < LEAST or len(complete) < LEAST_COMPLETE:
        return None
    tail = min(TAIL, len(complete) // 2)
    threshold = complete[tail]
    excess = sum(value - threshold for value in complete[:tail]) / tail
    if excess <= 0:
        return 0.0, 0.0
    # How many of the next trials exceed the best is Poisson with this mean, and each exceeds it by `excess` on average.
    rate = ahead * tail / len(values) * math.exp(-(best - threshold) / excess)
    return excess * _mean_maximum(rate), -math.expm1(-rate)


def _mean_maximum(rate: float) -> float:
    """The mean of the largest of Poisson(rate) standard exponentials, 0 of none: the integral of (1 - exp(-t)) / t."""
    total, term = 0.0, -1.0
    for n in range(1, 200):
        term *= -rate / n
        total += term / n
    return total


def look(session: Session, study: StudyRecord) -> Outlook:
    """A study's outlook."""
    attr = models.StudySystemAttributeModel
    said = session.scalar(select(attr.value_json).where(attr.study_id == study.study_id, attr.key == KEY))
    wanted = json.loads(said) if said is not None else None
    trial, value = models.TrialModel, models.TrialValueModel
    ended = (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED)
    rows = session.execute(
        select(TrialRow.outcome, value.value, feasible(trial.trial_id))
        .join(trial, trial.trial_id == TrialRow.trial_id)
        .outerjoin(value, value.trial_id == trial.trial_id)
        .where(TrialRow.study_id == study.study_id, TrialRow.outcome.in_(ended))
        .order_by(TrialRow.settled_at.desc(), TrialRow.trial_id.desc())
    ).all()
    sign = 1.0 if study.direction == "maximize" else -1.0
    values = [sign * one if outcome == Outcome.COMPLETE and fit else None for outcome, one, fit in rows]
    found = expected(values[:WINDOW], max((one for one in values if one is not None), default=0.0))
    return Outlook(wanted) if found is None else Outlook(wanted, *found)


@patient
def outlook(storage: SharedStorage, study: StudyRecord) -> Outlook:
    """A study's outlook, in a transaction of its own."""
    with storage.backend.read() as session:
        return look(session, study)


def wanted(storage: SharedStorage, study: StudyRecord) -> float | None:
    """The least gain for which a study goes on; None: it goes on whatever trials gain."""
    found: float | None = storage.get_study_system_attrs(study.study_id).get(KEY)
    return found


def attrs(gain: float | None) -> dict[str, float | None]:
    """What makes a study stop when the next trials are likely to gain less; None: never."""
    return {KEY: gain}


def in_words(outlook: Outlook, metric: str) -> str:
    """`20 more trials are likely to gain 0.0012 accuracy (34% chance of any gain)`."""
    if outlook.gain is None:
        return f"too early to tell what {AHEAD} more trials would gain"
    return f"{AHEAD} more trials are likely to gain {outlook.gain:.2g} {metric} ({outlook.chance:.0%} chance of any)"


def close_if_stalled(storage: SharedStorage, study: StudyRecord) -> str:
    """Let no new trial start where too little is to be gained; the reason, empty where the study goes on."""
    found = outlook(storage, study)
    if not found.stalled:
        return ""
    reason = f"{in_words(found, study.metric)}, less than {found.wanted:g}"
    return reason if close(storage, study.study_id, reason) else ""
