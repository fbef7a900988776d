"""What the API tells and takes, for its OpenAPI document: the storage's own records, and those put together of them.

Answers are made by `search.plain_answers` and not made again by these classes: they describe them, and a test holds the
answers to the description.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from storage import steering
from storage.activity import Failure, FleetWorker
from storage.constraints import Kept
from storage.overview import TrialLine
from storage.paused import PausedTrial
from storage.queries import EpochLine, FailedTrial, Owner, RunningTrial
from storage.queue_page import QueuedStudy
from storage.roster import WorkerLine
from storage.stalling import Outlook
from storage.studies import StudyRecord
from storage.tables import Role
from storage.timeline import Event


class Shape(BaseModel):
    """Of an answer: more may be added to it, nothing is taken away."""

    model_config = ConfigDict(extra="allow")


class Refusal(Shape):
    """Why something is not to be had, in a line."""

    detail: str


class Me(Shape):
    """Who is signed in. `login`: whether there is anything to sign out of."""

    name: str
    role: Role
    may_write: bool
    login: bool


class Study(Shape):
    """A study in a line, as `dialin list --json` has it."""

    name: str
    state: str
    objective: str | None
    reason: str
    settled: int
    running: int
    waiting: int
    trials: int | None
    finished: bool
    metric: str | None
    direction: str
    best: float | None
    created_at: float | None


class Studies(Shape):
    """All studies, the newest first."""

    studies: list[Study]


class Ranked(Shape):
    """A ranked trial: the real recipe, and what such a value is worth in `note`."""

    study: str
    trial: int
    metric: str
    value: float
    best_epoch: int | None
    epochs: int
    seconds: float
    recipe: Mapping[str, Any]
    model: Mapping[str, Any]


class FirstTrial(Shape):
    """What a trial at a study's beginning is for."""

    trial: int
    origin: str


class Status(Shape):
    """Where a study stands, as `dialin status --json` has it. `counts` by outcome."""

    study: StudyRecord
    state: str
    settled: int
    counts: Mapping[str, int]
    waiting: int
    first_trials: list[FirstTrial]
    running: list[RunningTrial]
    adoptable: list[int]
    paused: list[PausedTrial]
    workers: list[WorkerLine]
    deaths: int
    adoptions: int
    lost: list[int]
    epochs_trained: int
    epochs_saved: int
    seconds: float
    constraints: Kept | None
    outlook: Outlook
    failures: list[FailedTrial]
    best: Ranked | None


class Best(Shape):
    """The best trials, those first that are worth most."""

    best: list[Ranked]


class Trials(Shape):
    """Trials by number. `next`: the `after` with which to ask for those behind them; None when there are none."""

    trials: list[TrialLine]
    next: int | None


class Trial(Shape):
    """All of one trial, as `dialin show --json` has it."""

    study: str
    trial: int
    state: str
    reason: str
    metric: str
    value: float | None
    best_epoch: int | None
    recipe: Mapping[str, Any]
    model: Mapping[str, Any]
    params: Mapping[str, Any]
    enqueued: Mapping[str, Any]
    constraints: Mapping[str, float | None]
    origin: str
    seed: int | None
    provenance: list[Mapping[str, Any]]
    epochs: list[EpochLine]
    seconds: float
    peak_memory: int | None
    owners: list[Owner]
    started_at: float | None
    settled_at: float | None
    traceback: str
    weights: str | None
    log: str | None


class Workers(Shape):
    """Every worker that has not ended, and what it trains."""

    workers: list[FleetWorker]


class Fleet(Workers):
    """What the fleet page shows: `failed` by outcome, and `settled_by_hour`, of the last 24 hours, the oldest first."""

    at: float
    studies: list[Study]
    queue: list[QueuedStudy]
    failed: Mapping[str, int]
    failures: list[Failure]
    settled_by_hour: list[int]


class Events(Shape):
    """What happened, the oldest first.

    More than `limit` where several happened at the moment of the last one. `next`: the `since` with which to ask again.
    It lies a little back, since what is written late may have happened before what was told: leave out the ids that you
    have.
    """

    events: list[Event]
    next: float


class Done(Shape):
    """What a writing came to: the study's name, its state and a line for people."""

    study: str
    state: str
    said: str


def _whole(said: object) -> object:
    """JSON has one kind of number: 66.0 is an integer there."""
    return int(said) if isinstance(said, float) and said.is_integer() else said


PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
Priority = Annotated[int, Field(ge=1, le=steering.HIGHEST), BeforeValidator(_whole)]
# Beyond this a float does not hold every integer any more, nor do the numbers of other languages' JSON.
EXACT = 2**53
Scalar = str | Annotated[int, Field(ge=-EXACT, le=EXACT)] | float | bool
# PostgreSQL takes no NUL, and no terminal should have to show the others.
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]

# So many on top of what there was.
More = Annotated[str, Field(pattern=r"^\+[1-9][0-9]{0,8}$")]


class Submission(BaseModel):
    """A study to be made. What is left out is the objective's own, as `dialin submit` takes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    objective: Annotated[Text, Field(description="One that this server allows.")]
    study: Annotated[Text | None, Field(description="Its name.")] = None
    trials: PositiveInt | None = None
    epochs: PositiveInt | None = None
    priority: Priority = 1
    concurrency: PositiveInt | None = None
    sampler: Text | None = None
    pruner: Text | None = None
    fix: Annotated[dict[str, Scalar], Field(description="Knobs with one value.")] = {}
    ranges: Annotated[
        dict[str, list[Scalar]],
        Field(description="Knobs with choices; two numbers are the ends of a range."),
    ] = {}
    until: float | None = None
    budget: Annotated[Text | None, Field(description="Device time such as 8h.")] = None
    total_epochs: PositiveInt | None = None
    deadline: Annotated[Text | None, Field(description="18:30, 2h or 2026-12-24T18:00.")] = None
    min_gain: Annotated[float | None, Field(ge=0)] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_whole)] | None = None
    transfer: bool = True


class Change(BaseModel):
    """What of a study is to be otherwise; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    trials: Annotated[PositiveInt | More | None, Field(description="A new budget of trials, or +20 for more.")] = None
    until: Annotated[float | None, Field(description="A new value at which it stops.")] = None
    budget: Annotated[Text | None, Field(description="Device time in all such as 8h, or +1h for more.")] = None
    total_epochs: Annotated[PositiveInt | More | None, Field(description="Of all trials together; +100: more.")] = None
    deadline: Annotated[Text | None, Field(description="18:30, 2h (from now), 2026-12-24T18:00, or none.")] = None
    priority: Priority | None = None
    concurrency: (
        Annotated[int, Field(ge=0, le=2**31 - 1, description="0: no limit."), BeforeValidator(_whole)] | None
    ) = None
