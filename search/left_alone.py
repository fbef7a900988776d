"""Which of the open studies a worker of the queue leaves alone now, and why.

Its code is not allowed here, or is another than the study's; the study would not do; or there was nothing to be done in
it a moment ago. `search.queue_worker` asks before it takes a study, and its attendant meanwhile, from another thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

from search import space_changes
from search.allowed import Allowed
from search.told import Told
from storage import queue, studies
from storage.contenders import OpenStudy
from storage.shared import SharedStorage

# A study in which nothing was to be done is left alone for so long, and twice as long each time again.
REST_SECONDS = (5.0, 60.0)
# For so long it is not asked again which source a study's trials are to be trained with.
AGREED_SECONDS = 5.0


@dataclass
class _Known:
    """Of one study: the `source` agreed on, whoever resumed it may have edited it, and when that was `looked_up`.

    `refused`: with which source it would not do, and why. `told`: why it was said to be left alone.
    """

    source: str
    looked_up: float
    refused: tuple[str | None, str] = None, ""
    rests_until: float = 0.0
    rest: float = REST_SECONDS[0] / 2
    told: str = ""


class LeftAlone:
    """For the life of a worker. What is not open is forgotten: SQLite gives the ids of deleted studies again."""

    def __init__(self, storage: SharedStorage, allowed: Allowed, told: Told) -> None:
        """Why a study is left alone is told once."""
        self._storage, self._allowed, self._told = storage, allowed, told
        self._known: dict[int, _Known] = {}
        self._lock = Lock()

    def look(self) -> tuple[set[int], str]:
        """The ids of the studies, and why in a line for people."""
        now_open = queue.open_now(self._storage)
        found, now = self._look_up_sources(now_open), time.monotonic()
        left, notes = set(), []
        with self._lock:
            self._learn(now_open, found, now)
            for study in now_open:
                known = self._known[study.study_id]
                if now < known.rests_until:
                    left.add(study.study_id)
                if why := self._why_not(study, known):
                    left.add(study.study_id)
                    notes.append(f"leaving {study.name} alone: {why}")
                    if known.told != why:
                        known.told = why
                        self._told("study refused", notes[-1], study=study.name, trial=None, reason=why)
        return left, "; ".join(notes)

    def source(self, study_id: int, otherwise: str) -> str:
        """SHA-256 of the source with which a study's trials are to be trained; `otherwise` where it is not open."""
        known = self._known.get(study_id)
        return known.source if known is not None else otherwise

    def refuse(self, study_id: int, source: str, why: str) -> None:
        """With this source the study will not do."""
        if (known := self._known.get(study_id)) is not None:
            known.refused = source, why

    def rest(self, study_id: int, trained: int) -> None:
        """Leave a study alone for a while in which there was nothing to do but what others do."""
        if (known := self._known.get(study_id)) is not None:
            shortest, longest = REST_SECONDS
            known.rest = shortest if trained else min(2 * known.rest, longest)
            known.rests_until = time.monotonic() + known.rest

    def _look_up_sources(self, now_open: Sequence[OpenStudy]) -> Mapping[int, str]:
        """Of those that were not looked up of late."""
        known, old = self._known, time.monotonic() - AGREED_SECONDS
        ask = {
            one.study_id: one.sha256
            for one in now_open
            if one.study_id not in known or known[one.study_id].looked_up <= old
        }
        if not ask:
            return ask
        stored = studies.system_attrs(self._storage, space_changes.KEY, ask)
        return ask | {study_id: str(attr["sha256"]) for study_id, attr in stored.items()}

    def _learn(self, now_open: Sequence[OpenStudy], found: Mapping[int, str], now: float) -> None:
        before = self._known
        self._known = {
            one.study_id: before.get(one.study_id) or _Known(found.get(one.study_id, one.sha256), now)
            for one in now_open
        }
        for study_id, source in found.items():
            self._known[study_id].source, self._known[study_id].looked_up = source, now

    def _why_not(self, study: OpenStudy, known: _Known) -> str:
        refused, why = known.refused
        return why if refused == known.source else self._allowed.why_not(study.objective, known.source)
