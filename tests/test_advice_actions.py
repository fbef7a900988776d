"""What advice tells a person to type or to edit: it can be typed, is what the finding means, and keeps what was."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
from made_studies import SPACE, USUAL, Made, bowl, study_of, trials_of
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.advice import Finding, advise
from search.advice.actions import again, go_on, near, suggestion, widened
from search.narrowing import narrow
from search.wishes import parse_space

PLAIN = Made()
GRID = {"width": IntDistribution(16, 256, step=16), "dropout": FloatDistribution(0.0, 0.5, step=0.125)}


def knobs_of(command: str) -> dict[str, Any]:
    """What `dialin run` reads of a command."""
    words = shlex.split(command)
    given: dict[str, list[str]] = {option: [] for option in ("--fix", "--range", "--around")}
    for option, value in zip(words[3::2], words[4::2], strict=True):
        given.get(option, []).append(value)
    return parse_space(*given.values())


class TestFurther:
    @pytest.mark.parametrize(
        ("distribution", "down", "up"),
        [
            (FloatDistribution(0.03, 30.0, log=True), (0.003, 0.95), (0.95, 300.0)),
            (FloatDistribution(1e-6, 1e-2, log=True), (1e-7, 1e-4), (1e-4, 0.1)),
            (FloatDistribution(0.0, 0.5), None, (0.25, 0.75)),
            (FloatDistribution(0.0, 1.0, step=0.25), None, (0.5, 1.5)),
            (FloatDistribution(-1.0, 1.0), (-2.0, 0.0), (0.0, 2.0)),
            (IntDistribution(1, 3), None, (2, 4)),
            (IntDistribution(1, 2), None, (1, 3)),
            (IntDistribution(16, 64, step=16), None, (32, 96)),
            (IntDistribution(8, 64, log=True), (2, 23), (23, 180)),
            (IntDistribution(1990, 2010), (1980, 2000), (2000, 2020)),
        ],
    )
    def test_a_range_goes_on_by_its_half_and_at_most_tenfold_on_its_own_grid(
        self, distribution: Any, down: Any, up: Any
    ) -> None:
        found = {upwards: widened("knob", distribution, upwards) for upwards in (False, True)}
        assert found == {False: down, True: up}

    def test_the_edit_keeps_the_step(self) -> None:
        assert suggestion("width", GRID["width"], 128, 384) == "trial.suggest_int('width', 128, 384, step=16)"
        assert suggestion("dropout", GRID["dropout"], 0.25, 0.75) == (
            "trial.suggest_float('dropout', 0.25, 0.75, step=0.125)"
        )

    @pytest.mark.parametrize(
        ("distribution", "value", "typed"),
        [
            (FloatDistribution(0.0, 0.5), 0.123456, 0.12),
            (FloatDistribution(0.0, 0.5, step=0.125), 0.375, 0.375),
            (FloatDistribution(0.01234, 1.0, log=True), 0.01236, 0.01236),  # 0.012 is not in the range
            (FloatDistribution(1e-6, 1e-2, log=True), 1.2345e-4, 1.2e-4),
            (IntDistribution(8, 640), 123, 123),
            (CategoricalDistribution(("a", "b")), "b", "b"),
        ],
    )
    def test_a_value_that_is_fixed_is_one_that_the_knob_can_have(
        self, distribution: Any, value: Any, typed: Any
    ) -> None:
        assert near(distribution, value) == typed
        narrow({"knob": near(distribution, value)}, "knob", distribution)


class TestGoOn:
    """More trials: with what is left of the budget, and what the limits want to be raised by."""

    @pytest.mark.parametrize(
        ("study", "more"),
        [
            ({"trials": 60, "taken": 60}, " --trials +20"),
            ({"trials": 60, "taken": 50}, " --trials +10"),
            ({"trials": 60, "taken": 30}, ""),
            ({"trials": 900, "taken": 30, "budget_seconds": 600.0, "spent_seconds": 601.0}, " --budget +7m"),
            (
                {"trials": 30, "taken": 30, "budget_epochs": 90, "spent_epochs": 90},
                " --trials +20 --total-epochs +60",
            ),
        ],
    )
    def test_what_is_there_is_used_first(self, study: dict[str, Any], more: str) -> None:
        assert go_on(study_of(PLAIN, **study), 20) == f"dialin resume net-1 --objective net.py{more}"


class TestAgain:
    def test_a_number_is_typed_with_as_many_digits_as_it_has(self) -> None:
        command = again(study_of(PLAIN), {"width": [0.1234567, 1e-05, 2.0]}, {})
        assert knobs_of(command) == {"width": [0.1234567, 1e-05, 2.0]}

    def test_trials_are_as_long_as_they_were(self) -> None:
        assert again(study_of(PLAIN), {"warmup": 0.0}, {}) == "dialin run net.py --fix warmup=0 --epochs 12"
        assert again(study_of(PLAIN), {}, {"--epochs": "24"}) == "dialin run net.py --epochs 24"

    def test_a_bare_function_is_searched_the_same_way(self) -> None:
        bare = {"objective": "old.py:objective", "epochs": 0, "sampler": "tpe", "pruner": "hyperband"}
        assert again(study_of(PLAIN, **bare), {"x": (0, 1)}, {}) == (
            "dialin run old.py:objective --range x=0:1 --sampler tpe"
        )
        assert again(study_of(PLAIN, **bare, direction="maximize"), {}, {}) == (
            "dialin run old.py:objective --sampler tpe --direction maximize"
        )

    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize(
        "made",
        [
            replace(PLAIN, trials=300, costs=(), space={**SPACE, **GRID}),
            replace(PLAIN, costs=(*USUAL[:1], bowl("lr_multiple", 100.0, 0.06), *USUAL[2:]), space={**SPACE, **GRID}),
            replace(PLAIN, costs=(bowl("l2", 1e-8, 0.05),), tau=0.5, bend=lambda epoch: 0.02 * max(0, epoch - 5)),
        ],
        ids=["nothing", "edge", "over-fitted"],
    )
    def test_whatever_is_to_be_typed_is_read_as_it_is_meant(self, made: Made, seed: int) -> None:
        advice = advise(study_of(made), trials_of(made, seed))
        commands = [one for finding in advice.findings for one in finding.actions if one.startswith("dialin run ")]
        assert commands
        for command in [*commands, *filter(None, [advice.together])]:
            for name, value in knobs_of(command).items():
                if name in GRID:
                    narrow({name: value}, name, made.space[name])  # raises where nothing is left of it


class TestWhatIsThere:
    """An advised range is never less than what was searched, nor beyond what can be."""

    @staticmethod
    def edge(space: dict[str, Any], *costs: Any, own: bool = False) -> Finding:
        made = replace(PLAIN, costs=costs, space={**SPACE, **space})
        trials = trials_of(made)
        if own:  # as a loop of one's own has it, or a bare function
            trials = [replace(one, recipe=one.params, model={}) for one in trials]
        [finding] = [one for one in advise(study_of(made), trials).findings if one.rule == "edges"]
        return finding

    def test_l2_that_was_narrowed_goes_on_downwards_before_it_is_none(self) -> None:
        narrowed = {"l2": FloatDistribution(1e-3, 1e-1, log=True)}
        finding = self.edge(narrowed, bowl("l2", 1e-5, 0.05))
        assert finding.actions == ("dialin run net.py --range l2=0.0001:0.01 --epochs 12",)

    def test_a_loops_own_decay_is_no_dialins_and_cannot_be_none(self) -> None:
        finding = self.edge({}, bowl("l2", 1e-9, 0.05), own=True)
        assert finding.actions == ("in net.py: trial.suggest_float('l2', 1e-07, 0.0001, log=True)",)

    def test_a_warm_up_that_is_long_already_is_not_made_shorter(self) -> None:
        space = {**SPACE, "warmup": FloatDistribution(0.1, 0.4)}
        made = replace(
            PLAIN,
            costs=(bowl("lr_multiple", 8.0, 0.06),),
            diverges=lambda recipe: recipe["lr_multiple"] > 6,
            space=space,
        )
        [finding] = [one for one in advise(study_of(made), trials_of(made)).findings if one.rule == "divergence"]
        assert finding.actions == ("in net.py: Objective(..., clip_norm=1.0)",)

    def test_what_nobody_can_type_is_fixed_in_the_code(self) -> None:
        space = {**SPACE, "dropout": CategoricalDistribution(("a,b", "c=d"))}
        made = replace(PLAIN, costs=USUAL[:6], trials=200, space=space, pruned=False)
        found = [one for one in advise(study_of(made), trials_of(made, 2)).findings if one.rule == "decides_nothing"]
        told = [action for finding in found for action in finding.actions]
        assert any(action.startswith("in net.py: knobs={'dropout': ") for action in told)
        for action in told:
            if action.startswith("dialin run "):
                assert "dropout" not in knobs_of(action)
