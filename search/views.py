"""Which view a search has: a notebook's, a terminal's, or plain lines."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rich.console import Console

from search import notebook
from search.live import LiveView, PlainView, View


def make_view(console: Console, slots: Mapping[int, str], doing: str = "elapsed") -> View:
    """The live view in a notebook or a terminal that can redraw, plain lines in a file, a pipe or a dumb terminal.

    `slots`: names of the slots on this machine by the process id of their workers. `doing`: for so long.
    A quiet console shows nothing.
    """
    if not console.quiet and notebook.is_here():
        return notebook.NotebookView(slots)
    can_redraw = console.is_terminal and not console.quiet and os.environ.get("TERM") != "dumb"
    return LiveView(console, slots, doing=doing) if can_redraw else PlainView(console)
