"""What following a search needs of the workers that were started for it, wherever they are; `search.launch` follows.

`search.fleet` has them on this machine, `search.ray_fleet` on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from search.devices import Slot


@dataclass(frozen=True)
class Death:
    """A worker that ended otherwise than by itself: its last words, or the signal or status it died of.

    `again`: seconds until its slot has another; None: never. `hopeless`: it has died at its start too often.
    """

    slot: Slot
    reason: str
    handed_back: int
    again: float | None = None
    hopeless: bool = False


class Crew(Protocol):
    """Keeps a worker in every slot, notices deaths, and passes on a wish to end."""

    @property
    def slots(self) -> Mapping[int, str]:
        """Names of the slots on this machine by the process id of their workers; a view holds on to it."""

    @property
    def alive(self) -> bool:
        """Whether any worker still runs, or is going to."""

    @property
    def unheard(self) -> bool:
        """Whether a worker has ended of which `deaths` has not told."""

    def deaths(self) -> Iterator[Death]:
        """Workers that have failed and were not told of. What they held may be adopted at once."""

    def start_again(self) -> None:
        """Start the workers whose time has come. Raises DialinError."""

    def no_more(self) -> None:
        """Start no worker again, whichever dies."""

    def hand_back(self) -> None:
        """Ask every worker to hand its trial back and end; asked again it does no harm."""

    def kill(self) -> None:
        """End every worker now; what they held may be adopted at once."""

    def wait(self, seconds: float) -> None:
        """So long at most, and no longer than until a worker has ended where that can be heard."""

    def close(self) -> None:
        """Let go of what the workers shared; none of them is left."""
