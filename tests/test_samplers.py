"""Samplers and pruners by name: each finishes a real study, is stored with it, and is told the real length."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import optuna
import pytest
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from studies import TINY, Inside, assert_settled, rows, trials

from search.samplers import PRUNERS, SAMPLERS, OptunaStrategy, check_names, make_pruner, make_sampler
from search.strategy import GoOn, Left, Seen, SeenState, Start, Verdict
from storage.errors import UsageError


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'dialin.db'}"


def drawn(sampler: BaseSampler, count: int = 4) -> list[float]:
    """The first values that a sampler proposes for one knob."""
    study = optuna.create_study(sampler=sampler)
    return [study.ask().suggest_float("x", 0, 1) for _ in range(count)]


# Each name once.
PAIRS = [
    ("tpe", "hyperband"),
    ("gp", "asha"),
    ("cmaes", "median"),
    ("qmc", "none"),
    ("random", "hyperband"),
    ("auto", "none"),
]


def test_every_sampler_and_every_pruner_is_tried_below() -> None:
    assert {sampler for sampler, _ in PAIRS} == {*SAMPLERS}
    assert {pruner for _, pruner in PAIRS} == {*PRUNERS}


@pytest.mark.parametrize(("sampler", "pruner"), PAIRS)
def test_a_study_by_it_ends_with_its_budget_and_resume_needs_no_flag(
    inside: Inside, url: str, sampler: str, pruner: str
) -> None:
    budget = 12 if sampler in ("tpe", "gp") else 5  # their models take over from the eleventh trial on
    options = ("--sampler", sampler, "--pruner", pruner, "--workers", 1, "--trials", budget)
    run = inside("run", TINY, *options)
    assert (run.status, run.err) == (0, "")
    found = assert_settled(url, "tiny-1", budget)
    if pruner == "none" and sampler != "auto":  # which pauses
        assert all(trial.state == TrialState.COMPLETE for trial in found)
    assert inside("resume", "--objective", TINY, "--trials", "+1", "--workers", 1).status == 0
    assert_settled(url, "tiny-1", budget + 1)
    assert rows(url, "SELECT sampler, pruner FROM dialin_studies") == [(sampler, pruner)]


@pytest.mark.parametrize("options", [("--sampler", "tpe"), ("--total-epochs", 60)], ids=["tpe", "auto"])
def test_one_seed_and_one_worker_give_one_study(inside: Inside, tmp_path: Path, options: tuple[object, ...]) -> None:
    """In databases of their own, where all have one name: Hyperband draws a trial's bracket from the study's name.

    What `auto` does depends on how long epochs take, where epochs are not what runs out.
    """
    studies = []
    for place, seed, count in (("one", 5, 20), ("two", 5, 20), ("three", 6, 3)):
        url = f"sqlite:///{tmp_path / place}.db"
        run = inside("run", TINY, "--seed", seed, "--workers", 1, "--trials", count, "--storage", url, *options)
        assert run.status == 0
        studies.append([(trial.params, trial.intermediate_values) for trial in trials(url, "tiny-1")])
    assert studies[0] == studies[1]
    assert [params for params, _ in studies[0][:3]] != [params for params, _ in studies[2]]


@pytest.mark.parametrize("name", [*SAMPLERS])
def test_a_sampler_repeats_itself_and_two_workers_do_not_draw_alike(name: str) -> None:
    once, again, beside = (drawn(make_sampler(name, 7, worker)) for worker in (0, 0, 1))
    assert once == again
    if name != "qmc":  # its workers share one sequence, of which each point is given out once
        assert once != beside
    assert once != drawn(make_sampler(name, 8, 0))


@pytest.mark.parametrize("epochs", [1, 4, 40])
@pytest.mark.parametrize("name", [*PRUNERS])
def test_a_pruner_takes_any_length_of_training(name: str, epochs: int) -> None:
    study = optuna.create_study(pruner=make_pruner(name, epochs), direction="maximize")
    for quality in (0.9, 0.5, 0.1, 0.8, 0.2, 0.1):
        trial = study.ask()
        for epoch in range(1, epochs + 1):
            trial.report(quality, epoch)
            trial.should_prune()
        study.tell(trial, quality)
    assert len(study.trials) == 6


def test_hyperband_is_told_the_number_of_epochs() -> None:
    pruner = make_pruner("hyperband", 27)
    assert isinstance(pruner, HyperbandPruner)
    assert pruner._max_resource == 27


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"there is no sampler 'grid': choose one of tpe, gp, cmaes, qmc, random"):
        check_names("grid", "none")
    with pytest.raises(UsageError, match=r"there is no pruner 'best': choose one of hyperband, asha, median, none"):
        check_names("tpe", "best")


def judged(direction: Literal["minimize", "maximize"], name: str, *, by_strategy: bool) -> list[list[int]]:
    """How far each trial of a study got: its epochs, where the pruner was asked by itself or as a strategy."""
    study = optuna.create_study(study_name="one", direction=direction, pruner=make_pruner(name, 9))
    strategy = OptunaStrategy(study)
    sign = -1 if direction == "maximize" else 1
    reached = []
    for quality in (0.5, 0.9, 0.1, 0.8, 0.2, 0.7, 0.95, 0.05, 0.6, 0.4):
        trial, values = study.ask(), {}
        for epoch in range(1, 10):
            value = quality + epoch / 100
            trial.report(value, epoch)
            values[epoch] = sign * value
            seen = [Seen(trial.number, trial.params, values, SeenState.RUNNING)]
            verdict = strategy.verdict(trial.number, seen, Left()) if by_strategy else None
            if verdict is Verdict.STOP or (not by_strategy and trial.should_prune()):
                break
        study.tell(trial, value)
        reached.append([*values])
    return reached


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("name", [*PRUNERS])
def test_the_strategy_stops_what_its_pruner_stops(direction: Literal["minimize", "maximize"], name: str) -> None:
    assert judged(direction, name, by_strategy=True) == judged(direction, name, by_strategy=False)


def test_pruners_of_optuna_stop_something_in_that_comparison() -> None:
    assert min(len(epochs) for epochs in judged("maximize", "asha", by_strategy=True)) < 9


def test_the_strategy_asks_the_sampler_and_goes_on_first_with_what_another_strategy_paused() -> None:
    strategy = OptunaStrategy(optuna.create_study(sampler=make_sampler("random", 1, 0)))
    running, paused = (Seen(i, {}, {1: 0.5}, state) for i, state in enumerate((SeenState.RUNNING, SeenState.PAUSED)))
    assert strategy.next([running], Left(trials=1)) == Start(None, "random")
    assert strategy.next([running], Left(trials=0)) is None
    assert strategy.next([running, paused], Left(trials=0)) == GoOn(1)
