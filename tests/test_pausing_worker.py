"""Workers that pause and go on: nothing is trained twice, the study ends with its budget, and a stop leaves paused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from halving import Halving, make
from optuna.trial import FrozenTrial
from studies import OBJECTIVES, TINY, Inside, engines_disposed, rows, trials, value
from test_folds_run import FOLDED

from search.assignment import Assignment
from search.devices import Slot
from search.interrupt import Interrupt
from search.judge import MakeStrategy
from search.strategy import GoOn, Left, Seen, SeenState, Start, Verdict
from search.worker import Worker
from storage import steering, studies
from storage.shared import open_storage
from storage.steering import Wish
from storage.studies import StudySpec

BARE = """
def objective(trial):
    for step in range(1, 4):
        trial.report(trial.suggest_float("x", 0, 1), step)
        assert not trial.should_prune()
    return trial.params["x"]
"""


class Place:
    """A study with a place for its workers, who work in this process, one after the other."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder, self.name = url, folder, ""

    def study(self, objective: Path = TINY, **changes: Any) -> None:
        given: dict[str, Any] = {"epochs": 4, "trials": 6, "metric": "accuracy", "direction": "maximize"}
        given |= {"sampler": "random", "pruner": "none"}
        spec = StudySpec(str(objective), "", **given | changes, seed=3)
        self.objective = objective
        with engines_disposed():
            self.name = studies.create(open_storage(self.url), spec, stem="paused").name

    def work(self, make_strategy: MakeStrategy | None = make) -> None:
        slots = (Slot(("cpu",), 0, None),)
        with engines_disposed():
            files = self.folder / "files"
            orders = Assignment(self.url, self.name, str(self.objective), slots, 1, files, self.folder)
            Worker(orders, Interrupt(), make_strategy=make_strategy).work()

    @property
    def trials(self) -> list[FrozenTrial]:
        return trials(self.url, self.name)

    def outcomes(self) -> list[tuple[str, int]]:
        """Of each trial, and how many epochs it has."""
        return [(trial.user_attrs.get("outcome", "open"), len(trial.intermediate_values)) for trial in self.trials]

    def states(self) -> list[Path]:
        return sorted(self.folder.rglob("state-*.pt"))


@pytest.fixture
def place(either_url: str, tmp_path: Path) -> Place:
    return Place(either_url, tmp_path)


class Always(Halving):
    """Pauses each trial after each epoch, and goes on with the first that is paused."""

    def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
        if left.trials > 0:
            return Start(None, "always")
        paused = [one.number for one in seen if one.state is SeenState.PAUSED]
        return GoOn(paused[0]) if paused else None

    def verdict(self, number: int, seen: Sequence[Seen], left: Left, may_pause: bool = True) -> Verdict:
        return Verdict.PAUSE


class OnlyStarts(Always):
    """Goes on with none."""

    def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
        return Start(None, "starts") if left.trials > 0 else None


def test_a_study_is_halved_and_nothing_is_trained_twice(place: Place) -> None:
    place.study()
    place.work()
    assert Counter(place.outcomes()) == {("pruned", 1): 3, ("pruned", 2): 1, ("complete", 4): 2}
    assert value(place.url, "SELECT spent_epochs FROM dialin_studies") == 3 * 1 + 1 * 2 + 2 * 4
    assert value(place.url, "SELECT taken FROM dialin_studies") == 6
    assert rows(place.url, "SELECT * FROM dialin_leases") == []
    assert place.states() == [], "no file is left of a trial that was settled in its pause"
    assert all(trial.user_attrs["origin"] == "halving" for trial in place.trials)
    assert not any("paused" in trial.user_attrs for trial in place.trials)
    ending = Counter(ending for (ending,) in rows(place.url, "SELECT ending FROM dialin_owners"))
    assert ending == {"paused": 6 + 3, "settled": 2}
    generations = rows(place.url, "SELECT DISTINCT epoch, generation FROM dialin_epochs ORDER BY epoch, generation")
    assert generations == [(1, 1), (2, 2), (3, 3), (4, 3)]


def test_the_strategy_of_the_studys_own_pauses_and_ends(place: Place) -> None:
    place.study(trials=12, epochs=8, sampler="auto")
    place.work(None)
    outcomes = Counter(outcome for outcome, _ in place.outcomes())
    assert outcomes.total() == outcomes["complete"] + outcomes["pruned"] + outcomes["diverged"] <= 12
    assert outcomes["complete"] >= 1
    assert value(place.url, "SELECT count(*) FROM dialin_owners WHERE ending = 'paused'") >= 1
    assert rows(place.url, "SELECT trial_id FROM dialin_trials WHERE paused IS NOT NULL OR outcome IS NULL") == []
    assert place.states() == []


def test_a_trial_that_was_paused_has_the_curve_of_one_that_was_not(place: Place) -> None:
    curves = []
    for strategy in (Always, Unpaused):
        place.study(trials=2)
        place.work(lambda *_, strategy=strategy: strategy())
        assert place.outcomes() == [("complete", 4)] * 2
        curves.append([(trial.params, trial.intermediate_values) for trial in place.trials])
    assert curves[0][0][1] == curves[1][0][1] or curves[0][0][0] != curves[1][0][0]
    assert curves[0] == curves[1]


class Unpaused(Always):
    def verdict(self, number: int, seen: Sequence[Seen], left: Left, may_pause: bool = True) -> Verdict:
        return Verdict.GO_ON


def test_a_stop_leaves_trials_paused_and_who_resumes_goes_on(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Always):
        def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
            if left.trials == 0:
                storage = open_storage(place.url)
                steering.stop(storage, studies.find(storage, place.name).study_id, "by a test", "bo")
            return super().next(seen, left)

    place.study(trials=2)
    place.work(lambda *_: Stopping())
    assert place.outcomes() == [("open", 1)] * 2
    assert [trial.user_attrs["paused"] for trial in place.trials] == ["after epoch 1"] * 2
    assert len(place.states()) == 2
    inside = Inside(capsys, monkeypatch)
    said = inside("status", place.name, "--storage", place.url).out
    assert "stopped: by a test" in said
    assert "paused: 2 trials, the best " in said
    told = json.loads(inside("status", place.name, "--storage", place.url, "--json").out)
    assert [(one["number"], one["epoch"]) for one in told["paused"]] == [(0, 1), (1, 1)]
    assert (told["state"], told["running"], told["settled"]) == ("stopped: by a test", [], 0)
    assert "goes on when that is worth more" in inside("show", place.name, 0, "--storage", place.url).out
    with engines_disposed():
        storage = open_storage(place.url)
        steering.resume(storage, studies.find(storage, place.name).study_id, Wish(), "bo")
    place.work(lambda *_: Always())
    assert place.outcomes() == [("complete", 4)] * 2
    assert place.states() == []


@pytest.mark.parametrize(("limit", "trained"), [({"budget_epochs": 3}, 3), ({"until": 0.0}, 6)])
def test_a_budget_that_is_spent_settles_what_is_paused_and_removes_its_files(
    place: Place, limit: dict[str, Any], trained: int
) -> None:
    place.study(trials=3, **limit)
    place.work(lambda *_: Always())
    outcomes = Counter(outcome for outcome, _ in place.outcomes())
    assert value(place.url, "SELECT state FROM dialin_studies") == "stopped"
    assert value(place.url, "SELECT spent_epochs FROM dialin_studies") == trained
    assert rows(place.url, "SELECT trial_id FROM dialin_trials WHERE paused IS NOT NULL") == []
    assert outcomes["pruned"] == 2
    assert len({path.parent for path in place.states()}) == outcomes["open"], "of one that was handed back"


def test_where_nothing_is_worth_going_on_with_all_are_pruned(place: Place) -> None:
    place.study()
    place.work(lambda *_: OnlyStarts())
    assert place.outcomes() == [("pruned", 1)] * 6
    assert place.states() == []


def test_where_nothing_is_worth_starting_the_study_stops_and_says_so(place: Place) -> None:
    class Bored(Always):
        def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
            return Start(None, "first") if len(seen) < 2 else None

    place.study()
    place.work(lambda *_: Bored())
    assert place.outcomes() == [("pruned", 1)] * 2
    assert value(place.url, "SELECT reason FROM dialin_studies") == "the strategy saw nothing worth training any more"


def test_trials_that_wait_for_a_larger_budget_are_no_matter_of_the_strategy(place: Place) -> None:
    place.study(trials=1)
    with engines_disposed():
        storage = open_storage(place.url)
        record = studies.find(storage, place.name)
        for width in (5, 6):
            studies.enqueue(storage, record, {"width": width})
    place.work(lambda *_: Always())
    assert [(one.state.name, one.user_attrs["origin"]) for one in place.trials] == [
        ("COMPLETE", "asked for"),
        ("WAITING", "asked for"),
    ]
    assert place.trials[0].params["width"] == 5


def test_a_trial_out_of_patience_is_complete_and_not_paused(place: Place) -> None:
    impatient = place.folder / "impatient.py"
    text = TINY.read_text()
    assert "epochs=4" in text
    impatient.write_text(text.replace("epochs=4", 'epochs=9, patience=1, optimizers=("sgd",)'))
    place.study(impatient, epochs=9, trials=1)
    place.work(lambda *_: Always())
    [trial] = place.trials
    assert trial.user_attrs["reason"].startswith("no better than in epoch")
    assert value(place.url, "SELECT ending FROM dialin_owners ORDER BY generation DESC LIMIT 1") == "settled"
    epochs = rows(place.url, "SELECT DISTINCT generation FROM dialin_epochs WHERE epoch = :last", last=trial.last_step)
    assert epochs == rows(place.url, "SELECT max(generation) FROM dialin_owners"), "it was settled by who trained it"


def test_a_recipe_that_the_strategy_gives_is_trained(place: Place) -> None:
    class Given(OnlyStarts):
        def next(self, seen: Sequence[Seen], left: Left) -> Start | GoOn | None:
            return Start({"width": 7, "optimizer": "adamw"}, "won study tiny-1") if left.trials > 0 else None

    place.study(trials=2)
    place.work(lambda *_: Given())
    assert [(trial.params["width"], trial.params["optimizer"]) for trial in place.trials] == [(7, "adamw")] * 2
    assert {trial.user_attrs["origin"] for trial in place.trials} == {"won study tiny-1"}


def test_a_checkpoint_that_cannot_be_written_makes_no_pause(place: Place) -> None:
    place.study(trials=1)
    with engines_disposed():
        folder = studies.find(open_storage(place.url), place.name).folder
    trial = place.folder / "files" / folder / "trial-00000"
    trial.mkdir(parents=True)
    for epoch in range(1, 4):
        (trial / f"state-{epoch:04}.g1.pt.partial").mkdir()
        (trial / f"state-{epoch:04}.g1.pt").mkdir()
    place.work(lambda *_: Always())
    assert place.outcomes() == [("complete", 4)]


class TestOtherDoors:
    def test_an_own_loop_that_keeps_its_parts_pauses_and_goes_on(self, place: Place) -> None:
        place.study(OBJECTIVES / "own_loop.py", epochs=3, trials=2)
        place.work(lambda *_: Always())
        assert place.outcomes() == [("complete", 3)] * 2
        assert value(place.url, "SELECT count(*) FROM dialin_owners WHERE ending = 'paused'") == 4
        lines = [own.read_text().split() for own in place.folder.rglob("epochs.txt")]
        assert lines == [["1", "2", "3"]] * 2, "each epoch once"

    def test_one_that_keeps_nothing_goes_on_without_a_pause(self, place: Place) -> None:
        own = place.folder / "own_loop.py"
        text = (OBJECTIVES / "own_loop.py").read_text()
        own.write_text(text.replace("    run.keep(net=net, optimizer=optimizer, schedule=schedule)\n", ""))
        place.study(own, epochs=3, trials=1)
        self.check_never_paused(place, 3)

    def test_so_does_a_bare_function(self, place: Place) -> None:
        (place.folder / "bare.py").write_text(BARE)
        place.study(place.folder / "bare.py", epochs=0, trials=1, metric="value", direction="minimize")
        place.objective = Path(f"{place.folder / 'bare.py'}:objective")
        self.check_never_paused(place, 3)

    def test_so_do_folds(self, place: Place) -> None:
        (place.folder / "folded.py").write_text(FOLDED)
        place.study(place.folder / "folded.py", epochs=2, folds=3, trials=1)
        self.check_never_paused(place, 3)

    def check_never_paused(self, place: Place, values: int) -> None:
        place.work(lambda *_: Always())
        assert place.outcomes() == [("complete", values)]
        assert rows(place.url, "SELECT ending FROM dialin_owners") == [("settled",)]
