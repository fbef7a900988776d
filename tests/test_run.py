"""`dialin run`, `worker`, `stop` and `resume` with real processes on both databases: exact budgets, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Dialin
from optuna.trial import TrialState
from studies import SLOW, TINY, Inside, assert_settled, rows, states, trials, value

EPOCHS = (
    "SELECT t.number, e.epoch, e.generation, e.worker_id, e.ended_at FROM dialin_epochs e "
    "JOIN trials t ON t.trial_id = e.trial_id ORDER BY t.number, e.epoch"
)


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capsys, monkeypatch)


class TestManyWorkers:
    def test_a_study_that_is_stopped_goes_on_where_it_was(
        self, dialin: Dialin, inside: Inside, tmp_path: Path, storage_url: str
    ) -> None:
        """Three workers of two commands, `dialin stop` in the middle, `dialin resume`: six trials, no epoch twice."""
        here = {"DIALIN_STORAGE": storage_url}
        second = dialin.start("worker", "--wait", "--objective", SLOW, **here)
        options = ("--trials", 6, "--workers", 2, "--pruner", "none")
        run = dialin.start("run", SLOW, *options, **here)

        def all_three_are_in_the_middle() -> bool:
            try:
                epochs = rows(storage_url, "SELECT worker_id FROM dialin_epochs WHERE epoch = 3")
            except Exception:  # the tables are not there yet
                return False
            return len({worker for (worker,) in epochs}) == 3

        run.wait_until(all_three_are_in_the_middle)
        assert inside("stop", "slow-1", "--storage", storage_url).status == 0
        assert run.wait(timeout=30) == 1
        assert "stopped: by `dialin stop`" in run.stdout
        assert "dialin resume slow-1" in run.stdout
        second.wait_for("slow-1")
        second.wait_until(lambda: value(storage_url, "SELECT count(*) FROM dialin_leases WHERE expires_at > 0") == 0)
        second.kill()
        before = rows(storage_url, EPOCHS)
        left = [trial for trial in trials(storage_url, "slow-1") if trial.state == TrialState.RUNNING]
        assert left, "nothing was in hand"
        assert inside("status", "--storage", storage_url).out.count("to be adopted") == len(left)

        (tmp_path / "hurry").touch()
        resumed = dialin("resume", "slow-1", "--objective", SLOW, "--workers", 2, DIALIN_STORAGE=storage_url)
        assert resumed.returncode == 0, resumed.stderr
        found = assert_settled(storage_url, "slow-1", 6)
        assert states(found) == {TrialState.COMPLETE: 6}
        after = rows(storage_url, EPOCHS)
        assert [(number, epoch) for number, epoch, *_ in after] == [(n, e) for n in range(6) for e in range(1, 41)]
        assert {*before} < {*after}, "what was trained before the stop was trained again"
        generations = {number: generation for number, _epoch, generation, *_ in after}
        assert generations == {n: 2 if n in {trial.number for trial in left} else 1 for n in range(6)}
        assert len({worker for *_, worker, _ended in before}) == 3

    def test_a_budget_is_exact_and_can_be_enlarged(self, inside: Inside, storage_url: str) -> None:
        options = ("--storage", storage_url)
        assert inside("run", TINY, "--trials", 5, "--workers", 2, *options).status == 0
        assert_settled(storage_url, "tiny-1", 5)
        again = inside("resume", *options, "--objective", TINY)
        assert again.status == 2
        assert again.err == "dialin: tiny-1 is finished (5 of 5 trials): dialin resume tiny-1 --trials +20 goes on\n"
        more = inside("resume", "--trials", "+5", *options, "--objective", TINY)
        assert more.status == 0
        assert "10/10 trials" in more.out
        assert_settled(storage_url, "tiny-1", 10)
