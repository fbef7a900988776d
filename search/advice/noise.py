"""How much of a difference between trials is chance, and what follows: ties, too small a validation split, more trials.

What another seed would have given is known where a confirmation has trained recipes again, or somebody asked for the
same recipe twice. Else the wobble of a curve near its end stands for it: the least that seeds can differ by.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from search import printing
from search.advice import actions
from search.advice.evidence import Evidence
from search.advice.finding import Finding
from search.advice.statistics import Floats, share_interval
from search.confirmation import Confirmation
from storage.stalling import AHEAD, WINDOW, expected
from storage.studies import StudyRecord
from storage.words import counted

# So many repetitions beyond the first of their recipes tell a spread.
FEWEST_REPEATS = 3
# So many curves, and of each so many epochs of its last third, tell a wobble.
FEWEST_CURVES, LAST_EPOCHS, MOST_CURVES = 3, 3, 10
# Two draws of one recipe differ by less than this many deviations of one draw in 19 of 20 cases: 1.96 * sqrt(2).
APART = 2.77
# So many complete trials, as good as tied, make it worth saying.
TIED = 5
# One trial that cannot be beaten is an accident.
SEVERAL = 2
MOST_CONFIRMED = 10
# Of a validation split with more samples than that the error is nobody's concern.
MOST_SAMPLES = 20_000
# So many values must be multiples of one sample's share before that is believed.
FEWEST_VALUES = 8
# Fewer trials than this for each knob are too few (a model of them begins after ten or so), more are enough.
TOO_FEW, ENOUGH = 3, 10
# The chance of any gain by 20 more trials from which on they are worth having.
LIKELY = 0.3


@dataclass(frozen=True)
class Noise:
    """The standard deviation of a recipe's value over seeds and where that is from. `least`: it is that or more."""

    deviation: float
    source: str
    least: bool = False

    @property
    def apart(self) -> float:
        """The least by which two trials must differ to be told apart."""
        return APART * self.deviation

    @property
    def text(self) -> str:
        """`chance moves one recipe by ±0.0021 or more (the last third of ...)`."""
        return f"chance moves one recipe by ±{self.deviation:.2g}{' or more' if self.least else ''} ({self.source})"


def noise(evidence: Evidence) -> Noise | None:
    """What is known of it; None where nothing is."""
    return _of_seeds(evidence) or _of_repeats(evidence) or _of_curves(evidence)


def _of_seeds(evidence: Evidence) -> Noise | None:
    """What fresh seeds of the best recipes differ by. Equal values of a coarse metric may hide a little of it."""
    recipes = evidence.answer.confirmed if evidence.answer is not None else ()
    spread = _pooled(np.asarray([*one.values.values()]) for one in recipes)
    if evidence.answer is None or spread is None:
        return None
    seeds = counted(sum(len(one.values) for one in recipes), "fresh seed")
    hidden = evidence.answer.resolution / math.sqrt(12)
    return Noise(max(spread, hidden), f"{seeds} of {counted(len(recipes), 'recipe')}")


def _of_repeats(evidence: Evidence) -> Noise | None:
    values: dict[str, list[float]] = defaultdict(list)
    for index in evidence.best_complete:
        params = json.dumps(dict(evidence.judged[index].params), sort_keys=True, default=str)
        values[params].append(float(evidence.final[index]))
    repeated = [np.asarray(several) for several in values.values() if len(several) > 1]
    spread = _pooled(repeated)
    return None if spread is None else Noise(spread, f"{counted(len(repeated), 'recipe')} trained more than once")


def _pooled(groups: Iterable[Floats]) -> float | None:
    """The deviation within groups; None of too few values beyond the first of each."""
    several = [values for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if freedom < FEWEST_REPEATS:
        return None
    return math.sqrt(sum(float(np.square(values - values.mean()).sum()) for values in several) / freedom)


def _of_curves(evidence: Evidence) -> Noise | None:
    wobbles = []
    for index in evidence.best_complete[:MOST_CURVES]:
        values = evidence.values(evidence.judged[index])
        last = values[-max(LAST_EPOCHS + 1, math.ceil(len(values) / 3)) :]
        steps = np.diff(last)
        if len(steps) >= LAST_EPOCHS and np.isfinite(steps).all():
            wobbles.append(float(np.std(steps, ddof=1)) / math.sqrt(2))  # a step has the error of two epochs
    if len(wobbles) < FEWEST_CURVES:
        return None
    samples, wobble = _samples(evidence), float(np.median(wobbles))
    if samples is not None and wobble < 1 / samples:
        return Noise(1 / samples, "one validation sample more or less", least=True)
    return Noise(wobble, f"the last third of the {len(wobbles)} best curves, from epoch to epoch", least=True)


def ties(evidence: Evidence) -> list[Finding]:
    """The best trials differ by less than one recipe would from seed to seed; or confirmed ones still do."""
    study, answer, known = evidence.study, evidence.answer, noise(evidence)
    if answer is not None and answer.finished and answer.winner is not None:
        return _still_tied(study, answer)
    best = evidence.final[evidence.best_complete]
    if known is None or len(best) < TIED or known.deviation == 0:
        return []
    tied = int((best - best[0] <= known.apart).sum())
    if tied < TIED:
        return []
    within = printing.number(float(best[tied - 1] - best[0]))
    said = f"the best {tied} of {len(best)} complete trials cannot be told apart: which is first is luck"
    evident = f"they lie within {within} {study.metric}, and {known.text}"
    # A confirmation that was begun is only gone on with.
    options = f" --top {min(tied, MOST_CONFIRMED)} --seeds 5" if answer is None else ""
    return [Finding("ties", said, evident, (printing.confirm_command(study) + options,))]


def _still_tied(study: StudyRecord, answer: Confirmation) -> list[Finding]:
    """Confirmed recipes that so many seeds do not tell from the best; more would, or the difference is not worth it."""
    best, winner, nearest = answer.best, answer.winner, next(iter(answer.ties), None)
    gap = nearest.behind if nearest is not None else None
    if best is None or winner is None or nearest is None or gap is None:
        return []
    said = f"{len(answer.ties) + 1} confirmed recipes cannot be told apart by {counted(answer.seeds, 'seed')} of each"
    evident = (
        f"trial {nearest.trial} is behind trial {best.trial} by {gap.estimate:.2g} {study.metric} "
        f"(95% interval {gap.low:.2g} to {gap.high:.2g})"
    )
    if nearest.equals(best):
        evident = f"trials {best.trial} and {nearest.trial} have the same mean {study.metric}"
    wanted = answer.more_seeds
    if wanted is not None:
        evident += f"; such a difference shows with about {wanted} seeds of each"
        return [Finding("ties", said, evident, (f"{printing.confirm_command(study)} --seeds {wanted}",))]
    evident += "" if nearest.equals(best) else "; a difference as small as that is worth no more seeds"
    said += f": take trial {winner.trial}, which is preferred"
    return [Finding("ties", said, evident, (f"dialin best {study.name}",))]


def validation_size(evidence: Evidence) -> list[Finding]:
    """So few validation samples that the best trials differ by a handful of them."""
    best = evidence.final[evidence.best_complete]
    samples = _samples(evidence)
    if samples is None or len(best) < TIED:
        return []
    value, fifth = (abs(evidence.shown(float(best[place]))) for place in (0, TIED - 1))
    low, high = share_interval(value, samples)
    if not low <= fifth <= high:
        return []
    metric, file = evidence.study.metric, actions.file_of(evidence.study)
    evident = (
        f"{metric} moves in steps of 1/{samples}, the best {TIED} trials lie within "
        f"{counted(round(abs(value - fifth) * samples), 'sample')}; on other data the best of them is from "
        f"{printing.number(low)} to {printing.number(high)} (95 of 100 times)"
    )
    said = f"{samples} validation samples are too few to tell the best trials apart"
    larger = f"in {file}: a larger valid= in data(), or return folds, whose values are averaged"
    return [Finding("validation_size", said, evident, (larger,))]


def _samples(evidence: Evidence) -> int | None:
    """Of how many samples a metric is the share; None where it is none, or of very many."""
    values = np.concatenate([evidence.values(one) for one in evidence.judged] or [np.empty(0)])
    shares = np.unique(np.abs(values[np.isfinite(values)]))[:200]
    shares = shares[(shares > 0) & (shares < 1)]
    if len(shares) < FEWEST_VALUES or np.abs(values[np.isfinite(values)]).max() > 1:
        return None
    counts = np.arange(2, MOST_SAMPLES + 1, dtype=np.float64)
    whole = np.ones(len(counts), dtype=np.bool_)
    for share in shares:
        times = share * counts
        whole &= np.abs(times - np.round(times)) < 0.01  # a float32 times 20,000 is off by less
    return int(counts[np.argmax(whole)]) if whole.any() else None


def perfect(evidence: Evidence) -> list[Finding]:
    """Several trials that no other can beat: the metric says nothing more."""
    study = evidence.study
    limit = 1.0 if study.direction == "maximize" else 0.0
    final = evidence.final[evidence.best_complete]
    reached = [evidence.judged[index].number for index in evidence.best_complete[evidence.sign * final == limit]]
    if len(reached) < SEVERAL or np.abs(final).max() > 1:
        return []
    evident = (
        f"trials {', '.join(map(str, reached[:5]))}{', ...' if len(reached) > 5 else ''} have {study.metric} {limit:g}"
    )
    said = f"{len(reached)} trials are perfect by {study.metric}, which cannot rank them"
    finer = 'metric=("loss", ...) first' if study.metric != "loss" else "a harder validation split"
    return [Finding("perfect", said, evident, (f"in {actions.file_of(study)}: {finer}, or a larger validation split",))]


def how_many(evidence: Evidence) -> list[Finding]:
    """Too few trials for so many knobs, or enough of them."""
    study, count = evidence.study, len(evidence.judged)
    width = _knobs_of_a_trial(evidence)
    more = actions.go_on(study, max(AHEAD, math.ceil(TOO_FEW * width) - count))
    if count < TOO_FEW * width:
        said = f"{count} trials are few for {width:.0f} knobs: what is best may be what was tried"
        evident = f"{count / width:.1f} trials a knob, and the first ten or so are starting points, or drawn at random"
        return [Finding("how_many", said, evident, (more,))]
    outlook = expected(_last_values(evidence), -float(np.nanmin(evidence.final)) if evidence.complete.any() else 0.0)
    if outlook is None:
        return []
    gain, chance = outlook
    known = noise(evidence)
    told = f"{AHEAD} more are likely to gain {gain:.2g} {study.metric} ({chance:.0%} chance of any)"
    least = known.deviation if known is not None else 0.0
    if chance >= LIKELY and gain > least:
        return [Finding("how_many", "more trials are likely to find better ones", f"{count} trials; {told}", (more,))]
    if known is not None and gain < least and count >= ENOUGH * width:
        return [_enough(study, count, f"{told}, and {known.text}", evidence.answer)]
    return []


def _enough(study: StudyRecord, count: int, evident: str, answer: Confirmation | None) -> Finding:
    if answer is not None and answer.finished and answer.winner is not None:
        return Finding("how_many", f"{count} trials are enough", evident, (f"dialin best {study.name}",))
    said = f"{count} trials are enough: seeds of the best ones tell more than further trials"
    return Finding("how_many", said, evident, (printing.confirm_command(study),))


def _knobs_of_a_trial(evidence: Evidence) -> float:
    """How many knobs a trial has on average that have more than one value."""
    return sum(len(knob.rows) for knob in evidence.knobs) / max(1, len(evidence.judged))


def _last_values(evidence: Evidence) -> list[float | None]:
    """Of the trials that were settled last, the newest first; higher is better."""
    settled = sorted(zip(evidence.judged, evidence.final, strict=True), key=lambda pair: -(pair[0].settled_at or 0.0))
    values = [None if math.isnan(final) else -float(final) for _, final in settled]
    return values[:WINDOW]
