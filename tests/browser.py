"""Chromium without a window, for tests that look at a page: what it drew, and what it complained of."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Run in the page when it is drawn: how many figures show a trace, in which ink, how far it is wider than its window.
MEASURE = """<script>
new MutationObserver(() => {
  const page = document.documentElement;
  const told = { failed: page.dataset.failed || "", drawn: page.dataset.drawn };
  told.beyond = page.scrollWidth - page.clientWidth;
  const places = [...document.querySelectorAll("[data-figure]")];
  told.shown = places.filter((one) => one.querySelector(".main-svg .trace")).length;
  const label = document.querySelector("[data-figure] .xtick text");
  told.ink = label ? getComputedStyle(label).fill : "";
  if (told.drawn || told.failed) parent.postMessage(told, "*");
}).observe(document.documentElement, { attributes: true });
</script>"""
# No window of Chromium's is as narrow as a phone, but a frame is. It keeps what the page says of itself.
FRAME = """<!DOCTYPE html><html><body style="margin: 0"><script>
addEventListener("message", (event) => Object.assign(document.documentElement.dataset, event.data));
</script><iframe src="{page}" style="width: {width}px; height: 1600px; border: 0"></iframe></body></html>"""
# No page may need the network: every name is unknown.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Page:
    """What became of a page: what it said of itself when its scripts had run, and what the console said."""

    told: Mapping[str, str]
    console: tuple[str, ...]


def look_at(path: Path, folder: Path, options: Sequence[str] = (), width: int = 1280) -> Page:
    """Open a file and wait until its scripts have run. `folder` is for the browser's own files."""
    assert CHROMIUM is not None
    measured = folder / f"measured-{path.name}"
    measured.write_text(path.read_text().replace("</head>", f"{MEASURE}</head>", 1))
    frame = folder / f"frame-{path.name}"
    frame.write_text(FRAME.format(page=measured.as_uri(), width=width))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", OFFLINE]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={max(600, width)},1600",
        "--enable-logging=stderr",
    ]
    command += ["--enable-logging=stderr", "--virtual-time-budget=60000", "--dump-dom", *options, frame.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    console = re.findall(r"CONSOLE[^\]]*\] (.*)", ended.stderr)
    told = re.findall(r'data-(\w+)="([^"]*)"', ended.stdout.partition("<body")[0])
    return Page(dict(told), tuple(console))
