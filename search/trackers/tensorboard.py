"""TensorBoard: every metric by epoch, and the recipe for the HParams tab, in a folder a trial.

tensorboard --logdir dialin-files
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from search.trackers.tracker import VALUE, Ending, Point, TrialInfo


class TensorBoard:
    """Writes below `tensorboard/` of the study's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._info: TrialInfo | None = None
        self._last = 0

    def start(self, info: TrialInfo) -> None:
        """A trial that goes on has its history written anew, in place of what its owners before wrote."""
        folder = self._folder / info.name
        # TensorBoard reads the files of a folder in the order of their names, and forgets what it has read so far
        # when one begins with a purge.
        self._writer = SummaryWriter(str(folder), purge_step=0 if _comes_last(folder) else None)
        self._info, self._last = info, 0
        # Without the summary of the experiment (`exp`): it names the knobs of all trials, and each has its own.
        # TensorBoard gathers them from the trials when there is none.
        _exp, recipe, _end = hparams(dict(info.recipe), {})
        self._writer._get_file_writer().add_summary(recipe)
        for point in info.history:
            self._write(self._writer, point)
        self._writer.flush()

    def epoch(self, point: Point) -> None:
        """Flushed at once: a worker that is killed has told what it recorded."""
        assert self._writer is not None
        self._write(self._writer, point)
        self._writer.flush()

    def end(self, ending: Ending) -> None:
        """The trial's value is a scalar too, which the HParams tab sorts by."""
        writer, info = self._writer, self._info
        assert writer is not None
        assert info is not None
        self._writer = None
        if ending.final and ending.value is not None and math.isfinite(ending.value):
            writer.add_scalar(VALUE, ending.value, ending.best_epoch or self._last)
        if ending.final:
            _exp, _recipe, end = hparams(dict(info.recipe), {})
            writer._get_file_writer().add_summary(end)
        writer.close()

    def _write(self, writer: SummaryWriter, point: Point) -> None:
        self._last = point.epoch
        for name, value in point.metrics.items():
            writer.add_scalar(name, value, point.epoch, walltime=point.at)


def _comes_last(folder: Path) -> bool:
    """Whether there are files already; the name of one that is made when this returns comes after theirs.

    Names hold the second in which a file was made. One from the future, by another machine's clock, is removed:
    what was in it is told again.
    """
    before = {file: int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")}
    time.sleep(max([0.0, *(left for made in before.values() if (left := made + 1 - time.time()) <= 1)]))
    for file, made in before.items():
        if made >= int(time.time()):
            file.unlink(missing_ok=True)
    return bool(before)
