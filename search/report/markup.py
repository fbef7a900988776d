"""Pieces of HTML. Whatever is text goes through `text`: names and messages are other people's."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def text(value: object) -> str:
    """As it is, whatever it holds."""
    return html.escape(str(value), quote=True)


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = (), wide: int | None = None
) -> str:
    """`numbers`: which columns are set to the right. `wide`: the one that has sentences in it."""
    right = {*numbers}

    def kind(column: int) -> str:
        return ' class="n"' if column in right else ' class="w"' if column == wide else ""

    def cells(tag: str, row: Sequence[object]) -> str:
        kinds = map(kind, range(len(row)))
        return "".join(f"<{tag}{of}>{text(cell)}</{tag}>" for of, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", headings)}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def section(name: str, title: str, *parts: str, page: bool = False) -> str:
    """A part of the report with its heading. `page`: it begins a new one on paper."""
    inside = "\n".join(part for part in parts if part)
    return f'<section id="{text(name)}"{" class=page" if page else ""}>\n<h2>{text(title)}</h2>\n{inside}\n</section>'


def paragraph(words: str, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{text(words)}</p>"


def command(words: str) -> str:
    return f"<pre><code>{text(words)}</code></pre>"


def script_json(value: object) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def plain(drawn: Any) -> Any:
    """What plotly is to draw, with every text as it is: plotly takes <b> and <a href> in a name for markup.

    Templates of what is shown beside the mouse are the report's own, and mean theirs.
    """
    if isinstance(drawn, Mapping):
        return {key: value if key == "hovertemplate" else plain(value) for key, value in drawn.items()}
    if isinstance(drawn, list | tuple):
        return [plain(one) for one in drawn]
    return html.escape(drawn, quote=False) if isinstance(drawn, str) else drawn
