"""What an operator does to studies through the server: the functions of the commands, on behalf of a token's name.

Code is never sent: a study is submitted by the name of an objective that this server was started with, or of one that
comes with the package.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from search import calls, children, options, printing, searches
from search.allowed import Allowed
from search.place import Place
from search.server.shapes import Change, Scalar, Submission
from search.terms import MoreOfStudy, NewStudy
from storage import queries, steering
from storage.errors import DialinError, UsageError
from storage.shared import SharedStorage
from storage.steering import Wish
from storage.studies import StudyRecord

# Seconds that an objective has for its one batch, data and imports included; and that another waits for its turn.
TRYING_SECONDS = 300.0
TURN_SECONDS = 30.0


class Control:
    """Every writing of the API."""

    def __init__(
        self,
        storage: SharedStorage,
        place: Place,
        objectives: Sequence[str] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`place`: where an objective is tried. `objectives` that may be submitted, beside the built-in ones.

        `stop()`: whether the server ends, so that none is to be tried any longer.
        """
        self._storage, self._place, self._allowed, self._stop = storage, place, Allowed(objectives), stop
        self._trying = Lock()

    def submit(self, wanted: Submission, by: str) -> str:
        """The name of a new study in the queue. Its objective is tried on one batch here first, one after another.

        Raises:
            UsageError: what was asked for cannot be.
            DialinError: the objective does not work, or not within TRYING_SECONDS.
        """
        reference = self._allowed.reference(wanted.objective)
        if reference is None:
            raise UsageError(f"{wanted.objective} is not allowed here: no --objective of this server names it")
        study = _asked_for(wanted)
        with self._alone():
            console = printing.Terminal(file=io.StringIO())
            return searches.submit(console, reference, study, self._place, by, self._storage)[1].name

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While an objective is tried: it may take all of a machine, and its code may never come back."""
        if not self._trying.acquire(timeout=TURN_SECONDS):
            raise UsageError("another objective is being tried here: ask again")
        try:
            if self._stop():
                raise DialinError("the server ends")
            with children.at_most(TRYING_SECONDS, self._stop):
                yield
        finally:
            self._trying.release()

    def change(self, study: StudyRecord, wanted: Change, by: str) -> None:
        """Another budget or place in the queue. Raises UsageError: it cannot be, or nothing is asked for."""
        said = wanted.model_dump() | {name: calls.more(getattr(wanted, name)) for name in ("trials", "total_epochs")}
        wish = MoreOfStudy(**said).wish(self._storage, study)
        if not str(wish):
            raise UsageError(f"nothing is asked for: say one of {', '.join(said)}")
        steering.change(self._storage, study.study_id, wish, by)

    def pause(self, study: StudyRecord, by: str) -> None:
        """Its workers hand back what they train. Raises UsageError."""
        self._refuse_finished(study, "pause")
        steering.pause(self._storage, study.study_id, by)

    def resume(self, study: StudyRecord, by: str) -> None:
        """Its workers go on. Raises UsageError."""
        self._refuse_finished(study, "resume")
        steering.resume(self._storage, study.study_id, Wish(), by)

    def stop(self, study: StudyRecord, by: str) -> None:
        """Its workers hand back what they train and end. Raises UsageError."""
        self._refuse_finished(study, "stop")
        steering.stop(self._storage, study.study_id, f"by {by}", by)

    def _refuse_finished(self, study: StudyRecord, what: str) -> None:
        if queries.is_finished(self._storage, study):
            raise UsageError(f"{study.name} is finished: there is nothing to {what}; more trials open it again")


def _asked_for(wanted: Submission) -> NewStudy:
    return NewStudy(
        name=wanted.study,
        trials=wanted.trials,
        epochs=wanted.epochs,
        sampler=wanted.sampler,
        pruner=wanted.pruner,
        space=calls.space(wanted.fix, {name: _range(said) for name, said in wanted.ranges.items()}),
        until=wanted.until,
        budget_seconds=options.seconds_of(wanted.budget),
        total_epochs=wanted.total_epochs,
        deadline=wanted.deadline,
        seed=wanted.seed,
        min_gain=wanted.min_gain,
        transfer=wanted.transfer,
        priority=wanted.priority,
        concurrency=wanted.concurrency,
    )


def _range(said: list[Scalar]) -> list[Scalar] | tuple[Scalar, Scalar]:
    """JSON has no tuples: two numbers are the ends of a range."""
    numbers = len(said) == 2 and all(isinstance(one, int | float) and not isinstance(one, bool) for one in said)
    return (said[0], said[1]) if numbers else said
