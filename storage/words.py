"""How things are said: a number of them, and what anybody may have written to a database; every layer reads this."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """`1 epoch`, `15 epochs`; `many` where that is no "s" more than `one`."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def printable(text: str) -> str:
    """Without what moves a terminal's cursor, recolours it or turns its text around; lines and tabs stay."""
    return text if text.isprintable() else "".join(one if one.isprintable() or one in "\n\t" else " " for one in text)


def in_one_line(text: object) -> str:
    """What cannot end the line, or the comment, that it stands in."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())
