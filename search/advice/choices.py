"""Which knobs and which of their choices have decided nothing, lost, or cost time for no gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from search.advice import actions
from search.advice.evidence import Evidence, Knob
from search.advice.finding import Finding
from search.advice.ranges import RATES, ends_too_soon
from search.advice.statistics import Floats, p_higher_in_strata, superiority
from search.recipe_space import value_at
from storage.words import counted

# Fewer trials of a choice have not lost it.
TRIED = 5
CHANCE = 0.05
# Of a schedule so many trials must have got to half of the run: some begin slowly, which is no reason to lose.
SEEN_THROUGH = 2
# Of an optimizer so many must be in each third of the range of rates at least: each wants its own.
AT_A_RATE = 1

# A knob decides nothing where each third of its range, or each choice, has so many trials, and in 95 of 100 cases
# no two parts differ by more in the share of the others that their trials beat: of all, and of the better half.
EACH, LITTLE, CERTAIN = 12, 0.2, 1.64
# And each part has so much of the share of the best trials that it would have by chance.
EVERYWHERE = 0.6
THIRDS = 3
# These are never said to decide nothing: their trials are compared for what hangs on them.
DECISIVE = {"optimizer", "schedule", "lr", "lr_multiple"}
# Where there is a choice, values that a person need not wonder about.
PLAIN = {"warmup": 0.0}

# An epoch that takes so many times longer costs time. Both groups have so many trials.
SLOWER, GROUP = 1.3, 8
# Slower it is by itself, and not by what else its trials have, where its epochs take longer than so many of the others.
MOSTLY = 0.85
# The slower one gains nothing to see where it beats the faster one less often than that.
NO_GAIN = 0.5


def lost(evidence: Evidence) -> list[Finding]:
    """Optimizers, schedules and other choices none of whose trials came near the best; ordered ones from an end on."""
    found = []
    for knob in evidence.knobs:
        if knob.ordered and ends_too_soon(evidence, knob):
            continue  # it wants more of one end, which is said
        losers = ordered_losers(evidence, knob) if knob.ordered else _losers(evidence, knob)
        if 0 < len(losers) < len(knob.choices):
            found.append(_without(evidence, knob, losers))
    return found


def _losers(evidence: Evidence, knob: Knob) -> list[int]:
    return [index for index in range(len(knob.choices)) if _has_lost(evidence, knob, [index])]


def ordered_losers(evidence: Evidence, knob: Knob) -> list[int]:
    """The most choices in a row, from one end or the other, that have lost together."""
    indices = [*range(len(knob.choices))]
    rows = [indices[:count] for count in indices[1:]] + [indices[count:] for count in indices[1:]]
    return max((row for row in rows if _has_lost(evidence, knob, row)), key=len, default=[])


def _has_lost(evidence: Evidence, knob: Knob, choices: Sequence[int]) -> bool:
    mine = np.isin(knob.shares, choices)
    if mine.sum() < TRIED or np.isin(knob.rows[mine], evidence.best).any():
        return False
    if knob.name == "optimizer" and not _at_all_rates(evidence, knob.rows[mine]):
        return False
    if knob.name == "schedule" and _seen_through(evidence, knob.rows[mine]) < SEEN_THROUGH:
        return False
    times = evidence.times[knob.rows]
    return p_higher_in_strata(evidence.standing[knob.rows], ~mine, times) < CHANCE / len(knob.choices)


def _seen_through(evidence: Evidence, rows: Sequence[int] | Any) -> int:
    half = evidence.study.length / 2
    return sum(len(evidence.judged[index].epochs) >= half for index in rows)


def _at_all_rates(evidence: Evidence, rows: Sequence[int] | Any) -> bool:
    """Whether these trials are from all of the range of rates: a sampler that learns goes to where others are good."""
    rate = evidence.knob(*RATES)
    if rate is None or not rate.ordered:
        return True
    places = rate.places[np.isin(rate.rows, rows)]
    thirds = np.minimum(THIRDS - 1, np.floor(places * THIRDS))
    return all((thirds == third).sum() >= AT_A_RATE for third in range(THIRDS))


def _without(evidence: Evidence, knob: Knob, losers: list[int]) -> Finding:
    standing = evidence.standing[knob.rows]
    told = []
    for index in losers:
        mine = knob.shares == index
        best = float(1 - standing[mine].max())
        told.append(f"{knob.choices[index]} ({counted(int(mine.sum()), 'trial')}, the best of them behind {best:.0%})")
    kept = [choice for index, choice in enumerate(knob.choices) if index not in losers]
    names = " and ".join(", ".join(str(knob.choices[index]) for index in losers).rsplit(", ", 1))
    evident = f"{'; '.join(told)}; the {len(evidence.best)} best trials have none of them"
    return Finding(
        "lost", f"{knob.name}: {names} lost for good", evident, **actions.keeping(evidence.study, knob.name, kept)
    )


def decides_nothing(evidence: Evidence) -> list[Finding]:
    """Knobs over whose range good and bad trials are spread alike."""
    idle = [(knob, most) for knob in evidence.knobs if (most := _at_most(evidence, knob)) < LITTLE]
    if not idle:
        return []
    fixed = {knob.name: _plain_value(evidence, knob) for knob, _ in idle}
    untyped = {name: value for name, value in fixed.items() if not actions.can_be_typed(value)}
    edits = (f"in {actions.file_of(evidence.study)}: knobs={untyped!r}",) if untyped else ()
    space = {name: value for name, value in fixed.items() if name not in untyped}
    names = [actions.PEOPLES.get(knob.name, knob.name) for knob, _ in idle]
    told = ", ".join(f"{name} by {most:.0%}" for name, (_, most) in zip(names, idle, strict=True))
    evident = (
        f"between the best and the worst part of its range trials beat more of the others at most {told} (95 of 100 "
        f"times, {counted(len(evidence.judged), 'trial')}), also among the better half"
    )
    listed = " and ".join(", ".join(names).rsplit(", ", 1))
    said = f"{listed} made no difference to see: fix {'it' if len(idle) == 1 else 'them'} and search the rest"
    return [Finding("decides_nothing", said, evident, edits, space)]


def _at_most(evidence: Evidence, knob: Knob) -> float:
    """By how much parts of its range differ at most in the share of the others that their trials beat; 1: who knows."""
    if knob.name in DECISIVE:
        return 1.0
    group = knob.shares if knob.choices else np.minimum(THIRDS - 1, np.floor(knob.places * THIRDS))
    count = len(knob.choices) or THIRDS
    if min((group == index).sum() for index in range(count)) < EACH:
        return 1.0
    beside, standing = evidence.beside[knob.rows], evidence.standing[knob.rows]
    better = standing >= np.median(standing)
    several = [[beside[chosen & (group == index)] for index in range(count)] for chosen in (better | True, better)]
    best = np.isin(knob.rows, evidence.best)
    found = [(best & (group == index)).sum() / (group == index).sum() for index in range(count)]
    if min(found) < EVERYWHERE * best.mean():
        return 1.0
    # The standings of the better half spread over half of the range.
    return max(_furthest_apart(several[0]), 2 * _furthest_apart(several[1]))


def _furthest_apart(groups: Sequence[Floats]) -> float:
    """The largest difference of two means, at the upper end of its interval; 1 where a group is too small."""
    if min(map(len, groups)) < 3:
        return 1.0
    means = [(float(group.mean()), float(group.var(ddof=1)) / len(group)) for group in groups]
    pairs = ((abs(a - b), math.sqrt(u + v)) for (a, u), (b, v) in combinations(means, 2))
    return max(apart + CERTAIN * error for apart, error in pairs)


def _plain_value(evidence: Evidence, knob: Knob) -> Any:
    """What to fix it at: nothing where that is possible, else what the best trial has."""
    if knob.name in PLAIN and not knob.own:
        return PLAIN[knob.name]
    best = knob.rows[int(np.argmax(evidence.standing[knob.rows]))]
    value = evidence.judged[best].params[knob.name]
    return actions.near(knob.distribution, value)


@dataclass(frozen=True)
class Group:
    """Some trials: seconds an epoch and standing of each."""

    seconds: Floats
    standing: Floats

    @property
    def usual(self) -> float:
        """Seconds of an epoch, the median."""
        return float(np.median(self.seconds))


def slow(evidence: Evidence) -> list[Finding]:
    """Batch sizes, widths and the like that make epochs long and trials no better."""
    seconds = evidence.seconds_an_epoch
    found = []
    for knob in evidence.knobs:
        if not knob.ordered:
            continue
        finding = _slow_choice(evidence, knob, seconds) if knob.choices else _slow_range(evidence, knob, seconds)
        found += [finding] if finding is not None else []
    return found


def _groups(evidence: Evidence, knob: Knob, group: Floats, seconds: Floats) -> dict[int, Group]:
    """Seconds an epoch and standings of each group with enough trials."""
    timed = np.isfinite(seconds[knob.rows])
    found = {}
    for index in range(int(group.max()) + 1):
        rows = knob.rows[(group == index) & timed]
        if len(rows) >= GROUP:
            found[index] = Group(seconds[rows], evidence.standing[rows])
    return found


def _slow_choice(evidence: Evidence, knob: Knob, seconds: Floats) -> Finding | None:
    groups = _groups(evidence, knob, knob.shares, seconds)
    if len(groups) < 2:
        return None
    fast = min(groups, key=lambda index: groups[index].usual)
    wasteful = [index for index in groups if _in_vain(groups[index], groups[fast])]
    if not wasteful:
        return None
    kept = [choice for index, choice in enumerate(knob.choices) if index not in wasteful]
    slowest = max(wasteful, key=lambda index: groups[index].usual)
    return _slow(evidence, knob, _times(groups[slowest], groups[fast]), str(knob.choices[slowest]), kept)


def _slow_range(evidence: Evidence, knob: Knob, seconds: Floats) -> Finding | None:
    groups = _groups(evidence, knob, np.minimum(THIRDS - 1, np.floor(knob.places * THIRDS)), seconds)
    if len(groups) < 2:
        return None
    first, last = min(groups), max(groups)
    slow_end, fast_end = (last, first) if groups[last].usual > groups[first].usual else (first, last)
    if not _in_vain(groups[slow_end], groups[fast_end]):
        return None
    d: Any = knob.distribution
    cut = value_at(d, 2 / THIRDS if slow_end == THIRDS - 1 else 1 / THIRDS)
    cut = actions.near(d, cut)
    kept = (d.low, cut) if slow_end > fast_end else (cut, d.high)
    where = f"{'above' if slow_end > fast_end else 'below'} {actions.shown(knob.name, cut)}"
    return _slow(evidence, knob, _times(groups[slow_end], groups[fast_end]), where, kept)


def _in_vain(slow: Group, fast: Group) -> bool:
    """Much slower, and neither better as a rule nor at its best."""
    slower = slow.usual >= SLOWER * fast.usual and superiority(slow.seconds, fast.seconds) >= MOSTLY
    no_better = superiority(slow.standing, fast.standing) <= NO_GAIN and slow.standing.max() <= fast.standing.max()
    return slower and bool(no_better)


def _times(slow: Group, fast: Group) -> str:
    times, beaten = slow.usual / fast.usual, superiority(slow.standing, fast.standing)
    longer = f"an epoch takes {times:.1f} times as long (median {slow.usual:.2g} s, not {fast.usual:.2g} s)"
    return f"{longer}, and these {len(slow.standing)} trials beat {beaten:.0%} of the {len(fast.standing)} fast ones"


def _slow(evidence: Evidence, knob: Knob, evident: str, where: str, kept: Any) -> Finding:
    value = kept[0] if isinstance(kept, list) and len(kept) == 1 else kept
    said = f"{knob.name} {where} costs time for no gain"
    return Finding("slow", said, evident, space={knob.name: value})
