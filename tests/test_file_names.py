"""What a file's name says is what was written into it."""

from __future__ import annotations

import pytest

from storage.file_names import CheckpointName, parse, state_name, trial_folder, trial_number, weights_name
from storage.tables import CheckpointKind


@pytest.mark.parametrize("number", [0, 12, 123456])
def test_a_trials_folder_says_its_number(number: int) -> None:
    assert trial_number(trial_folder(number)) == number


@pytest.mark.parametrize("ending", ["", ".partial"])
def test_a_checkpoint_says_what_it_is_and_who_wrote_it(ending: str) -> None:
    for state in (state_name(3, 0, 2), state_name(3, 120, 2)):
        assert parse(state + ending) == CheckpointName(CheckpointKind.STATE, 2)
    assert parse(weights_name(10000, 11) + ending) == CheckpointName(CheckpointKind.WEIGHTS, 11)


def test_what_lies_beside_checkpoints_is_none() -> None:
    assert [parse(name) for name in ("log.txt", "own.g1", "state-0001.pt", "weights.g1.pt")] == [None] * 4
    assert [trial_number(name) for name in ("trial-", "trial-1.old", "workers.log")] == [None] * 3
