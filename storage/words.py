"""How a number of things is said; every layer reads this."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """`1 epoch`, `15 epochs`; `many` where that is no "s" more than `one`."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
