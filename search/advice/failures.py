"""What went wrong, and where: failures of one kind or one choice, broken constraints, too few complete trials."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from search.advice import actions
from search.advice.evidence import Evidence
from search.advice.finding import Finding
from storage.outcomes import Outcome
from storage.records import RecordedTrial
from storage.words import counted

# One failure is an accident; a choice that fails so often does not work.
SEVERAL, MOSTLY = 2, 0.8
# Of all that trials may have in common, so likely is chance to have put the failures together.
CHANCE = 0.05
# More than this share refused, or beyond a constraint, of so many trials, is trained or drawn in vain.
IN_VAIN, STARTED = 0.25, 4
# With fewer complete trials than that among so many judged ones the best rests on too little.
FEW_COMPLETE, OF_SO_MANY = 5, 20
REFUSED = "refused by the model"


def failures(evidence: Evidence) -> list[Finding]:
    """Trials that ended in an error, without memory, or killed their workers."""
    by_kind: dict[tuple[Outcome, str], list[RecordedTrial]] = defaultdict(list)
    for one in evidence.trials:
        if one.outcome in (Outcome.ERROR, Outcome.OUT_OF_MEMORY, Outcome.LOST):
            by_kind[one.outcome, _kind_of(one)].append(one)
    kinds = sorted(by_kind.items(), key=lambda pair: (-len(pair[1]), pair[1][0].number))
    return [_failure(evidence, outcome, some) for (outcome, _), some in kinds if len(some) >= SEVERAL]


def _kind_of(trial: RecordedTrial) -> str:
    """Of errors the message without its numbers; of the others the outcome says it."""
    return "".join(c for c in trial.reason if not c.isdigit()) if trial.outcome is Outcome.ERROR else ""


def _failure(evidence: Evidence, outcome: Outcome, some: Sequence[RecordedTrial]) -> Finding:
    last = some[-1]
    where = _where(evidence, some)
    said = {
        Outcome.ERROR: f"{len(some)} trials raised the same error",
        Outcome.OUT_OF_MEMORY: f"{len(some)} trials ran out of memory",
        Outcome.LOST: f"{len(some)} trials killed their workers",
    }[outcome]
    evident = f"{last.reason or 'no reason on record'} (trial {last.number})"
    instead: dict[str, Any] = {}
    acts = [f"dialin logs {evidence.study.name} {last.number}"]
    if where is not None:
        name, value, tried = where
        evident += f"; all of them have {name} {value}, and {tried} with it"
        kept = _others(evidence, name, value)
        instead = actions.keeping(evidence.study, name, kept) if kept else {}
    if outcome is Outcome.OUT_OF_MEMORY:
        acts.append(f"in {actions.file_of(evidence.study)}: Objective(..., accumulate=2) with half the batch sizes")
    acts += instead.get("actions", ())
    return Finding("failures", said, evident, tuple(acts), instead.get("space", {}))


def _where(evidence: Evidence, some: Sequence[RecordedTrial]) -> tuple[str, Any, str] | None:
    """The choice that all of them have, that mostly fails, and hardly by chance: its knob, itself, how often."""
    knobs = {name: None for one in some for name in one.params}
    for knob in knobs:
        values = {str(one.params.get(knob)) for one in some}
        if len(values) != 1:
            continue
        value = some[0].params[knob]
        if not isinstance(value, str | int | bool):
            continue
        same = [one for one in evidence.trials if knob in one.params and one.params[knob] == value and one.outcome]
        everyone = [one for one in evidence.trials if knob in one.params and one.outcome]
        # Fisher's exact test: so many drawn of all, and every one of them among the same.
        chance = math.comb(len(same), len(some)) / math.comb(len(everyone), len(some))
        if len(some) >= MOSTLY * len(same) and chance * len(knobs) < CHANCE:
            return knob, value, f"{len(some)} of {counted(len(same), 'trial')} failed"
    return None


def _others(evidence: Evidence, name: str, value: Any) -> list[Any]:
    """What else there is to choose; nothing of a range."""
    last = next(one.distributions[name] for one in reversed(evidence.trials) if name in one.distributions)
    return [choice for choice in getattr(last, "choices", ()) if choice != value]


def in_vain(evidence: Evidence) -> list[Finding]:
    """Recipes that the model refuses, and trials that break a constraint."""
    started = [one for one in evidence.trials if one.outcome is not None]
    refused = [one for one in started if one.reason.startswith(REFUSED)]
    found = []
    if len(refused) >= max(SEVERAL, IN_VAIN * len(started)) and len(started) >= STARTED:
        said = f"the model refuses {len(refused)} of {counted(len(started), 'recipe')}: narrow what is drawn"
        fix = f"in {actions.file_of(evidence.study)}: suggest only what fits, or narrow it by knobs={{...}}"
        found.append(Finding("in_vain", said, f"{refused[-1].reason} (trial {refused[-1].number})", (fix,)))
    complete = [one for one in started if one.outcome is Outcome.COMPLETE]
    over = [one for one in complete if not one.feasible]
    if len(over) >= max(SEVERAL, 2 * IN_VAIN * len(complete)) and len(complete) >= STARTED:
        names = sorted({name for one in over for name, value in one.constraints.items() if value > 0})
        evident = ", ".join(f"{name} by {sum(one.constraints.get(name, 0) > 0 for one in over)}" for name in names)
        said = (
            f"{len(over)} of {counted(len(complete), 'complete trial')} break a constraint: they were trained in vain"
        )
        narrow = f"in {actions.file_of(evidence.study)}: narrow the knobs that it hangs on, or raise the limit"
        found.append(Finding("in_vain", said, f"violated: {evident}", (narrow,)))
    return found


def few_complete(evidence: Evidence) -> list[Finding]:
    """So much is pruned that the best is the best of a handful."""
    complete, judged = int(evidence.complete.sum()), len(evidence.judged)
    paused = any(one.state == "paused" for one in evidence.judged)
    if judged < OF_SO_MANY or complete >= FEW_COMPLETE or paused or evidence.study.sampler == "auto":
        return []
    infeasible = sum(one.outcome is Outcome.COMPLETE for one in evidence.judged) - complete
    if infeasible or evidence.diverged.mean() > 0.5:
        return []  # pruning is not to blame
    evident = f"{judged} trials were judged, and {complete} trained to their end"
    said = "hardly any trial trains to its end: the best is the best of a handful"
    return [Finding("few_complete", said, evident, options={"--pruner": "median"})]
