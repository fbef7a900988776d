"""A browser's session: a cookie that says whose token it was signed in with, and a seal that nobody else can make.

The token itself is not in it. The key of the seal is a file beside checkpoints and logs that its owner alone may read,
so that a server that was restarted, or another one of the same folder, knows its visitors again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

COOKIE = "dialin_session"
# Seconds until one has to sign in again: a week.
LIFETIME_SECONDS = 7 * 86400
KEY_FILE = "server.key"
KEY_BYTES = 32


@dataclass(frozen=True)
class Claim:
    """What a cookie says: the token's name, when it was signed in with it, and the seal over both."""

    name: str
    issued: int
    seal: str


def load_key(folder: Path) -> bytes:
    """The key of this folder's servers, made where there is none.

    Where the folder cannot be written, one for this process alone: its visitors sign in again after a restart.
    """
    path = folder / KEY_FILE
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _make(path)
    try:
        key = path.read_bytes()
    except OSError:
        key = b""
    return key if len(key) == KEY_BYTES else secrets.token_bytes(KEY_BYTES)


def _make(path: Path) -> None:
    """Whole or not at all, and nobody's who comes second."""
    if path.exists():
        return
    new = path.with_name(f".{KEY_FILE}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def cookie(key: bytes, name: str, digest: str, now: float) -> str:
    """The cookie of whoever has signed in with the token of this name and digest."""
    issued = int(now)
    named = base64.urlsafe_b64encode(name.encode()).decode()
    return f"{named}.{issued}.{_seal(key, name, digest, issued)}"


def read(text: str) -> Claim | None:
    """What a cookie claims, unchecked; None where it says nothing that can be read."""
    try:
        named, issued, seal = text.split(".")
        return Claim(base64.b64decode(named.encode(), b"-_", validate=True).decode(), int(issued), seal)
    except (ValueError, binascii.Error):  # a UnicodeError is a ValueError
        return None


def holds(key: bytes, claim: Claim, digest: str, now: float) -> bool:
    """Whether this server, or one with the same key, has made it for the token with this digest, and lately."""
    sealed = hmac.compare_digest(claim.seal.encode(), _seal(key, claim.name, digest, claim.issued).encode())
    return sealed and 0 <= now - claim.issued < LIFETIME_SECONDS


def _seal(key: bytes, name: str, digest: str, issued: int) -> str:
    """Over the token's digest too: a new token of an old name does not open what the old one had opened."""
    said = f"{digest}.{issued}.{name}"
    return hmac.new(key, said.encode(), hashlib.sha256).hexdigest()
