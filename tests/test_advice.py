"""Advice: on studies made so that a rule must speak it speaks, with what acts on it; on others it is silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from made_studies import USUAL, Made, bowl, found, study_of, trials_of

from search.advice import RULES, advise
from search.advice.actions import following
from storage.outcomes import Outcome

PLAIN = Made()


def without(
    cost: int, *others: Callable[[Mapping[str, Any]], float]
) -> tuple[Callable[[Mapping[str, Any]], float], ...]:
    """The usual costs of knobs, one of them replaced."""
    return (*USUAL[:cost], *others, *USUAL[cost + 1 :])


OPTIMIZER, RATE, L2, BATCH, SCHEDULE, WARMUP, WIDTH, DROPOUT = range(8)
# What a study must not be told that is made as it should be, or in which nothing matters.
OF_THE_SPACE = {"edges", "lost", "slow", "divergence", "overfitting", "too_short", "too_long", "failures", "in_vain"}


class TestSilence:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("sampler", ["random", "tpe"])
    def test_a_search_as_it_should_be_is_told_nothing_of_its_space(self, sampler: str, seed: int) -> None:
        assert not OF_THE_SPACE & {*found(replace(PLAIN, sampler=sampler), seed)}

    @pytest.mark.parametrize("seed", range(3))
    def test_where_nothing_matters_no_knob_is_blamed(self, seed: int) -> None:
        nothing = replace(PLAIN, costs=(), seed_noise=0.01, sampler="tpe")
        assert not OF_THE_SPACE & {*found(nothing, seed)}

    @pytest.mark.parametrize("trials", [0, 1, 2, 5])
    def test_of_a_handful_of_trials_nothing_but_that_they_are_few(self, trials: int) -> None:
        made = replace(PLAIN, trials=trials)
        advice = advise(study_of(made), trials_of(made))
        assert advice.findings == ()
        assert {rule.name for rule in advice.not_asked} == {rule.name for rule in RULES if rule.least > trials}


class TestEdges:
    def test_a_rate_whose_best_lies_beyond_the_range_is_searched_further_up(self) -> None:
        made = replace(PLAIN, costs=without(RATE, bowl("lr_multiple", 100.0, 0.06)))
        [finding] = found(made)["edges"]
        assert finding.says == "lr_multiple is best at the upper end of its range, 30"
        assert finding.actions == ("dialin run net.py --range lr_multiple=0.95:300 --epochs 12",)
        assert "best trials have lr_multiple from 15 on" in finding.evidence

    def test_a_knob_of_the_model_is_widened_in_its_code(self) -> None:
        made = replace(PLAIN, costs=without(WIDTH, bowl("width", 300.0, 0.12)))
        [finding] = found(made)["edges"]
        assert finding.says == "width is best at the upper end of its range, 64"
        assert finding.actions == ("in net.py: trial.suggest_int('width', 23, 180, log=True)",)

    def test_the_largest_batch_is_followed_by_a_larger_one(self) -> None:
        made = replace(PLAIN, costs=without(BATCH, bowl("batch_size", 1000.0, 0.05)))
        [finding] = found(made)["edges"]
        assert finding.actions == ("dialin run net.py --range batch_size=64,128,256 --epochs 12",)

    def test_what_can_go_no_lower_is_fixed(self) -> None:
        made = replace(PLAIN, costs=without(DROPOUT, lambda recipe: 0.3 * recipe["dropout"]))
        [finding] = found(made)["edges"]
        assert finding.actions == ("dialin run net.py --fix dropout=0 --epochs 12",)

    def test_where_less_than_the_least_is_none_it_is_fixed_at_none(self) -> None:
        made = replace(PLAIN, costs=without(L2, bowl("l2", 1e-8, 0.05)))
        [finding] = found(made)["edges"]
        assert finding.actions == ("dialin run net.py --fix l2=0 --epochs 12",)

    @pytest.mark.parametrize(
        ("numbers", "upwards", "further"),
        [
            ((16, 32, 64), True, 128),
            ((16, 32, 64), False, 8),
            ((1, 2, 3), False, None),
            ((0, 1, 2), False, None),
            ((0.0, 0.1, 0.3), False, None),
            ((0.1, 0.2, 0.4), False, 0.05),
            ((-1, 0, 1), True, 2),
            ((-1, 0, 1), False, -2),
        ],
    )
    def test_a_row_of_numbers_goes_on_as_it_began(
        self, numbers: Sequence[float], upwards: bool, further: object
    ) -> None:
        assert following(numbers, upwards) == further

    def test_what_was_narrowed_already_stays_so(self) -> None:
        made = replace(PLAIN, costs=without(RATE, bowl("lr_multiple", 100.0, 0.06)))
        space = {"optimizer": {"choices": ["adam", "adamw"]}, "warmup": {"fixed": 0.0}}
        [finding] = found(made, space=space)["edges"]
        narrowed = "--range optimizer=adam,adamw --fix warmup=0 --range lr_multiple=0.95:300"
        assert finding.actions == (f"dialin run net.py {narrowed} --epochs 12",)


class TestDivergence:
    HOT = staticmethod(lambda recipe: recipe["lr_multiple"] > 6)

    def test_best_rates_next_to_those_that_diverge_want_a_warm_up_or_clipping(self) -> None:
        made = replace(PLAIN, costs=without(RATE, bowl("lr_multiple", 8.0, 0.06)), diverges=self.HOT)
        [finding] = found(made)["divergence"]
        assert finding.says.startswith("the best rates lie next to those at which training diverges")
        assert finding.actions == (
            "dialin run net.py --range warmup=0.05:0.2 --epochs 12",
            "in net.py: Objective(..., clip_norm=1.0)",
        )

    def test_rates_that_diverge_far_from_the_best_need_not_be_searched(self) -> None:
        made = replace(PLAIN, costs=without(RATE, bowl("lr_multiple", 0.3, 0.06)), diverges=self.HOT)
        [finding] = found(made)["divergence"]
        assert "are searched in vain" in finding.says
        [command] = finding.actions
        low, high = command.split()[4].removeprefix("lr_multiple=").split(":")
        assert float(low) == 0.03
        assert 6 <= float(high) <= 16

    def test_what_diverges_at_any_rate_is_looked_for_elsewhere(self) -> None:
        made = replace(PLAIN, diverges=lambda recipe: recipe["optimizer"] == "sgd")
        [finding] = found(made)["divergence"]
        assert "at any rate" in finding.says
        assert "have sgd" in finding.evidence
        assert finding.actions[0].startswith("dialin logs net-1 ")

    def test_a_trial_or_two_that_diverged_are_nobodys_concern(self) -> None:
        made = replace(PLAIN, diverges=lambda recipe: recipe["lr_multiple"] > 27)
        assert "divergence" not in found(made)


class TestChoices:
    def test_an_optimizer_that_never_came_near_is_left_out(self) -> None:
        bad = {"momentum": 0.0, "adam": 0.004, "adamw": 0.002, "sgd": 0.2}
        [finding] = found(replace(PLAIN, costs=without(OPTIMIZER, lambda recipe: bad[recipe["optimizer"]])))["lost"]
        assert finding.says == "optimizer: sgd lost for good"
        assert finding.actions == ("dialin run net.py --range optimizer=momentum,adam,adamw --epochs 12",)

    def test_the_only_one_left_is_fixed(self) -> None:
        bad = {"constant": 0.2, "onecycle": 0.2, "cosine": 0.0}
        made = replace(PLAIN, costs=without(SCHEDULE, lambda recipe: bad[recipe["schedule"]]), pruned=False)
        [finding] = found(made)["lost"]
        assert finding.says == "schedule: constant and onecycle lost for good"
        assert finding.actions == ("dialin run net.py --fix schedule=cosine --epochs 12",)

    def test_a_schedule_that_nobody_saw_through_has_not_lost(self) -> None:
        bad = {"constant": 0.0, "onecycle": 0.3, "cosine": 0.0}
        made = replace(PLAIN, costs=without(SCHEDULE, lambda recipe: bad[recipe["schedule"]]))
        cut = [
            replace(one, epochs=one.epochs[:3], outcome=Outcome.PRUNED, state="pruned")
            if one.recipe["schedule"] == "onecycle"
            else one
            for one in trials_of(made)
        ]
        assert "lost" not in {finding.rule for finding in advise(study_of(made), cut).findings}

    def test_knobs_that_decide_nothing_are_fixed(self) -> None:
        made = replace(PLAIN, costs=without(WARMUP)[: DROPOUT - 1], trials=300, pruned=False)
        [finding] = found(made, seed=1)["decides_nothing"]
        assert finding.says.startswith("warmup and dropout made no difference to see")
        assert "--fix warmup=0 " in finding.actions[0]
        assert "--fix dropout=0." in finding.actions[0]

    def test_a_knob_that_decides_is_not_fixed_however_many_trials(self) -> None:
        assert "decides_nothing" not in found(replace(PLAIN, trials=200))

    def test_batches_that_take_long_for_no_gain_are_left_out(self) -> None:
        made = replace(
            PLAIN,
            costs=without(BATCH, lambda recipe: 0.01 * (recipe["batch_size"] == 16)),
            seconds=lambda recipe: 64 / recipe["batch_size"],
            trials=80,
        )
        [finding] = found(made)["slow"]
        assert finding.says == "batch_size 16 costs time for no gain"
        assert "times as long" in finding.evidence
        assert "batch_size=" in finding.actions[0]
        assert "16" not in finding.actions[0]

    def test_widths_that_take_long_for_no_gain_are_left_out(self) -> None:
        made = replace(
            PLAIN,
            costs=without(WIDTH, lambda recipe: 0.04 * (recipe["width"] > 32)),
            seconds=lambda recipe: recipe["width"] / 16,
            trials=80,
        )
        [finding] = found(made)["slow"]
        assert finding.says == "width above 32 costs time for no gain"
        assert finding.actions == ("dialin run net.py --range width=8:32 --epochs 12",)

    def test_what_takes_long_and_gains_is_worth_it(self) -> None:
        made = replace(
            PLAIN,
            costs=without(WIDTH, bowl("width", 80.0, 0.1)),
            seconds=lambda recipe: recipe["width"] / 16,
            trials=80,
        )
        assert "slow" not in found(made)


class TestNoise:
    NOISY = replace(PLAIN, costs=(), seed_noise=0.004, epoch_noise=0.004, pruned=False, trials=30)

    def test_trials_that_differ_by_less_than_their_noise_are_ties(self) -> None:
        [finding] = found(self.NOISY)["ties"]
        assert finding.says.endswith("cannot be told apart: which is first is luck")
        assert finding.actions[0].startswith("dialin confirm net-1 --objective net.py --top ")
        assert "from epoch to epoch" in finding.evidence

    def test_trials_that_differ_by_much_more_are_none(self) -> None:
        clear = replace(PLAIN, costs=(bowl("lr_multiple", 1.0, 0.5),), seed_noise=0.0, epoch_noise=1e-5, trials=30)
        assert "ties" not in found(clear)

    def test_recipes_that_were_trained_again_tell_the_noise_better_than_curves(self) -> None:
        trials = trials_of(self.NOISY)
        again = [
            replace(one, number=30 + n, value=(one.value or 0) + shift, epochs=())
            for n, (one, shift) in enumerate(zip(trials[:4], (0.01, -0.01, 0.012, 0.008), strict=True))
        ]
        advice = advise(study_of(self.NOISY), [*trials, *again])
        [finding] = [one for one in advice.findings if one.rule == "ties"]
        assert "(4 recipes trained more than once)" in finding.evidence

    def test_a_validation_split_too_small_to_rank_is_named_by_its_size(self) -> None:
        made = replace(PLAIN, samples=359, trials=40)
        [finding] = found(made)["validation_size"]
        assert finding.says == "359 validation samples are too few to tell the best trials apart"
        assert "steps of 1/359" in finding.evidence

    def test_a_large_one_is_not_blamed(self) -> None:
        assert "validation_size" not in found(replace(PLAIN, samples=50_000, trials=40))
        assert "validation_size" not in found(replace(PLAIN, trials=40))  # a loss

    def test_a_metric_that_several_trials_exhaust_is_exchanged(self) -> None:
        made = replace(PLAIN, samples=300, least=-0.1, trials=40)
        [finding] = found(made)["perfect"]
        assert "are perfect by accuracy" in finding.says
        assert finding.actions[0].startswith('in net.py: metric=("loss", ...) first')

    def test_a_single_perfect_trial_is_an_accident(self) -> None:
        made = replace(PLAIN, samples=300, trials=40)
        first, *rest = trials_of(made)
        advice = advise(study_of(made), [replace(first, outcome=Outcome.COMPLETE, value=1.0), *rest])
        assert "perfect" not in {finding.rule for finding in advice.findings}

    def test_few_trials_for_many_knobs_are_said(self) -> None:
        [finding] = found(replace(PLAIN, trials=12))["how_many"]
        assert finding.says == "12 trials are few for 8 knobs: what is best may be what was tried"
        assert finding.actions == ("dialin resume net-1 --objective net.py --trials +20",)

    def test_a_search_that_still_finds_better_ones_goes_on(self) -> None:
        made = replace(
            PLAIN,
            costs=(bowl("lr_multiple", 1.0, 0.5), bowl("width", 22.0, 0.5)),
            seed_noise=0.0001,
            epoch_noise=0.0,
            pruned=False,
        )
        [finding] = found(made)["how_many"]
        assert finding.says == "more trials are likely to find better ones"
        assert finding.actions == ("dialin resume net-1 --objective net.py --trials +20",)

    def test_a_search_that_only_finds_noise_has_trials_enough(self) -> None:
        noisy = replace(PLAIN, costs=(), seed_noise=0.001, epoch_noise=0.01, trials=120, pruned=False)
        [finding] = found(noisy)["how_many"]
        assert "trials are enough" in finding.says
        assert finding.actions == ("dialin confirm net-1 --objective net.py",)
