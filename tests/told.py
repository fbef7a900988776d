"""For tests of trackers: a trial to tell them of, and one that goes on under another worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from search.trackers import HANDED_BACK, TRACKERS, Ending, Point, Tracker, TrialInfo

RECIPE: dict[str, float | str] = {"optimizer": "adam", "lr": 0.01, "width": 8}
INFO = TrialInfo("digits-1", "digits-1-0a1b2c3d", 12, "accuracy", 15, RECIPE, "adam lr 0.01 width 8", "cpu/0")
COMPLETE = Ending("complete", 0.8, best_epoch=4, kept=True)
HAND_BACK = Ending(HANDED_BACK)


def made(name: str, folder: Path) -> Tracker:
    """The tracker of this name, as a worker makes it."""
    return TRACKERS[name].tracker(folder)


def point(epoch: int) -> Point:
    """An epoch; the same whoever trains it."""
    return Point(epoch, {"accuracy": 1 - 1 / (epoch + 1), "train_loss": 1 / epoch, "lr": 0.01}, 0.5, 1e9 + epoch)


def tell(tracker: Tracker, info: TrialInfo, epochs: Iterable[int], ending: Ending | None) -> None:
    """A trial from its start to its ending; None: the worker was killed."""
    tracker.start(info)
    for epoch in epochs:
        # Whoever trains an epoch again gets the same numbers, but later.
        tracker.epoch(replace(point(epoch), at=point(epoch).at + 100 * bool(info.history)))
    if ending is not None:
        tracker.end(ending)


def going_on_after(epoch: int) -> TrialInfo:
    """The same trial, as whoever adopts it is told of it."""
    return replace(INFO, resumed_from=epoch, history=tuple(point(one) for one in range(1, epoch + 1)))
