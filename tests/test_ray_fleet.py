"""What `search.ray_fleet` makes of a cluster that fails it, with a Ray that does as the test says.

No real one can be made to lose an actor and not its node, or its head alone, at a moment of the test's choosing;
tests/test_ray.py has workers on a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from search import launch, ray_fleet
from search.assignment import Assignment
from search.crew import Crew, Death
from search.devices import Slot
from search.preflight import Placement
from search.ray_fleet import RayFleet
from search.ray_worker import Orders, Seen, Wish
from search.views import make_view
from storage import studies
from storage.errors import DialinError, UsageError
from storage.shared import SharedStorage, open_storage
from storage.studies import StudySpec

SPEC = StudySpec(
    "digits", "0" * 64, "accuracy", "maximize", epochs=4, trials=1, seed=0, sampler="random", pruner="none"
)
SLOW = "not there yet"
Answer = Callable[[Wish], Seen | Exception | str]


class RayError(Exception):
    """As Ray's."""


class ActorUnavailableError(RayError):
    """As Ray's."""


class Ray:
    """Answers each call of an actor at once, as `answer` says; `fault` is raised by whatever is called."""

    exceptions = SimpleNamespace(RayError=RayError, ActorUnavailableError=ActorUnavailableError)

    def __init__(self) -> None:
        self.answer: Answer = lambda wish: seen("one", alive=wish < Wish.HAND_BACK)
        self.fault: Exception | None = None
        self.ordered = False
        self.killed = 0
        self.shut = False
        self.there = [{"NodeID": "node", "Alive": True, "Resources": {"CPU": 1.0}}]

    def _raise(self) -> None:
        if self.fault is not None:
            raise self.fault

    def nodes(self) -> list[dict[str, Any]]:
        self._raise()
        return self.there

    def remote(self, *_of: Any) -> Any:
        """A class, an actor or a call: what Ray makes of each is enough for what is done with it here."""
        self._raise()
        if len(_of) == 2:
            orders, wish = _of
            assert orders is None or isinstance(orders, Orders)
            self.ordered = orders is not None
            return self.answer(wish)
        return self

    def options(self, **_share: Any) -> Ray:
        return self

    @property
    def look(self) -> Ray:
        return self

    def wait(self, calls: Sequence[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert num_returns == len(calls)
        assert timeout >= 0
        self._raise()
        answered = [call for call in calls if call != SLOW or not self.there]
        return answered, [call for call in calls if call not in answered]

    def get(self, call: Seen | Exception | str) -> Seen:
        self._raise()
        if isinstance(call, Exception):
            raise call
        if isinstance(call, str):
            raise ActorUnavailableError("its node is gone")
        return call

    def kill(self, _actor: Any) -> None:
        self._raise()
        self.killed += 1

    def shutdown(self) -> None:
        self.shut = True
        self._raise()


def seen(life: str, *, alive: bool = True, node: str = "node") -> Seen:
    return Seen(life, node, "far", alive, worker_id=f"worker of {life}")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    """Nothing is waited for."""
    one = Ray()
    monkeypatch.setattr(ray_fleet, "connect", lambda _on, **_how: (one, True))
    for name in ("LOOK_SECONDS", "NODES_SECONDS", "KILL_SECONDS"):
        monkeypatch.setattr(ray_fleet, name, 0.0)
    return one


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def storage(sqlite_url: str) -> SharedStorage:
    return open_storage(sqlite_url)


@pytest.fixture
def crew(ray: Ray, told: list[str], storage: SharedStorage, tmp_path: Path) -> RayFleet:
    """A worker on the one node."""
    assignment = Assignment("postgresql://db/x", "study", "objective.py", (), 1, tmp_path, tmp_path)
    return RayFleet(storage, assignment, Placement(), "ray", "sha", told.append)


def look_at(crew: Crew, times: int = 2) -> list[str]:
    """What is said of those that have died."""
    said = []
    for _ in range(times):
        crew.wait(0)
        said += [death.reason for death in crew.deaths()]
    return said


class TestAnActorThatDoesNotAnswer:
    """Its process was killed, and its place taken before Ray started it again."""

    @pytest.fixture(autouse=True)
    def impatient(self, ray: Ray, crew: RayFleet, monkeypatch: pytest.MonkeyPatch) -> None:
        assert look_at(crew) == []
        monkeypatch.setattr(ray_fleet, "SILENT_SECONDS", 0.0)
        ray.answer = lambda _wish: ActorUnavailableError("it is restarting")

    def test_is_lost_and_ray_may_start_it_again(self, ray: Ray, crew: RayFleet) -> None:
        lost = "its actor on far does not answer; Ray starts another where there is room"
        assert look_at(crew, 5) == [lost]
        assert crew.alive
        ray.answer = lambda _wish: seen("two")
        assert look_at(crew) == []
        assert crew.alive

    def test_is_not_waited_for_when_the_study_is_over(self, ray: Ray, crew: RayFleet) -> None:
        crew.no_more()
        assert look_at(crew) == ["its actor on far does not answer"]
        assert not crew.alive
        assert ray.killed == 1


def test_a_node_that_is_lost_when_the_study_is_over_is_not_waited_for(ray: Ray, crew: RayFleet) -> None:
    look_at(crew)
    crew.no_more()
    ray.there = []
    crew.start_again()
    assert look_at(crew) == ["its node on far is gone"]
    assert not crew.alive


class TestAClusterThatDoesNotAnswer:
    def test_is_asked_again_and_that_is_said_once(self, ray: Ray, crew: RayFleet, told: list[str]) -> None:
        del told[:]
        fault, ray.fault = ray.fault, RuntimeError("no head\nframes")
        crew.start_again()
        crew.start_again()
        assert told == ["the Ray cluster does not answer: no head; asking again"]
        ray.fault = fault
        ray.there *= 2
        crew.start_again()
        assert told[1:] == [
            "1 worker with 1 CPU asked of Ray, which has room for 2 in all",
            "the Ray cluster answers again",
        ]

    def test_a_command_whose_client_lost_it_ends_with_a_line(
        self, ray: Ray, crew: RayFleet, storage: SharedStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And with whatever else it has to end."""
        console, closed = Console(quiet=True), []
        view = make_view(console, crew.slots)
        monkeypatch.setattr(view, "close", lambda: closed.append(view))
        monkeypatch.setattr(launch, "make_view", lambda *_of: view)
        study = studies.create(storage, SPEC, stem="tiny")
        ray.fault = ConnectionError("GRPC connection failed")
        with pytest.raises(DialinError, match=r"^the Ray cluster does not answer: GRPC connection failed$"):
            launch.follow(console, storage, study, lambda: crew)
        assert closed == [view]
        assert ray.shut


@pytest.mark.parametrize(("error", "said"), [(RayError(""), "RayError"), (RayError("frames\n  why\n"), "why")])
def test_an_actor_that_died_for_good_says_why(ray: Ray, crew: RayFleet, error: RayError, said: str) -> None:
    ray.answer = lambda _wish: error
    assert look_at(crew) == [said]
    assert not crew.alive


def test_in_the_place_of_one_that_was_given_up_another_is_asked_for_when_a_node_joins(
    ray: Ray, crew: RayFleet, told: list[str]
) -> None:
    """As by whoever replaces a node on which nothing could start; on the old one it would die again."""
    ray.answer = lambda _wish: RayError("No module named 'search'")
    look_at(crew)
    del told[:]
    crew.start_again()
    assert told == []
    ray.there = [{"NodeID": "another", "Alive": True, "Resources": {"CPU": 1.0}}]
    ray.answer = lambda _wish: seen("one", node="another")
    crew.start_again()
    assert told == ["1 worker with 1 CPU asked of Ray, which has room for 1 in all"]
    assert look_at(crew) == []
    assert crew.alive


def test_an_actor_whose_workers_die_at_their_start_is_given_up(ray: Ray, crew: RayFleet) -> None:
    lives = iter("abcde")
    ray.answer = lambda _wish: seen(next(lives))
    crew.wait(0)
    said = []
    while crew.alive:
        crew.wait(0)
        said += [*crew.deaths()]
    lost = "its actor on far was lost"
    assert [death.reason for death in said] == [*[f"{lost}; Ray starts another where there is room"] * 2, lost]
    assert [death.hopeless for death in said] == [False, False, True]
    assert ray.killed == 1


def test_an_actor_that_dies_of_its_orders_is_given_up_too(ray: Ray, crew: RayFleet) -> None:
    """Before it has told of any worker: Ray starts it again and again, and says nothing."""
    lives = iter("abcde")

    def greet_then_die(_wish: Wish) -> Seen | Exception:
        return ActorUnavailableError() if ray.ordered else Seen(next(lives), "node", "far", alive=True)

    ray.answer = greet_then_die
    said = look_at(crew, 20)
    lost = "its actor on far was lost"
    assert said == [*[f"{lost}; Ray starts another where there is room"] * 2, lost]
    assert not crew.alive


class TestAnActorThatIsSlowToBegin:
    """It imports torch, or waits for a database that its node cannot reach yet."""

    @pytest.fixture(autouse=True)
    def slow(self, ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_fleet, "SILENT_SECONDS", 0.0)
        ray.answer = lambda _wish: SLOW if ray.ordered else Seen("one", "node", "far", alive=True)

    def test_is_waited_for(self, ray: Ray, crew: RayFleet) -> None:
        assert look_at(crew, 5) == []
        assert ray.ordered
        assert crew.alive

    def test_is_ended_when_it_is_not_wanted_any_more(self, ray: Ray, crew: RayFleet) -> None:
        look_at(crew, 5)
        crew.no_more()
        assert not crew.alive
        assert ray.killed == 1
        assert look_at(crew) == []

    def test_does_not_count_as_dead_at_its_start_when_its_node_is_gone(self, ray: Ray, crew: RayFleet) -> None:
        nodes = ray.there
        for _ in range(5):
            look_at(crew, 3)
            ray.there = []
            crew.start_again()
            crew.wait(0)
            ray.there = nodes
            assert [death.hopeless for death in crew.deaths()] == [False]
        assert crew.alive


def test_a_death_that_an_actor_tells_of_says_where(ray: Ray, crew: RayFleet) -> None:
    death = Death(Slot(("cpu",), 0, None), "killed by SIGKILL", 0, again=1.0)
    ray.answer = lambda _wish: replace(seen("one"), deaths=(death,))
    crew.wait(0)
    crew.wait(0)
    assert [*crew.deaths()] == [replace(death, reason="killed by SIGKILL (on far)")]


def test_what_fails_at_the_start_leaves_the_cluster(
    ray: Ray, storage: SharedStorage, told: list[str], tmp_path: Path
) -> None:
    assignment = Assignment("postgresql://db/x", "study", "objective.py", (), 1, tmp_path, tmp_path)
    with pytest.raises(UsageError, match="--devices names GPUs"):
        RayFleet(storage, assignment, Placement(devices="0"), "ray", "sha", told.append)
    assert ray.shut
