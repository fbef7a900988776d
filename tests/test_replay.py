"""`dialin replay`: a trial trained again from what is stored of it, its curve compared with the one on record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finished import Place, interrupted_after
from halving import make
from studies import OBJECTIVES, TINY, TINY_TEXT, Inside, engines_disposed, place_for_a_module, rows
from test_folds_run import FOLDED

import search
from search.loading import resolve
from storage.errors import UsageError
from storage.outcomes import Outcome

FUNCTION = """\
def objective(trial):
    x = trial.suggest_float("x", 0.0, 4.0)
    for step in range(3):
        trial.report((x - 1) ** 2 + 1 / (step + 1), step)
    return (x - 1) ** 2
"""
READING = TINY_TEXT.replace(
    "generator=torch.Generator().manual_seed(0)",
    'generator=torch.Generator().manual_seed(int((root / "n.txt").read_text()))',
)
ANOTHER_VALUE = """\
import os


def objective(trial):
    trial.report(trial.suggest_float("x", 0.0, 4.0), 0)
    return int.from_bytes(os.urandom(4))
"""
BY_CHANCE = TINY_TEXT.replace(
    "    width = trial", "    import os\n    torch.manual_seed(int.from_bytes(os.urandom(4)))\n    width = trial"
)
FAILING = TINY_TEXT.replace(
    "    width = trial", '    if trial.number == 1:\n        raise ValueError("no colour")\n    width = trial'
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A finished study of tiny.py, tiny-1, that is only looked at."""
    with place_for_a_module(tmp_path_factory) as folder:
        place = Place(f"sqlite:///{folder / 'study.db'}", folder / "files")
        place.searched(trials=2)
        yield place


def test_a_trial_comes_again_bit_for_bit_on_every_database(inside: Inside, storage_url: str, tmp_path: Path) -> None:
    place = Place(storage_url, tmp_path / "files")
    name = place.searched()
    before = rows(storage_url, "SELECT count(*) FROM dialin_epochs")
    said = inside("replay", name, 0, "--objective", TINY, *place.at[:2])
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("trial 0 of tiny-1: ")
    assert lines[0].endswith(f"; seed {place.origin(name).seed}")
    assert lines[1] == "trained with the same as here: it must come again bit for bit"
    assert [line.split()[1] for line in lines[2:6]] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(line.endswith("  same") for line in lines[2:6])
    assert lines[6] == "the same, bit for bit: 4 epochs"
    assert rows(storage_url, "SELECT count(*) FROM dialin_epochs") == before, "nothing is written"


def test_the_best_trial_is_meant_where_none_is_named_and_a_number_is_one_of_the_newest_study(
    inside: Inside, tiny: Place
) -> None:
    at = ("--objective", TINY, *tiny.at[:2])
    best = json.loads(inside("best", "--format", "json", *tiny.at[:2]).out)[0]["trial"]
    assert f"trial {best} of tiny-1: " in inside("replay", *at).out
    assert "trial 1 of tiny-1: " in inside("replay", 1, *at).out


def test_the_json_has_both_curves_and_nothing_else_is_printed_there(inside: Inside, tiny: Place) -> None:
    said = inside("replay", "tiny-1", 1, "--json", "--objective", TINY, *tiny.at[:2])
    told = json.loads(said.out)
    assert (told["likeness"], told["promised_up_to"], told["why_no_further"]) == ("same", 4, "")
    assert (told["first_difference"], told["mean_distance"]) == (None, 0.0)
    assert told["value"] == told["recorded_value"] == tiny.trial("tiny-1", 1).value
    assert [one["epoch"] for one in told["epochs"]] == [1, 2, 3, 4]
    assert all(one["recorded"] == one["replayed"] for one in told["epochs"])
    assert "epoch 1/4" in said.err


def test_from_python_with_the_objective_at_hand(tiny: Place) -> None:
    with engines_disposed():
        found = search.load("tiny-1", storage=tiny.url, files=tiny.folder)
        made = found.replay(0, objective=str(TINY), quiet=True)
        assert (made.likeness, made.kept, len(made.pairs)) == ("same", True, 4)
        by_value = found.replay(0, objective=resolve(str(TINY)).objective, quiet=True)
        assert by_value.pairs == made.pairs
        with pytest.raises(UsageError, match=r"pass it, as in replay\(objective=...\)"):
            found.replay(0)


# -- How a trial ended


def test_a_trial_that_was_pruned_is_trained_as_far_as_it_got(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    name = place.study(trials=6)
    place.work(name, make_strategy=make)  # pauses trials, and settles them pruned at the end
    pruned = [number for number in range(6) if place.trial(name, number).outcome is Outcome.PRUNED]
    short = next(number for number in pruned if 0 < len(place.trial(name, number).epochs) < 4)
    epochs = len(place.trial(name, short).epochs)
    said = inside("replay", name, short, "--objective", TINY, *place.at[:2])
    assert said.status == 0, said.err
    assert said.out.splitlines()[-1] == f"the same, bit for bit: {epochs} epoch{'s' * (epochs > 1)}"


def test_a_trial_that_failed_is_trained_only_when_asked_for(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    (tmp_path / "mine.py").write_text(FAILING)
    name = place.searched(tmp_path / "mine.py", trials=2, epochs=1)
    at = ("--objective", tmp_path / "mine.py", *place.at[:2])
    failed = next(number for number in range(3) if place.trial(name, number).outcome is Outcome.ERROR)
    refused = inside("replay", name, failed, *at)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert f"trial {failed} of {name} failed before an epoch had ended" in refused.err
    assert "no colour" in refused.err
    assert "--failed trains it again" in refused.err
    raised = inside("replay", name, failed, "--failed", *at)
    assert raised.status == 2
    assert 'raise ValueError("no colour")' in raised.err
    assert "search/" not in raised.err


def test_a_trial_without_a_curve_is_a_line(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    at = ("--objective", TINY, *place.at[:2])
    name = place.study(trials=3)
    nothing = inside("replay", name, *at)
    assert (nothing.status, f"{name} has no complete trial yet" in nothing.err) == (1, True)
    assert inside("try", name, "lr=0.05", "optimizer=sgd", *at).status == 0
    waiting = inside("replay", name, 0, *at)
    assert (waiting.status, f"trial 0 of {name} is waiting and has no epoch on record" in waiting.err) == (2, True)
    missing = inside("replay", name, 7, *at)
    assert (missing.status, "has no trial 7" in missing.err) == (2, True)


def test_a_curve_that_nothing_on_record_decides_is_another(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    (tmp_path / "mine.py").write_text(BY_CHANCE)
    name = place.searched(tmp_path / "mine.py")
    said = inside("replay", name, 0, "--objective", tmp_path / "mine.py", *place.at[:2])
    assert said.status == 1
    last = said.out.splitlines()[-1]
    assert last.startswith("NOT the same: another from epoch 1 on; its curve is ")
    assert "Something besides the seed decides what it computes" in last
    assert "(was 0." in said.out


def test_a_value_that_nothing_on_record_decides_is_another(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    (tmp_path / "old.py").write_text(ANOTHER_VALUE)
    name = place.searched(tmp_path / "old.py", metric="value", direction="minimize", epochs=0)
    said = inside("replay", name, 0, "--objective", tmp_path / "old.py", *place.at[:2])
    assert said.status == 1
    assert "  same\n" in said.out, "what it reported is the same"
    assert said.out.splitlines()[-1].startswith("NOT the same: its value is another; ")


# -- What has changed since


def test_an_objective_that_has_changed_is_refused_unless_told(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place, path = Place(sqlite_url, tmp_path / "files"), tmp_path / "mine.py"
    path.write_text(TINY_TEXT)
    name = place.searched(path)
    at = ("--objective", path, *place.at[:2])
    path.write_text(f"{TINY_TEXT}# a remark\n")
    refused = inside("replay", name, 0, *at)
    assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "mine.py has changed since trial 0 was trained: its SHA-256 was " in refused.err
    told = inside("replay", name, 0, "--changed", *at)
    assert told.status == 0
    assert told.out.splitlines()[0].startswith(f"{path} has changed since trial 0")
    assert "need not come again bit for bit: it was trained with other source than now; its curve" in told.out
    assert told.out.splitlines()[-1] == "the same, bit for bit: 4 epochs"
    path.write_text(TINY_TEXT.replace('"width", 4, 8', '"breadth", 4, 8'))
    other = inside("replay", name, 0, "--changed", *at)
    assert (other.status, "trial 0 has no 'breadth', which its objective suggests now" in other.err) == (2, True)
    path.write_text(TINY_TEXT.replace("loss=nn.CrossEntropyLoss()", 'loss=nn.CrossEntropyLoss(), knobs={"lr": 9.0}'))
    moved = inside("replay", name, 0, "--changed", *at)
    assert (moved.status, "in trial 0, and would be 9.0 now" in moved.err) == (2, True)


def test_a_study_of_before_has_the_checksum_of_its_beginning(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    name = place.searched(objective_sha256="0" * 64)
    forget_provenance(sqlite_url)
    refused = inside("replay", name, 0, "--objective", TINY, *place.at[:2])
    assert (refused.status, "its SHA-256 was 000000000000 and is" in refused.err) == (2, True)
    told = inside("replay", name, 0, "--changed", "--objective", TINY, *place.at[:2])
    assert told.status == 0, "its seed follows from the study's"
    assert "what its epochs were trained with is not on record" in told.out
    assert told.out.splitlines()[-1] == "the same, bit for bit: 4 epochs"


def forget_provenance(url: str) -> None:
    import sqlite3

    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    with database:
        database.execute("DELETE FROM trial_user_attributes WHERE key = 'provenance'")
    database.close()


def test_other_data_are_refused_unless_told(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place, path = Place(sqlite_url, tmp_path / "files"), tmp_path / "mine.py"
    path.write_text(READING)
    (tmp_path / "n.txt").write_text("0")
    name = place.searched(path, data=tmp_path)
    at = ("--objective", path, "--data", tmp_path, *place.at[:2])
    assert inside("replay", name, 0, *at).status == 0
    (tmp_path / "n.txt").write_text("1")
    refused = inside("replay", name, 0, *at)
    assert (refused.status, "trial 0 was trained on other data: its checksum was " in refused.err) == (2, True)
    told = inside("replay", name, 0, "--changed", *at)
    assert told.status == 1
    assert "need not come again bit for bit: it was trained with other data than now; its curve" in told.out
    assert told.out.splitlines()[-1].startswith("NOT the same: another from epoch 1 on")


# -- Several workers


def test_up_to_where_another_kind_of_worker_went_on_it_must_come_again(
    inside: Inside, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    name = place.study()
    place.work(name, interrupt=interrupted_after(2, monkeypatch))
    monkeypatch.undo()
    place.work(name, threads=2)
    said = inside("replay", name, 0, "--objective", TINY, *place.at[:2])
    assert said.status == 0, said.err
    assert said.out.splitlines()[1] == (
        "up to epoch 2 it must come again bit for bit: its epochs after 2 were trained with 2 threads (here 1); "
        "its curve may be 2% of its largest value away"
    )
    assert torch.get_num_threads() == 1, "as many as its first owner had"


def test_a_trial_that_one_kind_of_workers_handed_on_comes_again_whole(
    inside: Inside, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    name = place.study()
    place.work(name, interrupt=interrupted_after(2, monkeypatch))
    monkeypatch.undo()
    place.work(name)
    assert {line.generation for line in place.trial(name).epochs} == {1, 2}
    said = inside("replay", name, 0, "--objective", TINY, *place.at[:2])
    assert said.out.splitlines()[1] == "trained with the same as here: it must come again bit for bit"
    assert said.out.splitlines()[-1] == "the same, bit for bit: 4 epochs"


# -- Every door


def test_folds_a_loop_of_ones_own_and_a_function_come_again(inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
    place = Place(sqlite_url, tmp_path / "files")
    (tmp_path / "folded.py").write_text(FOLDED)
    (tmp_path / "old.py").write_text(FUNCTION)
    folded, loop, old = tmp_path / "folded.py", OBJECTIVES / "own_loop.py", tmp_path / "old.py"
    of_folded = resolve(str(folded)).objective
    names = {
        place.searched(folded, epochs=2, folds=3, metric=of_folded.searched.name): folded,
        place.searched(loop, epochs=2): loop,
        place.searched(old, metric="value", direction="minimize", epochs=0): old,
    }
    for name, objective in names.items():
        said = inside("replay", name, 0, "--objective", objective, *place.at[:2])
        assert said.status == 0, said.err
        assert said.out.splitlines()[-1].startswith("the same, bit for bit: "), said.out
