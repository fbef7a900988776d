"""Where in its range a knob was good: best trials at an edge, rates at the edge of divergence."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution

from search.advice import actions
from search.advice.evidence import Evidence, Knob
from search.advice.finding import Finding
from search.advice.statistics import (
    Floats,
    p_higher,
    p_higher_in_strata,
    p_rank_correlation,
    rank_correlation,
    superiority,
)
from search.recipe_space import value_at
from search.wishes import LIMITS
from storage.outcomes import Outcome
from storage.studies import StudyRecord
from storage.words import counted

# The outermost tenth of a range is its edge. So many of the best trials must be there, with the very best one, and so
# many trials both there and elsewhere, or there is nothing to compare.
EDGE, OF_THE_BEST = 0.1, 0.6
AT_THE_EDGE, ELSEWHERE = 5, 8
# Or, where draws are spread evenly and few are at the edge: trials get better towards it, by rank, over the half of the
# range next to it, so many of them, and the best lie in the outermost quarter as a rule.
HALF, TOWARDS, OF_HALF, QUARTER = 0.5, 0.4, 12, 0.75
# How likely chance may be, over all edges that are looked at together; and at each, among trials of one time: a sampler
# that goes somewhere is better by then for other reasons.
CHANCE, CHANCE_OF_ITS_TIME = 0.05, 0.05
# Knobs of the recipe whose range `--range` can widen; of all others it is the limit.
WIDER = {*LIMITS, "batch_size"}
# Zero is what these come to from there on down: there is nothing below.
OFF_BELOW = {"l2": 1e-6, "weight_decay": 1e-5}

RATES = ("lr", "lr_multiple")
# Fewer diverged trials, of all and as a share, are nobody's concern.
FEWEST_DIVERGED, SHARE_DIVERGED = 3, 0.05
# The rate is to blame where a diverged trial's is so often the higher one.
BLAMED, BLAMED_CHANCE = 0.75, 0.01
# The best rates are near those that diverge where they are less than this factor below.
NEAR = 3.0
# A warm-up that is long, in shares of the run.
LONGER = (0.05, 0.2)
# From this share on, trials that diverge are worth a narrower range.
WASTED = 0.15


def edges(evidence: Evidence) -> list[Finding]:
    """A knob whose best trials lie at an end of its range."""
    found = (_edge(evidence, knob, upwards) for knob in _able(evidence) for upwards in (False, True))
    return [finding for finding in found if finding is not None]


def ends_too_soon(evidence: Evidence, knob: Knob) -> bool:
    """Whether `edges` says so of one of its ends."""
    return knob in _able(evidence) and any(_edge(evidence, knob, upwards) for upwards in (False, True))


def _able(evidence: Evidence) -> list[Knob]:
    """The knobs with ends that might be moved, and with trials enough to tell."""
    able = (knob for knob in evidence.knobs if knob.ordered and (knob.own or knob.name in WIDER))
    return [knob for knob in able if len(knob.rows) >= AT_THE_EDGE + ELSEWHERE]


def _edge(evidence: Evidence, knob: Knob, upwards: bool) -> Finding | None:
    chance = CHANCE / (2 * len(_able(evidence)))
    places = knob.places if upwards else 1 - knob.places
    name = actions.PEOPLES.get(knob.name, knob.name)
    evident = _best_at_it(evidence, knob, places, chance, f"{name} {_zone(knob, upwards)}")
    evident = evident or _better_towards_it(evidence, knob, places, chance)
    if not evident:
        return None
    limits = ends(knob)
    # What is sampled as 1 - value has its ends the other way round.
    turned = upwards != (knob.name in actions.PEOPLES)
    end = limits[1] if upwards else limits[0]
    said = f"{name} is best at the {'upper' if turned else 'lower'} end of its range, {actions.shown(knob.name, end)}"
    return Finding("edges", said, evident, **_beyond(evidence, knob, upwards))


def _best_at_it(evidence: Evidence, knob: Knob, places: Floats, chance: float, where: str) -> str:
    """Most of the best trials lie in the outermost tenth, and trials there did better than elsewhere."""
    at = places >= (1 if knob.choices else 1 - EDGE)
    standing = evidence.standing[knob.rows]
    among = np.isin(knob.rows, evidence.best)
    if min(at.sum(), among.sum()) < AT_THE_EDGE or (~at).sum() < ELSEWHERE or not at[np.argmax(standing)]:
        return ""
    if at[among].mean() < OF_THE_BEST or p_higher(standing[at], standing[~at]) > chance:
        return ""
    if p_higher_in_strata(standing, at, evidence.times[knob.rows]) > CHANCE_OF_ITS_TIME:
        return ""
    return (
        f"{int(at[among].sum())} of the {int(among.sum())} best trials have {where}, and trials there beat "
        f"{superiority(standing[at], standing[~at]):.0%} of those elsewhere ({counted(len(at), 'trial')})"
    )


def _better_towards_it(evidence: Evidence, knob: Knob, places: Floats, chance: float) -> str:
    """Trials get better over the half of the range next to the end, up to the very end."""
    if knob.choices:
        return ""
    standing = evidence.standing[knob.rows]
    half = places >= HALF
    among = np.isin(knob.rows, evidence.best)
    if half.sum() < OF_HALF or among.sum() < AT_THE_EDGE or np.median(places[among]) < QUARTER:
        return ""
    towards = rank_correlation(places[half], standing[half])
    outer = places >= np.quantile(places[half], 2 / 3)
    further = rank_correlation(places[outer], standing[outer])
    if towards < TOWARDS or further <= 0 or p_rank_correlation(places[half], standing[half]) > chance:
        return ""
    if p_rank_correlation(places[half], evidence.beside[knob.rows][half]) > CHANCE_OF_ITS_TIME:
        return ""
    agree = f"agree by {towards:.2f} (Spearman, {counted(int(half.sum()), 'trial')})"
    there = f"half of the best {int(among.sum())} are in the last quarter"
    return f"the nearer to this end the better: over this half of the range place and standing {agree}, and {there}"


def ends(knob: Knob) -> tuple[float, float]:
    """The least and the most of an ordered knob."""
    if knob.choices:
        return knob.choices[0], knob.choices[-1]
    assert isinstance(knob.distribution, FloatDistribution | IntDistribution)
    return knob.distribution.low, knob.distribution.high


def _zone(knob: Knob, upwards: bool) -> str:
    """The edge in values."""
    if knob.choices:
        return str(knob.choices[-1 if upwards else 0])
    edge = value_at(knob.distribution, 1 - EDGE if upwards else EDGE)
    more = upwards != (knob.name in actions.PEOPLES)
    if isinstance(knob.distribution, IntDistribution):
        edge = math.ceil(edge) if upwards else math.floor(edge)
    return f"{'from' if more else 'up to'} {actions.shown(knob.name, edge)}{' on' if more else ''}"


def _beyond(evidence: Evidence, knob: Knob, upwards: bool) -> dict[str, Any]:
    """What to search instead, or to fix where there is no further."""
    study, d = evidence.study, knob.distribution
    if knob.choices:
        numbers = [*knob.choices]
        further = actions.following(numbers, upwards)
        if further is None:
            return {"space": {knob.name: numbers[-1 if upwards else 0]}}
        half = len(numbers) // 2
        choices = [*numbers[half:], further] if upwards else [further, *numbers[:-half]]
        if knob.own:
            return _in_its_code(study, knob, f"trial.suggest_categorical({knob.name!r}, {choices})")
        return {"space": {knob.name: choices}}
    off = not upwards and not knob.own and ends(knob)[0] <= OFF_BELOW.get(knob.name, -math.inf)
    new = None if off else actions.widened(knob.name, d, upwards)
    if new is None:
        value = 0 if off else ends(knob)[upwards]
        return {"space": {knob.name: value}}
    if knob.own:
        return _in_its_code(study, knob, actions.suggestion(knob.name, d, *new))
    return {"space": {knob.name: new}}


def _in_its_code(study: StudyRecord, knob: Knob, call: str) -> dict[str, Any]:
    """A knob of the model is widened where it is suggested; what narrowed it in this study would do so again."""
    narrowed = f", and no --range for {knob.name}" if knob.name in study.space else ""
    return {"actions": (f"in {actions.file_of(study)}: {call}{narrowed}",)}


def divergence(evidence: Evidence) -> list[Finding]:
    """Trials that diverge: at high rates next to the best ones, at rates that need not be searched, or at any."""
    diverged = evidence.diverged
    count = int(diverged.sum())
    if count < max(FEWEST_DIVERGED, SHARE_DIVERGED * len(diverged)):
        return []
    rate = evidence.knob(*RATES)
    seconds = sum(one.device_seconds for one in evidence.judged if one.outcome is Outcome.DIVERGED)
    how_many = f"{count} of {counted(len(diverged), 'trial')} diverged"
    if rate is None or not rate.always or not isinstance(rate.distribution, FloatDistribution):
        return [_whatever(evidence, how_many, None)] if count >= WASTED * len(diverged) else []
    places = rate.shares
    high, low = places[diverged], places[~diverged]
    blamed = superiority(high, low)
    if blamed < BLAMED or p_higher(high, low) > BLAMED_CHANCE:
        return [_whatever(evidence, how_many, rate)] if count >= WASTED * len(diverged) else []
    # Not the lowest: one unlucky trial says nothing of the rate.
    frontier = value_at(rate.distribution, float(np.quantile(high, 0.25)))
    best = value_at(rate.distribution, float(np.median(places[evidence.best]))) if len(evidence.best) else math.inf
    evident = (
        f"{how_many} ({seconds:.0f} s of device time), three quarters of them with {rate.name} above {frontier:.2g}; "
        f"the best trials have {best:.2g} (median)"
    )
    if frontier <= NEAR * best:
        return [_next_to_it(evidence, evident + _optimizers(evidence))]
    if count < WASTED * len(diverged):
        return []
    low_end = float(rate.distribution.low)
    narrower = {rate.name: (low_end, actions.rounded(frontier))}
    said = f"the highest rates are searched in vain: {rate.name} above {frontier:.2g} diverges"
    return [Finding("divergence", said, evident, space=narrower)]


def _next_to_it(evidence: Evidence, evident: str) -> Finding:
    clip = f"in {actions.file_of(evidence.study)}: Objective(..., clip_norm=1.0)"
    warmup, (low, high) = evidence.knob("warmup"), LONGER
    could = warmup is not None and not warmup.own and not warmup.choices and ends(warmup)[1] < high
    longer = {"warmup": (low, high)} if could else {}
    said = "the best rates lie next to those at which training diverges: warm up, or clip gradients"
    return Finding("divergence", said, evident, (clip,), longer)


def _whatever(evidence: Evidence, how_many: str, rate: Knob | None) -> Finding:
    number = next(one.number for one in evidence.judged if one.outcome is Outcome.DIVERGED)
    name = evidence.study.name
    any_rate, there = (" at any rate", ", at low rates as well as at high ones") if rate is not None else ("", "")
    said = f"training diverges{any_rate}: look for it in the data, the loss or the precision"
    clip = f"in {actions.file_of(evidence.study)}: Objective(..., clip_norm=1.0)"
    evident = f"{how_many}{there}{_optimizers(evidence)}"
    return Finding("divergence", said, evident, (f"dialin logs {name} {number}", clip))


def _optimizers(evidence: Evidence) -> str:
    """Where nearly all of them have one optimizer: that."""
    names = [str(one.recipe.get("optimizer")) for one in evidence.judged if one.outcome is Outcome.DIVERGED]
    (name, most), *_ = Counter(names).most_common(1)
    everywhere = sum(str(one.recipe.get("optimizer")) == name for one in evidence.judged)
    if name == "None" or most < 0.8 * len(names) or everywhere > 0.5 * len(evidence.judged):
        return ""
    return f"; {most} of the {len(names)} have {name}"
