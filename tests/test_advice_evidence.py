"""How trials are compared of which most were pruned, and the statistics that rules rest on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from made_studies import Made, study_of, trials_of
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy import stats

from search.advice import Evidence
from search.advice.statistics import (
    p_higher_in_strata,
    p_rank_correlation,
    rank_correlation,
    ranks,
    share_interval,
    superiority,
)
from storage.details import EpochLine
from storage.outcomes import Outcome
from storage.records import RecordedTrial

RATE = FloatDistribution(0.001, 1.0, log=True)


def a_trial(
    number: int, curve: list[float | None], outcome: Outcome = Outcome.COMPLETE, *, lr: float = 0.1, **changes: Any
) -> RecordedTrial:
    """A loss by epoch."""
    told = [value for value in curve if value is not None and not math.isnan(value)]
    complete = outcome is Outcome.COMPLETE
    values: dict[str, Any] = {
        "number": number,
        "state": outcome.value,
        "outcome": outcome,
        "value": min(told) if complete and told else (curve[-1] if curve else None),
        "params": {"lr": lr},
        "distributions": {"lr": RATE},
        "epochs": tuple(EpochLine(n, value, {}, 1.0) for n, value in enumerate(curve, start=1)),
    }
    return RecordedTrial(**(values | changes))


def standing(*trials: RecordedTrial, **study: Any) -> list[float]:
    return Evidence(study_of(Made(epochs=3), **study), trials).standing.tolist()


class TestStanding:
    def test_of_complete_trials_it_is_their_rank(self) -> None:
        trials = [a_trial(n, [0.9, value]) for n, value in enumerate((0.3, 0.1, 0.2, 0.4))]
        assert standing(*trials) == pytest.approx([1 / 3, 1.0, 2 / 3, 0.0])

    def test_a_pruned_trial_is_compared_where_it_ended(self) -> None:
        late = a_trial(0, [0.9, 0.8, 0.1])
        pruned = a_trial(1, [0.5], Outcome.PRUNED)
        worse = a_trial(2, [0.95], Outcome.PRUNED)
        # Better than the late one by then, and better than the other that was pruned.
        assert standing(late, pruned, worse) == [0.5, 1.0, 0.0]

    def test_whoever_diverged_loses_to_all_that_did_not(self) -> None:
        diverged = a_trial(0, [0.1, math.nan], Outcome.DIVERGED)
        again = a_trial(1, [math.nan], Outcome.DIVERGED)
        assert standing(diverged, a_trial(2, [0.9]), again) == [0.25, 1.0, 0.25]

    def test_whoever_breaks_a_constraint_loses_to_all_that_keep_to_it(self) -> None:
        over = a_trial(0, [0.1], constraints={"memory": 0.5})
        assert standing(over, a_trial(1, [0.9], constraints={"memory": -0.5})) == [0.0, 1.0]

    def test_out_of_patience_is_the_end_of_the_run(self) -> None:
        early, full = a_trial(0, [0.3, 0.2]), a_trial(1, [0.5, 0.4, 0.1])
        assert standing(early, full) == [0.0, 1.0]

    def test_higher_is_better_where_the_metric_is_maximized(self) -> None:
        low, high = a_trial(0, [0.2], value=0.2), a_trial(1, [0.9], value=0.9)
        assert standing(low, high, direction="maximize") == [0.0, 1.0]

    def test_folds_count_where_they_have_a_value(self) -> None:
        trials = [a_trial(0, [None, 0.5, None, 0.3]), a_trial(1, [None, 0.4], Outcome.PRUNED)]
        assert standing(*trials, epochs=2, folds=2) == [0.0, 1.0]

    def test_what_failed_or_waits_says_nothing(self) -> None:
        failed = [a_trial(n, [], outcome) for n, outcome in enumerate((Outcome.ERROR, Outcome.OUT_OF_MEMORY))]
        waiting = RecordedTrial(2, "waiting", None)
        refused = a_trial(3, [], Outcome.PRUNED, value=None)
        assert Evidence(study_of(Made()), [*failed, waiting, refused]).judged == ()

    def test_a_paused_trial_counts_as_far_as_it_got(self) -> None:
        paused = RecordedTrial(0, "paused", None, epochs=(EpochLine(1, 0.2, {}),), params={"lr": 0.1})
        evidence = Evidence(study_of(Made()), [paused, a_trial(1, [0.5, 0.4])])
        assert evidence.standing.tolist() == [1.0, 0.0]
        assert evidence.best_complete.tolist() == [1]


class TestKnobs:
    def test_a_place_is_the_share_of_the_range_and_an_index_of_choices(self) -> None:
        evidence = Evidence(study_of(Made()), trials_of(Made(trials=12)))
        rate, batch, optimizer = (evidence.knob(name) for name in ("lr_multiple", "batch_size", "optimizer"))
        assert rate is not None
        assert batch is not None
        assert optimizer is not None
        value = evidence.judged[0].params["lr_multiple"]
        assert rate.places[0] == pytest.approx(math.log(value / 0.03) / math.log(1000))
        assert (batch.ordered, optimizer.ordered, rate.own) == (True, False, False)
        assert batch.places.max() <= 1
        width = evidence.knob("width")
        assert width is not None
        assert width.own

    def test_trials_from_outside_of_todays_range_are_left_out(self) -> None:
        wide = a_trial(0, [0.2], lr=0.9)
        narrow = a_trial(1, [0.3], distributions={"lr": FloatDistribution(0.01, 0.5, log=True)})
        [knob] = Evidence(study_of(Made()), [wide, narrow]).knobs
        assert knob.rows.tolist() == [1]
        assert not knob.always

    def test_a_knob_of_one_value_is_none(self) -> None:
        fixed = a_trial(0, [0.2], params={"x": 1}, distributions={"x": CategoricalDistribution((1,))})
        assert Evidence(study_of(Made()), [fixed]).knobs == ()

    def test_a_loops_own_knobs_are_its_authors(self) -> None:
        [knob] = Evidence(study_of(Made()), [a_trial(0, [0.2], recipe={"lr": 0.1})]).knobs
        assert knob.own


class TestStatistics:
    RNG = np.random.default_rng(0)

    def test_ranks_and_their_correlation_are_scipys(self) -> None:
        some, others = self.RNG.integers(0, 9, 40).astype(float), self.RNG.normal(size=40)
        assert ranks(some).tolist() == (stats.rankdata(some) - 1).tolist()
        told = stats.spearmanr(some, others, alternative="greater")
        assert rank_correlation(some, others) == pytest.approx(told.statistic)
        assert p_rank_correlation(some, others) == pytest.approx(told.pvalue)

    def test_superiority_is_the_share_of_pairs(self) -> None:
        assert superiority(np.asarray([2.0, 3.0]), np.asarray([1.0, 2.0])) == (1 + 0.5 + 1 + 1) / 4
        assert superiority(np.empty(0), np.asarray([1.0])) == 0.5

    def test_strata_take_out_what_comes_with_them(self) -> None:
        strata = np.repeat([0, 1], 40)
        chosen = self.RNG.random(80) < np.where(strata == 1, 0.9, 0.1)
        later = self.RNG.normal(size=80) + 3 * strata
        assert stats.mannwhitneyu(later[chosen], later[~chosen], alternative="greater").pvalue < 1e-6
        assert p_higher_in_strata(later, chosen, strata) > 0.01
        assert p_higher_in_strata(later + 3 * chosen, chosen, strata) < 1e-4

    def test_in_one_stratum_it_is_wilcoxons_test(self) -> None:
        values, chosen = self.RNG.normal(size=50), np.arange(50) < 20
        told = stats.mannwhitneyu(values[chosen], values[~chosen], alternative="greater", use_continuity=False)
        assert p_higher_in_strata(values, chosen, np.zeros(50, dtype=np.int64)) == pytest.approx(told.pvalue, rel=0.02)

    @pytest.mark.parametrize(("share", "count"), [(0.5, 20), (0.99, 359), (1.0, 100)])
    def test_the_interval_of_a_share_is_wilsons(self, share: float, count: int) -> None:
        told = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
        assert share_interval(round(share * count) / count, count) == pytest.approx((told.low, told.high), abs=1e-4)
