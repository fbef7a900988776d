"""The model card of an export, its README.md: what it is, how good, on what data, at what cost, and what nobody knows.

After Mitchell et al. 2019 (Model Cards for Model Reporting); the head is what the Hugging Face Hub reads of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from search import confirmation_page, printing, ranking
from search.confirmation import Confirmation
from search.export_facts import Facts, at_best, cost_record, fold_values, spread
from storage.studies import NOTEBOOK
from storage.words import counted, in_one_line

# What each file of an export is for.
FILES = {
    "README.md": "this card",
    "metrics.json": "every metric of every epoch, and of other runs of this recipe",
    "recipe.json": "the recipe in torch's units, the model's own settings, the seed",
    "recipe.py": "the optimizer and the schedule in plain torch",
    "recipe.yaml": "recipe.json as YAML",
    "train.py": "the training loop in plain torch",
}


def card(facts: Facts, files: Sequence[str], notes: Sequence[str]) -> str:
    """The text. `notes`: what could not be written, and why."""
    study = facts.study
    head = {"library_name": "pytorch", "tags": ["dialin", "optuna"], "metrics": [study.metric]}
    sections = {
        _text(facts.title): [_summary(facts)],
        "Results": [*_results(facts)],
        "Use": [*_use(facts)],
        "Data": [*_data(facts)],
        "Training": [*_training(facts)],
        "Cost": [*_cost(facts)],
        "What is not known": [*_unknown(facts)],
        "Files": [*(f"- `{name}`: {_what(name)}" for name in files), *(f"- {_text(note)}" for note in notes)],
    }
    body = "\n\n".join(
        f"{'#' if number == 0 else '##'} {title}\n\n" + "\n".join(lines)
        for number, (title, lines) in enumerate(sections.items())
        if lines
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{body}\n"


def _text(value: object) -> str:
    """What is on record, where anybody may have written it, is no Markdown and no HTML."""
    return re.sub(r"([\\`<>|\[\]])", r"\\\1", in_one_line(value))


def _code(value: object) -> str:
    return "`" + in_one_line(value).replace("`", "'") + "`"


def _what(name: str) -> str:
    if not name.startswith("weights"):
        return FILES.get(name, "")
    of = Path(name).stem.removeprefix("weights").removeprefix("-")
    return "the weights of its best epoch" + (f": {of}" if of else "")


def _summary(facts: Facts) -> str:
    settled, version, answer = facts.status.settled, facts.written_by, facts.answer
    which = f"trial {facts.trial.number}"
    if answer is not None and answer.winner is not None:
        which = f"trial {answer.winner.trial}, trained again as {which} of {_code(answer.name)},"
    written = datetime.now(UTC).date().isoformat()
    return (
        f"The network of {which} among {counted(settled, 'trial')} that a search of "
        f"{_code(facts.objective)} tried, written down on {written} by Dialin {version}".rstrip()
        + ". "
        f"Recipe: {_text(_recipe(facts))}."
    )


def _recipe(facts: Facts) -> str:
    own = " ".join(f"{name} {printing.short(value)}" for name, value in facts.trial.attrs.get("model", {}).items())
    return " | ".join(part for part in (str(facts.trial.attrs.get("recipe", "")), own) if part)


def _results(facts: Facts) -> Iterator[str]:
    """The trial's own values, and those of other runs beside them."""
    study, found, others = facts.study, at_best(facts.trial), spread(facts)
    values = {study.metric: facts.trial.value} | {
        name: value for name, value in found.items() if name not in (study.metric, "lr")
    }
    heading = "other runs" if others is None else f"{counted(others['runs'], 'other run')}, mean ± standard deviation"
    yield f"| metric | this run | {heading} |"
    yield "|---|---|---|"
    for name, value in values.items():
        yield f"| {_text(name)} | {printing.number(value)} | {_mean(others, name)} |"
    yield ""
    at = f" of epoch {facts.trial.best_epoch}" if facts.trial.best_epoch else ""
    yield f"Values are{at} on the validation split; {_text(study.metric)} was to be {study.direction}d."
    if folds := fold_values(study, facts.trial):
        said = ", ".join(map(printing.number, folds))
        yield f"The value is the mean of {counted(len(folds), 'fold')}: {said}."
    settled = facts.status.settled
    if facts.answer is not None:
        yield from _confirmed(facts.answer)
    elif others is None:
        yield (
            f"They are one run's, chosen as the best of {settled}: partly luck. How far runs of this recipe "
            "differ is not known until `dialin confirm` has trained it again with other seeds."
        )
    else:
        yield (
            f"This run was chosen as the best of {settled}, which is partly luck; the other runs were not chosen, and "
            "say what to expect."
        )


def _confirmed(answer: Confirmation) -> Iterator[str]:
    """What a confirmation says of the recipe that it prefers."""
    winner, test = answer.winner, answer.test
    assert winner is not None
    yield (
        f"This run is the best of {counted(len(winner.values), 'fresh seed')} by which trial {winner.trial} of "
        f"{_code(answer.study)} was confirmed. What to expect is their mean, {_text(answer.metric)} "
        f"{ranking.spread(winner)}, "
        "a 95% interval."
    )
    if test is not None:
        said = confirmation_page.test_line(test, answer) if test.models is not None else f"no test split: {test.why}"
        yield f"{_text(said[:1].upper() + said[1:])}."


def _mean(others: Mapping[str, Any] | None, name: str) -> str:
    if others is None or name not in others["mean"]:
        return "-"
    deviation = others["standard_deviation"].get(name)
    return printing.number(others["mean"][name]) + (f" ± {printing.number(deviation)}" if deviation is not None else "")


def _use(facts: Facts) -> Iterator[str]:
    """How to get the network with its weights, by the objective's module, which is not in this folder."""
    written = facts.provenance.training.get("written")
    one = "weights.safetensors" in facts.weights
    objective = facts.study.objective
    module, name = _import(objective)
    can_be_imported = not objective.startswith(NOTEBOOK) and all(map(str.isidentifier, [*module.split("."), name]))
    if written in ("network", "task") and one and can_be_imported:
        own = dict(facts.trial.attrs.get("model", {}))
        yield f"The network is the objective's `model(trial)`, from {_source(facts)}:"
        yield "\n```python"
        yield "from optuna.trial import FixedTrial"
        yield "from safetensors.torch import load_file"
        yield ""
        yield f"from {module} import {name}"
        yield ""
        yield f"net = {name}.task(FixedTrial({own!r})).net"
        yield 'net.load_state_dict(load_file("weights.safetensors"))'
        yield "net.eval()"
        yield "```"
    elif facts.weights:
        names = ", ".join(f"`{name}`" for name in facts.weights)
        yield f"The weights ({names}) are state_dicts of the networks that {_source(facts)} builds."


def _import(objective: str) -> tuple[str, str]:
    """Module and name by which Python finds the objective: a file is imported from its own folder."""
    target, _, name = objective.rpartition(":") if ":" in Path(objective).name else (objective, "", "objective")
    if target.endswith(".py") or "/" in target:
        return Path(target).stem, name
    return (target if "." in target else f"objectives.{target}"), name


def _source(facts: Facts) -> str:
    provenance, sha256 = facts.provenance, facts.source_sha256
    said = _code(facts.objective) + (f" (SHA-256 {_text(sha256[:12])})" if sha256 else "")
    if provenance.commit:
        changed = ", with changes that are not committed" if provenance.changed else ""
        said += f" as in commit {_text(provenance.commit[:12])}{changed}"
    return said


def _data(facts: Facts) -> Iterator[str]:
    data = facts.provenance.data
    if data is None:
        yield f"{_source(facts)} reads its data itself; nothing is known of them here."
        return
    sizes = [
        f"{data[name]:,} samples {what}"
        for name, what in (("train", "to train"), ("valid", "to validate"), ("test", "held out to test"))
        if isinstance(data.get(name), int)
    ]
    folds = f", in each of {facts.study.folds} folds" if facts.study.folds > 1 else ""
    yield f"- What the objective's `data()` returns: {', '.join(sizes)}{folds}"
    kind = data.get("kind")
    yield f"- A sample: {_text(', '.join(kind) if isinstance(kind, list) else kind)}"
    if data.get("shaped_by"):
        yield f"- Shaped by the objective's {_text(', '.join(data['shaped_by']))}"
    if data.get("fingerprint"):
        yield f"- Checksum of the splits: {_code(data['fingerprint'])}"
    if not data.get("test"):
        yield "- There is no test split: nothing was held out from the choice of this trial"
    elif not facts.looked:
        yield "- Nobody has looked at the test split: the search has not seen it"
    elif facts.answer is None or facts.answer.test is None:
        said = _code(f"dialin confirm {facts.status.study.name}")
        yield f"- A confirmation of the search has opened the test split: {said} prints for which recipe"


def _training(facts: Facts) -> Iterator[str]:
    study, provenance, trial = facts.study, facts.provenance, facts.trial
    fewer = f", of which {len(trial.epochs)} were trained" if len(trial.epochs) < study.length else ""
    yield f"- {printing.length(study)}{fewer}; seed {facts.seed}"
    if loss := provenance.training.get("loss"):
        yield f"- Loss: {_code(loss)}"
    for name, value in provenance.training.get("options", {}).items():
        yield f"- {_text(name)}: {_text(value)}"
    for generation, one in facts.origin.owners.items():
        since = f"from owner {generation} on: " if len(facts.origin.owners) > 1 else ""
        versions = ", ".join(f"{name} {version}" for name, version in one.versions.items())
        yield f"- {since}{_text(one.device)}, {counted(one.threads, 'thread')}; {_text(versions)}"
    yield f"- {_code(f'dialin replay {study.name} {trial.number}')} trains it again, and compares the curve"


def _cost(facts: Facts) -> Iterator[str]:
    cost = cost_record(facts)
    samples = f", {cost['samples']:,} samples" if cost["samples"] else ""
    yield f"- This run: {counted(cost['epochs'], 'epoch')} in {printing.duration(cost['seconds'])}{samples}"
    search = f"{counted(cost['search_trials'], 'trial')} ({printing.counts(facts.status.counts)})"
    device = printing.duration(cost["search_device_seconds"])
    yield f"- The search: {search}, {counted(cost['search_epochs'], 'epoch')}, {device} on all devices together"


def _unknown(facts: Facts) -> Iterator[str]:
    yield "- What it is for, for whom it works less well, and what it must not be used for: only you can say."
    if not facts.provenance.versions:
        yield "- What it was trained with: that is not on record."
