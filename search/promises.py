"""What a trial's curve may be expected to be when it is trained again: bit for bit, and up to which epoch.

Pure functions of what is on record and of what is here; `search.replay` asks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from storage.provenance import Origin, Provenance
from storage.queries import TrialDetail


@dataclass(frozen=True)
class Promise:
    """Epochs up to `exact` must come again bit for bit; `why` later ones need not, empty where all must."""

    exact: int
    why: str = ""


def promise(trial: TrialDetail, origin: Origin, here: Provenance, *, on_cpu: bool, own_code: bool) -> Promise:
    """What a replay here can promise of a trial.

    An epoch comes again where it, and all before it, were trained with what is here. Owners that left no epoch count
    too: the next one may have gone on from a checkpoint of theirs within an epoch.

    Args:
        on_cpu: whether it is trained on a CPU here.
        own_code: whether a person's own loop trains it, which may not keep all that it goes on from.
    """
    if not on_cpu:
        return Promise(0, "a GPU may add up in another order each time")
    if parts := trial.attrs.get("micro_batch"):
        return Promise(0, f"memory was wanting, and its batches were trained {parts} samples at a time")
    if own_code and len({epoch.generation for epoch in trial.epochs}) > 1:
        return Promise(0, "several workers trained it, and what its own code did not keep began anew in each")
    exact, before = 0, 1
    for epoch in trial.epochs:
        for generation in range(min(before, epoch.generation), epoch.generation + 1):
            then = origin.of(generation)
            others = None if then is None else [*differences(then, here)]
            if others is None or others:
                return Promise(exact, _why(others, exact))
        exact, before = epoch.epoch, epoch.generation
    return Promise(exact)


def _why(others: list[str] | None, exact: int) -> str:
    """`others`: what is another than here; None: it is not on record."""
    which = f"its epochs after {exact}" if exact else "its epochs"
    if others is None:
        return f"what {which} were trained with is not on record"
    return f"{which} were trained with {', '.join(others)}"


def differences(then: Provenance, here: Provenance) -> Iterator[str]:
    """What may round otherwise here than it did then: `torch 2.14.0 (here 2.15.0)`."""
    if then.device != here.device:
        yield f"{then.device or 'an unknown device'} (here {here.device})"
    if then.threads != here.threads:
        yield f"{then.threads} threads (here {here.threads})"
    for name in dict.fromkeys([*then.versions, *here.versions]):
        old, new = then.versions.get(name), here.versions.get(name)
        if old != new:
            yield f"{name} {old or 'in no version'} (here {new or 'in none'})"
