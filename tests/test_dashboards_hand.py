"""What a person does in the real optuna-dashboard while a worker trains it: told, failed, renamed, deleted."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import pytest
from optuna.trial import TrialState
from rich.console import Console
from studies import SLOW, engines_disposed, rows, trials, wait_until

from search import searches
from search.launch import Ending
from search.preflight import Placement
from search.terms import NewStudy
from storage import studies
from storage.errors import DialinError
from storage.optuna_internals import models
from storage.shared import SharedStorage, open_storage


class Browser:
    """Asks optuna-dashboard's own application, which has the database as `dialin dashboard` opens it."""

    def __init__(self, storage: SharedStorage) -> None:
        self._app: Any = optuna_dashboard.wsgi(storage)

    def __call__(self, method: str, path: str, **said: Any) -> int:
        """The status of its answer."""
        body = json.dumps(said).encode()
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(body)}
        environ |= {"CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "application/json"}
        answers: list[str] = []
        for _chunk in self._app(environ, lambda status, headers, exc_info=None: answers.append(status)):
            pass
        return int(answers[0].split()[0])


class Search:
    """A search of the slow objective on one worker, followed in a thread."""

    def __init__(self, url: str, trials: int) -> None:
        self.url, self.said = url, io.StringIO()
        console = Console(file=self.said, width=300)
        wanted = NewStudy(name="watched", trials=trials, pruner="none")
        place = searches.Place(url, placement=Placement(1, "cpu", None))
        ready = searches.begin(console, str(SLOW), wanted, place)
        self._pool = ThreadPoolExecutor(1)
        self.ended: Future[Ending] = self._pool.submit(searches.train, console, ready)
        self.storage = open_storage(url)
        self.study_id = studies.find(self.storage, "watched").study_id
        self.browser = Browser(self.storage)
        self.log = ready.assignment.files / "workers.log"

    def in_training(self, number: int) -> int:
        """The id of that trial, once it has an epoch on record."""
        query = "SELECT t.trial_id FROM trials t JOIN dialin_epochs e ON e.trial_id = t.trial_id WHERE t.number = :n"
        wait_until(lambda: rows(self.url, query, n=number) or self.ended.done(), f"an epoch of trial {number}")
        assert not self.ended.done(), self.said.getvalue()
        return int(rows(self.url, query, n=number)[0][0])


@contextmanager
def searching(url: str, trials: int) -> Iterator[Search]:
    with engines_disposed():
        search = Search(url, trials)
        try:
            yield search
        finally:
            Path("hurry").touch()
            search.ended.exception(60)


def test_trials_that_are_told_meanwhile_keep_what_was_told_and_the_rest_is_trained(either_url: str) -> None:
    with searching(either_url, trials=3) as search:
        first = search.in_training(0)
        assert search.browser("PUT", f"/api/studies/{search.study_id}/{first}/note", body="mine", version=1) == 204
        assert search.browser("POST", f"/api/trials/{first}/user-attrs", user_attrs={"mine": 1}) == 204
        assert search.browser("POST", f"/api/trials/{first}/tell", state="Complete", values=[0.125]) == 204
        second = search.in_training(1)
        assert search.browser("POST", f"/api/trials/{second}/tell", state="Fail") == 204
        search.in_training(2)
    ending = search.ended.result()
    found = trials(either_url, "watched")
    assert [trial.state for trial in found] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert (found[0].value, found[0].user_attrs["mine"]) == (0.125, 1)
    assert ending.status.finished
    assert rows(either_url, "SELECT * FROM dialin_leases") == []
    assert rows(either_url, "SELECT * FROM dialin_owners WHERE ending IS NULL") == []
    said = search.said.getvalue()
    assert "trial 0 complete: accuracy 0.1250" in said
    assert "trial 1 error: told by another program, as by optuna-dashboard" in said
    assert "Traceback" not in said + search.log.read_text()


def test_a_trial_that_is_deleted_meanwhile_is_gone_and_the_rest_is_trained(sqlite_url: str) -> None:
    """optuna-dashboard cannot; whoever has the database can."""
    with searching(sqlite_url, trials=2) as search:
        trial_id = search.in_training(0)
        with search.storage.backend.write() as session:
            session.delete(session.get(models.TrialModel, trial_id))
        wait_until(lambda: "going on with another" in search.log.read_text(), "the worker's line")
    assert search.ended.result().status.finished
    [left] = trials(sqlite_url, "watched")
    assert left.state == TrialState.COMPLETE
    assert rows(sqlite_url, "SELECT * FROM dialin_leases") == []
    assert "Traceback" not in search.said.getvalue() + search.log.read_text()


def ends_with_a_line(search: Search) -> None:
    """The search hears of it by itself, and nothing of the study is left."""
    wait_until(search.ended.done, "the end of the search")
    with pytest.raises(DialinError, match="study 'watched' was deleted or renamed while it ran"):
        search.ended.result()
    assert "Traceback" not in search.said.getvalue() + search.log.read_text()
    assert rows(search.url, "SELECT * FROM dialin_trials") == []


def test_a_study_that_is_deleted_ends_its_search_with_a_line(either_url: str) -> None:
    with searching(either_url, trials=3) as search:
        search.in_training(0)
        assert search.browser("DELETE", f"/api/studies/{search.study_id}") == 204
        ends_with_a_line(search)


def test_a_study_that_is_renamed_is_another_and_ends_its_search_with_a_line(postgres_url: str) -> None:
    with searching(postgres_url, trials=3) as search:
        search.in_training(0)
        path = f"/api/studies/{search.study_id}/rename"
        assert search.browser("POST", path, study_name="other") == 201
        ends_with_a_line(search)
    assert len(trials(postgres_url, "other")) == 3
