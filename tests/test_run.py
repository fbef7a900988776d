"""`dialin run`, `worker`, `stop` and `resume` with real processes on both databases: exact budgets, nothing lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from command import Dialin
from optuna.trial import TrialState
from studies import SLOW, TINY, Inside, assert_settled, meanwhile, rows, states, trials, value
from torchvision.datasets import FashionMNIST

EPOCHS = (
    "SELECT t.number, e.epoch, e.generation, e.worker_id, e.ended_at FROM dialin_epochs e "
    "JOIN trials t ON t.trial_id = e.trial_id ORDER BY t.number, e.epoch"
)


class TestManyWorkers:
    @pytest.mark.new_database
    def test_a_study_that_is_stopped_goes_on_where_it_was(
        self, dialin: Dialin, inside: Inside, tmp_path: Path, postgres_url: str
    ) -> None:
        """Three workers of two commands, `dialin stop` in the middle, `dialin resume`: six trials, no epoch twice."""
        here = {"DIALIN_STORAGE": postgres_url}
        second = dialin.start("worker", "--objective", SLOW, **here)
        options = ("--trials", 6, "--workers", 2, "--pruner", "none")

        def all_three_are_in_the_middle() -> bool:
            try:
                epochs = rows(postgres_url, "SELECT worker_id FROM dialin_epochs WHERE epoch = 3")
            except Exception:  # the tables are not there yet
                return False
            return len({worker for (worker,) in epochs}) == 3

        def stop() -> None:
            second.wait_until(all_three_are_in_the_middle)
            assert dialin("stop", "slow-1", DIALIN_STORAGE=postgres_url).returncode == 0

        with meanwhile(stop):
            run = inside("run", SLOW, *options, "--storage", postgres_url)
        assert run.status == 1
        assert "stopped: by `dialin stop`" in run.out
        assert "dialin resume slow-1" in run.out
        second.wait_for("leaving slow-1: the study was stopped")  # and waits for the next
        second.wait_until(lambda: value(postgres_url, "SELECT count(*) FROM dialin_leases WHERE expires_at > 0") == 0)
        assert second.process.poll() is None
        second.kill()
        before = rows(postgres_url, EPOCHS)
        left = [trial for trial in trials(postgres_url, "slow-1") if trial.state == TrialState.RUNNING]
        assert left, "nothing was in hand"
        assert inside("status", "--storage", postgres_url).out.count("gone: waiting for another") == len(left)

        (tmp_path / "hurry").touch()
        resumed = inside("resume", "slow-1", "--objective", SLOW, "--workers", 2, "--storage", postgres_url)
        assert resumed.status == 0, resumed.err
        found = assert_settled(postgres_url, "slow-1", 6)
        assert states(found) == {TrialState.COMPLETE: 6}
        after = rows(postgres_url, EPOCHS)
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
        command = f"dialin resume tiny-1 --objective {TINY} --trials +20"
        assert again.err == f"dialin: tiny-1 is finished (5 of 5 trials): {command} goes on\n"
        more = inside("resume", "--trials", "+5", *options, "--objective", TINY)
        assert more.status == 0
        assert "10/10 trials" in more.out
        assert_settled(storage_url, "tiny-1", 10)


class TestOptions:
    def test_a_losing_recipe_is_pruned_and_its_epochs_are_saved(self, inside: Inside, tmp_path: Path) -> None:
        """Trials without a learning rate worth the name learn nothing, and are stopped by ASHA's first rungs."""
        options = ("--pruner", "asha", "--trials", 12, "--epochs", 9, "--workers", 1, "--sampler", "random")
        assert inside("run", TINY, *options).status == 0
        url = f"sqlite:///{tmp_path / 'dialin.db'}"
        pruned = [t for t in assert_settled(url, "tiny-1", 12) if t.state == TrialState.PRUNED]
        assert pruned
        saved = sum(9 - len(trial.intermediate_values) for trial in pruned)
        assert saved > 0
        assert f"{saved} saved by pruning" in inside("status").out
        for trial in pruned:
            last = len(trial.intermediate_values)
            assert trial.user_attrs["outcome"] == "pruned"
            assert trial.user_attrs["reason"] == f"pruned after epoch {last} of 9"

    def test_epochs_are_the_length_and_the_horizon_of_every_schedule(self, inside: Inside, tmp_path: Path) -> None:
        """The third starting point falls along a cosine: over eight epochs, not over the four of the objective."""
        options = ("--pruner", "none", "--trials", 3, "--epochs", 8, "--workers", 1, "--no-transfer")
        assert inside("run", TINY, *options, "--study", "longer").status == 0
        url = f"sqlite:///{tmp_path / 'dialin.db'}"
        found = assert_settled(url, "longer", 3)
        assert all(len(trial.intermediate_values) == 8 for trial in found)
        assert found[2].user_attrs["settings"]["schedule"] == "cosine"
        kept = rows(
            url,
            "SELECT e.metrics FROM dialin_epochs e JOIN trials t ON t.trial_id = e.trial_id WHERE t.number = 2 "
            "ORDER BY e.epoch",
        )
        rates = [json.loads(metrics)["lr"] for (metrics,) in kept]
        assert rates == sorted(rates, reverse=True)
        assert rates[3] == pytest.approx(0.0005, rel=0.2), "half way down in the middle"
        assert rates[7] < 0.0001

    def test_workers_are_as_many_as_asked(self, inside: Inside, tmp_path: Path) -> None:
        run = inside("run", TINY, "--workers", 3)
        assert run.status == 0
        names = rows(f"sqlite:///{tmp_path / 'dialin.db'}", "SELECT slot FROM dialin_workers ORDER BY slot")
        assert [name for (name,) in names] == ["cpu/0", "cpu/1", "cpu/2"]

    def test_what_is_searched_next_gets_the_next_number(self, inside: Inside, tmp_path: Path) -> None:
        for _ in range(2):
            assert inside("run", TINY, "--trials", 1, "--workers", 1).status == 0
        names = rows(f"sqlite:///{tmp_path / 'dialin.db'}", "SELECT study_name FROM studies")
        assert [name for (name,) in names] == ["tiny-1", "tiny-2"]


def first_images(whole: Path, folder: Path) -> None:
    """The first 20,000 training images and the first 1,000 test images, in files as the whole ones are unpacked."""
    folder.mkdir(parents=True)
    for name, _md5 in FashionMNIST.resources:
        count = 20_000 if name.startswith("train") else 1_000
        shape, size = (8, 28 * 28) if "images" in name else (0, 1)
        with gzip.open(whole / name) as file:
            magic, _all, sides = file.read(4), file.read(4), file.read(shape)
            part = magic + count.to_bytes(4, "big") + sides + file.read(count * size)
        (folder / name.removesuffix(".gz")).write_bytes(part)


def test_fashion_mnist_learns_from_a_part_of_the_real_files(inside: Inside, shared_data: Path, tmp_path: Path) -> None:
    raw = Path("FashionMNIST", "raw")
    first_images(shared_data / raw, tmp_path / "data" / raw)
    small = 287  # with this seed each worker's first network has a width of 8 and two blocks
    # Two workers, so that each has one thread.
    options = ("--trials", 1, "--epochs", 1, "--workers", 2, "--seed", small, "--data", "data")
    run = inside("run", "fashion_mnist", *options)
    assert run.status == 0, run.err
    [trial] = assert_settled(f"sqlite:///{tmp_path / 'dialin.db'}", "fashion_mnist-1", 1)
    assert trial.state == TrialState.COMPLETE
    assert trial.value is not None
    assert trial.value > 0.7
