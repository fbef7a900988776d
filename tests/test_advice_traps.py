"""Studies in which a rule seems to have to speak, and what it would say is wrong: it is silent, or says otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from made_studies import SPACE, USUAL, Made, bowl, study_of, trials_of

from search.advice import Finding, advise
from storage.details import EpochLine
from storage.outcomes import Outcome
from storage.records import RecordedTrial

PLAIN = Made()


def found(rule: str, made: Made, trials: list[RecordedTrial], **study: Any) -> list[Finding]:
    return [finding for finding in advise(study_of(made, **study), trials).findings if finding.rule == rule]


class TestLength:
    CUT = replace(PLAIN, tau=12.0, pruned=False, trials=30)

    @staticmethod
    def annealed(trials: list[RecordedTrial], valid: float) -> list[RecordedTrial]:
        """Their rates fall by a cosine; their validation loss is so many times their training loss."""

        def one_epoch(epoch: EpochLine) -> EpochLine:
            rate = 0.1 * 0.5 * (1 + math.cos(math.pi * epoch.epoch / 12))
            loss = valid * epoch.metrics["train_loss"]
            return replace(epoch, metrics={**epoch.metrics, "lr": rate, "loss": loss})

        return [replace(one, epochs=tuple(map(one_epoch, one.epochs))) for one in trials]

    def test_a_rate_that_falls_to_nothing_gains_at_the_end_of_any_run(self) -> None:
        trials = self.annealed(trials_of(self.CUT), valid=2.0)
        assert found("too_short", self.CUT, trials_of(self.CUT))
        assert found("too_short", self.CUT, trials) == []

    def test_gains_at_the_end_that_recipes_outdo_by_far_are_no_reason_to_train_longer(self) -> None:
        apart = replace(self.CUT, costs=(bowl("lr_multiple", 1.0, 0.9),))
        assert found("too_short", apart, trials_of(apart)) == []

    def test_nor_are_gains_that_are_nothing_beside_the_whole_run(self) -> None:
        alike = replace(self.CUT, costs=(), tau=2.0, seed_noise=1e-4, epoch_noise=1e-5)
        assert found("too_short", alike, trials_of(alike)) == []

    def test_where_nothing_is_learnt_by_heart_yet_it_is_cut_short_all_the_same(self) -> None:
        assert found("too_short", self.CUT, self.annealed(trials_of(self.CUT), valid=1.0))

    def test_more_l2_is_no_cure_where_more_of_it_was_worse(self) -> None:
        over = replace(PLAIN, tau=1.0, bend=lambda epoch: 0.01 * max(0, epoch - 6), costs=(bowl("l2", 1e-6, 0.05),))
        [finding] = found("overfitting", over, trials_of(over))
        [edit] = finding.actions
        assert "patience=2" in edit


class TestDivergence:
    def test_where_every_trial_diverges_it_is_said(self) -> None:
        made = replace(PLAIN, diverges=lambda recipe: True)
        [finding] = found("divergence", made, trials_of(made))
        assert finding.says.startswith("training diverges at any rate")
        assert finding.evidence.startswith("60 of 60 trials diverged, at low rates as well as at high ones")

    def test_of_rates_that_were_not_searched_nothing_is_claimed(self) -> None:
        space = {name: d for name, d in SPACE.items() if name != "lr_multiple"}
        made = replace(PLAIN, costs=(), space=space, diverges=lambda recipe: recipe["warmup"] < 0.04)
        [finding] = found("divergence", made, trials_of(made))
        assert finding.says.startswith("training diverges: look for it in the data")
        assert "rates" not in finding.evidence

    @pytest.mark.parametrize(("best", "from_there"), [(12.0, 25.5), (0.3, 15.0)])
    def test_a_few_that_diverge_are_neither_next_to_the_best_nor_worth_a_range(
        self, best: float, from_there: float
    ) -> None:
        costs = (USUAL[0], bowl("lr_multiple", best, 0.06), *USUAL[2:])
        made = replace(PLAIN, costs=costs, diverges=lambda recipe: recipe["lr_multiple"] > from_there)
        trials = trials_of(made)
        assert any(one.outcome is Outcome.DIVERGED for one in trials)
        assert found("divergence", made, trials) == []


class TestFailures:
    def test_a_choice_that_fails_now_and_then_is_not_ruled_out(self) -> None:
        trials = trials_of(PLAIN)
        some = [one.number for one in trials if one.params["batch_size"] == 128][:4]
        broken = [
            replace(one, outcome=Outcome.ERROR, state="error", reason="KeyError: 3", epochs=(), value=None)
            if one.number in some
            else one
            for one in trials
        ]
        [finding] = found("failures", PLAIN, broken)
        assert finding.says == "4 trials raised the same error"
        assert "all of them have" not in finding.evidence

    def test_two_failures_that_share_a_choice_by_chance_do_not_rule_it_out(self) -> None:
        trials = [
            replace(one, params={**one.params, "optimizer": "sgd" if one.number < 2 else "adam"})
            for one in trials_of(replace(PLAIN, trials=12))
        ]
        broken = [
            replace(one, outcome=Outcome.ERROR, state="error", reason="KeyError: 3", epochs=(), value=None)
            for one in trials[:2]
        ]
        [finding] = found("failures", PLAIN, [*broken, *trials[2:]])
        assert "all of them have" not in finding.evidence
        assert [action.split()[1] for action in finding.actions] == ["logs"]

    def test_a_search_of_which_the_model_refuses_everything_hears_of_it(self) -> None:
        refused = [
            replace(one, outcome=Outcome.PRUNED, reason="refused by the model: too large", epochs=(), value=None)
            for one in trials_of(replace(PLAIN, trials=8))
        ]
        [finding] = found("in_vain", PLAIN, refused)
        assert finding.says.startswith("the model refuses 8 of 8 recipes")

    def test_a_few_first_trials_refused_are_no_finding(self) -> None:
        refused = [
            replace(one, outcome=Outcome.PRUNED, reason="refused by the model: too large", epochs=(), value=None)
            for one in trials_of(replace(PLAIN, trials=3))
        ]
        assert found("in_vain", PLAIN, refused) == []


class TestPerfect:
    def test_the_worst_value_of_a_correlation_is_not_its_best(self) -> None:
        trials = [
            replace(one, value=-1.0 if one.number % 2 else 0.5, outcome=Outcome.COMPLETE, epochs=())
            for one in trials_of(replace(PLAIN, trials=20, pruned=False))
        ]
        assert found("perfect", PLAIN, trials, metric="spearman", direction="maximize") == []


class TestLost:
    """Samplers that learn try an optimizer mostly where others are good."""

    @pytest.mark.parametrize("seed", range(2))
    def test_an_optimizer_that_wants_other_rates_than_the_first_good_one_has_not_lost(self, seed: int) -> None:
        def of_its_own(recipe: Any) -> float:
            best = 15.0 if recipe["optimizer"] == "sgd" else 0.2
            return 0.06 * math.log10(recipe["lr_multiple"] / best) ** 2

        made = replace(PLAIN, costs=(of_its_own, *USUAL[2:]), sampler="tpe", trials=80)
        assert not any("sgd" in finding.says for finding in found("lost", made, trials_of(made, seed)))

    BAD = replace(PLAIN, costs=(lambda recipe: 0.2 * (recipe["optimizer"] == "sgd"), *USUAL[1:]), pruned=False)

    @pytest.mark.parametrize("places", [[0.1, 0.9, 9.0, 10.0], [0.05, 0.06, 0.07, 0.08, 0.09, 0.1]])
    def test_one_that_was_hardly_tried_or_at_low_rates_only_has_not(self, places: list[float]) -> None:
        trials = trials_of(self.BAD)
        losers = [one for one in trials if one.params["optimizer"] == "sgd"]
        assert len(losers) > len(places)
        moved = [
            replace(one, params={**one.params, "lr_multiple": place})
            for one, place in zip(losers, places, strict=False)
        ]
        others = [one for one in trials if one.params["optimizer"] != "sgd"]
        assert found("lost", self.BAD, trials)
        assert found("lost", self.BAD, sorted([*others, *moved], key=lambda one: one.number)) == []


class TestSlow:
    def test_epochs_that_take_a_tenth_longer_are_not_slow(self) -> None:
        costs = (*USUAL[:3], lambda recipe: 0.01 * (recipe["batch_size"] == 16), *USUAL[4:])
        for longer, said in ((1.5, 1), (1.1, 0)):
            seconds = {16: longer, 32: 1.0, 64: 1.0, 128: 1.0}
            made = replace(PLAIN, costs=costs, trials=80, seconds=partial(self.of_a_batch, seconds))
            assert len(found("slow", made, trials_of(made))) == said

    @staticmethod
    def of_a_batch(seconds: Mapping[int, float], recipe: Mapping[str, Any]) -> float:
        return seconds[recipe["batch_size"]]
