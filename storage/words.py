"""How things are said: a number of them, and what anybody may have written to a database; every layer reads this."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def counted(number: int, one: str, many: str = "") -> str:
    """`1 epoch`, `15 epochs`; `many` where that is no "s" more than `one`."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def did_you_mean(name: str, known: Sequence[str], *, alike: float = 0.6) -> str:
    """`did you mean 'width'?`, of the known name that is most like the one that was written; "" where none is.

    `alike`: how much of both must be the same.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=alike)
    return f"did you mean {near[0]!r}?" if near else ""


def printable(text: str) -> str:
    """Without what moves a terminal's cursor, recolours it or turns its text around; lines and tabs stay."""
    return text if text.isprintable() else "".join(one if one.isprintable() or one in "\n\t" else " " for one in text)


def in_one_line(text: object) -> str:
    """What cannot end the line, or the comment, that it stands in."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())
