"""Ctrl-C and deaths at any moment: trials are handed back or adopted and go on under their numbers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from command import DIALIN, Dialin, Running
from optuna.trial import TrialState
from studies import (
    SLOW,
    TINY,
    Inside,
    all_have_ended,
    assert_settled,
    process_group,
    rows,
    states,
    trials,
    value,
    wait_until,
)

from search.interrupt import GRACE_SECONDS, Interrupt

EPOCHS = (
    "SELECT t.number, e.epoch, e.ended_at FROM dialin_epochs e JOIN trials t ON t.trial_id = e.trial_id "
    "ORDER BY t.number, e.epoch"
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where a command without --storage keeps its studies."""
    return f"sqlite:///{tmp_path / 'dialin.db'}"


def start_two_workers(dialin: Dialin, url: str, *options: object) -> Running:
    """A search with two workers, each past the second epoch of its first trial."""
    run = dialin.start("run", SLOW, "--trials", 3, "--workers", 2, "--pruner", "none", *options)
    database = Path(url.removeprefix("sqlite:///"))
    run.wait_until(database.exists)
    run.wait_until(lambda: value(url, "SELECT count(*) FROM sqlite_master WHERE name = 'dialin_epochs'"))
    run.wait_until(lambda: value(url, "SELECT count(*) FROM dialin_epochs WHERE epoch = 2") == 2)
    return run


def worker_pids(url: str) -> list[int]:
    return [pid for (pid,) in rows(url, "SELECT pid FROM dialin_workers ORDER BY started_at")]


def has_loaded(process: psutil.Process, library: str) -> bool:
    """Whether a process has come so far as to import this; not while it is being made, or when it has ended."""
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


def test_only_what_ends_the_process_hurries() -> None:
    """Who hands a trial back, or leaves a study, has the time that a database may be away."""
    process = Interrupt()
    study = Interrupt(outer=process)
    trial = Interrupt(outer=study)
    for request, hurried in ((trial, False), (study, False), (process, True)):
        request.request("so it is")
        assert (process.hurried, study.hurried, trial.hurried) == (hurried,) * 3
    given_up = Interrupt(outer=Interrupt())
    given_up.give_up("the database does not answer")
    assert given_up.requested
    assert given_up.hurried
    alone = Interrupt()
    alone.request("SIGTERM")
    assert alone.hurried


class TestCtrlC:
    def test_the_first_hands_trials_back_and_resume_goes_on_with_them(
        self, dialin: Dialin, inside: Inside, url: str, tmp_path: Path
    ) -> None:
        run = start_two_workers(dialin, url)
        run.interrupt()
        assert run.wait(timeout=15) == 130
        assert "giving the trials back" in run.stdout
        assert "dialin resume slow-1" in run.stdout
        assert "Traceback" not in run.stdout + run.stderr
        assert all_have_ended(worker_pids(url))
        assert states(trials(url, "slow-1")) == {TrialState.RUNNING: 2, TrialState.WAITING: 1}
        assert value(url, "SELECT count(*) FROM dialin_leases WHERE expires_at = 0") == 2
        before = rows(url, EPOCHS)

        (tmp_path / "hurry").touch()
        assert inside("resume", "--objective", SLOW).status == 0
        found = assert_settled(url, "slow-1", 3)
        assert states(found) == {TrialState.COMPLETE: 3}
        assert {*before} < {*rows(url, EPOCHS)}, "epochs were trained twice"

    def test_the_second_kills(self, dialin: Dialin, url: str, tmp_path: Path) -> None:
        run = start_two_workers(dialin, url)
        (tmp_path / "stuck").touch()  # an epoch that takes longer than anybody waits
        epochs = value(url, "SELECT count(*) FROM dialin_epochs")
        run.wait_until(lambda: value(url, "SELECT count(*) FROM dialin_epochs") == epochs)
        run.interrupt()
        run.wait_for("giving the trials back")
        run.interrupt()
        assert run.wait(timeout=15) == 130
        assert run.stdout.count("killed by SIGKILL") == 2
        assert "another starts" not in run.stdout
        assert "Traceback" not in run.stdout + run.stderr
        assert all_have_ended(worker_pids(url))
        assert value(url, "SELECT count(*) FROM dialin_leases WHERE expires_at = 0") == 2

    @pytest.mark.parametrize("moment", ["imports", "fork server", "first check"])
    def test_at_the_start_it_ends_without_a_word_and_without_a_study(
        self, start_dialin: Callable[..., Running], moment: str, tmp_path: Path
    ) -> None:
        run = start_dialin("run", SLOW)
        process = psutil.Process(run.pid)
        reached = {
            "imports": lambda: has_loaded(process, "_sqlite3"),
            "fork server": lambda: any(has_loaded(child, "libtorch") for child in process.children()),
            "first check": lambda: len(process.children(recursive=True)) > len(process.children()),
        }[moment]
        run.wait_until(reached, every=0.02)  # the check takes a moment only
        run.interrupt()
        assert run.wait(timeout=15) in (130, -signal.SIGINT)  # a shell shows either as 130
        wait_until(lambda: all_have_ended(process_group(run.pid)), "the end of what it started")
        assert "Traceback" not in run.stdout + run.stderr
        assert run.stderr == ""
        assert [*tmp_path.glob("*.db")] == []


class TestReaders:
    def test_when_nobody_reads_its_lines_any_more_trials_are_handed_back(self, url: str, tmp_path: Path) -> None:
        arguments = ("run", TINY, "--trials", "100000", "--workers", "2", "--pruner", "none")
        run = subprocess.Popen(
            [DIALIN, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert run.stdout is not None
            assert run.stdout.readline()
            run.stdout.close()  # as `| head -1` does
            _, said = run.communicate(timeout=60)
        finally:
            run.kill()
        assert (run.returncode, said) == (128 + signal.SIGPIPE, "")
        assert all_have_ended(worker_pids(url))
        assert rows(url, "SELECT trial_id FROM dialin_owners WHERE ending = 'died'") == []
        assert value(url, "SELECT count(*) FROM dialin_leases WHERE expires_at > 0") == 0


class TestDeaths:
    def test_a_killed_worker_costs_no_trial(self, dialin: Dialin, url: str, tmp_path: Path) -> None:
        run = start_two_workers(dialin, url)
        [victim, other] = worker_pids(url)
        os.kill(victim, signal.SIGKILL)
        run.wait_for("failed: killed by SIGKILL; its trial goes on elsewhere")
        held = "SELECT count(*) FROM dialin_leases JOIN dialin_workers USING (worker_id) WHERE pid = :pid"
        assert value(url, f"{held} AND expires_at > 0", pid=victim) == 0, "nobody need wait for the lease to end"
        assert not all_have_ended([other])
        (tmp_path / "hurry").touch()
        assert run.wait() == 0
        found = assert_settled(url, "slow-1", 3)
        assert states(found) == {TrialState.COMPLETE: 3}
        generations = rows(url, "SELECT DISTINCT trial_id, generation FROM dialin_epochs WHERE epoch = 40")
        assert sorted(generation for _trial, generation in generations) == [1, 1, 2]
        assert "Traceback" not in run.stdout + run.stderr

    def test_a_fork_server_that_dies_is_one_line(self, dialin: Dialin) -> None:
        run = dialin.start("run", SLOW)
        process = psutil.Process(run.pid)

        def servers() -> list[psutil.Process]:
            return [child for child in process.children() if has_loaded(child, "libtorch")]

        run.wait_until(servers)
        servers()[0].kill()
        assert run.wait() == 1
        assert run.stderr == "dialin: the process that workers are forked from was killed: is there memory enough?\n"

    def test_workers_of_a_command_that_was_killed_hand_back_and_end(
        self, dialin: Dialin, inside: Inside, url: str, tmp_path: Path
    ) -> None:
        run = start_two_workers(dialin, url)
        workers = worker_pids(url)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        wait_until(lambda: all_have_ended(workers), "the end of the workers")
        assert value(url, "SELECT count(*) FROM dialin_leases WHERE expires_at = 0") == 2
        before = rows(url, EPOCHS)
        (tmp_path / "hurry").touch()
        assert inside("resume", "--objective", SLOW).status == 0
        assert states(assert_settled(url, "slow-1", 3)) == {TrialState.COMPLETE: 3}
        assert {*before} < {*rows(url, EPOCHS)}, "epochs were trained twice"


class TestARequestToEnd:
    """Against a clock of the test's own."""

    def test_an_epoch_has_a_grace_period_to_end_in(self) -> None:
        now = 100.0
        interrupt = Interrupt(lambda: now)
        assert (interrupt.requested, interrupt.overdue) == (False, False)
        interrupt.request("Ctrl-C")
        now += GRACE_SECONDS
        assert (interrupt.requested, interrupt.overdue) == (True, False)
        now += 0.1
        assert interrupt.overdue

    def test_the_first_reason_stands_and_its_time_counts(self) -> None:
        now = 0.0
        interrupt = Interrupt(lambda: now)
        interrupt.request("Ctrl-C")
        now += GRACE_SECONDS + 0.1
        interrupt.request("the study was stopped")
        assert (interrupt.reason, interrupt.overdue) == ("Ctrl-C", True)

    def test_a_lost_lease_stops_training_at_once_and_not_the_worker(self) -> None:
        interrupt = Interrupt(lambda: 0.0)
        interrupt.lose("adopted by another")
        assert (interrupt.requested, interrupt.overdue) == (False, True)

    def test_a_second_signal_does_what_it_does_by_default(self) -> None:
        before = signal.getsignal(signal.SIGUSR1)
        interrupt = Interrupt()
        try:
            interrupt.on_signals(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
            assert (interrupt.requested, interrupt.reason) == (True, "SIGUSR1")
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        finally:
            signal.signal(signal.SIGUSR1, before)
