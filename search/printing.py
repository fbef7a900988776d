"""Studies and trials as text: one line, a table, JSON, YAML, CSV or Python. Imports no torch.

Used by the commands and the live view; what is printed is decided here, what is asked in `storage.queries`.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from search.loading import builtin_objectives
from search.wishes import from_json, wish
from storage import stalling
from storage.constraints import Kept
from storage.errors import UsageError
from storage.first_trials import FirstTrial
from storage.limits import moment, past
from storage.outcomes import Outcome
from storage.queries import FailedTrial, RankedTrial, RunningTrial, SettledTrial, StudyStatus
from storage.roster import Adoption, WorkerLine
from storage.studies import NOTEBOOK, StudyRecord
from storage.tables import StudyState
from storage.words import counted, printable


def table(*headings: str, right: Collection[str] = ()) -> Table:
    """Columns without rules, those of numbers on the `right`."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return made


def refuse_two_forms(form: str | None, json_for_short: bool) -> None:
    """`--json` is short for `--format json`. Raises UsageError where another form was asked for beside it."""
    if json_for_short and form not in (None, "json"):
        raise UsageError(f"--json is --format json, but --format {form} was asked for too: leave one of them out")


def as_json(value: Any) -> str:
    """Strict JSON, which has no NaN and no Infinity: they are null."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def finite(value: Any) -> Any:
    """The same with null in the place of NaN and Infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    return [*map(finite, value)] if isinstance(value, list | tuple) else value


class Terminal(Console):
    """Where commands print. Once nobody reads that any more (`| head`) it is silent, and says so by an error.

    What it is given is text and no markup, and much of it is from a database: nothing in it steers the terminal.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All text on its way out, of tables and of the live view too."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def on_broken_pipe(self) -> None:
        """rich would end the process, which may have workers to give their trials back first."""
        self.quiet = True
        nobody_reads()
        raise BrokenPipeError


def nobody_reads() -> None:
    """Nothing more can be printed on standard output, not even by the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(console: Console, text: str) -> None:
    """One line as it is: neither markup, nor colours, nor breaks of rich's own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def number(value: float | None) -> str:
    """A metric for people: four digits after the point, or four significant ones when it is large or tiny."""
    if value is None:
        return "-"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """0:07, 12:40 or 3:05:00."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    clock = f"{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{clock}" if hours else clock


def ago(seconds: float) -> str:
    """How long ago, roughly: `20 s ago`, `5 min ago`, `3 h ago`, `2 days ago`."""
    for size, unit in ((86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' * (unit == 'day' and count != 1)} ago"
    return f"{max(0, int(seconds))} s ago"


def counts(by_outcome: Mapping[str, int]) -> str:
    """`6 complete, 5 pruned, 1 diverged`."""
    return ", ".join(f"{count} {Outcome(outcome).text}" for outcome, count in by_outcome.items()) or "none yet"


def settled_line(trial: SettledTrial, metric: str) -> str:
    """One line for a trial that has just ended."""
    said = f"{metric} {number(trial.value)}" if trial.value is not None else trial.reason
    cost = f"{counted(trial.epochs, 'epoch')} in {trial.seconds:.1f} s"
    return f"trial {trial.number} {trial.outcome.text}: {said}, {cost}; {trial.recipe}"


def failure_line(trial: FailedTrial) -> str:
    """Which trial failed, and why."""
    return f"trial {trial.number} {trial.outcome.text}: {trial.reason}"


def adoption_line(adoption: Adoption) -> str:
    """Who goes on with which trial, and why. Its newest checkpoint may be some epochs older than what is on record."""
    where = adoption.slot if adoption.host == socket.gethostname() else f"{adoption.host} {adoption.slot}"
    trial = f"trial {adoption.number} ({counted(adoption.epochs, 'epoch')} on record)"
    return f"{where} takes over {trial}, whose worker died" if adoption.died else f"{where} goes on with {trial}"


def handovers_line(status: StudyStatus) -> str:
    """Deaths and adoptions of a study's trials, how many wait for a worker, and which were lost; empty without any."""
    found, left = status.handovers, sum(trial.adoptable for trial in status.running)
    said = [counted(found.deaths, "worker died", "workers died")] if found.deaths else []
    said += [counted(found.adoptions, "adoption")] if found.adoptions else []
    said += [f"{counted(left, 'trial')} to adopt"] if left else []
    said += [f"lost: trial{'s' * (len(found.lost) != 1)} {', '.join(map(str, found.lost))}"] if found.lost else []
    return ", ".join(said)


def paused(status: StudyStatus) -> str:
    """How many trials are paused, and the best of them."""
    said = counted(len(status.paused), "trial")
    values = [(one.best, one) for one in status.paused if one.best is not None]
    if not values:
        return said
    best = (max if status.study.direction == "maximize" else min)(values, key=lambda pair: pair[0])[1]
    return f"{said}, the best {number(best.best)} in trial {best.number} after epoch {best.epoch}"


def worker_line(worker: WorkerLine) -> str:
    """Which process a worker is, and how long ago it gave a sign."""
    sign = "no sign for" if worker.silent else "seen"
    return f"{worker.host} pid {worker.pid}, {sign} {worker.seen_ago:.0f} s" + ("" if worker.silent else " ago")


def there_already(workers: Sequence[WorkerLine]) -> str:
    """Who trains a study to which workers are added."""
    living = [worker for worker in workers if not worker.silent]
    if not living:
        return ""
    who = ", ".join(f"{worker.slot} (pid {worker.pid} on {worker.host})" for worker in living)
    verb = "worker trains" if len(living) == 1 else "workers train"
    return f"{len(living)} {verb} it already, beside the new ones: {who}"


def progress(status: StudyStatus) -> str:
    """`12/40 trials`."""
    return f"{min(status.settled, status.study.trials)}/{status.study.trials} trials"


def state_of(status: StudyStatus) -> str:
    """What the study is doing, in a word or two."""
    if status.finished:
        closed = status.study.state is StudyState.RUNNING and status.study.reason
        return f"finished: {status.study.reason}" if closed else "finished"
    if status.study.state is StudyState.STOPPED:
        return f"stopped: {status.study.reason}" if status.study.reason else "stopped"
    if status.study.state is StudyState.PAUSED:
        return f"paused: {status.study.reason}"
    if status.late and status.study.deadline is not None:
        return f"stopped: {past(status.study.deadline)}"
    if any(not trial.adoptable for trial in status.running):
        return "running"
    return "waiting for a worker"


def constraints(values: Mapping[str, float]) -> str:
    """`parameters violated by 1.2e+04, epoch_seconds kept`."""
    said = (f"{name} violated by {value:.3g}" if value > 0 else f"{name} kept" for name, value in values.items())
    return ", ".join(said)


def kept_line(kept: Kept) -> str:
    """How many trials keep to the constraints, and which are violated; the nearest where none does."""
    said = f"{kept.feasible} of {counted(kept.ended, 'trial')} keep to the constraints"
    over = ", ".join(f"{name} is violated by {count}" for name, count in kept.violated.items())
    return f"{said}; {over}" if over else said


def none_feasible(kept: Kept) -> str:
    """What `best` says where no trial may be ranked."""
    assert kept.nearest is not None
    number, violated = kept.nearest
    return f"no complete trial keeps to its constraints: the nearest is trial {number} ({constraints(violated)})"


def nothing_ranked(status: StudyStatus) -> str:
    """Why a study has no best trial."""
    name, kept = status.study.name, status.kept
    if kept is not None and kept.nearest is not None:
        return f"{name}: {none_feasible(kept)}"
    return f"{name} has no complete trial yet: see `dialin status {name}`"


def outlook(status: StudyStatus) -> str:
    """What more trials are likely to gain, and the least for which the study goes on."""
    said = stalling.in_words(status.outlook, status.study.metric)
    return said if status.outlook.wanted is None else f"{said}; it ends below {status.outlook.wanted:g}"


def best_line(trial: RankedTrial, status: StudyStatus) -> str:
    """The best so far with its recipe, and what such a best is worth, in one line."""
    value = f"{status.study.metric} {number(trial.value)} in trial {trial.number}"
    return f"best: {value}: {full_recipe(trial)} ({unconfirmed(status.settled)})"


def full_recipe(trial: RankedTrial) -> str:
    """The recipe in one line, with the model's own knobs behind it."""
    own = " ".join(f"{name} {short(value)}" for name, value in trial.attrs.get("model", {}).items())
    return f"{trial.attrs.get('recipe', '')} | {own}" if own else str(trial.attrs.get("recipe", ""))


def short(value: Any) -> str:
    """A knob's value with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def running_row(trial: RunningTrial, length: int) -> tuple[str, ...]:
    """Slot, trial, epoch of so many (0: nobody knows), now, best; for `status` and the live view."""
    return (
        trial.slot,
        str(trial.number),
        f"{trial.epoch}/{length}" if length else str(trial.epoch),
        number(trial.now),
        number(trial.best),
    )


def strategy(study: StudyRecord) -> str:
    """`tpe + hyperband`; Dialin's own asks no pruner, and a confirmation neither."""
    if study.confirms:
        return f"confirms {study.confirms}"
    return study.sampler if study.sampler == "auto" else f"{study.sampler} + {study.pruner}"


def length(study: StudyRecord) -> str:
    """How long a trial is: `15 epochs`, `5 folds of 15 epochs`."""
    if not study.epochs:
        return "as long as its function trains"
    folds = f"{study.folds} folds of " if study.folds > 1 else ""
    return f"{folds}{counted(study.epochs, 'epoch')}"


def narrowing(study: StudyRecord) -> str:
    """What --fix and --range said: `lr=0.0001:0.01, optimizer=adamw`; empty when all of the space is searched."""
    return ", ".join(f"{name}={wish(name, value)}" for name, value in from_json(study.space).items())


def first_trials(trials: Sequence[FirstTrial]) -> str:
    """Where the first trials are from: `0: won study digits-1; 1 to 3: default of adam`; empty without any."""
    said: list[str] = []
    for origin, group in groupby(enumerate(trials), key=lambda one: one[1].origin):
        numbers = [number for number, _ in group]
        which = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        said.append(f"{which}: {origin}" if origin else which)
    return "; ".join(said)


def limits(study: StudyRecord) -> str:
    """When the study stops before its trials are used up; empty when nothing was said."""
    said = []
    if study.until is not None:
        said.append(f"until {study.metric} is {number(study.until)} or better")
    if study.budget_seconds is not None:
        spent, budget = duration(study.spent_seconds), duration(study.budget_seconds)
        said.append(f"{spent} of {budget} device time spent")
    if study.budget_epochs is not None:
        said.append(f"{study.spent_epochs} of {counted(study.budget_epochs, 'epoch')} trained")
    if study.deadline is not None:
        said.append(f"until {moment(study.deadline)}")
    return "; ".join(said)


def place_in_queue(study: StudyRecord) -> str:
    """What is out of the ordinary about it: `priority 3, at most 2 trials at once`."""
    said = [f"priority {study.priority}"] if study.priority != 1 else []
    said += [f"at most {counted(study.concurrency, 'trial')} at once"] if study.concurrency is not None else []
    return ", ".join(said)


def limit_met(status: StudyStatus, best: RankedTrial | None) -> bool:
    """Whether the study is stopped because it has got what --until, a budget or --deadline said."""
    study = status.study
    if status.late:
        return True
    if study.state is not StudyState.STOPPED:
        return False
    if study.time_is_spent or study.epochs_are_spent:
        return True
    if study.until is None or best is None:
        return False
    return best.value >= study.until if study.direction == "maximize" else best.value <= study.until


def more(status: StudyStatus) -> str:
    """The options that `dialin resume` needs to train more of a study that has got what it was to get."""
    study = status.study
    needed = (
        ("--trials +20", status.finished),
        ("--budget +1h", study.time_is_spent),
        ("--total-epochs +100", study.epochs_are_spent),
        ("--deadline 2h", status.late),
        ("--min-gain 0", status.outlook.stalled),
    )
    return "".join(f" {option}" for option, is_needed in needed if is_needed)


def resume_command(study: StudyRecord) -> str:
    """What to type to go on: with the objective, unless it is a built-in one that is found by its name."""
    return confirm_command(study) if study.confirms else _with_objective(f"dialin resume {study.name}", study)


def confirm_command(study: StudyRecord) -> str:
    """What to type to have a study's best confirmed, or to go on with that."""
    return _with_objective(f"dialin confirm {study.confirms or study.name}", study)


def worker_command(study: StudyRecord) -> str:
    """What to type, on any machine, for a worker of the queue that may train this study too."""
    return _with_objective("dialin worker", study)


def is_builtin(study: StudyRecord) -> bool:
    """Whether every worker may train it, since its objective comes with Dialin."""
    return study.objective.partition(":")[0] in builtin_objectives()


def _with_objective(command: str, study: StudyRecord) -> str:
    if is_builtin(study):
        return command
    file = "FILE.py" if study.objective.startswith(NOTEBOOK) else study.objective
    return f"{command} --objective {file}"


def unconfirmed(settled: int) -> str:
    """What a best value of a search is worth before it is trained again with other seeds."""
    return f"unconfirmed: best of {counted(settled, 'noisy draw')}"


def as_record(trial: RankedTrial, study: StudyRecord) -> dict[str, Any]:
    """A ranked trial as plain values: the real recipe, not the sampler's parameters."""
    return {
        "study": study.name,
        "trial": trial.number,
        "metric": study.metric,
        "value": trial.value,
        "best_epoch": trial.best_epoch,
        "epochs": trial.epochs,
        "seconds": round(trial.seconds, 3),
        "recipe": dict(trial.attrs.get("settings", {})),
        "model": dict(trial.attrs.get("model", {})),
    }
