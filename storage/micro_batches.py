"""How much of a batch has fitted into memory, by model and kind of device; and whose owners were killed for want of it.

Called by `search.sizes` for a worker, and by whoever saw one killed.
"""

from __future__ import annotations

import json

from sqlalchemy import select

from storage.claims import Lease
from storage.engine import database_now, insert_for
from storage.optuna_internals import models
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import LeaseRow, MicroBatchRow

# A trial's attribute of Optuna's: the generations of its owners that were killed for want of memory.
KILLED = "dialin:killed_for_memory"


@patient
def find(storage: SharedStorage, model: str, device: str) -> int | None:
    """The most samples at a time that fitted; None: whole batches have fitted so far."""
    with storage.backend.read() as session:
        return session.scalar(
            select(MicroBatchRow.samples).where(MicroBatchRow.model == model, MicroBatchRow.device == device)
        )


@patient
def keep(storage: SharedStorage, model: str, device: str, samples: int) -> None:
    """Remember a size that fitted; of several the smallest stays."""
    values = {"samples": samples, "found_at": database_now()}
    with storage.backend.write() as session:
        session.execute(
            insert_for(session, MicroBatchRow)
            .values(model=model, device=device, **values)
            .on_conflict_do_update(
                index_elements=["model", "device"], set_=values, where=MicroBatchRow.samples > samples
            )
        )


@patient
def note_kill(storage: SharedStorage, worker_id: str) -> None:
    """A worker was killed for want of memory: whoever adopts its trial shall know. Before it is given up for dead."""
    table = models.TrialSystemAttributeModel
    with storage.backend.write() as session:
        held = session.execute(
            select(LeaseRow.trial_id, LeaseRow.generation).where(LeaseRow.worker_id == worker_id)
        ).all()
        for trial_id, generation in held:
            known = session.scalar(select(table.value_json).where(table.trial_id == trial_id, table.key == KILLED))
            generations = sorted({*json.loads(known or "[]"), generation})
            storage.backend.set_attrs(session, trial_id, {KILLED: generations}, table)


def kills_in_a_row(storage: SharedStorage, lease: Lease) -> int:
    """How many owners just before this one were killed for want of memory, one after the other."""
    if lease.generation == 1:
        return 0
    killed = storage.get_trial(lease.trial_id).system_attrs.get(KILLED, [])
    before = lease.generation
    while before - 1 in killed:
        before -= 1
    return lease.generation - before
