"""How a trial can end, and the Optuna state that each outcome is stored as; every layer reads this table."""

from __future__ import annotations

from enum import StrEnum

from optuna.trial import TrialState


class Outcome(StrEnum):
    """How a trial ended. `state` is what Optuna and its dashboard show for it."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    LOST = "lost"
    ERROR = "error"

    @classmethod
    def of(cls, state: TrialState) -> Outcome:
        """How a trial counts that was finished through Optuna's own interface, with no word from a worker."""
        return {TrialState.COMPLETE: cls.COMPLETE, TrialState.PRUNED: cls.PRUNED}.get(state, cls.ERROR)

    @property
    def text(self) -> str:
        """For people: "out of memory"."""
        return self.value.replace("_", " ")

    @property
    def state(self) -> TrialState:
        return _STATES[self]


_STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    # A bad point that samplers should learn from, not an error: its NaN stays on record.
    Outcome.DIVERGED: TrialState.PRUNED,
    Outcome.OUT_OF_MEMORY: TrialState.FAIL,
    Outcome.LOST: TrialState.FAIL,
    Outcome.ERROR: TrialState.FAIL,
}
