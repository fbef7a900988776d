"""The trial's own log: a line when it starts, one an epoch, one when it ends. Always on.

It prints, and a worker's standard output is the log of the trial in hand (`search.trial_log`).
"""

from __future__ import annotations

from search.trackers.tracker import Ending, Point, TrialInfo


class Plain:
    """Prints what it is told."""

    def __init__(self) -> None:
        self._info: TrialInfo | None = None

    def start(self, info: TrialInfo) -> None:
        self._info = info
        what = "; ".join(part for part in (info.summary, info.worker and f"on {info.worker}") if part)
        print(f"trial {info.number} of {info.study}" + (f": {what}" if what else ""), flush=True)
        if info.resumed_from:
            print(f"goes on after epoch {info.resumed_from}", flush=True)

    def epoch(self, point: Point) -> None:
        length = self._info.epochs if self._info is not None else 0
        # A bare function counts its steps as it likes.
        at = f"epoch {point.epoch}/{length}" if length else f"step {point.epoch}"
        numbers = [f"{name} {value:.4g}" for name, value in point.metrics.items()]
        print("  ".join([at, *numbers, f"{point.seconds:.3g} s"]), flush=True)

    def end(self, ending: Ending) -> None:
        say = ending.outcome.replace("_", " ")
        if ending.outcome == "complete" and ending.value is not None and self._info is not None:
            say += f": {self._info.metric} {ending.value:.4g}"
            say += f" in epoch {ending.best_epoch}" if ending.best_epoch else ""
        if ending.reason.startswith(say):
            say = ending.reason  # "pruned after epoch 3 of 15"
        elif ending.reason:
            say += ("; " if ":" in say else ": ") + ending.reason
        print(say, flush=True)
        self._info = None
