"""The page: sections of text, tables and figures, in one HTML file that needs nothing from anywhere else.

plotly.js is in it once, packed: the file has two megabytes and not five. The figures' data are JSON, which a small
script hands to plotly in the colours of the reader's theme.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from search.report import sections
from search.report.data import ReportData
from search.report.markup import plain, script_json, text

HERE = Path(__file__).parent
# Nothing is asked of any server, whatever stands in the page: what it needs is in it.
ALLOWED = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Figures:
    """Hands out a place in the page for each figure, and keeps what is to be drawn there."""

    def __init__(self) -> None:
        self._drawn: list[dict[str, Any]] = []

    def place(self, figure: go.Figure | None, half: bool = False) -> str:
        """Empty where there is no figure to draw."""
        if figure is None:
            return ""
        made = figure.to_plotly_json()
        title = made["layout"].pop("meta", "")
        made["layout"].pop("template", None)  # the page has its own colours
        self._drawn.append({"data": plain(made["data"]), "layout": plain(made["layout"])})
        number, narrow = len(self._drawn) - 1, ' data-half="1"' if half else ""
        height = made["layout"].get("height", 380)
        return (
            f'<figure><figcaption>{text(title)}</figcaption><div role="img" aria-label="{text(title)}" '
            f'data-figure="{number}"{narrow} style="min-height:{height}px"></div></figure>'
        )

    @property
    def json(self) -> str:
        return script_json(self._drawn)


def render(data: ReportData) -> str:
    """The whole file."""
    figures = Figures()
    body = "\n".join(sections.all_of(data, figures.place))
    links = "".join(f'<a href="#{name}">{text(title)}</a>' for name, title in sections.titles(data))
    study = data.study
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            *_head(f"{study.name}: {study.metric}"),
            "<body>",
            f"<header>\n<h1>{text(study.name)}</h1>\n{sections.lead(data)}\n<nav>{links}</nav>\n</header>",
            f"<main>\n{body}\n</main>",
            f"<footer>Dialin {metadata.version('dialin')}, {_when(data.made_at)}.</footer>",
            '<noscript><p class="note">The charts need JavaScript; the text and the tables do not.</p></noscript>',
            f'<script type="application/json" id="figures">{figures.json}</script>',
            f'<script type="text/plain" id="plotly">{_packed(get_plotlyjs())}</script>',
            f"<script>\n{(HERE / 'draw.js').read_text()}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _head(title: str) -> Iterable[str]:
    return (
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{ALLOWED}">',
        f"<title>{text(title)}</title>",
        '<link rel="icon" href="data:,">',  # no browser asks a server for one
        f"<style>\n{(HERE / 'style.css').read_text()}</style>",
        "</head>",
    )


def _packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M %Z")
