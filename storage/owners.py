"""Who has held a trial, for good: written by `storage.leases` in the transactions that make and end a lease.

Whoever asks who trained what reads it, and a trial that kills its owners is known by it.
"""

from __future__ import annotations

from itertools import takewhile

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from storage.claims import Lease
from storage.engine import database_now
from storage.tables import DEATHS, LeaseRow, OwnerEnding, OwnerRow, TrialRow

# Owners that died in a row without taking their trial any further: one more would die too (a kernel that crashes, a
# machine's memory that no micro-batch fits), and its worker with it.
POISON_OWNERS = 5


def began(session: Session, lease: Lease) -> None:
    """A worker has taken the trial, or taken it over."""
    session.execute(
        insert(OwnerRow).values(
            trial_id=lease.trial_id,
            generation=lease.generation,
            worker_id=lease.worker_id,
            claim=lease.claim,
            recorded=0,
            began_at=database_now(),
        )
    )


def left_something(session: Session, lease: Lease) -> None:
    """Its first epoch, or a checkpoint, that takes the trial further than any owner before."""
    session.execute(
        update(OwnerRow)
        .where(OwnerRow.trial_id == lease.trial_id, OwnerRow.generation == lease.generation)
        .values(recorded=OwnerRow.recorded + 1)
    )


def ended(session: Session, trial_id: int, generation: int, how: OwnerEnding) -> None:
    """Its time is over. Who was said to have ended before stays so: a trial handed back was not left by a death."""
    session.execute(
        update(OwnerRow)
        .where(OwnerRow.trial_id == trial_id, OwnerRow.generation == generation, OwnerRow.ending.is_(None))
        .values(ending=how, ended_at=database_now())
    )


def died(session: Session, worker_id: str, how: OwnerEnding) -> None:
    """Whoever saw a worker end says so of all that it still held."""
    held = select(LeaseRow.trial_id).where(LeaseRow.worker_id == worker_id)
    session.execute(
        update(OwnerRow)
        .where(OwnerRow.trial_id.in_(held), OwnerRow.worker_id == worker_id, OwnerRow.ending.is_(None))
        .values(ending=how, ended_at=database_now())
        .execution_options(synchronize_session=False)
    )


def poisoned(session: Session, trial_id: int) -> bool:
    """Whether its last POISON_OWNERS owners all died with nothing left behind.

    Asked of a trial that may be adopted: an owner whose time has not ended is one whose lease expired.
    """
    owner = OwnerRow
    last = session.execute(
        select(owner.ending, owner.recorded)
        .where(owner.trial_id == trial_id)
        .order_by(owner.generation.desc())
        .limit(POISON_OWNERS)
    ).all()
    died = [ending in (None, *DEATHS) and not recorded for ending, recorded in last]
    return len(died) == POISON_OWNERS and all(died)


def kills_in_a_row(session: Session, lease: Lease) -> int:
    """How many owners just before this one were killed for want of memory, one after the other, but for pauses."""
    owner = OwnerRow
    earlier = owner.trial_id == lease.trial_id, owner.generation < lease.generation
    before = select(owner.ending).where(*earlier, owner.ending != OwnerEnding.PAUSED)
    endings = session.scalars(before.order_by(owner.generation.desc()))
    return sum(1 for _ in takewhile(lambda ending: ending == OwnerEnding.OUT_OF_MEMORY, endings))


def of_claim(session: Session, claim: str) -> Lease | None:
    """The lease that this claim made, where its COMMIT has arrived."""
    row = session.execute(
        select(OwnerRow.trial_id, TrialRow.study_id, OwnerRow.worker_id, OwnerRow.generation, OwnerRow.claim)
        .join(TrialRow, TrialRow.trial_id == OwnerRow.trial_id)
        .where(OwnerRow.claim == claim)
    ).one_or_none()
    return Lease(*row) if row is not None else None
