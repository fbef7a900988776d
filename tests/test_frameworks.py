"""Lightning and Hugging Face train inside `train(run)`: the modules in docs/frameworks.md, with real workers."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from command import Dialin
from optuna.trial import TrialState
from studies import Inside, assert_settled, rows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "frameworks.md"
LIGHTNING, BERT = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)

# A callback of the framework's own beside ours: trial 1 is pruned in its third epoch, and with a file `slow` in the
# working folder an epoch begins late.
ACCIDENTS = """
import time
from pathlib import Path

import optuna
import PACKAGE


class Accidents(PACKAGE.BASE):
    def __init__(self, run):
        self.run, self.begun = run, 0

    def BEGIN(self, *args, **kwargs):
        self.begun += 1
        if self.run.trial.number == 1 and self.begun == 3:
            raise optuna.TrialPruned("enough")
        if Path("slow").exists():
            time.sleep(0.4)

"""
FRAMEWORKS = {
    "lightning": (LIGHTNING, "lightning", "Callback", "on_train_epoch_start", "last.ckpt"),
    "huggingface": (BERT, "transformers", "TrainerCallback", "on_epoch_begin", "checkpoint-*"),
}
HELD = (
    "SELECT w.pid, t.number FROM dialin_workers w JOIN dialin_leases USING (worker_id) "
    "JOIN trials t USING (trial_id) JOIN dialin_epochs e USING (trial_id) WHERE e.epoch = 3 AND t.number != 1"
)
EPOCHS = (
    "SELECT e.epoch, e.generation FROM dialin_epochs e JOIN trials t ON t.trial_id = e.trial_id "
    "WHERE t.number = :number ORDER BY e.epoch"
)


def with_accidents(source: str, package: str, base: str, begin: str) -> str:
    accidents = ACCIDENTS.replace("PACKAGE", package).replace("BASE", base).replace("BEGIN", begin)
    head, train, rest = source.partition("\ndef train(run):")
    return head + accidents + train + rest.replace("[report]", "[report, Accidents(run)]")


@pytest.mark.parametrize(("framework", "database"), [("lightning", "postgres_url"), ("huggingface", "sqlite_url")])
def test_a_framework_is_searched_and_a_killed_workers_trial_goes_on_from_its_checkpoint(
    dialin: Dialin, inside: Inside, tmp_path: Path, request: pytest.FixtureRequest, framework: str, database: str
) -> None:
    """The real command: what it forks workers from has imported the framework, once for all of them."""
    storage_url = request.getfixturevalue(database)
    *source, checkpoint = FRAMEWORKS[framework]
    (tmp_path / "mine.py").write_text(with_accidents(*source))
    (tmp_path / "slow").touch()
    files = tmp_path / "files"
    options = ("--trials", 3, "--workers", 2, "--pruner", "none", "--files", files, "--storage", storage_url)

    def held() -> list[tuple[int, int]]:
        try:
            return [(pid, number) for pid, number in rows(storage_url, HELD)]
        except Exception:  # the tables are not there yet
            return []

    run = dialin.start("run", "./mine.py", *options)
    run.wait_until(held, 90)
    [(pid, victim), *_] = held()
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "slow").unlink()
    assert run.wait() == 0, run.stderr
    assert "its trial goes on elsewhere" in run.stdout
    found = assert_settled(storage_url, "mine-1", 3)
    assert [trial.state for trial in found] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert found[1].user_attrs["reason"] == "enough"
    assert sorted(found[1].intermediate_values) == [1, 2]
    for trial in (found[0], found[2]):
        assert sorted(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
        assert trial.value == max(trial.intermediate_values.values())
        assert {"optimizer", "width"} <= trial.params.keys()
        assert [*files.glob(f"mine-1-*/trial-{trial.number:05d}/own.g*/{checkpoint}")]
    generations = [generation for _epoch, generation in rows(storage_url, EPOCHS, number=victim)]
    assert generations in ([1, 1, 2, 2, 2, 2], [1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 2]), "it began again"
    if framework == "lightning":  # the module is kept
        assert inside("best", "--weights", "best.pt", "--files", files, "--storage", storage_url).status == 0
        weights = torch.load(tmp_path / "best.pt", weights_only=True)
        assert [*weights] == ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]


def test_a_metric_called_epoch_is_left_to_the_frameworks_loggers(tmp_path: Path) -> None:
    from search.integrations.lightning import ReportCallback

    told: list[dict[str, Any]] = []
    run = SimpleNamespace(dir=tmp_path, over=False, report=lambda **numbers: told.append(numbers))
    metrics = {"accuracy": torch.tensor(0.5), "epoch": torch.tensor(7.0)}
    trainer = SimpleNamespace(
        sanity_checking=False,
        current_epoch=0,
        callback_metrics=metrics,
        save_checkpoint=lambda *_, **__: None,
        should_stop=False,
    )
    callback = ReportCallback(cast("Any", run))
    callback.on_validation_end(trainer, None)
    callback.on_train_epoch_end(trainer, None)
    assert told == [{"epoch": 1, "accuracy": metrics["accuracy"]}]
