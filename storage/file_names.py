"""How the files of a study are named, written and read back in one place.

Used by whoever writes checkpoints and logs, and by `dialin storage check`, which looks for what is left over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.tables import CheckpointKind

_TRIAL = re.compile(r"trial-(\d+)")
# What it is, where the trial stands, the generation that wrote it; one that is not whole yet has an ending more.
_CHECKPOINT = re.compile(r"(state|weights)-.*\.g(\d+)\.pt(?:\.partial)?")


def trial_folder(number: int) -> str:
    """The folder of a trial in its study's: trial-00012."""
    return f"trial-{number:05d}"


def trial_number(folder: str) -> int | None:
    """The trial whose folder has this name; None for any other folder."""
    found = _TRIAL.fullmatch(folder)
    return int(found[1]) if found is not None else None


def state_name(epoch: int, batch: int, generation: int) -> str:
    """A state of so many batches after an epoch: state-0003.g1.pt, state-0003-000120.g1.pt."""
    within = f"-{batch:06d}" if batch else ""
    return f"state-{epoch:04d}{within}.g{generation}.pt"


def weights_name(epoch: int, generation: int) -> str:
    """The best epoch's weights: weights-0003.g1.pt."""
    return f"weights-{epoch:04d}.g{generation}.pt"


@dataclass(frozen=True)
class CheckpointName:
    """What the name of a checkpoint says, of one that is not whole too."""

    kind: CheckpointKind
    generation: int


def parse(name: str) -> CheckpointName | None:
    """Read the name of a file in a trial's folder; None for what is no checkpoint."""
    found = _CHECKPOINT.fullmatch(name)
    return CheckpointName(CheckpointKind(found[1]), int(found[2])) if found is not None else None
