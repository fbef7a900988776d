"""How much of a batch has fitted into memory, by model and kind of device; called by `search.sizes` for a worker."""

from __future__ import annotations

from sqlalchemy import select

from storage.engine import database_now, insert_for
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import MicroBatchRow


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
            insert_for(storage.backend.engine.name, MicroBatchRow)
            .values(model=model, device=device, **values)
            .on_conflict_do_update(
                index_elements=["model", "device"], set_=values, where=MicroBatchRow.samples > samples
            )
        )
