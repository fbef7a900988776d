"""A search from Python, in a script or a notebook: `search.run(objective)` gives a handle to what it found.

    found = search.run(objective, trials=40)
    found.best.recipe, found.trials(), found.weights()
    found.resume(trials="+20")
    found.confirm(top=5, seeds=5)

The commands `dialin run` and `dialin resume` do the same through `search.searches`. Importing this imports no torch.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from rich.console import Console

from search import calls, confirmation, confirming, notebook, options, printing, ranking, searches, trackers
from search.answers import Answers
from search.confirmation import Confirmation
from search.failures import RaisedError
from search.preflight import Placement
from search.ranking import Best
from search.samplers import quiet_optuna
from search.terms import MoreOfStudy, NewStudy
from search.written import refuse_unwritable, write
from storage import queries, studies
from storage.errors import DialinError
from storage.overview import overview
from storage.queries import StudyStatus

if TYPE_CHECKING:
    import pandas

    from search.advice import Finding
    from search.calls import Searched


class Search(Answers):
    """A study: what it found so far, and more of it. Everything is read from the database when it is asked for.

    Made by `run` and `load`.
    """

    @property
    def status(self) -> StudyStatus:
        """Where the study stands: trials by outcome, what is trained now, failures. UsageError: it was deleted."""
        return queries.status(self._storage, studies.find(self._storage, self.name))

    @property
    def best(self) -> Best | None:
        """The best trial; None before the first is complete."""
        return next(iter(self.top(1)), None)

    def top(self, n: int = 5) -> list[Best]:
        """The n best trials that trained to their end: those that are confirmed by their means, then the others."""
        record = studies.find(self._storage, self.name)
        answer = confirmation.read(self._storage, record)
        return [one.plain for one in ranking.ranking(self._storage, record, n, answer)]

    @property
    def confirmation(self) -> Confirmation | None:
        """What `confirm` has found out so far; None before it was called."""
        return confirmation.read(self._storage, confirming.subject(self._storage, self.name))

    def trials(self) -> pandas.DataFrame:
        """A row for each trial in whatever state, by number, as `dialin trials --format csv` has them.

        Columns: number, outcome, value, best_epoch; epochs, seconds, device_seconds, samples, peak_memory (bytes),
        device, started_at, settled_at (UTC); a knob each, in real units; metrics.NAME of the best epoch.
        `outcome` is complete, pruned, diverged, out_of_memory, lost or error; before that running, paused, adoptable
        or waiting. `value` of a pruned trial is its last epoch's. A knob that a trial has not is empty; a model's knob
        with a name that is taken is called model.NAME.
        """
        from search.trial_table import frame

        return frame(overview(self._storage, studies.find(self._storage, self.name)))

    def advice(self) -> list[Finding]:
        """What the trials say about the next ones, the most pressing first: each has `says`, `evidence`, `actions`."""
        from search.advice import of_study

        record = confirming.subject(self._storage, self.name)
        return [*of_study(self._storage, record).findings]

    def report(self, path: str | Path) -> Path:
        """Write the study as one HTML file that needs no network; its path in return.

        UsageError: it cannot be written.
        """
        from search.report import gather, render

        refuse_unwritable(Path(path))
        write(Path(path), render(gather(self._storage, confirming.subject(self._storage, self.name))))
        return Path(path)

    @property
    def study(self) -> optuna.Study:
        """The study as Optuna has it, for optuna.visualization and optuna.importance. Its storage is Dialin's."""
        quiet_optuna()
        return optuna.load_study(study_name=self.name, storage=self._storage)

    def weights(self, trial: int | None = None) -> dict[str, Any]:
        """The weights of a trial's best epoch, on the CPU: a state_dict.

        By default the best trial's; of one that is confirmed those of the seed that did best.

        DialinError: they were not kept (only the best few trials' are), or their file is not where files are.
        """
        from search.shelf import open_store

        record = studies.find(self._storage, self.name)
        if trial is None:
            best = self.best
            if best is None:
                raise DialinError(f"{self.name} has no complete trial yet")
            answer = confirmation.read(self._storage, record)
            record, trial = confirmation.weights_of(self._storage, record, best.trial, answer)
        kept = queries.weights_of(self._storage, record, trial)
        if kept is None:
            raise DialinError(f"no weights of trial {trial} are on record: those of the best few trials are kept")
        path, sha256 = kept
        files = options.files_root(self._place.files, self._place.storage)
        return open_store(self._place.checkpoints, files, record.folder).read(path, sha256)

    def resume(
        self,
        trials: int | str | None = None,
        *,
        objective: Searched | None = None,
        until: float | None = None,
        budget: float | str | None = None,
        total_epochs: int | str | None = None,
        deadline: float | str | datetime | None = None,
        min_gain: float | None = None,
        was: Mapping[str, Any] | None = None,
        workers: int | None = None,
        devices: str | int | Sequence[str | int] | None = None,
        per_device: int | None = None,
        on: str | None = None,
        log: Iterable[str] | None = None,
        quiet: bool = False,
    ) -> Search:
        """Go on with the study, on as many workers as `run` would take; what was left goes on where it stopped.

        Args:
            trials: a new budget, or "+20" for so many more; None: what is left of the old one.
            objective: the objective, where this handle came from `load` and it is not a built-in one.
            until, budget, total_epochs, deadline: new limits; "+1h" of device time or "+100" epochs on top of the old.
            min_gain: as `run`; 0 goes on whatever trials gain.
            was: values that knobs added to the objective had in older trials, as {"layers": 2}.
            workers, devices, per_device, on, log, quiet: as `run`; by default on the cluster that `run` was told.

        Raises:
            UsageError: what was asked for cannot be, or the study has nothing left.
            RaisedError: the objective no longer works.
        """
        calls.refuse_while_imported()
        wanted = MoreOfStudy(
            calls.more(trials),
            until,
            calls.lasting(budget),
            calls.more(total_epochs),
            calls.until_when(deadline),
            dict(was or {}),
            min_gain,
        )
        place = self._place_with(calls.placement(workers, devices, per_device), log, on)
        self._objective = objective if objective is not None else self._objective
        record = studies.find(self._storage, self.name)
        console = calls.console(quiet)
        try:
            ready = searches.go_on(console, self._storage, record, self._what(record.objective), wanted, place)
        except RaisedError as error:
            raise calls.with_frames(error) from None
        _train(console, ready)
        return self

    def confirm(
        self,
        top: int | None = None,
        seeds: int | None = None,
        *,
        test: bool = True,
        changed: bool = False,
        objective: Searched | None = None,
        workers: int | None = None,
        devices: str | int | Sequence[str | int] | None = None,
        per_device: int | None = None,
        on: str | None = None,
        log: Iterable[str] | None = None,
        quiet: bool = False,
    ) -> Confirmation:
        """Train the best recipes again with fresh seeds, rank them by their mean, and test the winner once.

        Called again it goes on where it was left, adds what is asked for more, or gives the answer.

        Args:
            top, seeds: so many recipes, so many times each; by default what was asked before, or 5.
            test: open the test split for the winner; False: leave it closed yet.
            changed: also where the objective's source has changed since.
            objective: the objective, where this handle came from `load` and it is not a built-in one.
            workers, devices, per_device, on, log, quiet: as `run`; by default on the cluster that `run` was told.

        Raises:
            UsageError: what was asked for cannot be, the study is still running, or the objective has changed.
            RaisedError: the objective no longer works.
            DialinError: no trial is complete, or the test split could not be opened.
        """
        calls.refuse_while_imported()
        wanted = confirming.Wanted(top, seeds, test, changed)
        place = self._place_with(calls.placement(workers, devices, per_device), log, on)
        self._objective = objective if objective is not None else self._objective
        source = confirming.subject(self._storage, self.name)
        try:
            answer, ending = confirming.confirm(
                calls.console(quiet),
                self._storage,
                source,
                wanted,
                lambda: self._what(source.objective, "confirm"),
                place,
            )
        except RaisedError as error:
            raise calls.with_frames(error) from None
        calls.heed(ending)
        return answer

    def _place_with(self, placement: Placement, log: Iterable[str] | None, on: str | None) -> searches.Place:
        """Where this study was trained, with other workers."""
        told = self._place.log if log is None else trackers.check(log)
        return replace(self._place, placement=placement, log=told, on=on or self._place.on)

    def __repr__(self) -> str:
        try:
            status = self.status
        except DialinError as error:
            return f"<Search {self.name}: {error}>"
        best = self.best
        found = f", best {status.study.metric} {ranking.worth(best)} in trial {best.trial}" if best else ""
        return f"<Search {self.name}: {printing.state_of(status)}, {printing.progress(status)}{found}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the best five."""
        try:
            status = self.status
        except DialinError:
            return html.escape(repr(self))
        answer = confirmation.read(self._storage, status.study)
        top = ranking.ranking(self._storage, status.study, 5, answer)
        rows = [(one.trial.number, ranking.worth(one.plain), printing.full_recipe(one.trial)) for one in top]
        behind = f"{printing.state_of(status)} · {printing.counts(status.counts)}"
        inside = notebook.table(("trial", status.study.metric, "recipe"), rows) if rows else notebook.best_line(None)
        return notebook.card(notebook.heading(status, behind) + inside)


def run(
    objective: Searched,
    *,
    study: str | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    direction: str | None = None,
    workers: int | None = None,
    devices: str | int | Sequence[str | int] | None = None,
    per_device: int | None = None,
    on: str | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    fix: Mapping[str, Any] | None = None,
    ranges: Mapping[str, Any] | None = None,
    until: float | None = None,
    budget: float | str | None = None,
    total_epochs: int | None = None,
    deadline: float | str | datetime | None = None,
    min_gain: float | None = None,
    seed: int | None = None,
    transfer: bool = True,
    data: str | Path | None = None,
    log: Iterable[str] = (),
    files: str | Path | None = None,
    checkpoints: str | Path | None = None,
    disk: str | None = None,
    storage: str | None = None,
    quiet: bool = False,
) -> Search:
    """Make a new study of an objective and train its trials, as `dialin run` does; then return it.

    Args:
        objective: an Objective, made right here or anywhere; "digits", "my_model.py", "pkg.module:name" or a Path; or
            a bare Optuna function of a trial.
        study: name of the new study; by default the objective's name with the next free number.
        trials, epochs: budget and length of a full trial; by default the objective's.
        direction: "minimize" or "maximize", for a bare function only; by default minimize.
        workers: processes; by default one a GPU, without GPUs one a CPU core.
        devices: "cpu", 0, "0,2" or [0, 2]; by default all GPUs that are not busy.
        per_device: workers on each GPU, by default as many as its free memory holds, at most 4.
        on: a Ray cluster to start the workers on: "ray" for the one here, or its address; by default this machine.
        sampler: auto (Dialin's own), or one of Optuna's: tpe, gp, cmaes, qmc, random. By default auto; tpe for a bare
            function, or where a pruner is named.
        pruner: of Optuna's samplers: hyperband, by default, asha, median or none.
        fix: knobs with one value, as {"optimizer": "adamw"}.
        ranges: knobs with a range (low, high), a list of choices or `search.around(value)`: {"lr": (1e-4, 1e-2)}.
        until: stop when a trial reaches this value.
        budget: device time, in seconds or as "8h", after which the study stops.
        total_epochs: epochs of all trials together after which it stops.
        deadline: when it stops: "18:30", a datetime, or seconds or "2h" from now.
        min_gain: end when 20 more trials are likely to improve the metric by less.
        seed: of sampling and training; by default a random one, which is stored.
        transfer: start with recipes that won in finished studies of this database, and with those that come with
            Dialin; False: with the optimizers' defaults only.
        data: folder of data sets; by default $DIALIN_DATA, else ~/.cache/dialin.
        log: names of trackers, such as "tensorboard".
        files: folder of checkpoints and logs; by default $DIALIN_FILES, else beside a SQLite file.
        checkpoints: a folder of their own, or a bucket such as "s3://NAME/PREFIX"; by default $DIALIN_CHECKPOINTS.
        disk: how much checkpoints may take together, as "50GB"; by default all there is.
        storage: URL of the database; by default $DIALIN_STORAGE, else sqlite:///dialin.db.
        quiet: print nothing.

    Ctrl-C (in a notebook: interrupting the kernel) gives the running trials back. In a notebook the handle is
    returned all the same; a script gets its KeyboardInterrupt then.

    Raises:
        UsageError: what was asked for cannot be; there is no study then.
        RaisedError: the objective does not work; its own frames are in the traceback.
    """
    calls.refuse_while_imported()
    settings = calls.checkpoint_settings(checkpoints, disk)
    place = calls.place(
        storage, files, data, calls.placement(workers, devices, per_device), trackers.check(log), settings, on
    )
    wanted = NewStudy(
        name=study,
        trials=trials,
        epochs=epochs,
        direction=direction,
        sampler=sampler,
        pruner=pruner,
        space=calls.space(fix or {}, ranges or {}),
        until=until,
        budget_seconds=options.seconds_of(calls.lasting(budget)),
        total_epochs=total_epochs,
        deadline=calls.until_when(deadline),
        seed=seed,
        min_gain=min_gain,
        transfer=transfer,
    )
    console = calls.console(quiet)
    try:
        ready = searches.begin(console, calls.sent(objective), wanted, place)
    except RaisedError as error:
        raise calls.with_frames(error) from None
    _train(console, ready)
    return Search(ready.storage, ready.study.name, place, objective)


def load(
    study: str | None = None,
    *,
    storage: str | None = None,
    files: str | Path | None = None,
    checkpoints: str | Path | None = None,
) -> Search:
    """A study that exists, by default the newest: looked at, and gone on with by `resume`.

    Raises:
        UsageError: there is no such database or study.
    """
    place = calls.place(storage, files, None, Placement(), (), calls.checkpoint_settings(checkpoints, None))
    opened = options.open_existing(place.storage)
    return Search(opened, studies.find(opened, study).name, place, None)


def _train(console: Console, ready: searches.Ready) -> None:
    ending = searches.train(console, ready)
    if not notebook.is_here():  # its view has said it
        searches.say_ending(console, ready.storage, ending)
    calls.heed(ending)
