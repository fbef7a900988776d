"""What a rule has to say of a study, with its evidence and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.advice.evidence import Evidence


@dataclass(frozen=True)
class Finding:
    """One piece of advice.

    Attributes:
        rule: the name of what found it.
        says: the finding, a sentence without its full stop.
        evidence: the numbers that it rests on.
        actions: what acts on it, the best first: a command, or an edit of the objective in words.
        space: of another search that acts on it the knobs, named as they are sampled, with values as `Objective.knobs`
            has them; `advise` makes the first action of it.
        options: of that search further options of `dialin run`, with their values.
    """

    rule: str
    says: str
    evidence: str
    actions: tuple[str, ...] = ()
    space: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A question that is put to every study.

    Attributes:
        name: as in `Finding.rule`.
        asks: what it looks for, in a few words.
        least: with fewer judged trials it is not asked.
        look: what it finds; nothing where the evidence is not enough.
    """

    name: str
    asks: str
    least: int
    look: Callable[[Evidence], Sequence[Finding]]
