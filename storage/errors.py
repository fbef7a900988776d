"""What can go wrong in words a person can act on; every layer raises these and the command line prints them.

An error's message is one line that names the thing and the way out.
"""

from __future__ import annotations


class DialinError(Exception):
    """Something failed: the command ends with exit status 1."""

    exit_status = 1


class UsageError(DialinError):
    """The caller asked for something that cannot be done as asked: exit status 2."""

    exit_status = 2


class ReadOnly(DialinError):
    """The database may only be read here, and something was to be written."""
