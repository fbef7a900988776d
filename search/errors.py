"""The mistake an objective's author can make: who reads an objective raises it, the command prints it."""

from __future__ import annotations

from storage.errors import UsageError


class ObjectiveError(UsageError, ValueError):
    """One line that says what is wrong in a person's objective and what to write instead."""
