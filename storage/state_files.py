"""State checkpoints on record: the newest of a trial and the one before it; called inside transactions.

Everything here is fenced by its caller, who has renewed the owner's lease in the same transaction.
"""

from __future__ import annotations

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from storage import leases
from storage.claims import Checkpoint, Lease
from storage.tables import CheckpointKind, CheckpointRow, EpochRow


def follows_the_record(session: Session, lease: Lease, checkpoint: Checkpoint) -> bool:
    """Whether the epoch that the checkpoint goes on after is on record: an adopter would never train it again."""
    if checkpoint.epoch == 0:
        return True
    epoch = exists().where(EpochRow.trial_id == lease.trial_id, EpochRow.epoch == checkpoint.epoch)
    return bool(session.scalar(select(epoch)))


def record(session: Session, lease: Lease, checkpoint: Checkpoint) -> list[str]:
    """Add a state, once, and forget all but the one before it; the paths that nothing needs any more.

    The one before is the newest that is less far: what is farther was there when this owner came, and it could not
    read it.
    """
    rows = session.execute(
        select(CheckpointRow.checkpoint_id, CheckpointRow.epoch, CheckpointRow.batch, CheckpointRow.path)
        .where(CheckpointRow.trial_id == lease.trial_id, CheckpointRow.kind == CheckpointKind.STATE)
        .order_by(CheckpointRow.checkpoint_id.desc())
    ).all()
    if all(row.path != checkpoint.path for row in rows):  # else a COMMIT did all this, and its answer was lost
        leases.add_checkpoint(session, lease, CheckpointKind.STATE, checkpoint)
    place = (checkpoint.epoch, checkpoint.batch)
    others = [row for row in rows if row.path != checkpoint.path]
    before = next((row for row in others if (row.epoch, row.batch) < place), None)
    old = [row for row in others if row is not before]
    if old:
        unneeded = [row.checkpoint_id for row in old]
        session.execute(delete(CheckpointRow).where(CheckpointRow.checkpoint_id.in_(unneeded)))
    return [row.path for row in old]
