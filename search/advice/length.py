"""Where in the run the best epochs fall: training cut short, far too long, over-fitted, pruned too early or not at all.

Looked at are the better half of the trials that trained to their end: what became of recipes that lost is no reason to
train the others otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from search import printing
from search.advice import actions
from search.advice.evidence import Evidence, Knob
from search.advice.finding import Finding
from search.advice.noise import noise
from search.advice.statistics import Floats, p_rank_correlation, rank_correlation
from storage.outcomes import Outcome
from storage.records import RecordedTrial
from storage.words import counted

# So many trials of the better half must have a whole curve, of so many epochs at least.
FEWEST, SHORTEST = 5, 6
# "Most of them": so large a share.
MOST = 0.6
# Best in the last tenth, and the last quarter still gained so much of what lies between the best and the median trial.
LATE, LAST_QUARTER, WORTH = 0.9, 0.75, 0.3
# ... and of what the whole run gained: every curve that falls gains a little at its end.
OF_THE_RUN = 0.02
# A rate that falls by half and more in the last quarter; and losses that are alike.
ANNEALED, ALIKE = 0.5, 1.2
# As good as at the end by so early a part of the run, looked at in stretches of so many to a run.
EARLY, WINDOWS = 0.5, 6
# Worse at its end than at its best by more than noise, with the best before this part of the run, while the training
# loss fell by such a share.
TURNED, STILL_FALLING = 0.75, 0.05
# A validation loss so many times the training loss is a gap, and one that rises by so much from its least is worse.
GAP, RISEN = 1.5, 1.05
# More L2 is no help where chance would hardly make more of it look so bad.
HURTS = 0.05
# Ranks at the epoch at which most are pruned, against the final ones: they say nothing, something, nearly all.
FEWEST_RANKED, BLIND, TELLING, CLEAR = 20, 0.2, 0.5, 0.8
PRUNED_MOSTLY = 0.4
LOSSES = ("loss", "valid_loss", "val_loss")


def _better_half(evidence: Evidence) -> list[RecordedTrial]:
    best = evidence.best_complete
    return [evidence.judged[index] for index in best[: max(FEWEST, math.ceil(len(best) / 2))]]


def _whole(evidence: Evidence) -> list[tuple[RecordedTrial, Floats]]:
    """Trials of the better half that have every epoch of the run with its value, and those values."""
    length = evidence.study.length
    if length < SHORTEST or evidence.study.folds > 1:
        return []
    curves = [(one, evidence.values(one)) for one in _better_half(evidence) if len(one.epochs) == length]
    return [(one, values) for one, values in curves if np.isfinite(values).all()]


def too_short(evidence: Evidence) -> list[Finding]:
    """Nearly all good trials are best in their last epochs, and still gained what recipes differ by."""
    length = evidence.study.length
    at = max(1, math.floor(LAST_QUARTER * length))
    curves = [(one, values) for one, values in _whole(evidence) if _tells(one, at)]
    if len(curves) < FEWEST:
        return []
    late = [int(np.argmin(values)) + 1 >= LATE * length for _, values in curves]
    gains = [float(values[:at].min() - values.min()) for _, values in curves]
    final = evidence.final[evidence.best_complete]
    between = float(np.median(final) - final[0])
    known = noise(evidence)
    gain, whole = float(np.median(gains)), float(np.median([values[0] - values.min() for _, values in curves]))
    least = max(WORTH * between, OF_THE_RUN * whole, known.apart if known is not None else 0.0)
    if np.mean(late) < MOST or gain <= least:
        return []
    metric = evidence.study.metric
    evident = (
        f"{sum(late)} of the {len(curves)} best whole curves are best in epoch {math.ceil(LATE * length)} or later; "
        f"the last quarter gained {printing.number(gain)} {metric} (median), while the best trial is "
        f"{printing.number(between)} ahead of the median one"
    )
    said = "training is cut short: the best recipes still gain at its end"
    return [Finding("too_short", said, evident, options={"--epochs": str(2 * length)})]


def _tells(one: RecordedTrial, at: int) -> bool:
    """Whether its gain after epoch `at` says that a longer run would gain.

    A rate that falls to nothing gains at the end of a run of any length. Such a curve tells only while it has learnt
    nothing by heart: its training loss is about as high as its validation loss.
    """
    rates, last = _metric(one, "lr"), one.epochs[-1].metrics
    if not rates[-1] < ANNEALED * rates[at - 1]:  # NaN is not
        return True
    valid = next((last[name] for name in LOSSES if name in last), math.inf)
    return valid <= ALIKE * last.get("train_loss", -math.inf)


def too_long(evidence: Evidence) -> list[Finding]:
    """Nearly all good trials are as good as at their end halfway through."""
    curves, length, known = _whole(evidence), evidence.study.length, noise(evidence)
    if len(curves) < FEWEST or known is None or overfitting(evidence):
        return []
    enough = _enough(np.stack([values for _, values in curves]), known.deviation / 2)
    if enough > EARLY * length:
        return []
    shorter = max(2, math.ceil(1.2 * enough))
    study = evidence.study
    evident = (
        f"from epoch {enough} of {length} on the {len(curves)} best whole curves gain less than "
        f"{known.deviation / 2:.2g} {study.metric} on average, "
        f"where {known.text}"
    )
    said = f"training is longer than it need be: {length - shorter} of {length} epochs gain nothing to speak of"
    patience = f"in {actions.file_of(study)}: Objective(..., patience={max(2, length // 5)})"
    return [Finding("too_long", said, evident, (patience,), options={"--epochs": str(shorter)})]


def _enough(curves: Floats, least: float) -> int:
    """The epoch from which on curves, of shape (trials, epochs), gain nothing to speak of until their end.

    That is less than `least`, on average over the curves, from any stretch of epochs to the last one.
    """
    length = curves.shape[1]
    window = max(2, length // WINDOWS)
    last = curves[:, -window:].mean(axis=1)
    enough = length
    for start in range(length - window, -1, -1):
        gains = curves[:, start : start + window].mean(axis=1) - last
        if gains.mean() > least:
            break
        enough = start + 1
    return enough


def overfitting(evidence: Evidence) -> list[Finding]:
    """Good trials get worse on the validation split while their training loss still falls, or the gap is wide."""
    curves, known = _whole(evidence), noise(evidence)
    if len(curves) < FEWEST:
        return []
    told = _worse(evidence, curves, known.apart if known is not None else 0.0) or _gap(evidence, curves)
    return [] if told is None else [Finding("overfitting", *told, *_against_it(evidence))]


def _worse(evidence: Evidence, curves: list[tuple[RecordedTrial, Floats]], apart: float) -> tuple[str, str] | None:
    length, study = evidence.study.length, evidence.study
    turned, falls, best_epochs = [], [], []
    for one, values in curves:
        smooth = _smoothed(values)
        at = int(np.argmin(smooth))
        train = _smoothed(_metric(one, "train_loss"))
        falling = train[-1] < (1 - STILL_FALLING) * train[at]
        turned.append(at + 1 <= TURNED * length and smooth[-1] - smooth[at] > apart and bool(falling))
        falls.append(float(smooth[-1] - smooth[at]))
        best_epochs.append(at + 1)
    if np.mean(turned) < MOST:
        return None
    lost = float(np.median(falls))
    evident = (
        f"{sum(turned)} of the {len(curves)} best whole curves lose {printing.number(lost)} {study.metric} (median) "
        f"after epoch {np.median(best_epochs):.0f} of {length}, while their training loss goes on falling"
    )
    return "the best recipes over-fit before their run ends", evident


def _gap(evidence: Evidence, curves: list[tuple[RecordedTrial, Floats]]) -> tuple[str, str] | None:
    name = next((one for one in LOSSES if all(one in trial.epochs[-1].metrics for trial, _ in curves)), None)
    if name is None:
        return None
    risen, ratios, lows = [], [], []
    for one, _ in curves:
        valid, train = _smoothed(_metric(one, name)), _smoothed(_metric(one, "train_loss"))
        at = int(np.nanargmin(valid)) if np.isfinite(valid).any() else 0
        wide = bool(valid[-1] > GAP * train[-1] > 0)
        risen.append(wide and bool(valid[-1] > RISEN * valid[at]) and at + 1 <= TURNED * len(valid))
        ratios.append(float(valid[-1] / train[-1]) if train[-1] > 0 else math.nan)
        lows.append(at + 1)
    if np.mean(risen) < MOST:
        return None
    evident = (
        f"{sum(risen)} of the {len(curves)} best whole curves end at {np.nanmedian(ratios):.1f} times their "
        f"training loss on the validation split (median), where the loss was least in epoch {np.median(lows):.0f}"
    )
    return "the best recipes over-fit: the validation loss rises while the training loss falls", evident


def _metric(trial: RecordedTrial, name: str) -> Floats:
    return np.asarray([epoch.metrics.get(name, math.nan) for epoch in trial.epochs], dtype=np.float64)


def _smoothed(values: Floats) -> Floats:
    """The mean with both neighbours."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def _against_it(evidence: Evidence) -> tuple[tuple[str, ...], dict[str, Any]]:
    study, file = evidence.study, actions.file_of(evidence.study)
    patience = max(2, study.length // 5)
    stop = f"in {file}: Objective(..., patience={patience}), more dropout or augmentation, a smaller model"
    decay = evidence.knob("l2", "weight_decay")
    if decay is None or decay.own or decay.choices or _hurts(evidence, decay):
        return (stop,), {}
    wider = actions.widened(decay.name, decay.distribution, upwards=True)
    return (stop,), {decay.name: wider} if wider is not None else {}


def _hurts(evidence: Evidence, knob: Knob) -> bool:
    """Whether trials are the worse the more they have of it."""
    return p_rank_correlation(-knob.places, evidence.beside[knob.rows]) < HURTS


def pruning(evidence: Evidence) -> list[Finding]:
    """Trials are pruned when their ranks say nothing yet, or none are although ranks say all early."""
    if evidence.study.length < SHORTEST or evidence.study.folds > 1 or evidence.study.sampler == "auto":
        return []
    pruned = [one for one in evidence.judged if one.outcome is Outcome.PRUNED]
    complete = [index for index in evidence.best_complete if len(evidence.curves[index]) >= SHORTEST]
    if len(complete) < FEWEST_RANKED:
        return []
    if len(pruned) >= PRUNED_MOSTLY * len(evidence.judged):
        return _too_early(evidence, np.asarray(complete), [len(one.epochs) for one in pruned])
    return _too_late(evidence, np.asarray(complete)) if not pruned and evidence.study.pruner == "none" else []


def _agreement(evidence: Evidence, complete: Floats, epoch: int) -> float:
    early = np.asarray([evidence.curves[int(index)][epoch - 1] for index in complete])
    if not np.isfinite(early).all():
        return math.nan
    return rank_correlation(early, evidence.final[complete.astype(np.int64)])


def _too_early(evidence: Evidence, complete: Floats, lengths: list[int]) -> list[Finding]:
    usual = int(np.median(lengths))
    later = min(evidence.study.length - 1, 3 * usual)
    if usual >= evidence.study.length // 2 or later > min(len(evidence.curves[int(index)]) for index in complete):
        return []
    then, after = _agreement(evidence, complete, usual), _agreement(evidence, complete, later)
    if not (then < BLIND and after > TELLING):  # NaN is not
        return []
    evident = (
        f"{len(lengths)} trials were pruned, half of them by epoch {usual}; of the {len(complete)} complete ones ranks "
        f"agree with the final ones by {then:.2f} (Spearman) in epoch {usual}, and by {after:.2f} in epoch {later}"
    )
    said = "pruning decides before ranks say anything"
    return [Finding("pruning", said, evident, options={"--pruner": "median"})]


def _too_late(evidence: Evidence, complete: Floats) -> list[Finding]:
    length = evidence.study.length
    third = max(1, length // 3)
    if third > min(len(evidence.curves[int(index)]) for index in complete):
        return []
    agreement = _agreement(evidence, complete, third)
    if not agreement > CLEAR:
        return []
    loser = complete[len(complete) // 2 :].astype(np.int64)
    after = [sum(epoch.seconds for epoch in evidence.judged[index].epochs[third:]) for index in loser]
    evident = (
        f"in epoch {third} of {length} ranks agree with the final ones by {agreement:.2f} (Spearman, "
        f"{counted(len(complete), 'trial')}); the worse half went on for {printing.duration(sum(after))} after it"
    )
    said = "losing trials are trained to their end although their ranks show early"
    return [Finding("pruning", said, evident, options={"--pruner": "hyperband"})]
