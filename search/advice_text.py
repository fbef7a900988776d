"""Advice as text and as JSON, for `dialin advise`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from search.advice import Advice
from storage.studies import StudyRecord
from storage.words import counted

WIDTH = 118
COMMANDS = ("dialin ", "search.run(")


def lines(advice: Advice, study: StudyRecord) -> Iterator[str]:
    """Each finding with its evidence and what acts on it; commands are never broken."""
    pieces = counted(len(advice.findings), "piece of advice", "pieces of advice")
    yield f"{study.name}: {pieces if advice.findings else 'nothing to advise'}, from {counted(advice.judged, 'trial')}"
    for number, finding in enumerate(advice.findings, start=1):
        yield ""
        head = f"{number}. "
        yield from wrap(f"{finding.says}", WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
        yield from wrap(finding.evidence, WIDTH, initial_indent="   why: ", subsequent_indent=" " * 8)
        for action in finding.actions:
            yield f"   {'do:  ' if action.startswith(COMMANDS) else 'edit:'} {action}"
    if advice.together:
        yield ""
        yield f"all searches in one: {advice.together}"
    if advice.not_asked:
        asked = "; ".join(f"{rule.asks} ({rule.least})" for rule in advice.not_asked)
        yield ""
        yield from wrap(f"not looked at yet, since they want more trials: {asked}", WIDTH)


def as_json(advice: Advice, study: StudyRecord) -> dict[str, Any]:
    """The same for programs."""
    return {
        "study": study.name,
        "judged": advice.judged,
        "findings": [asdict(finding) for finding in advice.findings],
        "together": advice.together,
        "not_asked": [{"rule": rule.name, "least": rule.least} for rule in advice.not_asked],
    }
