"""The logs of trials: what a person's code printed while each trained, read here and now or as it is written.

A worker writes them (`search.trial_log`) below the files root; `dialin logs` and `dialin show` read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.file_names import trial_folder
from storage.studies import StudyRecord

# Read from the end of a log, however long it is: some hundred lines.
TAIL_BYTES = 64 * 1024


def log_of(root: Path, study: StudyRecord, number: int) -> Path:
    """Where the log of a trial is, below the files root."""
    return root / study.folder / trial_folder(number) / "log.txt"


def workers_log(root: Path) -> Path:
    """Where all workers of this machine write what they say between trials."""
    return root / "workers.log"


def tail(path: Path, lines: int | None) -> list[str]:
    """The last `lines` lines of a log, all of them for None; none where there is no log."""
    try:
        with path.open("rb") as file:
            if lines is not None:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            found = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return found if lines is None else found[len(found) - min(lines, len(found)) :]


@dataclass
class Following:
    """A log that grows: its lines as they are finished."""

    path: Path
    prefix: str = ""
    _at: int = 0
    _rest: bytes = field(default=b"", repr=False)

    def start(self, lines: int | None) -> Iterator[str]:
        """The last lines there are now; `more` goes on after them."""
        try:
            size = self.path.stat().st_size
        except OSError:
            size = 0
        if lines is not None and size:
            kept = tail(self.path, lines)
            self._at = size
            yield from self._shown(kept)
        else:
            yield from self.more()

    def more(self) -> Iterator[str]:
        """Lines that have been finished since."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except OSError:
            return
        self._at += len(new)
        *finished, self._rest = (self._rest + new).split(b"\n")
        yield from self._shown(line.decode(errors="replace") for line in finished)

    def rest(self) -> Iterator[str]:
        """What is left at the end without a line's end."""
        yield from self.more()
        if self._rest:
            yield from self._shown([self._rest.decode(errors="replace")])
            self._rest = b""

    def _shown(self, lines: Iterable[str]) -> Iterator[str]:
        return (f"{self.prefix}{line}" for line in lines)
