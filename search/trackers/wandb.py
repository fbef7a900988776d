"""Weights & Biases: a run a trial, a group a study, in the project `dialin` unless WANDB_PROJECT says otherwise.

WANDB_MODE is respected. Where it says nothing and nobody has logged in, or the server does not answer, runs are
written to `wandb/` in the study's folder, for `wandb sync`. Nothing prompts, and nothing waits long.
"""

from __future__ import annotations

import logging
import netrc
import os
import shutil
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb

from search.trackers.tracker import VALUE, Ending, Point, TrialInfo

PROJECT = "dialin"
# How long the server may take to take a run in, and to take the rest of one that ends: what it has not got by then
# is on disk. W&B's own values are 90 seconds and for ever.
ANSWER_SECONDS = 15.0
REST_SECONDS = 30.0

_log = logging.getLogger(__name__)


class WeightsAndBiases:
    """Its runs live below the study's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run: Any = None
        self._silent_server = False

    def start(self, info: TrialInfo) -> None:
        """A trial that goes on continues its run on the server; a run on disk is written anew, with its history."""
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.setup().settings
        offline = settings.mode in ("offline", "dryrun")
        if settings.mode in ("online", "run", "shared") and (self._silent_server or not _logged_in(settings)):
            offline = True
        mode: Literal["online", "offline", "disabled"] = "offline" if offline else "online"
        if settings.mode == "disabled":
            mode = "disabled"
        try:
            self._run = self._begin(info, mode)
        except wandb.errors.CommError as error:
            _log.warning("W&B does not answer (%s): runs are kept on disk, for `wandb sync`", error)
            self._silent_server = True
            self._run = self._begin(info, "offline")
        first = self._run.starting_step if self._run.resumed else 0
        self._first = first
        for point in info.history:
            self.epoch(point)

    def epoch(self, point: Point) -> None:
        """A step is an epoch. Those that the server has already are the same and not sent again."""
        if point.epoch >= self._first:
            self._run.log(dict(point.metrics), step=point.epoch)

    def end(self, ending: Ending) -> None:
        """One that is handed back is marked preempted, and can be resumed."""
        run, self._run = self._run, None
        if not ending.final:
            run.mark_preempting()
            run.finish(exit_code=1)
            return
        summary = {"outcome": ending.outcome, VALUE: ending.value, "best_epoch": ending.best_epoch}
        run.summary.update({key: value for key, value in summary.items() if value is not None})
        run.finish(exit_code=1 if ending.outcome in ("error", "out_of_memory", "lost") else 0)

    def _begin(self, info: TrialInfo, mode: Literal["online", "offline", "disabled"]) -> Any:
        identity = f"{info.key}-{info.number:05d}"
        if mode == "offline":
            for before in self._folder.glob(f"wandb/offline-run-*-{identity}"):
                shutil.rmtree(before, ignore_errors=True)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=identity,
            name=info.name,
            group=info.study,
            config=dict(info.recipe),
            dir=str(self._folder),
            mode=mode,
            # An offline run is a new one; W&B warns when it is asked to resume one.
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",  # a trial's output has its own log
                silent=True,
                x_disable_meta=True,  # it would keep the command line, and with it the database's password
                init_timeout=ANSWER_SECONDS,
                finish_timeout=REST_SECONDS,
            ),
        )


def _logged_in(settings: Any) -> bool:
    """Whether W&B would find a key without asking for one: in the environment, its settings, or a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    named = os.environ.get("NETRC")
    host = urlsplit(settings.base_url).hostname or ""
    for path in [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
