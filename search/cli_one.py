"""The commands for one recipe: train it here and now, or have a study try it. Registered by `search.cli`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from optuna.distributions import BaseDistribution

from search import options, printing
from search.knobs import Knob
from search.wishes import parse_settings
from storage import matching, queries, studies
from storage.errors import DialinError, UsageError
from storage.queries import StudyStatus
from storage.shared import SharedStorage
from storage.uncollected import uncollected
from storage.urls import DEFAULT_URL

if TYPE_CHECKING:
    from search.foreground import Trained
    from search.objective import Objective

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME=VALUE",
        help="Knobs by name, such as lr=0.01 optimizer=adamw width=64; `dialin objectives OBJECTIVE` prints them.",
    ),
]


def train(
    objective: options.ObjectiveName,
    settings: Settings = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, metavar="N", help="How long.", show_default="the objective's")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Write the best epoch's weights: a state_dict.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="0|cpu", help="A GPU by its number, or cpu.", show_default="a free GPU, else cpu"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of weights, order and augmentation.")] = 0,
    data: options.DataFolder = None,
) -> None:
    """Train one recipe in the foreground: no study, no database, a line an epoch.

    What is not given takes its default; the model's own knobs take the middle.
    breakpoint() works, and what your code prints is seen.
    Ctrl-C ends it with the best so far.
    """
    with uncollected():
        import torch

        from search.foreground import Order, place, train_here
        from search.loading import resolve
        from search.samplers import quiet_optuna
        from search.uncompiled import spare_the_compiler

    quiet_optuna()
    spare_the_compiler()
    if weights is not None and not weights.expanduser().absolute().parent.is_dir():
        raise UsageError(f"cannot write {weights}: there is no such folder")
    given = parse_settings(settings or ())
    loaded = resolve(objective)
    for note in loaded.notes:
        typer.echo(note)
    order = Order(loaded, given, epochs, place(device), seed, options.data_root(data))
    trained = train_here(order, typer.echo)
    result = trained.result
    if weights is not None and result.weights is not None:
        torch.save(result.weights, weights)
    _conclude(loaded.objective, trained, weights)


def _conclude(objective: Objective, trained: Trained, weights: Path | None) -> None:
    from storage.outcomes import Outcome

    result, metric = trained.result, objective.searched.name
    if trained.interrupted:
        typer.echo("interrupted")
    if result.value is None:
        said = result.reason or "no epoch was finished"
        if trained.interrupted:
            typer.echo(said)
            raise typer.Exit(130)
        raise DialinError(f"{result.outcome.text}: {said}")
    at = f" in epoch {result.best_epoch}" if result.best_epoch else ""
    typer.echo(f"best: {metric} {printing.number(result.value)}{at}")
    if result.reason:
        typer.echo(f"{result.outcome.text}: {result.reason}")
    if weights is not None:
        kept = f"weights are in {weights}" if result.weights is not None else "there are no weights to write"
        typer.echo(kept)
    if trained.interrupted:
        raise typer.Exit(130)
    if result.outcome not in (Outcome.COMPLETE, Outcome.PRUNED):
        raise typer.Exit(1)


def try_(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[STUDY] NAME=VALUE",
            help="The study (default: the newest), then knobs by name: lr=0.05 optimizer=momentum width=64.",
        ),
    ],
    objective: options.OwnObjective = None,
    storage: options.Storage = DEFAULT_URL,
) -> None:
    """Have a study try these values next; what is not given is sampled.

    lr and weight_decay are the real ones: give the optimizer too, if there are several.
    """
    from search.loading import reference_here
    from search.samplers import quiet_optuna

    quiet_optuna()
    study, settings = _study_and_settings(words)
    shared = options.open_existing(storage)
    record = studies.find(shared, study)
    if record.confirms:
        raise UsageError(f"{record.name} trains what confirms {record.confirms}, and nothing else: name another study")
    said = " ".join(words if study is not None else [record.name, *words])
    reference = reference_here(record.objective, objective, f"dialin try {said}")
    params = _params(reference, shared, record, settings)
    number = studies.enqueue(shared, record, params)
    said = " ".join(f"{name}={value}" for name, value in settings.items())
    typer.echo(f"trial {number} of {record.name} waits with {said}; the rest is sampled")
    typer.echo(_who_trains(queries.status(shared, studies.find(shared, record.name))))


def _study_and_settings(words: list[str]) -> tuple[str | None, dict[str, Any]]:
    study = None if "=" in words[0] else words[0]
    settings = parse_settings(words if study is None else words[1:])
    if not settings:
        raise UsageError(f"say what to try, as in: dialin try {study} lr=0.05 optimizer=momentum")
    return study, settings


def _params(
    reference: str, shared: SharedStorage, record: studies.StudyRecord, settings: dict[str, Any]
) -> dict[str, Any]:
    from search.loading import resolve
    from search.preview import blamed
    from search.settings import of_study, params_of

    loaded = resolve(reference).to(record.direction)
    searched = loaded.objective.searched
    matching.check_same(record, loaded.reference, searched.name, searched.direction)
    with blamed("model()", loaded):
        params = params_of(of_study(loaded.objective, record.space), settings)
    if loaded.objective.trains_itself:
        _check_suggested(queries.param_distributions(shared, record), params, record.name)
    return params


def _check_suggested(stored: Mapping[str, BaseDistribution], params: Mapping[str, Any], study: str) -> None:
    """What trains itself says what it is searched over only as it suggests: the study's trials have.

    Raises:
        UsageError: none of them was asked for such a knob, or not for such a value.
    """
    for name, value in params.items() if stored else ():
        if name not in stored:
            raise UsageError(f"no trial of {study} suggested {name!r}; they suggest {', '.join(sorted(stored))}")
        try:
            Knob(name, stored[name], default=value)  # which must lie inside
        except ValueError:
            among = Knob(name, stored[name]).range
            raise UsageError(f"{name} cannot be {value}: trials of {study} suggest it among {among}") from None


def _who_trains(status: StudyStatus) -> str:
    """What will train an enqueued trial, or what to type so that something does."""
    study = status.study
    resume = printing.resume_command(study)
    if study.taken + status.waiting > study.trials:
        return f"the budget of {study.trials} trials is spoken for: {resume} --trials +1 makes room for it"
    if study.state != "running":
        return f"{study.name} is stopped: {resume} trains it"
    alive = sum(not trial.adoptable for trial in status.running)
    if alive:
        return f"the next of its workers that is free trains it ({alive} now)"
    return f"no worker is there: {resume} trains it"
