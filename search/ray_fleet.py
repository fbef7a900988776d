"""Workers on a Ray cluster, one an actor: on which node, and that it starts again elsewhere, is Ray's affair.

`search.searches` starts them and `search.launch` follows them as it does those of this machine. Nothing goes through
Ray but a worker's orders and what has become of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from search.assignment import Assignment
from search.crew import Death
from search.devices import Slot
from search.preflight import Placement
from search.ray_cluster import Node, asking, connect, nodes_of, share_of
from search.ray_worker import DialinWorker, Orders, Seen, Wish
from search.restarts import Restarts
from storage import workers
from storage.errors import DialinError
from storage.shared import SharedStorage
from storage.words import counted

# How often each actor is asked, and the cluster which nodes it has.
LOOK_SECONDS = 0.5
NODES_SECONDS = 2.0
# How long actors that are to kill their workers are waited for before Ray ends them.
KILL_SECONDS = 2.0
# An actor that has not answered for so long is lost, though its node may live: its process was killed, and what it had
# was taken before Ray could start it again. The lease of what its worker held is over by then.
SILENT_SECONDS = 30.0


@dataclass
class Post:
    """A worker that Ray was asked for: its actor, what that was asked and when, and what it has told last.

    `began`: when its actor's life was first heard of. `answers`: it did so last time; one that did not gets no orders,
    of which it may have died, before its life is known.
    """

    actor: Any
    orders: Orders
    asked: Any = None
    asked_at: float = 0.0
    silent_since: float | None = None
    began: float = 0.0
    answers: bool = False
    restarts: Restarts = field(default_factory=Restarts)
    wish: Wish | None = None
    seen: Seen | None = None
    ended: bool = False

    @property
    def slot(self) -> Slot:
        """Its name is what people see."""
        return self.orders.assignment.places[0]

    @property
    def worker_id(self) -> str:
        """Empty as long as its actor waits for room or is about to begin."""
        return self.seen.worker_id if self.seen is not None else ""


@dataclass(frozen=True)
class News:
    """A death to be told of. `lost`: the post of one that the database has not heard of, and its worker."""

    death: Death
    lost: tuple[Post, str] | None = None


class RayFleet:
    """A `search.crew.Crew` on a Ray cluster: as many as it has room for, also later, or as are wanted."""

    def __init__(
        self,
        storage: SharedStorage,
        assignment: Assignment,
        placement: Placement,
        on: str,
        sha256: str,
        tell: Callable[[str], None],
    ) -> None:
        """`sha256`: of the objective's source. `tell`: takes a line when workers are asked for.

        Raises:
            DialinError: the cluster does not answer, or cannot do what is wanted.
        """
        self._storage, self._wanted, self._tell = storage, placement.workers, tell
        self._posts: list[Post] = []
        self._nodes: set[str] = set()  # all that were ever there
        self._news: list[News] = []
        self._wish, self._nodes_at, self._answers = Wish.WORK, time.monotonic(), True
        self._ray, self._ours = connect(on, tried=True)
        try:
            nodes = nodes_of(self._ray)
            self._share = share_of(nodes, placement)
            own = replace(assignment, threads=self._share.cpus, shared=None)
            self._orders = Orders(own, sha256, os.path.abspath(os.curdir))
            self._grow(nodes)
        except BaseException:
            with suppress(DialinError):
                self.close()
            raise
        if not self._posts:
            tell(f"the cluster has no room for a worker with {self._share} yet: waiting for a node")

    def _grow(self, nodes: Sequence[Node]) -> None:
        """Ask for all that are wanted, which Ray starts when it has room, or for as many as there is room for now."""
        room, there = self._share.room(nodes), {node["NodeID"] for node in nodes}
        has_joined, self._nodes = not there <= self._nodes, self._nodes | there
        # Others in the place of those that were given up would fare no better, unless there is a node that is new.
        more = (self._wanted or room) - sum(not post.ended or not has_joined for post in self._posts)
        if more <= 0:
            return
        each = f"{self._share} each" if more > 1 else str(self._share)
        self._tell(f"{counted(more, 'worker')} with {each} asked of Ray, which has room for {room} in all")
        share = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus}
        with asking():
            actor = self._ray.remote(DialinWorker).options(**share, max_restarts=-1, enable_task_events=False)
        for _ in range(more):
            slot = Slot(("cuda:0" if self._share.per_gpu else "cpu",), len(self._posts), None)
            own = replace(self._orders.assignment, places=(slot,))
            with asking():
                self._posts.append(Post(actor.remote(), replace(self._orders, assignment=own)))

    @property
    def slots(self) -> Mapping[int, str]:
        """None of this machine's: views name the others by their hosts."""
        return {}

    @property
    def alive(self) -> bool:
        """Whether any worker runs, or is going to when there is room."""
        return any(not post.ended for post in self._posts) or (not self._posts and self._wish is Wish.WORK)

    @property
    def unheard(self) -> bool:
        """Whether a worker has ended of which `deaths` has not told."""
        return bool(self._news)

    def deaths(self) -> Iterator[Death]:
        """Workers that have failed and were not told of. What they held may be adopted at once."""
        while self._news:
            news = self._news[0]
            death = news.death if news.lost is None else self._mourn(news.death, *news.lost)
            del self._news[0]
            yield death

    def _mourn(self, death: Death, post: Post, worker_id: str) -> Death:
        """Ray starts its actor again and again: whether that is worth while is told by what its workers have done."""
        death = replace(death, handed_back=workers.end(self._storage, worker_id))
        if post.ended:
            return death
        work = workers.work_of(self._storage, worker_id)
        if post.restarts.after(work, time.monotonic() - post.began) is None:
            self._end(post)
            return replace(death, hopeless=True)
        return replace(death, reason=f"{death.reason}; Ray starts another where there is room")

    def start_again(self) -> None:
        """See which nodes there are: the workers of one that is gone are dead, and on a new one is room for more.

        A cluster that does not answer is asked again: its workers work on.
        """
        if time.monotonic() - self._nodes_at < NODES_SECONDS:
            return
        self._nodes_at = time.monotonic()
        try:
            self._heed_nodes(nodes_of(self._ray))
        except DialinError as error:
            if self._answers:
                self._tell(f"{error}; asking again")
            self._answers = False
            return
        if not self._answers:
            self._tell("the Ray cluster answers again")
        self._answers = True

    def _heed_nodes(self, nodes: Sequence[Node]) -> None:
        there = {node["NodeID"] for node in nodes}
        for post in self._posts:
            if post.seen is not None and not post.ended and post.seen.node not in there:
                self._lose(post, f"its node on {post.seen.host} is gone")
        if self._wish is Wish.WORK:
            self._grow(nodes)

    def wait(self, seconds: float) -> None:
        """So long; then hear what there is to tell, and ask again."""
        time.sleep(seconds)
        self._hear(0)
        self._ask()

    def no_more(self) -> None:
        """Start no worker again, whichever dies, and none that waits for room."""
        self._want(Wish.START_NO_MORE)

    def hand_back(self) -> None:
        """Ask every worker to hand its trial back and end."""
        self._want(Wish.HAND_BACK)

    def kill(self) -> None:
        """End every worker now; what they held may be adopted at once.

        A cluster that does not answer ends them itself, when it misses this command.
        """
        with suppress(DialinError):
            self._kill()

    def _kill(self) -> None:
        self._want(Wish.DIE)
        until = time.monotonic() + KILL_SECONDS
        while any(not post.ended for post in self._posts) and time.monotonic() < until:
            self._ask()
            self._hear(LOOK_SECONDS)
            time.sleep(KILL_SECONDS / 100)  # where no actor is asked nothing was waited for
        for post in self._posts:
            if not post.ended:
                self._lose(post, "killed")

    def close(self) -> None:
        """Leave the cluster, unless this process was there before."""
        if self._ours:
            with asking():
                self._ray.shutdown()

    def _want(self, wish: Wish) -> None:
        self._wish = max(self._wish, wish)
        for post in self._posts:
            if not post.worker_id and not post.ended:
                self._end(post)

    def _ask(self) -> None:
        """Whoever has answered: now and then, and at once when something else is wished."""
        now = time.monotonic()
        for post in self._posts:
            due = post.wish is not self._wish or now - post.asked_at >= LOOK_SECONDS
            if post.asked is None and due and not post.ended:
                post.asked_at, post.wish = now, self._wish
                post.silent_since = now if post.silent_since is None else post.silent_since
                with asking():
                    orders = post.orders if post.answers else None
                    post.asked = post.actor.look.remote(orders, self._wish)

    def _hear(self, seconds: float) -> None:
        asked = {post.asked: post for post in self._posts if post.asked is not None}
        with asking():
            answered, _ = self._ray.wait([*asked], num_returns=len(asked), timeout=seconds) if asked else ([], [])
        for answer in answered:
            post = asked[answer]
            post.asked = None
            self._listen(post, answer)
        self._give_up_the_silent()

    def _listen(self, post: Post, answer: Any) -> None:
        with asking():
            try:
                self._heed(post, self._ray.get(answer))
            except self._ray.exceptions.ActorUnavailableError:
                post.answers = False  # it may be back; `start_again` hears whether its node is gone
            except self._ray.exceptions.RayError as error:  # it died for good; a node without Dialin, or a bug of ours
                self._lose(post, _last_line(error))
                if not post.ended:
                    self._end(post)

    def _give_up_the_silent(self) -> None:
        """One that has no worker yet waits for room, or for what a worker needs, and may do so for long."""
        now = time.monotonic()
        for post in self._posts:
            silent = post.silent_since is not None and now - post.silent_since >= SILENT_SECONDS
            if silent and post.seen is not None and post.worker_id and not post.ended:
                self._lose(post, f"its actor on {post.seen.host} does not answer")

    def _heed(self, post: Post, seen: Seen) -> None:
        if post.seen is not None and post.seen.life != seen.life:
            self._lose(post, f"its actor on {post.seen.host} was lost", of_orders=not post.worker_id)
        if post.ended:
            return
        if post.seen is None:
            post.began = time.monotonic()
        post.seen, post.silent_since, post.answers = seen, None, True
        self._news += [News(replace(death, reason=f"{death.reason} (on {seen.host})")) for death in seen.deaths]
        if not seen.alive:
            self._end(post)

    def _lose(self, post: Post, why: str, of_orders: bool = False) -> None:
        """A worker is no more, and has not said so to the database. Once another is not wanted its actor goes too.

        `of_orders`: its actor died before it had one.
        """
        lost = (post, post.worker_id) if post.worker_id or of_orders else None
        self._news.append(News(Death(post.slot, why, 0), lost))
        post.seen, post.answers = None, False
        if self._wish is not Wish.WORK:
            self._end(post)

    def _end(self, post: Post) -> None:
        """Ray gets back what the worker had, and ends it where it still runs: what it holds is left to its lease."""
        post.ended, post.asked = True, None
        with asking():
            self._ray.kill(post.actor)


def _last_line(error: Exception) -> str:
    """Of what an error says, frames too where an actor raised; its kind where it says nothing."""
    return next(reversed(str(error).strip().splitlines()), type(error).__name__).strip()
