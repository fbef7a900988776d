"""Lightning inside `train(run)`: its Trainer trains, and this callback reports every epoch that it has validated.

    def train(run):
        report = ReportCallback(run)
        trainer = lightning.Trainer(callbacks=[report], **report.trainer_options)
        trainer.fit(Net(run), train_loader, valid_loader, ckpt_path=report.last_checkpoint)

`Net` logs the searched metric under the objective's name for it, and its `configure_optimizers` returns
`run.recipe.optimizer(self)` and `run.recipe.schedule(optimizer)`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.loop import Run
from search.reporting import Interrupted

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    # Two packages have the same classes: whichever the objective has imported is meant.
    _OLDER = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    Callback = importlib.import_module("pytorch_lightning" if _OLDER else "lightning.pytorch").Callback


class ReportCallback(Callback):
    """Reports the scalars that were logged in an epoch with validation, then writes the checkpoint to go on from.

    The trial is pruned, handed back and ended through `run.report` as in any own loop.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._epoch = 0
        self._validated = False

    @property
    def trainer_options(self) -> dict[str, Any]:
        """Arguments for the Trainer: the run's length, this worker's device, and nothing that writes to a terminal."""
        device = self._run.device
        return {
            "max_epochs": self._run.length,
            "accelerator": device.type,
            "devices": 1 if device.type == "cpu" else [device.index or 0],
            "default_root_dir": self._run.dir,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }

    @property
    def last_checkpoint(self) -> Path | None:
        """What `fit(ckpt_path=...)` goes on from, None in a new trial."""
        return self._path if self._path.exists() else None

    @property
    def _path(self) -> Path:
        return self._run.dir / "last.ckpt"

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Remember that the epoch has metrics; the sanity check before training has none."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Report."""
        if not self._validated:
            return
        self._validated, self._epoch = False, trainer.current_epoch + 1
        logged = trainer.callback_metrics.items()
        # Modules log "epoch" for their loggers; it is report's own argument.
        metrics = {name: value for name, value in logged if value.numel() == 1 and name != "epoch"}
        try:
            self._run.report(epoch=self._epoch, **metrics)
        except Interrupted:  # whoever takes the trial over goes on from here
            trainer.save_checkpoint(self._path, weights_only=False)
            raise
        trainer.save_checkpoint(self._path, weights_only=False)
        trainer.should_stop = trainer.should_stop or self._run.over

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of this callback: the epoch that was reported last."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning when it goes on from a checkpoint."""
        self._epoch = state_dict["epoch"]
        self._run.go_on_after(self._epoch)
