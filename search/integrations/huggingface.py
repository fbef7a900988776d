"""Hugging Face's Trainer inside `train(run)`: it trains, and this callback reports every evaluation.

    def train(run):
        report = ReportCallback(run)
        arguments = TrainingArguments(**report.arguments)
        optimizer = run.recipe.optimizer(net)
        schedule = run.recipe.schedule(optimizer, steps_per_epoch=...)
        trainer = Trainer(net, arguments, ..., optimizers=(optimizer, schedule), callbacks=[report])
        trainer.train(resume_from_checkpoint=report.last_checkpoint)

The searched metric has the name that the Trainer gives it: `eval_accuracy`, `eval_loss`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from search.errors import ObjectiveError
from search.loop import Run
from search.reporting import Interrupted

# Beside a checkpoint of the Trainer's: it is whole, and its epoch is on record.
REPORTED = "reported.json"
# What the Trainer says beside its metrics.
NO_METRIC = ("epoch", "_runtime", "_per_second")


class ReportCallback(TrainerCallback):
    """Each evaluation is an epoch of the run: it is followed by a checkpoint, and then reported.

    The trial is pruned, handed back and ended through `run.report` as in any own loop.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._metrics: dict[str, float] = {}

    @property
    def arguments(self) -> dict[str, Any]:
        """For TrainingArguments: length, batch size and seed of the run, and nothing that writes to a terminal.

        Two checkpoints are kept, as one may be half written when a worker dies.
        """
        return {
            "output_dir": str(self._run.dir),
            "num_train_epochs": self._run.length,
            "per_device_train_batch_size": self._run.recipe.batch_size,
            "seed": self._run.seed % 2**32,
            "use_cpu": self._run.device.type == "cpu",
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "save_total_limit": 2,
            "disable_tqdm": True,
            "report_to": "none",
        }

    @property
    def last_checkpoint(self) -> str | None:
        """What `train(resume_from_checkpoint=...)` goes on from, None in a new trial."""
        reported = {_epoch(path.parent): path.parent for path in self._run.dir.glob(f"checkpoint-*/{REPORTED}")}
        return str(reported[max(reported)]) if reported else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count on from the checkpoint that the Trainer has loaded, if it has. Raises ObjectiveError."""
        if Path(args.output_dir) != self._run.dir:
            raise ObjectiveError("TrainingArguments need output_dir=run.dir, where whoever goes on will look")
        if args.device.type == "cuda" and (args.n_gpu > 1 or args.device != self._run.device):
            raise ObjectiveError(
                f"the Trainer takes every GPU it sees, but this worker's is {self._run.device}: start one worker "
                "for each GPU, with CUDA_VISIBLE_DEVICES"
            )
        if state.global_step > 0:
            self._run.go_on_after(_epoch(self._folder(state)))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the metrics until there is a checkpoint to go on from."""
        if state.global_step > 0:
            self._metrics, control.should_save = kwargs["metrics"], True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report."""
        metrics, self._metrics = self._metrics, {}
        if not metrics:
            return
        numbers: dict[str, Any] = {name: value for name, value in metrics.items() if not name.endswith(NO_METRIC)}
        try:
            self._run.report(**numbers)
        except Interrupted:  # whoever takes the trial over goes on from here
            self._mark(state)
            raise
        self._mark(state)
        control.should_training_stop = control.should_training_stop or self._run.over

    def _folder(self, state: Any) -> Path:
        return self._run.dir / f"checkpoint-{state.global_step}"

    def _mark(self, state: Any) -> None:
        (self._folder(state) / REPORTED).write_text(json.dumps({"epoch": self._run.epoch}))


def _epoch(folder: Path) -> int:
    return int(json.loads((folder / REPORTED).read_text())["epoch"])
