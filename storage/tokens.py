"""Tokens with which people and programs come in over the network: made, listed, revoked; known by their digest alone.

`dialin token` and `search.server` call this. A token is 256 random bits, so that its plain SHA-256 tells nobody what it
was: there is no list of likely ones to try.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage.engine import database_now
from storage.errors import UsageError
from storage.patience import patient
from storage.shared import SharedStorage
from storage.tables import Role, TokenRow

# By this a scanner of repositories and logs knows one that got there by mistake.
PREFIX = "dialin_"
# Bytes of randomness in a token.
RANDOM_BYTES = 32
# When a token was last used is noted so often at the most, in seconds: it is no transaction for every request.
USE_SECONDS = 60.0
LONGEST_NAME = 64


@dataclass(frozen=True)
class Token:
    """What is on record of a token. Times are seconds since 1970, None for what has not come."""

    name: str
    role: Role
    sha256: str
    created_at: float
    last_used_at: float | None
    revoked_at: float | None

    @property
    def is_valid(self) -> bool:
        """Whether somebody comes in with it."""
        return self.revoked_at is None


def digest(token: str) -> str:
    """What is on record in the place of a token."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def create(storage: SharedStorage, name: str, role: Role) -> str:
    """A new token in return, which nobody can read again.

    Raises:
        UsageError: the name is taken, by one that is revoked too, or is none.
    """
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise UsageError(f"a token is named after who has it, in 1 to {LONGEST_NAME} characters, but got {name!r}")
    token = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    key = digest(token)

    def attempt(session: Session, again: bool) -> None:
        if again and session.scalar(select(TokenRow.token_id).where(TokenRow.sha256 == key)) is not None:
            return
        session.execute(insert(TokenRow).values(name=name, role=role, sha256=key, created_at=database_now()))

    try:
        storage.backend.write_once(attempt)
    except IntegrityError:
        raise UsageError(f"there is, or was, a token named {name!r}: choose another name") from None
    return token


@patient
def tokens(storage: SharedStorage) -> list[Token]:
    """All that were ever made, revoked ones too, the oldest first."""
    with storage.backend.read() as session:
        rows = session.scalars(select(TokenRow).order_by(TokenRow.token_id)).all()
        return [
            Token(row.name, Role(row.role), row.sha256, row.created_at, row.last_used_at, row.revoked_at)
            for row in rows
        ]


def revoke(storage: SharedStorage, name: str) -> None:
    """From now on nobody comes in with it. Once more does no harm.

    Raises:
        UsageError: there is no token of that name.
    """

    def attempt(session: Session, _again: bool) -> bool:
        found = session.scalar(select(TokenRow.token_id).where(TokenRow.name == name))
        unrevoked = TokenRow.revoked_at.is_(None)
        session.execute(update(TokenRow).where(TokenRow.name == name, unrevoked).values(revoked_at=database_now()))
        return found is not None

    if not storage.backend.write_once(attempt):
        known = ", ".join(token.name for token in tokens(storage)) or "none"
        raise UsageError(f"there is no token named {name!r}; there is: {known}")


def note_use(storage: SharedStorage, name: str) -> None:
    """Somebody came in with it."""
    seldom = or_(TokenRow.last_used_at.is_(None), TokenRow.last_used_at < database_now() - USE_SECONDS)
    with storage.backend.write() as session:
        session.execute(update(TokenRow).where(TokenRow.name == name, seldom).values(last_used_at=database_now()))
