"""From the database to a view: where a study stands and what has ended since the last look.

Used by `search.launch`, which started the workers, and by `dialin watch`, which did not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from search import printing
from search.live import View
from storage import queries, roster, studies
from storage.errors import UsageError
from storage.queries import SettledTrial, StudyStatus
from storage.shared import SharedStorage
from storage.studies import StudyRecord

# Settled and adopted trials are asked for by time; one that commits late may lie a little before the newest seen.
OVERLAP_SECONDS = 5.0
# A look that took a second is followed by so many without one, and any look by five at most: workers train meanwhile,
# perhaps on the same processors, and of 10,000 trials a look takes half a second.
REST, LONGEST_REST_SECONDS = 20.0, 5.0


class Feed:
    """Remembers what a view has been told already."""

    def __init__(self, storage: SharedStorage, study: StudyRecord, clock: Callable[[], float] = time.monotonic) -> None:
        """What has ended before is not told."""
        self._storage, self._clock, self._took = storage, clock, 0.0
        self._name = study.name
        self._newest = study.created_at + queries.status(storage, study).age
        before = queries.settled(storage, study, self._newest - OVERLAP_SECONDS)
        self._known = {trial.number for trial in before}
        self._adopted_at = self._newest
        self._adopted = {(one.number, one.generation) for one in self._adoptions(study)}

    def rest(self, least: float) -> float:
        """After how many seconds to look again, at least: looking takes a twentieth of the time where it can."""
        return max(least, min(REST * self._took, LONGEST_REST_SECONDS))

    def show(self, view: View) -> StudyStatus | None:
        """Tell the view what is new; where the study stands now, None when it is gone."""
        began = self._clock()
        try:
            return self._show(view)
        finally:
            self._took = self._clock() - began

    def _show(self, view: View) -> StudyStatus | None:
        try:
            study = studies.find(self._storage, self._name)
        except UsageError:
            return None
        settled = self._settled(study)
        status = queries.status(self._storage, study)
        if status.over:  # nothing is asked after this: not without what ended between the two readings
            settled += self._settled(study)
        self._tell_adoptions(study, view)
        best = queries.best(self._storage, study)
        view.update(status, best[0] if best else None, settled)
        return status

    def _settled(self, study: StudyRecord) -> list[SettledTrial]:
        """Trials that have ended and were not told yet."""
        found = queries.settled(self._storage, study, self._newest - OVERLAP_SECONDS)
        fresh = [trial for trial in found if trial.number not in self._known]
        self._known.update(trial.number for trial in fresh)
        self._newest = max([self._newest, *(trial.settled_at for trial in fresh)])
        return fresh

    def _adoptions(self, study: StudyRecord) -> list[roster.Adoption]:
        return roster.adoptions(self._storage, study, self._adopted_at - OVERLAP_SECONDS)

    def _tell_adoptions(self, study: StudyRecord, view: View) -> None:
        for one in self._adoptions(study):
            if (one.number, one.generation) not in self._adopted:
                self._adopted.add((one.number, one.generation))
                self._adopted_at = max(self._adopted_at, one.began_at)
                view.note(printing.adoption_line(one))
