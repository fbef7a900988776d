"""A bare Optuna function: what it gets, how it can end, and what is read from its script without running it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from training_helpers import Recorder

from search import bare
from search.errors import ObjectiveError
from search.preflight import Placement, look
from search.reporting import Interrupted, Result, Verdict
from storage.errors import UsageError
from storage.outcomes import Outcome


def play(function: Callable[[Any], Any], recorder: Recorder | None = None) -> Result:
    trial = optuna.create_study().ask()
    return bare.play(trial, function, recorder or Recorder())


class TestTheTrialItGets:
    def test_is_optunas_own(self) -> None:
        def function(trial: optuna.Trial) -> float:
            assert isinstance(trial, optuna.Trial)
            assert trial.number == 0
            width = trial.suggest_int("width", 1, 8)
            trial.set_user_attr("width", width)
            assert trial.params == {"width": width}
            return width / 10

        assert play(function).outcome is Outcome.COMPLETE

    def test_a_report_is_recorded_with_its_step_and_nothing_to_go_on_from(self) -> None:
        def function(trial: optuna.Trial) -> float:
            for step in (0, 1, 7):
                trial.report(step / 10, step)
            return 0.5

        recorder = Recorder(keep=(1,))
        assert play(function, recorder).value == 0.5
        assert [(result.epoch, result.value) for result in recorder.results] == [(0, 0.0), (1, 0.1), (7, 0.7)]
        assert recorder.results[1].metrics == {"value": 0.1}
        assert recorder.states == {}

    def test_a_function_that_reports_nothing_has_a_cost_all_the_same(self) -> None:
        recorder = Recorder()
        play(lambda trial: 0.5, recorder)
        [only] = recorder.results
        assert (only.value, only.metrics) == (None, {"value": 0.5})
        assert only.seconds > 0

    def test_should_prune_is_the_verdict_on_the_last_report(self) -> None:
        asked = []

        def function(trial: optuna.Trial) -> float:
            for step in range(5):
                trial.report(1.0, step)
                asked.append(trial.should_prune())
                if asked[-1]:
                    raise optuna.TrialPruned
            return 1.0

        result = play(function, Recorder(verdicts={2: Verdict.PRUNE}))
        assert asked == [False, False, True]
        assert (result.outcome, result.value, result.reason) == (Outcome.PRUNED, 1.0, "pruned at step 2")

    def test_a_step_that_is_reported_twice_counts_once(self) -> None:
        def function(trial: optuna.Trial) -> float:
            trial.report(1.0, 3)
            trial.report(2.0, 3)
            return 0.0

        recorder = Recorder()
        with pytest.warns(UserWarning, match="step 3 was reported already"):
            play(function, recorder)
        assert recorder.values == [1.0]

    @pytest.mark.parametrize(
        ("value", "step", "kind", "said"),
        [
            ("much", 0, TypeError, "needs a number, but got 'much'"),
            (1.0, "first", TypeError, "needs an integer step, but got 'first'"),
            (1.0, 3_000_000_000, ValueError, "from 0 to 2147483647, but got 3000000000"),
            (1.0, -1, ValueError, "from 0 to 2147483647, but got -1"),
        ],
    )
    def test_a_report_of_something_else_is_refused(
        self, value: Any, step: Any, kind: type[Exception], said: str
    ) -> None:
        with pytest.raises(kind, match=said):
            play(lambda trial: trial.report(value, step))

    def test_it_is_taken_back_at_a_report(self) -> None:
        def function(trial: optuna.Trial) -> float:
            try:
                trial.report(1.0, 0)
            except Exception:
                return 2.0
            return 1.0

        with pytest.raises(Interrupted):
            play(function, Recorder(verdicts={0: Verdict.HAND_BACK}))


class TestItsValue:
    @pytest.mark.parametrize("returned", [0.25, [0.25], (0.25,)])
    def test_is_the_number_it_returns(self, returned: Any) -> None:
        result = play(lambda trial: returned)
        assert (result.outcome, result.value) == (Outcome.COMPLETE, 0.25)

    @pytest.mark.parametrize("returned", [math.nan, math.inf])
    def test_that_is_not_finite_is_a_divergence(self, returned: float) -> None:
        result = play(lambda trial: returned)
        assert (result.outcome, result.reason) == (Outcome.DIVERGED, f"the function returned {returned}")

    @pytest.mark.parametrize(
        ("returned", "said"),
        [
            (None, "must return a number, but returned None"),
            ("much", "must return a number, but returned 'much'"),
            ((1.0, 2.0), "returned 2 values; Dialin searches one objective"),
        ],
    )
    def test_that_is_none_is_an_error(self, returned: Any, said: str) -> None:
        with pytest.raises(ObjectiveError, match=said):
            play(lambda trial: returned)

    def test_want_of_memory_is_an_outcome(self) -> None:
        def function(trial: optuna.Trial) -> float:
            raise MemoryError

        assert play(function).outcome is Outcome.OUT_OF_MEMORY


class TestItsScript:
    def test_says_direction_and_budget(self) -> None:
        source = b"""
import optuna
def objective(trial): ...
if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler())
    study.optimize(objective, n_trials=17, timeout=600)
"""
        script = bare.script_of(source, "old.py")
        assert (script.direction, script.trials) == ("maximize", 17)
        assert script.notes == (
            "maximize what the function returns (as old.py says)",
            "17 trials unless --trials says otherwise, as old.py says",
            "not taken over from old.py: its sampler and timeout; see --sampler and --budget",
        )

    def test_may_name_the_direction_by_optunas_enum(self) -> None:
        source = b"import optuna\nstudy = optuna.create_study(direction=optuna.study.StudyDirection.MAXIMIZE)"
        assert bare.script_of(source, "old.py").direction == "maximize"

    def test_may_name_them_by_constants_and_give_the_budget_by_position(self) -> None:
        source = b"""
DIRECTION, OTHER = "minimize", 3
WAY: str = "maximize"
BUDGET = 17
def main():
    study = optuna.create_study(direction=WAY)
    study.optimize(objective, BUDGET)
"""
        script = bare.script_of(source, "old.py")
        assert (script.direction, script.trials) == ("maximize", 17)
        literal = source.replace(b"objective, BUDGET", b"objective, 3")
        assert bare.script_of(literal, "old.py").trials == 3
        named = source.replace(b"objective, BUDGET", b"objective, n_trials=BUDGET")
        assert bare.script_of(named, "old.py").trials == 17

    @pytest.mark.parametrize(
        "source",
        [
            "study = optuna.create_study(direction=args.direction)",
            "study = optuna.create_study(direction=args.maximize)",
            "WAY = 'maximize'\nif small:\n    WAY = 'minimize'\nstudy = optuna.create_study(direction=WAY)",
            "def main(way):\n    return optuna.create_study(direction=way)\nway = 'maximize'",
        ],
    )
    def test_that_sets_the_direction_when_it_runs_needs_a_person_to_say_it(self, source: str, tmp_path: Path) -> None:
        script = bare.script_of(source.encode(), "old.py")
        assert script.direction is None
        assert script.notes == ("old.py sets its study's direction only when it runs: --direction says it here",)
        file = tmp_path / "undirected.py"
        file.write_text(
            "def objective(trial):\n    return 1.0\n"
            "def main(way):\n    make.create_study(direction=way).optimize(objective, 3)\n"
        )
        place = Placement(devices="cpu", workers=1)
        with pytest.raises(UsageError, match="give --direction minimize or --direction maximize"):
            look(str(file), tmp_path, place)
        assert look(str(file), tmp_path, place, "maximize").direction == "maximize"

    def test_without_a_study_is_minimized_as_by_optuna(self) -> None:
        script = bare.script_of(b"def objective(trial): ...", "old.py")
        assert (script.direction, script.trials) == ("minimize", None)
        assert "--direction maximize" in script.notes[0]

    @pytest.mark.parametrize(
        "source",
        [
            "study = optuna.create_study()\nstudy.optimize(objective)",
            "if True:\n    optuna.create_study().optimize(objective, 3)",
            "def main():\n    study.optimize(objective, 3)\nmain()",
            "if __name__ != '__main__':\n    pass\nelse:\n    pass\nstudy.optimize(objective)",
        ],
    )
    def test_that_runs_its_study_when_imported_is_refused(self, source: str) -> None:
        with pytest.raises(ObjectiveError, match=r"old\.py:\d+ runs a study when it is imported: put it under `if"):
            bare.script_of(source.encode(), "old.py")

    def test_may_run_its_study_in_a_function(self) -> None:
        bare.script_of(b"def main():\n    study.optimize(objective, n_trials=3)", "old.py")

    def test_of_several_objectives_is_refused(self) -> None:
        with pytest.raises(ObjectiveError, match="several objectives"):
            bare.script_of(b"study = optuna.create_study(directions=['minimize', 'maximize'])", "old.py")


class Callable0:
    def __call__(self, trial: Any) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("value", "takes"),
    [
        (lambda trial: 0.0, True),
        (lambda trial, more=1: 0.0, True),
        (Callable0(), True),
        (Callable0, False),
        (lambda: 0.0, False),
        (lambda trial, more: 0.0, False),
        (3, False),
    ],
)
def test_what_can_be_called_with_a_trial_alone(value: Any, takes: bool) -> None:
    assert bare.takes_a_trial(value) is takes
