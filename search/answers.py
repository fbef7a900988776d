"""What a study is good for in the end, from Python: a trial trained again, a trial written to a folder.

`search.api.Search` is one of these; `dialin replay` and `dialin export` do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from search import calls, options, printing, searches
from search.by_value import ByValue
from search.loading import builtin_objectives
from storage import studies
from storage.errors import UsageError
from storage.shared import SharedStorage
from storage.studies import NOTEBOOK

if TYPE_CHECKING:
    from search.calls import Searched
    from search.export import Exported
    from search.replay import Replayed


class Answers:
    """A study by its name, and where its things are on this machine."""

    def __init__(self, storage: SharedStorage, name: str, place: searches.Place, objective: Searched | None) -> None:
        self._storage, self._place, self._objective = storage, place, objective
        self.name = name

    def replay(
        self,
        trial: int | None = None,
        *,
        objective: Searched | None = None,
        tolerance: float = 0.02,
        changed: bool = False,
        failed: bool = False,
        device: str | None = None,
        quiet: bool = False,
    ) -> Replayed:
        """Train a trial again in this process, by default the best one, and compare its curve with the one on record.

        Args:
            objective: where this handle came from `load` and it is not a built-in one.
            tolerance: how far apart curves may be where bits are not promised, as a share of the largest value.
            changed: although the objective or its data have changed since.
            failed: a trial that ended in an error too, as far as it gets.
            device: "cpu", or a GPU's number; by default of the kind that trained it.
            quiet: print nothing.

        Raises:
            UsageError: there is no such trial or no curve, or something has changed.
            RaisedError: the objective raises.
        """
        from search.replay import replay_of

        record = studies.find(self._storage, self.name)
        console = calls.console(quiet)
        return replay_of(
            self._storage,
            record,
            trial,
            self._what(record.objective, "replay", objective, calls.here),
            device=device,
            data=options.data_root(self._place.data),
            tolerance=tolerance,
            changed=changed,
            failed=failed,
            say=lambda line: printing.say(console, line),
        )

    def export(
        self,
        to: str | Path,
        trial: int | None = None,
        *,
        objective: Searched | None = None,
        weights: bool = True,
        force: bool = False,
    ) -> Exported:
        """Write a trial, by default the best one, to a folder that needs nothing of Dialin.

        Args:
            to: the folder, which is empty or not there yet.
            objective: as `replay`; asked for only where an optimizer or a schedule is a row of the objective's own.
            weights: with the best epoch's weights.
            force: also into a folder that is not empty, over what is called the same there.

        Raises:
            UsageError: the folder cannot be written, or the trial did not train to its end.
            DialinError: there is no complete trial, or its weights are not where files are.
        """
        from search.export import chosen, export
        from search.loading import resolve
        from search.shelf import open_store

        record = studies.find(self._storage, self.name)
        files = options.files_root(self._place.files, self._place.storage)
        found = chosen(self._storage, record, trial)
        return export(
            self._storage,
            found,
            Path(to).expanduser().absolute(),
            store=open_store(self._place.checkpoints, files, found.study.folder) if weights else None,
            load=lambda: resolve(self._what(found.study.objective, "export", objective, calls.here)),
            force=force,
        )

    def _what(
        self,
        stored: str,
        call: str = "resume",
        given: Searched | None = None,
        send: Callable[[Searched], str | ByValue] = calls.sent,
    ) -> str | ByValue:
        """The objective, as `send` hands it on: what was given, or what this handle was made with."""
        objective = given if given is not None else self._objective
        if objective is not None:
            return send(objective)
        if stored.partition(":")[0] in builtin_objectives():
            return stored
        where = "in a notebook" if stored.startswith(NOTEBOOK) else f"in {stored}"
        raise UsageError(f"the objective of {self.name} is {where}: pass it, as in {call}(objective=...)")
