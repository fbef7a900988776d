"""A study's answer as a folder that needs nothing of Dialin: weights, recipe, plain torch code, metrics, a model card.

`dialin export` and `Search.export` come in here. Runs no code of a person's, but for an objective whose optimizer or
schedule is a row of its own, which is then named with --objective.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from search import checkpoints, confirmation, optimizers, ranking, schedules
from search.checkpoints import CheckpointError
from search.confirmation import Confirmation
from search.export_facts import Facts, metrics_record, recipe_record
from search.loading import LoadedObjective
from search.model_card import FILES, card
from search.own_source import CannotBeWritten
from search.plain_loop import loop_code, why_not
from search.plain_torch import Plain, recipe_code
from search.printing import as_json, nothing_ranked
from search.shelf import Store
from storage import confirmations, provenance, queries, replicates
from storage.errors import DialinError, UsageError
from storage.outcomes import Outcome
from storage.queries import TrialDetail
from storage.shared import SharedStorage
from storage.studies import StudyRecord

LoadObjective = Callable[[], LoadedObjective]
_WEIGHTS = re.compile(r"weights(-.*)?\.(safetensors|pt)")


@dataclass(frozen=True)
class Exported:
    """What was written, by name in `folder`, and what could not be, a line each."""

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """A trial to take out, of `study`, whose recipe `searched` has found.

    `answer`: of the confirmation that prefers this recipe, where the trial is its best seed. `looked`: whether a
    confirmation of the search has opened the test split, for whichever recipe.
    """

    study: StudyRecord
    trial: TrialDetail
    searched: StudyRecord
    answer: Confirmation | None = None
    looked: bool = False


def chosen(storage: SharedStorage, study: StudyRecord, number: int | None) -> Chosen:
    """The trial to take out: the best one, or that of a number, which must have trained to its end.

    Of a study that is confirmed the best one is the best seed of the recipe that is preferred.

    Raises:
        DialinError: there is no complete trial. UsageError: this one is none, or is not there.
    """
    searched = (confirmations.source_of(storage, study) if study.confirms else None) or study
    answer = confirmation.read(storage, searched)
    looked = answer is not None and any(one.models is not None for one in answer.tests)
    if number is not None:
        return Chosen(study, _complete(storage, study, number), searched, looked=looked)
    ranked = ranking.ranking(storage, searched, 1, answer)
    if not ranked:
        raise DialinError(nothing_ranked(queries.status(storage, searched)))
    study, number = confirmation.weights_of(storage, searched, ranked[0].trial.number, answer)
    trial = _complete(storage, study, number)
    return Chosen(study, trial, searched, answer if study is not searched else None, looked)


def _complete(storage: SharedStorage, study: StudyRecord, number: int) -> TrialDetail:
    trial = queries.trial(storage, study, number)
    if trial.outcome is not Outcome.COMPLETE:
        said = trial.state.replace("_", " ") + (f": {trial.reason}" if trial.reason else "")
        raise UsageError(
            f"trial {number} of {study.name} did not train to its end ({said}): only a complete one can go"
        )
    return trial


def export(
    storage: SharedStorage,
    of: Chosen,
    to: Path,
    *,
    store: Store | None,
    load: LoadObjective,
    force: bool = False,
) -> Exported:
    """Write the trial to the folder `to`: all of it, or nothing.

    Args:
        store: where the study's checkpoints are; None: without weights.
        load: the objective on this machine, asked for where the recipe has rows of its own.
        force: also into a folder that is not empty, over what is called the same there.

    Raises:
        UsageError: the folder cannot be written, or is not empty. DialinError: weights are on record and not there.
    """
    study, trial, answer = of.study, of.trial, of.answer
    others = replicates.replicates(storage, study, trial)
    facts = Facts(
        study,
        trial,
        provenance.origin(storage, study.study_id, trial.attrs),
        queries.status(storage, of.searched),
        [one for one in others if answer is None or one.study == answer.name],  # what the search chose was lucky
        answer,
        looked=of.looked,
    )
    with _folder(to, force) as folder:
        notes = [*_write_weights(facts, folder, store), *_write_code(facts, folder, load)]
        weights = tuple(sorted(path.name for path in folder.glob("weights*")))
        facts = replace(facts, weights=weights)
        recipe = recipe_record(facts)
        (folder / "recipe.json").write_text(f"{as_json(recipe)}\n", "utf-8")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), "utf-8")
        (folder / "metrics.json").write_text(f"{as_json(metrics_record(facts))}\n", "utf-8")
        files = tuple(sorted([path.name for path in folder.iterdir()] + ["README.md"]))
        (folder / "README.md").write_text(card(facts, files, notes), "utf-8")
    return Exported(to, files, tuple(notes))


@contextmanager
def _folder(to: Path, force: bool) -> Iterator[Path]:
    """A folder beside `to` that takes its place, or whose files go into it, when all of it is written.

    Raises:
        UsageError: it cannot be written, or is not empty and nobody said `force`.
    """
    if to.exists() and not to.is_dir():
        raise UsageError(f"{to} is a file: -o names a folder")
    there = to.is_dir()
    partial = (to if there else to.parent) / f".{to.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        if there and not force and any(to.iterdir()):
            raise UsageError(f"{to} is not empty: name another folder, or write over an old export with --force")
        partial.mkdir(parents=True)
        yield partial
        if there:
            new = [path.replace(to / path.name) for path in [*partial.iterdir()]]
            for old in {*filter(_is_ours, to.iterdir())} - {*new}:
                old.unlink()
        else:
            partial.rename(to)
    except OSError as error:
        raise UsageError(f"cannot write to {to}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    """Whether it is what an export leaves: beside another trial's, what this one has no match for would mislead."""
    return path.name in FILES or bool(_WEIGHTS.fullmatch(path.name))


# -- Weights


def _write_weights(facts: Facts, folder: Path, store: Store | None) -> Iterator[str]:
    """A file for each network; a note where there is none, or where one holds what safetensors cannot."""
    kept = facts.trial.weights
    if store is None or kept is None:
        if store is not None:
            yield "no weights: only those of a study's best trials are kept, and a function of one's own keeps none"
        return
    try:
        state = store.read(kept.path, kept.sha256)
    except CheckpointError as error:
        raise DialinError(
            f"{error}: name the place that the workers wrote to with --files or --checkpoints, or go without by "
            "--no-weights"
        ) from None
    about = {"format": "pt", "study": facts.study.name, "trial": str(facts.trial.number)}
    about |= {facts.study.metric: repr(facts.trial.value), "best_epoch": str(facts.trial.best_epoch or "")}
    for name, tensors in networks(state).items():
        file = f"weights-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}" if name else "weights"
        others = [key for key, value in tensors.items() if not _is_plain(value)]
        if others:
            checkpoints.save(folder / f"{file}.pt", dict(tensors))
            yield f"{file}.pt in place of a safetensors file, which cannot hold {', '.join(map(str, others))}"
            continue
        _save(tensors, folder / f"{file}.safetensors", about)


def networks(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The state_dicts by name: of folds, and of a loop that has several networks; of one network under ""."""
    if state and all(isinstance(value, dict) for value in state.values()):
        return dict(state)
    return {"": state}


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _save(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str]) -> None:
    """Each tensor with memory of its own, which the format asks for: tied weights are there twice."""
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(own, path, about)
        path.chmod(mode)  # its own files are nobody else's to read
    except Exception as error:  # its own kind, also where the disk is full
        raise UsageError(f"cannot write {path.name}: {next(iter(str(error).splitlines()), error)}") from None


# -- Code


def _write_code(facts: Facts, folder: Path, load: LoadObjective) -> Iterator[str]:
    """recipe.py, and train.py where the loop can be written down; a note where it cannot."""
    if not facts.has_recipe:
        yield "no recipe.py: its optimizer is the objective's own, recipe.json has what was suggested"
        return
    try:
        plain = plain_of(facts, load)
        (folder / "recipe.py").write_text(recipe_code(plain), "utf-8")
    except KeyError as error:
        yield f"no recipe.py: its recipe on record has no {error}"
        return
    except CannotBeWritten as why:
        yield f"no recipe.py: {why}"
        return
    if not facts.origin.owners:
        yield "no train.py: what it was trained with is not on record"
    elif missing := why_not(plain):
        yield f"no train.py: {missing}"
    else:
        (folder / "train.py").write_text(loop_code(plain), "utf-8")


def plain_of(facts: Facts, load: LoadObjective) -> Plain:
    """What the code needs to know. Raises CannotBeWritten, and what `load` raises."""
    settings, training, data = facts.trial.attrs["settings"], facts.provenance.training, facts.provenance.data or {}
    optimizer, schedule = _rows(facts, load)
    written = str(training.get("written", "network"))
    sample = kind if isinstance(kind := data.get("kind"), list) else []
    return Plain(
        title=facts.title,
        recipe=str(facts.trial.attrs.get("recipe", "")),
        optimizer=optimizer,
        schedule=schedule,
        settings=settings,
        epochs=facts.study.epochs,
        seed=facts.seed,
        written=written,
        groups=bool(training.get("groups")) or written != "network",
        options=training.get("options", {}),
        shaped_by=tuple(data.get("shaped_by", ())),
        tensors=bool(sample) and facts.study.folds == 1,
        bytes_in=bool(sample) and str(sample[0]).startswith("uint8"),
        in_parts="micro_batch" in facts.trial.attrs,
        on_cpu=all(line.device in ("", "cpu") for line in facts.trial.epochs),
    )


def _rows(facts: Facts, load: LoadObjective) -> tuple[optimizers.Optimizer, schedules.Schedule]:
    """The recipe's rows: the tables', or where the objective has some of its own, those.

    Raises CannotBeWritten: the objective has changed since, so that its rows may be others.
    """
    settings, own = facts.trial.attrs["settings"], facts.provenance.training.get("own_rows", {})
    optimizer, schedule = settings["optimizer"], settings["schedule"]
    rows: Mapping[str, optimizers.Optimizer] = optimizers.OPTIMIZERS
    shapes: Mapping[str, schedules.Schedule] = schedules.SCHEDULES
    of_its_own = optimizer in own.get("optimizers", ()) or optimizer not in rows
    if of_its_own or schedule in own.get("schedules", ()) or schedule not in shapes:
        loaded = load()
        if loaded.source_sha256 != facts.source_sha256:
            raise CannotBeWritten("the recipe has a row of the objective's own, which has changed since")
        rows = optimizers.resolve_all(loaded.objective.optimizers)
        shapes = schedules.resolve_all(loaded.objective.schedules)
    return rows[optimizer], shapes[schedule]
