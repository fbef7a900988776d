"""What a good practitioner would say from a study's trials: each finding with its evidence and what acts on it.

`advise` puts every rule to a study's trials. A rule is a function from `Evidence` to findings, and says nothing where
trials are too few or noise explains them. `dialin advise`, `Search.advice()` and the report's last page show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from search import confirmation
from search.advice import choices, failures, length, noise, ranges
from search.advice.actions import again
from search.advice.evidence import Evidence
from search.advice.finding import Finding, Rule
from search.confirmation import Confirmation
from storage import records
from storage.records import RecordedTrial
from storage.shared import SharedStorage
from storage.studies import StudyRecord

__all__ = ["RULES", "Advice", "Evidence", "Finding", "Rule", "advise", "advise_on", "of_study"]

# In the order in which a person should act: what is broken, what the numbers are worth, then the space, then the cost.
RULES: tuple[Rule, ...] = (
    Rule("failures", "failures of one kind", 0, failures.failures),
    Rule("in_vain", "recipes refused, constraints broken", 0, failures.in_vain),
    Rule("divergence", "rates at which training diverges", 12, ranges.divergence),
    Rule("few_complete", "how many trials trained to their end", 20, failures.few_complete),
    Rule("perfect", "a metric that says nothing more", 5, noise.perfect),
    Rule("ties", "differences smaller than noise", 8, noise.ties),
    Rule("validation_size", "the error of the validation split", 8, noise.validation_size),
    Rule("overfitting", "over-fitting", 10, length.overfitting),
    Rule("too_short", "training cut short", 10, length.too_short),
    Rule("too_long", "training longer than need be", 10, length.too_long),
    Rule("edges", "best trials at the end of a range", 20, ranges.edges),
    Rule("lost", "optimizers and schedules that lost", 20, choices.lost),
    Rule("decides_nothing", "knobs that decide nothing", 40, choices.decides_nothing),
    Rule("slow", "what costs time for no gain", 20, choices.slow),
    Rule("pruning", "pruning too early, or not at all", 24, length.pruning),
    Rule("how_many", "too few trials, or enough", 8, noise.how_many),
)


@dataclass(frozen=True)
class Advice:
    """What was found from so many `judged` trials.

    `together`: the command that does what all searches that are advised do; empty of fewer than two. `not_asked`: rules
    that want more judged trials than there are.
    """

    findings: tuple[Finding, ...]
    together: str
    judged: int
    not_asked: tuple[Rule, ...]


def of_study(storage: SharedStorage, study: StudyRecord) -> Advice:
    """Of a study as it is on record."""
    return advise(study, records.trials(storage, study), confirmation.read(storage, study))


def advise(study: StudyRecord, trials: Sequence[RecordedTrial], answer: Confirmation | None = None) -> Advice:
    """All findings, the most pressing first. `answer`: what fresh seeds of the best recipes have shown."""
    return advise_on(Evidence(study, trials, answer))


def advise_on(evidence: Evidence) -> Advice:
    """The same of a study that is looked at already."""
    study = evidence.study
    count = len(evidence.judged)
    asked = [rule for rule in RULES if count >= rule.least]
    findings = tuple(_acted_on(study, finding) for rule in asked for finding in rule.look(evidence))
    return Advice(findings, _together(study, findings), count, tuple(rule for rule in RULES if count < rule.least))


def _acted_on(study: StudyRecord, finding: Finding) -> Finding:
    """With the command for the search that acts on it."""
    if not finding.space and not finding.options:
        return finding
    return replace(finding, actions=(again(study, finding.space, finding.options), *finding.actions))


def _together(study: StudyRecord, findings: Sequence[Finding]) -> str:
    """Where two findings want the same knob otherwise the more pressing one has it."""
    searches = [finding for finding in findings if finding.space or finding.options]
    if len(searches) < 2:
        return ""
    space: dict[str, Any] = {}
    options: dict[str, str] = {}
    for finding in searches:
        space |= {name: value for name, value in finding.space.items() if name not in space}
        options |= {name: value for name, value in finding.options.items() if name not in options}
    return again(study, space, options)
