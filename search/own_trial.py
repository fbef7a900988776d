"""The trial that a person's own code holds while it trains: Optuna's, but what it notes never meets what Dialin notes.

`search.bare` hands one to a function, `search.trainer` to a training loop.
"""

from __future__ import annotations

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
