"""What is advised when fresh seeds of the best recipes have been trained: their spread is the noise that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from made_studies import Made, study_of, trials_of

from search.advice import Evidence, Finding, advise
from search.advice.noise import noise
from search.confirmation import Confirmation, Confirmed, rank
from search.intervals import of_mean
from storage.queries import RankedTrial

# Trials that differ by nothing but chance.
NOISY = Made(costs=(), seed_noise=0.004, epoch_noise=0.004, pruned=False, trials=30)


def seeds(trial: int, *values: float, seconds: float = 5.0) -> Confirmed:
    """A recipe of which fresh seeds gave these losses."""
    found = RankedTrial(trial, min(values), 3, 5, seconds, {})
    return Confirmed(found, dict(enumerate(values)), (seconds,) * len(values), mean=of_mean(values))


def answer(*recipes: Confirmed, finished: bool = True, resolution: float = 0.0) -> Confirmation:
    ranked = rank(recipes, "minimize", resolution)
    wanted = max(len(one.values) for one in recipes)
    return Confirmation(
        "net-1", "net-1-confirm", "loss", "minimize", len(recipes), wanted, ranked, resolution, finished
    )


def ties(found: Confirmation | None, made: Made = NOISY) -> list[Finding]:
    return [one for one in advise(study_of(made), trials_of(made), found).findings if one.rule == "ties"]


def around(middle: float, spread: float = 0.001) -> Sequence[float]:
    return [middle + spread * step for step in (-1.3, -0.4, 0.0, 0.6, 1.1)]


class TestNoise:
    def test_fresh_seeds_tell_it_better_than_curves(self) -> None:
        trials = trials_of(NOISY)
        guessed = noise(Evidence(study_of(NOISY), trials))
        known = noise(Evidence(study_of(NOISY), trials, answer(seeds(3, 0.05, 0.09), seeds(7, 0.06, 0.10, 0.08))))
        assert guessed is not None
        assert known is not None
        assert "or more (the last third of the 10 best curves" in guessed.text
        # Within the recipes: the squares are 0.0008 and 0.0008, with three degrees of freedom.
        assert known.deviation == pytest.approx((0.0016 / 3) ** 0.5)
        assert known.text == "chance moves one recipe by ±0.023 (5 fresh seeds of 2 recipes)"

    def test_too_few_seeds_tell_nothing(self) -> None:
        known = noise(Evidence(study_of(NOISY), trials_of(NOISY), answer(seeds(3, 0.05, 0.09), seeds(7, 0.06, 0.10))))
        assert known is not None
        assert known.least

    def test_seeds_that_agree_on_a_coarse_metric_may_differ_by_what_it_hides(self) -> None:
        agree = answer(seeds(3, *[0.05] * 5), seeds(7, *[0.08] * 5), resolution=0.01)
        known = noise(Evidence(study_of(NOISY), trials_of(NOISY), agree))
        assert known is not None
        assert known.deviation == pytest.approx(0.01 / 12**0.5)


class TestTies:
    def test_what_seeds_tell_apart_is_no_tie(self) -> None:
        assert ties(None)
        assert ties(answer(seeds(3, *around(0.05)), seeds(7, *around(0.07)))) == []

    def test_recipes_that_seeds_do_not_tell_apart_get_as_many_as_would(self) -> None:
        [finding] = ties(answer(seeds(3, *around(0.05)), seeds(7, *around(0.051))))
        assert finding.says == "2 confirmed recipes cannot be told apart by 5 seeds of each"
        assert "trial 7 is behind trial 3 by 0.001 loss (95% interval -" in finding.evidence
        [command] = finding.actions
        before, _, wanted = command.rpartition(" ")
        assert before == "dialin confirm net-1 --objective net.py --seeds"
        # 2 * (2.8 * 0.00092 / 0.001)^2 and one, as Student's distribution is wider than the normal one.
        assert wanted == "15"
        assert "about 15 seeds of each" in finding.evidence

    def test_two_seeds_of_two_recipes_already_say_how_many_more(self) -> None:
        [finding] = ties(answer(seeds(3, 0.1100, 0.1112), seeds(7, 0.1188, 0.1148)))
        assert finding.actions == ("dialin confirm net-1 --objective net.py --seeds 4",)

    def test_recipes_that_came_to_the_same_want_no_more_seeds(self) -> None:
        [finding] = ties(answer(seeds(3, 0.05, 0.05), seeds(7, 0.05, 0.05)))
        assert finding.evidence == "trials 3 and 7 have the same mean loss"
        assert finding.actions == ("dialin best net-1",)

    def test_a_difference_that_hundreds_of_seeds_would_show_is_worth_none(self) -> None:
        [finding] = ties(answer(seeds(3, *around(0.05)), seeds(7, *around(0.0501), seconds=2.0)))
        assert finding.says.endswith("seeds of each: take trial 7, which is preferred")  # it is the cheaper one
        assert finding.evidence.endswith("a difference as small as that is worth no more seeds")
        assert finding.actions == ("dialin best net-1",)

    def test_a_confirmation_that_is_not_finished_is_gone_on_with(self) -> None:
        [finding] = ties(answer(seeds(3, *around(0.05, 0.01)), seeds(7, *around(0.051, 0.01)), finished=False))
        assert finding.says.endswith("complete trials cannot be told apart: which is first is luck")
        assert finding.actions == ("dialin confirm net-1 --objective net.py",)


def test_after_a_confirmation_enough_trials_are_no_reason_to_confirm() -> None:
    noisy = replace(NOISY, seed_noise=0.001, epoch_noise=0.01, trials=120)
    found = answer(seeds(3, *around(0.05, 0.02)), seeds(7, *around(0.05, 0.02)))
    [finding] = [one for one in advise(study_of(noisy), trials_of(noisy), found).findings if one.rule == "how_many"]
    assert finding.says == "120 trials are enough"
    assert finding.actions == ("dialin best net-1",)
