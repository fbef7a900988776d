"""Who is asking, and what may they do: a token, or the session of a browser that was signed in with one.

`guard` asks for every request. Where nobody ever made a token, and the server listens to its own machine alone,
everyone is let in, as by `dialin dashboard`; the first token ends that, and to revoke it does not bring it back.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

from search.server import sessions
from search.server.attempts import Attempts
from storage import tokens
from storage.errors import DialinError
from storage.patience import DATABASE_ERRORS, waiting
from storage.shared import SharedStorage
from storage.tables import Role
from storage.tokens import Token

# Seconds that the list of tokens is taken for true: so soon one that is revoked opens nothing any more.
FRESH_SECONDS = 1.0


@dataclass(frozen=True)
class Visitor:
    """Somebody who was let in. `by_browser`: it is the browser that says so, also when another page makes it ask."""

    name: str
    role: Role
    by_browser: bool

    @property
    def may_write(self) -> bool:
        """Whether they may change anything."""
        return self.role is Role.OPERATOR


@dataclass(frozen=True)
class Stranger:
    """Somebody who was not let in. `wait`: seconds until another attempt is looked at, 0 for at once.

    `is_wrong`: the token that they showed opens nothing.
    """

    wait: int = 0
    is_wrong: bool = False


EVERYBODY = Visitor("everybody", Role.OPERATOR, by_browser=True)


class Access:
    """The door. Its methods ask the database: not on the thread that serves everyone."""

    def __init__(
        self, storage: SharedStorage, key: bytes, *, always: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`key` seals sessions. `always`: also where there is no token at all nobody comes in without one."""
        self._storage, self._key, self._always, self._clock = storage, key, always, clock
        self._attempts = Attempts()
        self._lock = Lock()
        self._tokens: list[Token] = []
        self._read_at: float | None = None
        self._noted: dict[str, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether everyone may do everything: there is no token, nor ever was."""
        return not self._always and not self._all()

    def visitor(self, authorization: str | None, cookies: Mapping[str, str], address: str) -> Visitor | Stranger:
        """Who sends a request with these headers, from this address.

        Raises:
            DatabaseAway, SQLAlchemyError, StorageInternalError: the database cannot say.
        """
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() == "bearer":  # whatever else is sent, as to a proxy before the server, is not for us
            found = self._of_token(token.strip(), address) if token.strip() else Stranger()
            return Visitor(found.name, found.role, by_browser=False) if isinstance(found, Token) else found
        claim = sessions.read(cookies.get(sessions.COOKIE, ""))
        if claim is not None:
            signed_in = next((token for token in self._valid() if token.name == claim.name), None)
            if signed_in is not None and sessions.holds(self._key, claim, signed_in.sha256, time.time()):
                self._note(signed_in)
                return Visitor(signed_in.name, signed_in.role, by_browser=True)
        return EVERYBODY if self.is_open else Stranger()

    def sign_in(self, token: str, address: str) -> tuple[Visitor, str] | Stranger:
        """Who has this token, and the cookie of a session for them."""
        found = self._of_token(token, address)
        if isinstance(found, Stranger):
            return found
        visitor = Visitor(found.name, found.role, by_browser=True)
        return visitor, sessions.cookie(self._key, found.name, found.sha256, time.time())

    def _of_token(self, token: str, address: str) -> Token | Stranger:
        """Every token is compared, and each to its end: how long it takes says nothing of how near a guess was.

        An address that guessed too often is not looked at any more, but for tokens that were used before: those of
        others behind the same address.
        """
        key = tokens.digest(token)
        wait = self._attempts.wait(address)
        found = next(iter([one for one in self._valid() if hmac.compare_digest(one.sha256, key)]), None)
        if found is not None and (not wait or found.last_used_at is not None or found.name in self._noted):
            self._note(found)
            return found
        if not wait:
            self._attempts.failed(address, key)
            wait = self._attempts.wait(address)
        return Stranger(wait, is_wrong=True)

    def _valid(self) -> list[Token]:
        return [token for token in self._all() if token.is_valid]

    def _all(self) -> list[Token]:
        with self._lock:
            now = self._clock()
            if self._read_at is None or now - self._read_at > FRESH_SECONDS:
                with waiting(0):
                    self._tokens = tokens.tokens(self._storage)
                self._read_at = now
            return self._tokens

    def _note(self, token: Token) -> None:
        """When it was used last, now and then. A database that can only be read is no reason to turn anyone away."""
        now = self._clock()
        if now - self._noted.get(token.name, -tokens.USE_SECONDS) < tokens.USE_SECONDS:
            return
        self._noted[token.name] = now
        with suppress(DialinError, *DATABASE_ERRORS), waiting(0):
            tokens.note_use(self._storage, token.name)
