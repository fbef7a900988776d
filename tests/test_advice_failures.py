"""Advice on what went wrong: failures of one kind, recipes trained in vain, a best of a handful."""

from __future__ import annotations

from dataclasses import replace

from made_studies import Made, study_of, trials_of

from search.advice import Finding, advise
from storage.outcomes import Outcome
from storage.records import RecordedTrial
from storage.studies import StudyRecord

PLAIN = Made()


def found(rule: str, trials: list[RecordedTrial], study: StudyRecord | None = None) -> list[Finding]:
    advice = advise(study or study_of(PLAIN), trials)
    return [finding for finding in advice.findings if finding.rule == rule]


def failed(one: RecordedTrial, outcome: Outcome, reason: str) -> RecordedTrial:
    return replace(one, outcome=outcome, state=outcome.value, reason=reason, epochs=(), value=None)


class TestFailures:
    def test_failures_of_one_kind_are_told_with_what_they_have_in_common(self) -> None:
        trials = [
            failed(one, Outcome.OUT_OF_MEMORY, "out of memory at batch size 128")
            if one.params["batch_size"] == 128
            else one
            for one in trials_of(PLAIN)
        ]
        [finding] = found("failures", trials)
        assert finding.says.endswith("trials ran out of memory")
        assert "all of them have batch_size 128" in finding.evidence
        assert finding.actions[0] == "dialin run net.py --range batch_size=16,32,64 --epochs 12"

    def test_a_width_that_fails_is_no_choice_to_leave_out(self) -> None:
        trials = [
            failed(one, Outcome.LOST, "its workers died") if one.params["width"] == 8 else one
            for one in trials_of(replace(PLAIN, trials=200))
        ]
        [finding] = found("failures", trials)
        assert "killed their workers" in finding.says
        assert "all of them have width 8" in finding.evidence
        assert [action.partition(" net-1 ")[0] for action in finding.actions] == ["dialin logs"]

    def test_one_failure_is_an_accident(self) -> None:
        first, *rest = trials_of(PLAIN)
        assert found("failures", [failed(first, Outcome.ERROR, "KeyError: 3"), *rest]) == []

    def test_the_same_error_with_other_numbers_is_one_kind(self) -> None:
        trials = trials_of(PLAIN)
        broken = [failed(one, Outcome.ERROR, f"KeyError: {one.number}") for one in trials[:2]]
        [finding] = found("failures", [*broken, *trials[2:]])
        assert finding.says == "2 trials raised the same error"
        assert "dialin logs net-1 1" in finding.actions


class TestInVain:
    def test_recipes_that_the_model_refuses_are_drawn_in_vain(self) -> None:
        trials = [
            replace(one, outcome=Outcome.PRUNED, reason="refused by the model: too large", epochs=(), value=None)
            if one.number % 2
            else one
            for one in trials_of(PLAIN)
        ]
        [finding] = found("in_vain", trials)
        assert finding.says.startswith("the model refuses 30 of 60 recipes")

    def test_trials_that_break_a_constraint_are_trained_in_vain(self) -> None:
        trials = [replace(one, constraints={"memory": 0.5 if one.number % 5 else -0.5}) for one in trials_of(PLAIN)]
        [finding] = found("in_vain", trials)
        assert "break a constraint" in finding.says

    def test_one_in_five_that_breaks_it_is_the_price_of_searching_near_it(self) -> None:
        trials = [replace(one, constraints={"memory": -0.5 if one.number % 5 else 0.5}) for one in trials_of(PLAIN)]
        assert found("in_vain", trials) == []


class TestFewComplete:
    TRIALS = staticmethod(
        lambda most: [
            replace(one, outcome=Outcome.PRUNED, state="pruned", epochs=one.epochs[:3]) if one.number >= most else one
            for one in trials_of(replace(PLAIN, pruned=False))
        ]
    )

    def test_a_best_of_a_handful_is_said(self) -> None:
        [finding] = found("few_complete", self.TRIALS(4), study_of(PLAIN, sampler="tpe", pruner="hyperband"))
        assert finding.evidence == "60 trials were judged, and 4 trained to their end"
        assert finding.actions == ("dialin run net.py --sampler tpe --pruner median --epochs 12",)

    def test_not_of_five_nor_of_a_strategy_that_means_to(self) -> None:
        assert found("few_complete", self.TRIALS(5), study_of(PLAIN, sampler="tpe", pruner="hyperband")) == []
        assert found("few_complete", self.TRIALS(4), study_of(PLAIN, sampler="auto")) == []
