"""A training loop of a person's own: what `run` gives it, what it records, and how it goes on after an interruption."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn
from training_helpers import Recorder, first_recipe

from search import loop
from search.errors import ObjectiveError
from search.objective import Objective
from search.randomness import seed_everything
from search.reporting import Interrupted, Result, Verdict
from search.space import sample, starting_points
from storage.outcomes import Outcome

Train = Callable[[Any], None]


def own(train: Train, **options: Any) -> Objective:
    options = dict[str, Any](metric="accuracy", epochs=4, batch_sizes=(8,)) | options
    return Objective(train=train, **options)


@pytest.mark.parametrize(
    "unused",
    [
        {"precision": "bf16"},
        {"clip_norm": 1.0},
        {"accumulate": 2},
        {"ema": 0.9},
        {"epoch_batches": 5},
        {"parameters": lambda net: []},
    ],
)
def test_an_option_that_only_dialins_loop_has_is_refused(unused: dict[str, Any]) -> None:
    [name] = unused
    with pytest.raises(ObjectiveError, match=f"{name} is for Dialin's training loop: leave it out, train does that"):
        own(lambda run: None, **unused)
    own(lambda run: None, patience=2, value="last")


@pytest.mark.parametrize("unused", [{"ema": 0.9}, {"patience": 2}, {"value": "last"}])
def test_an_option_that_does_nothing_for_a_bare_function_is_refused(unused: dict[str, Any]) -> None:
    [name] = unused
    with pytest.raises(ObjectiveError, match=f"{name} is for Dialin's training loop: leave it out, function does"):
        Objective(function=lambda trial: 0.0, metric="loss", **unused)


def run_of(
    objective: Objective, recorder: Recorder, folder: Path = Path("own"), recorded: dict[int, float] | None = None
) -> loop.Run:
    run = loop.Run(
        FixedTrial(starting_points(objective)[0]),
        objective,
        device=torch.device("cpu"),
        seed=0,
        data=Path("data"),
        folder=lambda: folder,
        reporter=recorder,
        sample=lambda: sample(run.trial, objective),
        recorded=lambda: recorded or {},
    )
    return run


def play(objective: Objective, recorder: Recorder) -> Result:
    seed_everything(0)
    return loop.play(run_of(objective, recorder), objective)


def reporting(*values: float) -> Train:
    def train(run: Any) -> None:
        for epoch in run.epochs:
            run.report(accuracy=values[epoch - 1])

    return train


def learning(run: Any) -> None:
    """A real network that learns which half of the plane a point is in."""
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = run.recipe.optimizer(net)
    schedule = run.recipe.schedule(optimizer, steps_per_epoch=5)
    run.keep(net=net, optimizer=optimizer, schedule=schedule)
    for _epoch in run.epochs:
        losses = []
        for _step in range(5):
            points = torch.randn(32, 2)
            loss = nn.functional.binary_cross_entropy_with_logits(net(points)[:, 0], (points[:, 0] > 0).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        run.report(loss=sum(losses) / 5, rate=schedule.get_last_lr()[0])


class TestReports:
    def test_a_loop_with_files_of_its_own_has_each_epoch_on_record_before_it_writes_them(self) -> None:
        def counting(run: Any) -> None:
            for epoch in run.epochs:
                run.report(accuracy=0.5, epoch=epoch)

        def with_a_folder(run: Any) -> None:
            assert run.dir == Path("own")
            reporting(*[0.5] * 4)(run)

        for train, at_once in ((counting, True), (with_a_folder, True), (reporting(*[0.5] * 4), False)):
            recorder = Recorder()
            play(own(train), recorder)
            assert [one.at_once for one in recorder.results] == [at_once] * 4

    def test_the_best_epoch_is_the_trials_value(self) -> None:
        recorder = Recorder()
        result = play(own(reporting(0.5, 0.9, 0.7, 0.6)), recorder)
        assert (result.outcome, result.value, result.best_epoch) == (Outcome.COMPLETE, 0.9, 2)
        assert recorder.values == [0.5, 0.9, 0.7, 0.6]
        assert [epoch.epoch for epoch in recorder.results] == [1, 2, 3, 4]

    def test_or_the_last_where_the_objective_says_so(self) -> None:
        result = play(own(reporting(0.5, 0.9, 0.7, 0.6), value="last"), Recorder())
        assert (result.value, result.best_epoch) == (0.6, 4)

    def test_every_metric_is_recorded_as_a_number(self) -> None:
        def train(run: Any) -> None:
            for _epoch in run.epochs:
                run.report(accuracy=torch.tensor(0.5), loss=np.float32(0.25), steps=3)

        recorder = Recorder()
        play(own(train, epochs=1), recorder)
        assert recorder.results[0].metrics == {"accuracy": 0.5, "loss": 0.25, "steps": 3.0}

    def test_a_losing_trial_ends_at_its_report(self) -> None:
        recorder = Recorder(verdicts={2: Verdict.PRUNE})
        result = play(own(reporting(0.5, 0.4, 0.3, 0.2)), recorder)
        assert (result.outcome, result.reason) == (Outcome.PRUNED, "pruned after epoch 2 of 4")
        assert len(recorder.results) == 2

    def test_there_is_nothing_to_prune_after_the_last_epoch(self) -> None:
        recorder = Recorder(verdicts={4: Verdict.PRUNE})
        assert play(own(reporting(0.5, 0.6, 0.7, 0.8)), recorder).outcome is Outcome.COMPLETE

    def test_a_trial_that_is_taken_back_leaves_even_through_except_exception(self) -> None:
        def train(run: Any) -> None:
            for _epoch in run.epochs:
                with contextlib.suppress(Exception):
                    run.report(accuracy=0.5)

        with pytest.raises(Interrupted):
            play(own(train), Recorder(verdicts={1: Verdict.HAND_BACK}))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_value_that_is_not_finite_is_a_divergence(self, value: float) -> None:
        recorder = Recorder()
        result = play(own(reporting(0.5, value, 0.7)), recorder)
        assert (result.outcome, result.best_epoch) == (Outcome.DIVERGED, 1)
        assert result.reason == "accuracy is not finite in epoch 2"
        assert math.isnan(recorder.values[1])

    def test_patience_ends_the_epochs(self) -> None:
        recorder = Recorder()
        result = play(own(reporting(0.9, 0.5, 0.5, 0.5), patience=2), recorder)
        assert (result.outcome, len(recorder.results)) == (Outcome.COMPLETE, 3)

    def test_also_where_the_last_epoch_is_the_one_that_counts(self) -> None:
        recorder = Recorder()
        play(own(reporting(0.9, 0.5, 0.5, 0.5), patience=2, value="last"), recorder)
        assert len(recorder.results) == 3

    def test_want_of_memory_is_an_outcome(self) -> None:
        def train(run: Any) -> None:
            raise MemoryError("no room")

        result = play(own(train), Recorder())
        assert (result.outcome, result.reason) == (Outcome.OUT_OF_MEMORY, "out of memory: no room")

    def test_a_framework_may_count_its_epochs_itself(self) -> None:
        def train(run: Any) -> None:
            for epoch in (1, 2, 5):
                run.report(epoch=epoch, accuracy=epoch / 10)

        recorder = Recorder()
        assert play(own(train, epochs=5), recorder).best_epoch == 5
        assert [result.epoch for result in recorder.results] == [1, 2, 5]


class TestMistakes:
    def complaint(self, train: Train, **options: Any) -> str:
        with pytest.raises(ObjectiveError) as caught:
            play(own(train, **options), Recorder())
        return str(caught.value)

    def test_an_epoch_without_a_report(self) -> None:
        def train(run: Any) -> None:
            for _epoch in run.epochs:
                pass

        assert self.complaint(train) == "epoch 1 ended without run.report(accuracy=...)"

    def test_no_epoch_at_all(self) -> None:
        assert self.complaint(lambda run: None) == "train(run) ended without run.report(accuracy=...)"

    def test_a_report_without_the_searched_metric(self) -> None:
        assert self.complaint(lambda run: run.report(acc=0.5)) == "run.report got acc, but no 'accuracy'"

    def test_a_report_of_no_number(self) -> None:
        said = self.complaint(lambda run: run.report(accuracy=torch.zeros(2)))
        assert said == "run.report(accuracy=...) must be one number, but got tensor([0., 0.])"

    def test_keeping_what_has_no_state(self) -> None:
        assert self.complaint(lambda run: run.keep(net=3)).startswith("run.keep(net=...) needs state_dict")

    def test_keeping_what_cannot_be_read_back_safely(self) -> None:
        class Odd:
            def state_dict(self) -> dict[str, Any]:
                return {"path": Path("x")}

            def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...

        assert "only tensors and plain values can" in self.complaint(lambda run: run.keep(odd=Odd()))

    def test_a_schedule_of_no_steps(self) -> None:
        def train(run: Any) -> None:
            run.recipe.schedule(run.recipe.optimizer(nn.Linear(1, 1)), steps_per_epoch=0)

        assert self.complaint(train) == "steps_per_epoch must be at least 1, but got 0"

    def test_a_metric_whose_direction_nobody_knows(self) -> None:
        with pytest.raises(ObjectiveError, match="'return' does not say which way is better"):
            own(reporting(), metric="return")
        assert own(reporting(), metric="return", direction="maximize").searched.direction == "maximize"

    def test_a_loop_beside_a_model(self) -> None:
        with pytest.raises(ObjectiveError, match="train stands for model, data and loss: leave loss out"):
            own(reporting(), loss=nn.MSELoss())


class TestTheRecipe:
    def test_a_schedule_gives_each_step_the_rate_of_the_recipe(self) -> None:
        objective = own(learning, metric="loss")
        recorder = Recorder()
        play(objective, recorder)
        recipe = first_recipe(objective)
        table = (recipe.lr * recipe.factors(4 * 5)).tolist()
        told = [result.metrics["rate"] for result in recorder.results]
        assert told == pytest.approx([table[5], table[10], table[15], table[19]])

    def test_each_of_several_networks_has_an_optimizer_with_a_rate_of_its_own(self) -> None:
        run = run_of(own(reporting()), Recorder())
        generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
        first, second = run.recipe.optimizer(generator), run.recipe.optimizer(critic, lr_scale=0.1)
        assert second.param_groups[0]["lr"] == pytest.approx(0.1 * first.param_groups[0]["lr"])
        assert first.param_groups[0]["lr"] == pytest.approx(run.recipe.lr)
        schedule = run.recipe.schedule(second)
        second.step()
        schedule.step()
        factors = first_recipe(own(reporting())).factors(4)
        assert second.param_groups[0]["lr"] == pytest.approx(0.1 * run.recipe.lr * float(factors[1]))

    def test_nothing_is_sampled_for_a_loop_that_does_not_ask(self) -> None:
        trial = optuna.create_study().ask()
        objective = own(reporting(0.5, 0.5, 0.5, 0.5))
        run = run_of(objective, Recorder())
        run.trial = trial
        loop.play(run, objective)
        assert trial.params == {}
        assert run.recipe.settings["optimizer"] in objective.optimizers
        assert "lr_multiple" in trial.params


class TestGoingOn:
    def test_it_goes_on_bit_for_bit(self) -> None:
        objective = own(learning, metric="loss")
        whole = Recorder(keep=(1, 2, 3))
        at_once = play(objective, whole)
        for epoch, state in whole.states.items():
            rest = Recorder(restored=state)
            result = play(objective, rest)
            assert rest.curve == whole.curve[epoch:]
            assert (result.value, result.best_epoch) == (at_once.value, at_once.best_epoch)
            assert result.weights is not None
            assert at_once.weights is not None
            for name, weight in at_once.weights.items():
                assert torch.equal(result.weights[name], weight)

    def test_a_checkpoint_does_not_change_as_training_goes_on(self) -> None:
        objective = own(learning, metric="loss")
        recorder = Recorder(keep=(1,))
        play(objective, recorder)
        first = recorder.states[1]
        again = Recorder(keep=(1,))
        play(objective, again)
        assert torch.equal(first["kept"]["net"]["0.weight"], again.states[1]["kept"]["net"]["0.weight"])

    def test_a_loop_that_keeps_nothing_begins_again(self) -> None:
        recorder = Recorder(restored={"epoch": 3, "kept": {}, "best": None, "random": {}})
        play(own(reporting(0.1, 0.2, 0.3, 0.4)), recorder)
        assert [result.epoch for result in recorder.results] == [1, 2, 3, 4]

    def test_a_framework_that_goes_on_keeps_the_best_epoch_so_far(self) -> None:
        best = {"value": 0.9, "epoch": 2, "weights": None}
        recorder = Recorder(restored={"epoch": 3, "kept": {}, "best": best, "random": {}})
        result = play(own(lambda run: run.report(epoch=4, accuracy=0.5)), recorder)
        assert (result.value, result.best_epoch) == (0.9, 2)

    def test_and_forgets_it_where_it_goes_back_further(self) -> None:
        best = {"value": 0.9, "epoch": 2, "weights": None}
        recorder = Recorder(restored={"epoch": 3, "kept": {}, "best": best, "random": {}})
        result = play(own(lambda run: run.report(epoch=2, accuracy=0.5)), recorder)
        assert (result.value, result.best_epoch) == (0.5, 2)

    @pytest.mark.parametrize(
        ("options", "epoch", "told"),
        [({}, 3, (0.9, 2)), ({}, 1, (0.5, 2)), ({"value": "last"}, 3, (0.5, 4)), ({"metric": "loss"}, 3, (0.1, 1))],
    )
    def test_what_is_on_record_of_the_epochs_before_counts(
        self, options: dict[str, Any], epoch: int, told: tuple[float, int]
    ) -> None:
        """The framework's checkpoint is newer than ours: epochs 1 to 4 are on record, the last for nothing."""

        def train(run: Any) -> None:
            run.go_on_after(epoch)
            run.report(**{objective.searched.name: 0.5})

        objective = own(train, epochs=5, **options)
        run = run_of(objective, Recorder(), recorded={1: 0.1, 2: 0.9, 3: math.nan, 4: 1.0})
        result = loop.play(run, objective)
        assert (result.value, result.best_epoch) == told
        assert not run.over

    def test_a_trial_whose_epochs_were_all_reported_before_ends_well(self) -> None:
        objective = own(lambda run: run.go_on_after(3), epochs=3)
        run = run_of(objective, Recorder(), recorded={1: 0.1, 2: 0.9, 3: 0.4})
        result = loop.play(run, objective)
        assert (result.outcome, result.value, run.over) == (Outcome.COMPLETE, 0.9, True)

    def test_a_checkpoint_of_other_parts_is_refused(self) -> None:
        recorder = Recorder(restored={"epoch": 1, "kept": {"net": {}}, "best": None, "random": {}})
        with pytest.raises(ObjectiveError, match="holds net, but no 'critic'"):
            play(own(lambda run: run.keep(critic=nn.Linear(1, 1))), recorder)
