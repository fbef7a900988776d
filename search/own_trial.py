"""The trial that a person's own code holds while it trains: Optuna's, but what it notes never meets what Dialin notes.

`search.bare` hands one to a function, `search.trainer` to a training loop, with a folder of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.suggesting import SuggestingTrial

# User attributes in which a trial's page, `best` and the dashboard find what Dialin knows of it.
RESERVED = frozenset(
    [
        "recipe",
        "settings",
        "model",
        "lr",
        "device",
        "outcome",
        "seconds",
        "epochs",
        "reason",
        "traceback",
        "best_epoch",
        "origin",
        "confirms",
        "provenance",
        "micro_batch",
    ]
)
# What a person's attribute of such a name is stored under.
PREFIX = "own_"


class OwnTrial(SuggestingTrial):
    """Goes on with `trial` under another class, with what it has sampled already."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """As Optuna's; `model` is stored as `own_model`, since Dialin keeps something else under that name."""
        super().set_user_attr(f"{PREFIX}{key}" if key in RESERVED else key, value)

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What was noted, by the names it was noted under."""
        found = super().user_attrs
        others = {key: value for key, value in found.items() if key not in RESERVED and not _renamed(key)}
        return others | {key.removeprefix(PREFIX): value for key, value in found.items() if _renamed(key)}


def _renamed(key: str) -> bool:
    return key.startswith(PREFIX) and key.removeprefix(PREFIX) in RESERVED


def own_folder(folder: Path, generation: int) -> Path:
    """The folder for an own loop's files, moved on from owner to owner: one that lost its lease cannot reach it.

    `folder` is the trial's; the files of the newest generation before this one are taken over.
    """
    own = folder / f"own.g{generation}"
    older = sorted(folder.glob("own.g*"), key=lambda path: int(path.suffix.removeprefix(".g")))
    before = [path for path in older if int(path.suffix.removeprefix(".g")) < generation]
    if not own.exists() and before:
        before[-1].rename(own)
    own.mkdir(parents=True, exist_ok=True)
    return own
