"""What a person sees while a search runs, drawn from a made-up study; plain lines where nothing can be drawn over."""

from __future__ import annotations

import io
import socket

import pytest
from rich.console import Console

from search.live import LiveView, PlainView
from search.views import make_view
from storage.outcomes import Outcome
from storage.queries import RankedTrial, RunningTrial, SettledTrial, StudyStatus
from storage.studies import StudyRecord
from storage.tables import StudyState

STUDY = StudyRecord(
    objective="digits",
    objective_sha256="",
    metric="accuracy",
    direction="maximize",
    epochs=15,
    trials=40,
    seed=1,
    sampler="tpe",
    pruner="hyperband",
    study_id=1,
    name="digits-3",
    uid="0123456789abcdef",
    taken=14,
    returned=0,
    state=StudyState.RUNNING,
    reason="",
    created_at=0.0,
)
HERE = socket.gethostname()
BEST = RankedTrial(
    number=7,
    value=0.98761,
    best_epoch=12,
    epochs=15,
    seconds=5.0,
    attrs={"recipe": "adam lr 0.0031 batch 32 cosine", "model": {"width": 24, "dropout": 0.123456}},
)
SETTLED = SettledTrial(3, Outcome.PRUNED, 0.5, 2, 0.7, "sgd lr 0.01 batch 16 step", "pruned after epoch 2 of 15", 0.0)


def running(number: int, pid: int, host: str = HERE, adoptable: bool = False) -> RunningTrial:
    return RunningTrial(number, 6, 0.91234, 0.94321, "cpu/0", host, pid, 0.5, adoptable)


def status(settled: int = 12, trials: tuple[RunningTrial, ...] = ()) -> StudyStatus:
    counts = {"complete": settled - 5, "pruned": 4, "out_of_memory": 1}
    return StudyStatus(STUDY, counts, trials, 0, 120, 48, 60.0, 61.0, ())


class Screen:
    """A terminal of 100 columns, and a clock that goes when it is told to."""

    def __init__(self, slots: dict[int, str]) -> None:
        self.file = io.StringIO()
        self.now = 0.0
        self.console = Console(file=self.file, force_terminal=True, width=100, color_system=None)
        self.view = LiveView(self.console, slots, lambda: self.now)

    def drawn(self, *states: StudyStatus, best: RankedTrial | None = BEST) -> list[str]:
        """The lines of the last of these states, 30 seconds apart."""
        for state in states:
            self.view.update(state, best, [])
            self.now += 30
        self.view.update(states[-1], best, [])
        with self.console.capture() as capture:
            self.console.print(self.view._live.renderable)
        self.view.close()
        return [line.rstrip() for line in capture.get().splitlines()]


class TestTheLiveView:
    def test_the_first_line_says_which_study_how_far_and_how_long(self) -> None:
        first, *_ = Screen({}).drawn(status(10), status(20))
        assert first == "digits-3   accuracy ↑   20/40 trials   1:00 elapsed, about 2:00 left"

    def test_no_time_left_is_guessed_before_a_trial_has_ended(self) -> None:
        first, *_ = Screen({}).drawn(status(10))
        assert first == "digits-3   accuracy ↑   10/40 trials   0:30 elapsed"

    def test_the_second_is_the_best_with_its_whole_recipe(self) -> None:
        _, second, *_ = Screen({}).drawn(status())
        assert second == "best  0.9876 in trial 7: adam lr 0.0031 batch 32 cosine | width 24 dropout 0.123"

    def test_before_any_complete_trial_there_is_no_best(self) -> None:
        _, second, *_ = Screen({}).drawn(status(), best=None)
        assert second == "best  none yet"

    def test_there_is_a_row_for_every_slot_idle_or_not(self) -> None:
        lines = Screen({11: "cpu/0", 12: "cpu/1"}).drawn(status(trials=(running(13, 11),)))
        assert [line.split() for line in lines[2:5]] == [
            ["slot", "trial", "epoch", "now", "best"],
            ["cpu/0", "13", "6/15", "0.9123", "0.9432"],
            ["cpu/1", "-"],
        ]

    def test_trials_on_other_machines_and_those_left_have_rows_too(self) -> None:
        elsewhere, left = running(13, 11, host="node7"), running(14, 12, adoptable=True)
        rows = [line.split() for line in Screen({11: "cpu/0"}).drawn(status(trials=(elsewhere, left)))[3:6]]
        assert rows[0] == ["cpu/0", "-"]
        assert rows[1][:3] == ["node7", "cpu/0", "13"]
        assert rows[2][:5] == ["waiting", "for", "a", "worker", "14"]

    def test_the_last_counts_outcomes_and_epochs_saved(self) -> None:
        *_, last = Screen({}).drawn(status())
        assert last == "7 complete, 4 pruned, 1 out of memory; 48 epochs saved by pruning"

    def test_a_note_stays_above_it(self) -> None:
        screen = Screen({})
        screen.view.note("worker cpu/0 failed: killed by SIGKILL")
        screen.view.close()
        assert "worker cpu/0 failed: killed by SIGKILL" in screen.file.getvalue()


class TestPlainLines:
    def test_one_line_for_each_trial_that_ended_without_control_codes(self) -> None:
        file = io.StringIO()
        view = PlainView(Console(file=file, width=40))
        view.update(status(), BEST, [SETTLED])
        view.update(status(), BEST, [])
        assert file.getvalue() == (
            "[12/40 trials] trial 3 pruned: accuracy 0.5000, 2 epochs in 0.7 s; sgd lr 0.01 batch 16 step\n"
        )

    @pytest.mark.parametrize(("terminal", "term", "kind"), [(True, "xterm", LiveView), (True, "dumb", PlainView)])
    def test_it_is_drawn_where_it_can_be_drawn_over(
        self, terminal: bool, term: str, kind: type, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TERM", term)
        view = make_view(Console(file=io.StringIO(), force_terminal=terminal), {})
        view.close()
        assert isinstance(view, kind)

    def test_a_pipe_gets_plain_lines(self) -> None:
        assert isinstance(make_view(Console(file=io.StringIO()), {}), PlainView)
