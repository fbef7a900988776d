"""What is promised of a replay, and how two curves are compared: pure functions, with nothing trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from search.comparing import Comparing, distance
from search.metrics import NamedMetric, Reported
from search.promises import Promise, promise
from search.reporting import EpochResult, Verdict
from storage.outcomes import Outcome
from storage.provenance import Origin, Provenance
from storage.queries import EpochLine, TrialDetail

# -- What is promised

HERE = Provenance(device="A CPU (AVX2)", threads=1, versions={"torch": "2.15.0", "numpy": "2"})


def of(*generations: int, **changes: Any) -> TrialDetail:
    """A complete trial whose epochs were recorded by owners of these generations."""
    lines = tuple(
        EpochLine(epoch, 0.5 + epoch / 10, {"accuracy": 0.5 + epoch / 10, "train_loss": 1.0}, generation=generation)
        for epoch, generation in enumerate(generations, start=1)
    )
    given: dict[str, Any] = {"outcome": Outcome.COMPLETE, "state": "complete", "value": 0.5 + len(lines) / 10}
    given |= {"trial_id": 1, "number": 0, "reason": "", "best_epoch": len(lines), "params": {}, "enqueued": {}}
    given |= {"attrs": {}, "epochs": lines, "owners": (), "started_at": None, "settled_at": None, "seconds": 1.0}
    return TrialDetail(**given | {"weights": None, "checkpoint": None} | changes)


def promised(trial: TrialDetail, owners: dict[int, Provenance], *, on_cpu: bool = True, own: bool = False) -> Promise:
    return promise(trial, Origin(1, owners), HERE, on_cpu=on_cpu, own_code=own)


OTHER = replace(HERE, device="Another CPU (AVX512)", threads=4)


@pytest.mark.parametrize(
    ("trial", "owners", "exact"),
    [
        (of(1, 1, 1), {1: HERE}, 3),
        (of(1, 2, 2), {1: HERE}, 3),
        (of(1, 2, 2), {1: HERE, 2: OTHER}, 1),
        (of(2, 2, 2), {1: OTHER, 2: HERE}, 0),  # the first one may have left a checkpoint within epoch 1
        (of(2, 2, 2), {2: HERE}, 0),
        (of(1, 3, 3), {1: HERE, 2: OTHER, 3: HERE}, 1),  # the second left no epoch, but maybe a checkpoint
        (of(1, 1, 1), {}, 0),
        (of(1, 1, 1), {1: replace(HERE, versions={"torch": "2.14.0", "numpy": "2"})}, 0),
        (of(1, 1, 1, attrs={"micro_batch": 8}), {1: HERE}, 0),
    ],
)
def test_an_epoch_is_promised_where_it_and_all_before_were_trained_as_here(
    trial: TrialDetail, owners: dict[int, Provenance], exact: int
) -> None:
    found = promised(trial, owners)
    assert found.exact == exact
    assert bool(found.why) is (exact < len(trial.epochs))


def test_why_it_need_not_come_again_is_said() -> None:
    assert promised(of(1, 1), {1: OTHER}).why == (
        "its epochs were trained with Another CPU (AVX512) (here A CPU (AVX2)), 4 threads (here 1)"
    )
    newer = replace(HERE, versions={"torch": "2.14.0", "pandas": "3"})
    assert promised(of(1, 2), {1: HERE, 2: newer}).why == (
        "its epochs after 1 were trained with torch 2.14.0 (here 2.15.0), pandas 3 (here in none), "
        "numpy in no version (here 2)"
    )
    assert "another order" in promised(of(1), {1: HERE}, on_cpu=False).why
    assert "8 samples at a time" in promised(of(1, attrs={"micro_batch": 8}), {1: HERE}).why
    assert promised(of(1, 2), {1: HERE}, own=True).exact == 0
    assert promised(of(1, 1), {1: HERE}, own=True).exact == 2


# -- What is compared

ACCURACY = NamedMetric("accuracy", "maximize", Reported())


def compared(trial: TrialDetail, *curve: float, own_code: bool = False) -> tuple[Comparing, list[str], list[Verdict]]:
    said: list[str] = []
    found = Comparing(trial, ACCURACY, own_code=own_code, length=4, say=said.append)
    verdicts = [
        found.report(EpochResult(epoch, value, {"accuracy": value, "train_loss": 1.0}, 0.1, 1), None)
        for epoch, value in enumerate(curve, start=1)
    ]
    return found, said, verdicts


def test_each_number_of_each_epoch_is_compared() -> None:
    found, said, verdicts = compared(of(1, 1, 1), 0.6, 0.7000001, 0.5)
    assert [pair.same for pair in found.pairs] == [True, False, False]
    assert said[0] == "epoch 1/4  accuracy 0.6000  train_loss 1.0000  same"
    assert said[1] == "epoch 2/4  accuracy 0.7000001 (was 0.7)  train_loss 1.0000"
    assert said[2] == "epoch 3/4  accuracy 0.5000 (was 0.8000)  train_loss 1.0000"
    assert found.apart == pytest.approx((1e-7 + 0.3) / 3)
    assert (found.scale, found.missing, verdicts) == (0.8, 0, [Verdict.GO_ON] * 3)


def test_the_smallest_difference_is_shown() -> None:
    _, said, _ = compared(of(1), math.nextafter(0.6, 1))
    assert said == ["epoch 1/4  accuracy 0.60000000000000009 (was 0.59999999999999998)  train_loss 1.0000"]


def test_training_ends_where_the_trial_did() -> None:
    pruned = of(1, 1, outcome=Outcome.PRUNED)
    _, _, verdicts = compared(pruned, 0.6, 0.7)
    assert verdicts == [Verdict.GO_ON, Verdict.PRUNE]
    running = of(1, 1, outcome=None, state="running")
    found, said, verdicts = compared(running, 0.6, 0.7, 0.8)
    assert verdicts == [Verdict.GO_ON, Verdict.PRUNE, Verdict.HAND_BACK]
    assert (said[2], len(found.pairs)) == ("epoch 3/4  not on record", 2)
    failed = of(1, outcome=Outcome.ERROR)
    assert compared(failed, 0.6, 0.7)[2] == [Verdict.GO_ON, Verdict.GO_ON]


def test_a_divergence_that_comes_again_is_the_same() -> None:
    line = EpochLine(1, math.nan, {"accuracy": math.nan, "train_loss": 1.0}, generation=1)
    found, _, _ = compared(of(1, epochs=(line,), outcome=Outcome.DIVERGED), math.nan)
    assert [pair.same for pair in found.pairs] == [True]
    found, _, _ = compared(of(1, epochs=(line,), outcome=Outcome.DIVERGED), 0.5)
    assert ([pair.same for pair in found.pairs], found.apart) == ([False], math.inf)
    assert (distance(math.inf, math.inf), distance(math.inf, 1.0)) == (0.0, math.inf)


def test_of_a_loop_of_ones_own_the_searched_metric_is_compared_alone() -> None:
    line = EpochLine(1, 0.6, {"accuracy": 0.6, "clock": 12.5}, generation=1)
    found, said, _ = compared(of(1, epochs=(line,)), 0.6, own_code=True)
    assert ([pair.same for pair in found.pairs], said) == ([True], ["epoch 1/4  accuracy 0.6000  same"])
