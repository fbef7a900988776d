"""What trials were trained with, on record: versions, device, threads, source, data, commit. No torch here.

Most trials of a study were trained with the same, so that is kept once, with the study, under a digest of its own; a
trial names its seed and, for each owner that trained with something else than the one before, the digest. Written by
whoever trains (`search.provenance`), read by who trains a trial again or writes it down for others. Whatever is read
is checked, since anybody may write there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.shared import SharedStorage

# A user attribute of a trial.
ATTRIBUTE = "provenance"
# A system attribute of its study, with a digest behind it.
_KEPT = "dialin:provenance:"
# Of its hexadecimal digits: there are few in a study.
_DIGITS = 16


@dataclass(frozen=True)
class Provenance:
    """What a worker trains with. Plain values, the same in two workers that train alike.

    Attributes:
        objective: SHA-256 of the file that the objective is in.
        device: what kind of device, with the instructions that a CPU's kernels use: "Xeon Gold 6338 (AVX512)".
        threads: CPU threads of torch's operators.
        versions: of Python, of Dialin, and of packages, by name.
        commit: of the git checkout that has the objective's file; None: there is none, or it could not be asked.
        changed: whether files of that checkout differ from the commit; None: not known.
        data: a checksum and what the data is like; None where the objective reads it itself.
        training: what the recipe does not say: how the objective is written, its loss, its options.
    """

    objective: str = ""
    device: str = ""
    threads: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    changed: bool | None = None
    data: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Under which it is kept."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Origin:
    """Where a trial's curve is from: its seed, and what each of its owners trained with.

    seed: None in a trial of a Dialin that did not note it. owners: by the first generation that trained with it.
    """

    seed: int | None = None
    owners: Mapping[int, Provenance] = field(default_factory=dict)

    def of(self, generation: int) -> Provenance | None:
        """What the owner of this generation trained with; None where that is not on record."""
        known = [first for first in self.owners if first <= generation]
        return self.owners[max(known)] if known else None

    @property
    def last(self) -> Provenance | None:
        """What its last owner trained with."""
        return self.owners[max(self.owners)] if self.owners else None


def keep(storage: SharedStorage, study_id: int, provenance: Provenance) -> str:
    """Have it on record with the study, which any number of workers may do at once; its digest."""
    digest = provenance.digest
    if f"{_KEPT}{digest}" not in storage.get_study_system_attrs(study_id):
        storage.set_study_system_attr(study_id, f"{_KEPT}{digest}", asdict(provenance))
    return digest


def trial_seed(study_seed: int, number: int) -> int:
    """The seed of a trial's weights, order and augmentation: the same whoever trains it."""
    digest = hashlib.sha256(f"{study_seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def noted(attrs: Mapping[str, Any], seed: int, generation: int, digest: str) -> dict[str, Any]:
    """The attribute of a trial that an owner with this provenance begins to train; `attrs` are the trial's so far."""
    owners = _digests(attrs)
    if not owners or owners[max(owners)] != digest:
        owners[generation] = digest
    return {ATTRIBUTE: {"seed": seed, "owners": {str(first): one for first, one in owners.items()}}}


def origin(storage: SharedStorage, study_id: int, attrs: Mapping[str, Any]) -> Origin:
    """Where the trial with these user attributes is from, as far as that is on record."""
    digests = _digests(attrs)
    kept = storage.get_study_system_attrs(study_id) if digests else {}
    read = {first: _read(kept.get(f"{_KEPT}{digest}")) for first, digest in sorted(digests.items())}
    owners = {first: one for first, one in read.items() if one is not None}
    told = attrs.get(ATTRIBUTE)
    seed = told.get("seed") if isinstance(told, dict) else None
    return Origin(seed if isinstance(seed, int) else None, owners)


def _digests(attrs: Mapping[str, Any]) -> dict[int, str]:
    """By the first generation."""
    told = attrs.get(ATTRIBUTE)
    owners = told.get("owners") if isinstance(told, dict) else None
    if not isinstance(owners, dict):
        return {}
    return {int(first): str(digest) for first, digest in owners.items() if str(first).isdecimal()}


_KINDS: Mapping[str, tuple[type, ...]] = {
    "objective": (str,),
    "device": (str,),
    "threads": (int,),
    "versions": (dict,),
    "commit": (str, type(None)),
    "changed": (bool, type(None)),
    "data": (dict, type(None)),
    "training": (dict,),
}


# Within these, where they are there.
_PARTS: Mapping[str, Mapping[str, type]] = {
    "data": {"shaped_by": list},
    "training": {"options": dict, "own_rows": dict},
}


def _read(told: Any) -> Provenance | None:
    """None for what is none. What a newer Dialin notes besides is left out."""
    if not isinstance(told, dict) or not all(isinstance(told.get(name), kinds) for name, kinds in _KINDS.items()):
        return None
    for of, parts in _PARTS.items():
        if not all(isinstance((told[of] or {}).get(name, kind()), kind) for name, kind in parts.items()):
            return None
    return Provenance(**{name: told[name] for name in _KINDS})
