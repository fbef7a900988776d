"""The JSON API below /v1 and its OpenAPI document. What it tells the commands tell too, by the same functions.

Who may call what is decided before (`guard`): whatever is not GET is for operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi.telemetry import TelemetryConfig
from pydantic import AfterValidator
from starlette.exceptions import HTTPException

from search import plain_answers
from search.feed import OVERLAP_SECONDS
from search.server import shapes
from search.server.access import EVERYBODY, Visitor
from search.server.control import Control
from search.server.desk import Desk
from search.server.refusals import AWAY, FAILED, refusal
from storage import activity, queue_page, studies, timeline
from storage.errors import DialinError, UsageError
from storage.patience import DATABASE_ERRORS, DatabaseAway
from storage.schema import StorageUnavailable
from storage.studies import StudyRecord

# Trials and events in one answer.
MOST = 1000

# As it was sent (`app` routes so): a slash of a name is no part of the path, which is decoded here and nowhere else.
StudyName = Annotated[str, Path(description="Its name, with %2F for a slash.", min_length=1), AfterValidator(unquote)]
Number = Annotated[int, Path(ge=0, le=2**31 - 1)]
Since = Annotated[float, Query(ge=0, le=1e12, allow_inf_nan=False, description="Seconds since 1970.")]

DESCRIPTION = """Studies, trials and workers of one Dialin database.

Send a token with every request, `Authorization: Bearer ...`. A viewer's reads; an operator's does the rest too.
Times are seconds since 1970 by the database's clock. A NaN or an infinity is null."""


_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False}


class NotThere(UsageError):
    """There is no study of that name, or plain Optuna made it; or it has no such trial."""


def make_api(desk: Desk, control: Control) -> FastAPI:
    """The application that is mounted at /v1."""
    api = FastAPI(
        title="Dialin",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False, description="Made by `dialin token create`."))],
        responses=_REFUSALS,
        telemetry=_NO_TELEMETRY,
        redirect_slashes=False,
    )
    _told_of_all(api, desk)
    _told_of_one(api, desk)
    _told_of_trials(api, desk)
    _done(api, desk, control)
    for kind, answer in _ERRORS.items():
        api.add_exception_handler(kind, answer)
    return api


class _Answer(Response):
    """JSON that is encoded already."""

    media_type = "application/json"


def _told_of_all(api: FastAPI, desk: Desk) -> None:
    @api.get("/me", response_model=shapes.Me, summary="Who is signed in")
    def me(request: Request) -> Response:
        visitor = _visitor(request)
        told = {"name": visitor.name, "role": visitor.role, "may_write": visitor.may_write}
        return _Answer(desk.now(lambda: told | {"login": visitor is not EVERYBODY}))

    @api.get("/studies", response_model=shapes.Studies, summary="All studies")
    def list_studies() -> Response:
        return _Answer(desk.shared("studies", lambda: {"studies": plain_answers.all_studies(desk.storage)}))

    @api.get("/workers", response_model=shapes.Workers, summary="Every worker that has not ended")
    def workers() -> Response:
        return _Answer(desk.shared("workers", lambda: {"workers": [*map(asdict, activity.workers(desk.storage))]}))

    @api.get("/queue", response_model=queue_page.QueuePage, summary="Open studies with their shares, and workers")
    def queue() -> Response:
        return _Answer(desk.shared("queue", lambda: asdict(queue_page.look(desk.storage))))

    @api.get("/fleet", response_model=shapes.Fleet, summary="What the fleet page shows")
    def fleet() -> Response:
        def ask() -> dict[str, Any]:
            told = {
                "studies": plain_answers.all_studies(desk.storage),
                "queue": asdict(queue_page.look(desk.storage))["studies"],
            }
            return asdict(activity.fleet(desk.storage)) | told

        return _Answer(desk.shared("fleet", ask))

    @api.get("/events", response_model=shapes.Events, summary="What happened in all studies")
    def events(since: Since = 0.0, limit: Annotated[int, Query(ge=1, le=MOST)] = 100) -> Response:
        return _events(desk, since, limit, None)


def _told_of_one(api: FastAPI, desk: Desk) -> None:
    @api.get("/studies/{study}/best", response_model=shapes.Best, summary="Its best trials")
    def best(study: StudyName, top: Annotated[int, Query(ge=1, le=MOST)] = 1) -> Response:
        def ask() -> dict[str, Any]:
            return {"best": plain_answers.best(desk.storage, _find(desk, study), top)}

        return _Answer(desk.shared(("best", study, top), ask))

    @api.get("/studies/{study}/events", response_model=shapes.Events, summary="What happened in it")
    def events(study: StudyName, since: Since = 0.0, limit: Annotated[int, Query(ge=1, le=MOST)] = 100) -> Response:
        return _events(desk, since, limit, study)

    @api.get("/studies/{study}", response_model=shapes.Status, summary="Where a study stands")
    def status(study: StudyName) -> Response:
        return _Answer(desk.shared(("status", study), lambda: plain_answers.status(desk.storage, _find(desk, study))))


def _told_of_trials(api: FastAPI, desk: Desk) -> None:
    @api.get("/studies/{study}/trials", response_model=shapes.Trials, summary="Its trials by number")
    def trials(
        study: StudyName,
        after: Annotated[int, Query(ge=-1, le=2**31 - 1, description="The last number that is known.")] = -1,
        limit: Annotated[int, Query(ge=1, le=MOST)] = 100,
    ) -> Response:
        def ask() -> dict[str, Any]:
            return plain_answers.trials(desk.storage, _find(desk, study), after, limit)

        return _Answer(desk.shared(("trials", study, after, limit), ask))

    @api.get("/studies/{study}/trials/{number}", response_model=shapes.Trial, summary="All of one trial")
    def trial(study: StudyName, number: Number) -> Response:
        def ask() -> dict[str, Any]:
            record = _find(desk, study)
            try:
                return plain_answers.trial(desk.storage, record, number, desk.files)
            except UsageError as error:
                raise NotThere(str(error)) from None

        return _Answer(desk.shared(("trial", study, number), ask))


def _done(api: FastAPI, desk: Desk, control: Control) -> None:
    def act(request: Request, study: str, act: Callable[[StudyRecord, str], None], said: str) -> Response:
        record = desk.wait(lambda: _find(desk, study))
        desk.wait(lambda: act(record, _visitor(request).name))
        desk.forget()
        return _Answer(desk.now(lambda: _outcome(desk, study, said)))

    @api.post("/studies", response_model=shapes.Done, status_code=201, summary="Submit a study")
    def submit(request: Request, wanted: shapes.Submission) -> Response:
        name = desk.wait(lambda: control.submit(wanted, _visitor(request).name))
        desk.forget()
        return _Answer(desk.now(lambda: _outcome(desk, name, "submitted")), 201)

    @api.patch("/studies/{study}", response_model=shapes.Done, summary="Change its budget, priority or concurrency")
    def change(request: Request, study: StudyName, wanted: shapes.Change) -> Response:
        return act(request, study, lambda record, who: control.change(record, wanted, who), "changed")

    @api.post("/studies/{study}/pause", response_model=shapes.Done, summary="Its workers go elsewhere for a while")
    def pause(request: Request, study: StudyName) -> Response:
        return act(request, study, control.pause, "paused")

    @api.post("/studies/{study}/resume", response_model=shapes.Done, summary="Go on with it")
    def resume(request: Request, study: StudyName) -> Response:
        return act(request, study, control.resume, "resumed")

    @api.post("/studies/{study}/stop", response_model=shapes.Done, summary="Its workers hand back what they train")
    def stop(request: Request, study: StudyName) -> Response:
        return act(request, study, control.stop, "stopped")


def _outcome(desk: Desk, study: str, said: str) -> dict[str, Any]:
    line = next((one for one in plain_answers.all_studies(desk.storage) if one["name"] == study), None)
    return {"study": study, "state": line["state"] if line is not None else "gone", "said": f"{study} is {said}"}


def _events(desk: Desk, since: float, limit: int, study: str | None) -> Response:
    def ask() -> dict[str, Any]:
        study_id = None if study is None else _find(desk, study).study_id
        found, now = timeline.events(desk.storage, since, limit, study_id)
        # What is written late may lie a little before what was told; a full page has all of its last moment.
        reached = now - OVERLAP_SECONDS
        if len(found) >= limit:
            reached = min(reached, math.nextafter(found[-1].at, math.inf))
        return {"events": [asdict(event) for event in found], "next": max(since, reached)}

    return _Answer(desk.shared(("events", study, since, limit), ask))


def _find(desk: Desk, study: str) -> StudyRecord:
    if "\x00" in study:  # PostgreSQL takes none
        raise NotThere(f"there is no study {study!r}")
    try:
        return studies.find(desk.storage, study)
    except UsageError as error:
        raise NotThere(str(error)) from None


def _visitor(request: Request) -> Visitor:
    visitor: Visitor = request.scope["visitor"]
    return visitor


async def _not_found(_request: Request, error: Exception) -> JSONResponse:
    return refusal(404, str(error))


async def _cannot_be(_request: Request, error: Exception) -> JSONResponse:
    """What a person would be told by the command."""
    return refusal(409, str(error))


async def _away(_request: Request, _error: Exception) -> JSONResponse:
    """What the database said is for the server's log: it may name hosts and users."""
    return refusal(503, AWAY, {"retry-after": "5"})


async def _broken(_request: Request, _error: Exception) -> JSONResponse:
    """The guard logs it."""
    return refusal(500, FAILED)


async def _no_route(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), error.headers)


async def _unreadable(_request: Request, error: Exception) -> JSONResponse:
    """Which part of the request is wrong, and how; not what was sent, which is not ours to repeat."""
    assert isinstance(error, RequestValidationError)
    # Of where it is the part and the field: behind them are the names of what checks it.
    said = dict.fromkeys(f"{'.'.join(map(str, one['loc'][:2]))}: {one['msg']}" for one in error.errors())
    return refusal(422, "; ".join(said))


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": shapes.Refusal, "description": text}
    for status, text in {
        400: "The request cannot be read",
        401: "No token, or none that is valid",
        403: "A viewer cannot write; or the request came from another site's page",
        404: "There is no such study or trial",
        409: "It cannot be as asked",
        411: "The request does not say how long it is",
        413: "The request is too long",
        422: "A part of the request is not what it should be",
        429: "Too many attempts",
        503: "The database does not answer",
    }.items()
}
_ERRORS: dict[Any, Callable[[Request, Exception], Any]] = {
    NotThere: _not_found,
    DialinError: _cannot_be,
    DatabaseAway: _away,
    StorageUnavailable: _away,
    RequestValidationError: _unreadable,
    HTTPException: _no_route,
    Exception: _broken,
    **dict.fromkeys(DATABASE_ERRORS, _away),
}
