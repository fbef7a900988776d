"""The actor that keeps one worker on a node of a Ray cluster. `search.ray_fleet` asks for it and gives it orders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from search import children
from search.allowed import Allowed
from search.assignment import Assignment
from search.crew import Death
from search.fleet import Fleet
from search.foresight import large_imports
from storage.claims import new_uuid
from storage.errors import DialinError
from storage.patience import DATABASE_ERRORS, one_line, patiently, waiting
from storage.shared import open_storage

# How long an actor waits for a database that does not answer: its node may be unable to reach it.
DATABASE_SECONDS = 30.0


class Wish(IntEnum):
    """What is wanted of a worker; the last one stands."""

    WORK = 1
    START_NO_MORE = 2
    HAND_BACK = 3
    DIE = 4


@dataclass(frozen=True)
class Orders:
    """A worker's. Its node must have this source of the objective.

    `folder`: the command's. It is last on the import path: a person's random.py must not stand in for Python's.
    """

    assignment: Assignment
    sha256: str
    folder: str


@dataclass(frozen=True)
class Seen:
    """What an actor tells of itself and its worker, and who has died since it told last.

    `life` is another one after Ray has started the actor again.
    """

    life: str
    node: str
    host: str
    alive: bool
    worker_id: str = ""
    deaths: tuple[Death, ...] = ()


class DialinWorker:
    """The actor. It keeps one worker on its node, a process as `search.fleet` has them on any machine.

    It gets its orders from whoever looks, each time: when Ray has started it again it knows nothing. What an actor is
    made with Ray would write down, and orders hold the database's password.
    """

    def __init__(self) -> None:
        self._life = new_uuid()
        self._fleet: Fleet | None = None

    def look(self, orders: Orders | None, wish: Wish) -> Seen:
        """Do as is wished, and tell what has become of the worker; without orders none is begun."""
        import ray

        seen = Seen(self._life, ray.get_runtime_context().get_node_id(), os.uname().nodename, alive=False)
        if self._fleet is None and wish is Wish.WORK:
            if orders is None:
                return replace(seen, alive=True)
            try:
                self._fleet = _begun(orders)
            except (DialinError, *DATABASE_ERRORS) as error:
                return replace(seen, deaths=(Death(orders.assignment.places[0], one_line(error), 0),))
        if self._fleet is None:
            return seen
        deaths = tuple(_tended(self._fleet, wish))
        [member], alive = self._fleet.members, self._fleet.alive or self._fleet.unheard
        return replace(seen, alive=alive, worker_id=member.worker_id, deaths=deaths)


def _begun(orders: Orders) -> Fleet:
    sys.path[:] = [*(folder for folder in sys.path if folder != orders.folder), orders.folder]
    assignment, objective = orders.assignment, str(orders.assignment.objective)
    if why := Allowed([objective]).why_not(objective, orders.sha256):
        raise DialinError(why)
    children.warm_up(large_imports(objective))
    with waiting(DATABASE_SECONDS):
        storage = patiently(lambda: open_storage(assignment.storage))
    return Fleet(storage, assignment, assignment.places)


def _tended(fleet: Fleet, wish: Wish) -> Iterator[Death]:
    """Who has died; of a death that the database did not hear of `fleet` tells the next time."""
    if wish is not Wish.WORK:
        fleet.no_more()
    if wish is Wish.HAND_BACK:
        fleet.hand_back()
    if wish is Wish.DIE:
        fleet.kill()
    try:
        with waiting(0):
            yield from fleet.deaths()
        fleet.start_again()
    except DATABASE_ERRORS:
        return
    except DialinError as error:
        fleet.no_more()
        yield Death(fleet.members[0].slot, f"it cannot be started again: {error}", 0)
