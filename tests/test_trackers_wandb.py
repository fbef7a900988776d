"""W&B's own files of a run without network and login as they are on disk, and how it is asked."""

from __future__ import annotations

import importlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from told import INFO, point

SCRIPT = """
import sys
from pathlib import Path
from told import COMPLETE, HAND_BACK, INFO, going_on_after, made, tell

tracker = made("wandb", Path(sys.argv[1]))
tell(tracker, INFO, [1, 2, 3], HAND_BACK)
tell(tracker, going_on_after(2), [3, 4], COMPLETE)
"""


def records(run: Path) -> list[Any]:
    """What `wandb sync` would send of a run directory: W&B's own messages, in LevelDB's log format.

    Blocks of 32 KiB; a piece is a checksum (4 bytes), a length (2), whether it is whole, first, middle or last (1),
    and so many bytes. W&B's own header takes the place of the first seven.
    """
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (file,) = run.glob("run-*.wandb")
    data, place, whole, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no room for another piece in this block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = messages.Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def test_without_network_and_login_an_adopted_trial_is_one_whole_run_on_disk(tmp_path: Path) -> None:
    """In a process of its own, with a terminal's worth of nothing to ask: it neither prompts nor waits."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert said.returncode == 0, said.stderr
    (run,) = tmp_path.glob("wandb/offline-run-*")
    assert run.name.endswith("-digits-1-0a1b2c3d-00012")
    told = records(run)
    (described,) = (record.run for record in told if record.HasField("run"))
    assert (described.project, described.run_group, described.display_name) == ("dialin", "digits-1", "trial-00012")
    config = {update.key: json.loads(update.value_json) for update in described.config.update}
    assert {**config, **INFO.recipe} == config
    steps = [record.history for record in told if record.HasField("history")]
    logged = [
        {"/".join([item.key, *item.nested_key]).strip("/"): json.loads(item.value_json) for item in step.item}
        for step in steps
    ]
    assert [step["_step"] for step in logged] == [1, 2, 3, 4]
    assert [step["accuracy"] for step in logged] == [point(epoch).metrics["accuracy"] for epoch in (1, 2, 3, 4)]


class TestLoggedIn:
    """Whether there is a key to be found is known without W&B's asking for one."""

    SETTINGS = SimpleNamespace(api_key=None, base_url="https://wandb.example.org")

    @pytest.fixture(autouse=True)
    def no_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
            monkeypatch.delenv(name, raising=False)

    def logged_in(self) -> bool:
        from search.trackers.wandb import _logged_in

        return _logged_in(self.SETTINGS)

    def test_a_fresh_machine_is_not(self) -> None:
        assert not self.logged_in()

    def test_a_key_in_the_environment_will_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        assert self.logged_in()

    def test_so_will_what_wandb_login_left_for_this_server(self) -> None:
        netrc = Path.home() / ".netrc"
        netrc.write_text("machine wandb.example.com login user password secret\n")
        netrc.chmod(0o600)
        assert not self.logged_in(), "another server's"
        netrc.write_text("machine wandb.example.org login user password secret\n")
        assert self.logged_in()
