"""Advice on the length of training: cut short, too long, over-fitted, pruned too early or not at all; or none of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from made_studies import Made, found, study_of, trials_of

from search.advice import Finding, advise
from storage.details import EpochLine
from storage.outcomes import Outcome

PLAIN = Made()


class TestLength:
    def test_training_that_still_gains_at_its_end_is_cut_short(self) -> None:
        [finding] = found(replace(PLAIN, tau=12.0, pruned=False, trials=30))["too_short"]
        assert finding.actions == ("dialin run net.py --epochs 24",)

    def test_training_that_gains_nothing_for_half_its_length_is_too_long(self) -> None:
        [finding] = found(replace(PLAIN, tau=0.4))["too_long"]
        command, patience = finding.actions
        assert 2 <= int(command.removeprefix("dialin run net.py --epochs ")) <= 6
        assert patience == "in net.py: Objective(..., patience=2)"

    @pytest.mark.parametrize("samples", [None, 5000])
    def test_values_that_turn_while_the_training_loss_falls_are_over_fitting(self, samples: int | None) -> None:
        made = replace(PLAIN, tau=1.0, bend=lambda epoch: 0.01 * max(0, epoch - 6), samples=samples)
        [finding] = found(made)["overfitting"]
        assert "after epoch 6 of 12" in finding.evidence
        assert finding.actions[0] == "dialin run net.py --range l2=0.0001:0.1 --epochs 12"
        assert "patience=2" in finding.actions[1]

    def test_values_that_turn_while_the_training_loss_does_too_are_not(self) -> None:
        made = replace(PLAIN, tau=1.0, bend=lambda epoch: 0.01 * max(0, epoch - 6))
        flat = [
            replace(one, epochs=tuple(replace(at, metrics={**at.metrics, "train_loss": 0.2}) for at in one.epochs))
            for one in trials_of(made)
        ]
        assert "overfitting" not in {finding.rule for finding in advise(study_of(made), flat).findings}

    def test_values_that_turn_in_the_last_epochs_are_not(self) -> None:
        assert "overfitting" not in found(replace(PLAIN, tau=3.0, bend=lambda epoch: 0.2 * (epoch > 11)))

    @staticmethod
    def told_of_losses(losses: Callable[[EpochLine], Mapping[str, float]]) -> list[Finding]:
        """What is said of over-fitting where accuracies never turn and the losses of epochs are these."""
        made = replace(PLAIN, tau=1.0, samples=5000)
        trials = [
            replace(one, epochs=tuple(replace(at, metrics={**at.metrics, **losses(at)}) for at in one.epochs))
            for one in trials_of(made)
        ]
        return [finding for finding in advise(study_of(made), trials).findings if finding.rule == "overfitting"]

    def test_a_loss_that_rises_over_a_falling_one_is_over_fitting_whatever_the_accuracy_says(self) -> None:
        [finding] = self.told_of_losses(
            lambda at: {"loss": at.metrics["train_loss"] + 0.2 + 0.08 * max(0, at.epoch - 4)}
        )
        assert finding.says == "the best recipes over-fit: the validation loss rises while the training loss falls"
        assert "times their training loss on the validation split" in finding.evidence
        assert finding.evidence.endswith("where the loss was least in epoch 4")

    @pytest.mark.parametrize(
        "losses",
        [
            pytest.param(lambda at: {"loss": at.metrics["train_loss"] + 0.2}, id="falls, far above"),
            pytest.param(lambda at: {"loss": max(0.25, 1 - 0.15 * at.epoch)}, id="flat from epoch 5 on"),
            pytest.param(lambda at: {"loss": max(0.25, 1 - 0.15 * at.epoch) + 0.001 * at.epoch}, id="hardly rises"),
            pytest.param(lambda at: {"loss": 0.3 + 0.005 * at.epoch, "train_loss": 0.3}, id="rises, but is near"),
            pytest.param(lambda at: {"loss": 1 - 0.06 * at.epoch if at.epoch < 12 else 0.8}, id="rises at the end"),
        ],
    )
    def test_a_loss_that_does_not_rise_far_above_the_other_is_none(
        self, losses: Callable[[EpochLine], Mapping[str, float]]
    ) -> None:
        assert self.told_of_losses(losses) == []

    def test_folds_and_short_runs_are_left_alone(self) -> None:
        short = replace(PLAIN, epochs=4, tau=4.0, pruned=False)
        assert not {"too_short", "too_long", "overfitting", "pruning"} & {*found(short)}
        folds = found(replace(PLAIN, tau=12.0, pruned=False), epochs=4, folds=3)
        assert not {"too_short", "too_long", "overfitting", "pruning"} & {*folds}

    LATE_RANKS = staticmethod(lambda epoch: 3.0 if epoch < 6 else 0.0)

    @staticmethod
    def told_of_pruning(blur: Callable[[int], float], complete: int = 32) -> list[Finding]:
        """What is said where all but so many of 80 trials are pruned after three epochs, and values are as blurred."""
        made = replace(PLAIN, trials=80, pruned=False, blur=blur)
        trials = [
            replace(one, outcome=Outcome.PRUNED, state="pruned", epochs=one.epochs[:3]) if n >= complete else one
            for n, one in enumerate(trials_of(made))
        ]
        advice = advise(study_of(made, sampler="tpe", pruner="hyperband"), trials)
        return [finding for finding in advice.findings if finding.rule == "pruning"]

    def test_pruning_before_ranks_say_anything_is_too_early(self) -> None:
        [finding] = self.told_of_pruning(self.LATE_RANKS)
        assert finding.says == "pruning decides before ranks say anything"
        assert finding.evidence.startswith("48 trials were pruned, half of them by epoch 3; of the 32 complete ones")
        assert finding.actions == ("dialin run net.py --sampler tpe --pruner median --epochs 12",)

    @pytest.mark.parametrize(
        "blur",
        [
            pytest.param(lambda epoch: 0.0, id="ranks hold from the first epoch on"),
            pytest.param(lambda epoch: 0.15 if epoch < 6 else 0.0, id="they say something, and more later"),
            pytest.param(lambda epoch: 3.0 if epoch < 12 else 0.0, id="they say nothing before the end"),
        ],
    )
    def test_pruning_by_ranks_that_hold_or_never_will_is_not_too_early(self, blur: Callable[[int], float]) -> None:
        assert self.told_of_pruning(blur) == []

    def test_of_a_handful_of_complete_trials_no_ranks_are_told(self) -> None:
        assert self.told_of_pruning(self.LATE_RANKS, complete=19) == []

    def test_losers_that_show_early_might_have_been_pruned(self) -> None:
        [finding] = found(replace(PLAIN, pruned=False), sampler="tpe")["pruning"]
        assert finding.actions == ("dialin run net.py --sampler tpe --pruner hyperband --epochs 12",)

    def test_losers_that_show_late_are_rightly_trained_out(self) -> None:
        assert "pruning" not in found(replace(PLAIN, pruned=False, blur=self.LATE_RANKS), sampler="tpe")
