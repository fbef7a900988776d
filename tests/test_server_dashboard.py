"""optuna-dashboard behind the login: every route that the installed version has, read from its own application."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import HOST, Team, answer_to, at_work, listening, team
from sqlalchemy import create_engine, select
from studies import optuna_url

from storage.optuna_internals import models
from storage.patience import AWAY_VARIABLE
from storage.tables import Base

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
# A part of a path that is filled in, as bottle writes it: <study_id:int>, <filename:path>, <:re:(/.*)?>.
_PART = re.compile(r"<(\w*)(?::(int|path|re:[^>]*))?>")


@pytest.fixture
def there(sqlite_url: str, tmp_path: Path) -> Iterator[Team]:
    with team(sqlite_url, tmp_path) as made:
        at_work(sqlite_url, "digits-1")
        yield made


def paths(dashboard: Any) -> list[str]:
    """One for each route, of study 1 and trial 1."""
    return sorted({_PART.sub(_filled, route.rule) for route in dashboard.routes})


def _filled(part: re.Match[str]) -> str:
    kind = part[2] or ""
    return "" if kind.startswith("re:") else "1" if kind == "int" else {"plot_type": "edf"}.get(part[1], "x")


def content(url: str) -> list[Any]:
    """Every row that says anything of studies and trials."""
    engine = create_engine(optuna_url(url))
    try:
        with engine.connect() as connection:
            tables = [*models.BaseModel.metadata.sorted_tables, *Base.metadata.sorted_tables]
            wanted = [table for table in tables if table.name != "dialin_tokens"]
            return [[*connection.execute(select(table))] for table in wanted]
    finally:
        engine.dispose()


def test_the_routes_of_the_dashboard_are_found(there: Team) -> None:
    assert {"/api/studies", "/api/studies/1", "/dashboard", "/api/studies/1/rename", "/static/x"} <= {
        *paths(there.dashboard)
    }
    assert all("<" not in path for path in paths(there.dashboard))


def test_a_stranger_is_shown_nothing_whatever_the_route_and_the_method(there: Team, sqlite_url: str) -> None:
    before = content(sqlite_url)
    for path in paths(there.dashboard):
        for method in METHODS:
            assert there.stranger.request(method, path, json={}).status_code == 401, (method, path)
        asked = there.stranger.get(path, headers={"accept": "text/html"})
        assert (asked.status_code, asked.headers["location"].partition("?")[0]) == (303, "/login"), path
    assert content(sqlite_url) == before


def test_a_viewer_changes_nothing_whatever_the_route_and_the_method(there: Team, sqlite_url: str) -> None:
    before = content(sqlite_url)
    for client, methods in ((there.viewer, METHODS), (there.browser(there.viewer_token), ("PUT", "POST", "DELETE"))):
        for path in paths(there.dashboard):
            for method in methods:
                status = client.request(
                    method, path, json={"study_name": "other", "directions": ["minimize"]}
                ).status_code
                assert (status == 403) is (method not in ("GET", "HEAD")), (method, path, status)
    assert content(sqlite_url) == before


def test_a_viewer_sees_the_studies(there: Team) -> None:
    browser = there.browser(there.viewer_token)
    page = browser.get("/dashboard/")
    assert page.status_code == 200
    assert "script-src 'self' 'unsafe-eval'" in page.headers["content-security-policy"]  # the dashboard's own
    script = re.search(r'src="(/static/[^"]+)"', page.text)
    assert script is not None
    assert browser.get(script[1]).status_code == 200
    [study] = browser.get("/api/studies").json()["study_summaries"]
    assert study["study_name"] == "digits-1"
    assert len(browser.get("/api/studies/1?after=0").json()["trials"]) == 4


def test_an_operator_changes_things_there(there: Team) -> None:
    operator = there.browser(there.operator_token)
    noted = operator.put("/api/studies/1/note", json={"body": "looks good", "version": 1})
    assert noted.status_code == 204
    assert operator.delete("/api/studies/1").status_code == 204
    assert operator.get("/api/studies").json()["study_summaries"] == []


def test_what_hangs_on_a_trial_is_for_no_other_sites_pages(there: Team) -> None:
    """The dashboard itself would let them all read it, and its scripts run."""
    operator, page = there.browser(there.operator_token), {"file": "data:text/html;base64,PGI+", "filename": "x.html"}
    hung = operator.post("/api/artifacts/1/4", json=page).json()["artifact_id"]
    answer = operator.get(f"/artifacts/1/4/{hung}")
    assert (answer.text, answer.headers["content-type"]) == ("<b>", "text/html")
    assert answer.headers["content-security-policy"].startswith("sandbox;")
    assert "access-control-allow-origin" not in answer.headers
    for twofold in ("//artifacts/1/4/{}", "/artifacts/1/4/{}%0A", "//artifacts/1/4/{}%0A", "/artifacts//1/4/{}"):
        with listening(there.app) as address:
            login = f"authorization: Bearer {there.viewer_token}"
            told = answer_to(address, f"GET {twofold.format(hung)}", login)
        assert told.startswith(b"HTTP/1.1 404"), twofold
        assert b"<b>" not in told, twofold


def test_the_dashboard_tells_nobody_how_it_failed(there: Team) -> None:
    for path, body in (("/api/studies", "[]"), ("/api/studies/1/rename", '"x"'), ("/api/studies", "{")):
        headers = {"content-type": "application/json", "origin": HOST}
        answer = there.operator.post(path, content=body, headers=headers)
        assert answer.status_code >= 400
        assert "Traceback" not in answer.text
        assert 'File "' not in answer.text


def test_a_program_that_names_no_encoding_has_the_pages_parts_too(there: Team) -> None:
    for path in ("/static/bundle.js", "/favicon.ico"):
        with listening(there.app) as address:
            told = answer_to(address, f"GET {path}", f"authorization: Bearer {there.viewer_token}")
        assert told.startswith(b"HTTP/1.1 200"), path


def test_a_database_that_is_away_is_not_waited_for_as_workers_wait(
    there: Team, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have ten minutes; eight of these would have held every thread for as long, and the server's end."""
    monkeypatch.setenv(AWAY_VARIABLE, "120")
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    assert there.viewer.get("/api/studies").status_code == 200
    there.storage.backend.engine.dispose()
    file.rename(file.with_suffix(".gone"))
    file.mkdir()
    with ThreadPoolExecutor(1) as visitor:
        assert visitor.submit(there.viewer.get, "/api/studies").result(60).status_code >= 500
