"""`--on`: workers on a real Ray cluster of several nodes on this machine, which come and go; the study ends exact."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import Running
from optuna.trial import TrialState
from ray_nodes import RayNodes
from sqlalchemy.engine import make_url
from studies import (
    OBJECTIVES,
    SLOW,
    TINY,
    Inside,
    all_have_ended,
    assert_settled,
    rows,
    states,
    value,
    wait_until,
)

from search import ray_cluster, ray_worker
from search.assignment import Assignment
from search.by_value import ByValue
from search.devices import Slot
from search.preflight import Placement
from search.ray_cluster import Share, share_of
from storage.errors import DialinError, UsageError

Start = Callable[..., Running]
# Each worker imports torch in a process of its own.
PATIENCE = 120
PIDS = "SELECT pid FROM dialin_workers WHERE ended_at IS NULL"
EPOCHS = "SELECT t.number, e.epoch FROM dialin_epochs e JOIN trials t ON t.trial_id = e.trial_id ORDER BY 1, 2"
OWNERS = "SELECT trial_id, generation, ending FROM dialin_owners ORDER BY trial_id, generation"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A cluster with a node of one CPU."""
    cluster = RayNodes(tmp_path_factory.mktemp("ray-home"))
    try:
        cluster.add("first")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """slow.py for workers of any folder: with a file `hurry` beside it an epoch takes next to nothing.

    Beside it is a module that has the name of one of Dialin's.
    """
    (tmp_path / "tiny.py").write_text(TINY.read_text())
    (tmp_path / "storage.py").write_text("raise ImportError('this is not the one of Dialin')")
    text = SLOW.read_text().replace('Path("hurry")', f"Path({str(tmp_path / 'hurry')!r})")
    file = tmp_path / "patient.py"
    file.write_text(text)
    return file


def working(url: str, epoch: int = 1) -> int:
    """How many workers that live have brought a trial so far."""
    statement = (
        "SELECT count(DISTINCT w.worker_id) FROM dialin_epochs e JOIN dialin_workers w ON w.worker_id = e.worker_id "
        "WHERE w.ended_at IS NULL AND e.epoch >= :epoch"
    )
    try:
        return int(value(url, statement, epoch=epoch))
    except Exception:  # the tables are not there yet
        return 0


def test_a_node_joins_and_one_is_lost_and_the_study_ends_exact(
    start_dialin: Start, nodes: RayNodes, patient: Path, postgres_url: str
) -> None:
    secret = "to-be-told-to-nobody"  # the server takes any password
    here = make_url(postgres_url).set(password=secret).render_as_string(hide_password=False)
    run = start_dialin(
        *("run", patient, "--trials", 4, "--epochs", 100, "--pruner", "none", "--on", nodes.address),
        DIALIN_STORAGE=here,
    )
    run.wait_until(lambda: working(postgres_url) == 1, PATIENCE)
    nodes.add("second")
    run.wait_until(lambda: working(postgres_url, 2) == 2, PATIENCE)
    assert "1 worker with 1 CPU asked of Ray, which has room for 2 in all\n" in run.stdout
    before = {*rows(postgres_url, EPOCHS)}
    nodes.lose("first")
    run.wait_for("is gone; Ray starts another where there is room; its trial goes on elsewhere\n", PATIENCE)
    nodes.add("third")  # where Ray starts it
    run.wait_until(lambda: value(postgres_url, "SELECT count(*) FROM dialin_workers") == 3, PATIENCE)
    assert_told_to_nobody(secret, nodes)
    (patient.parent / "hurry").touch()
    assert run.wait() == 0, run.stdout + run.stderr
    assert states(assert_settled(postgres_url, "patient-1", 4)) == {TrialState.COMPLETE: 4}
    after = rows(postgres_url, EPOCHS)
    assert after == [(number, epoch) for number in range(4) for epoch in range(1, 101)]
    assert before < {*after}
    endings = [ending for _, _, ending in rows(postgres_url, OWNERS)]
    assert sorted(endings) == ["died", *["settled"] * 4]
    assert "(raylet)" not in run.stdout + run.stderr


def assert_told_to_nobody(secret: str, nodes: RayNodes) -> None:
    """The database's password stands in no command line and in nothing that Ray has written."""
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert any("ray::DialinWorker" in command for command in commands)
    assert [command for command in commands if secret in command] == []
    files = [file for file in nodes.folder.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


def test_no_worker_outlives_its_command(start_dialin: Start, nodes: RayNodes, patient: Path, postgres_url: str) -> None:
    """Ctrl-C hands the trials of all nodes back; another command goes on with one, and is killed."""
    here = {"DIALIN_STORAGE": postgres_url, "RAY_ADDRESS": nodes.address}
    run = start_dialin("run", patient, "--trials", 3, "--epochs", 400, "--pruner", "none", "--on", "ray", **here)
    run.wait_until(lambda: working(postgres_url) == 2, PATIENCE)
    pids = [pid for (pid,) in rows(postgres_url, PIDS)]
    run.interrupt()
    assert run.wait() == 130
    assert "giving the trials back" in run.stdout
    assert "failed" not in run.stdout
    assert all_have_ended(pids)
    assert rows(postgres_url, OWNERS) == [(number, 1, "handed_back") for number in (1, 2)]

    resumed = start_dialin("resume", "--objective", patient, "--on", "ray", "--workers", 1, **here)
    resumed.wait_until(lambda: working(postgres_url) == 1, PATIENCE)
    assert len(rows(postgres_url, OWNERS)) == 3
    pids = [pid for (pid,) in rows(postgres_url, PIDS)]
    resumed.send_signal(signal.SIGKILL)
    wait_until(lambda: all_have_ended(pids), "the workers of a command that is gone")


class TestRefused:
    def test_sqlite(self, inside: Inside, sqlite_url: str) -> None:
        said = inside("run", "digits", "--on", "ray", "--storage", sqlite_url)
        assert said.status == 2
        assert said.err == (
            "dialin: workers on a cluster share a PostgreSQL, and SQLite is for one machine: "
            "put postgresql://USER:PASSWORD@HOST/DATABASE into DIALIN_STORAGE\n"
        )

    @pytest.mark.parametrize("url", ["postgresql://me:s3cr%25t@db/x", "postgresql://me@db/x?password=s3cr%25t"])
    def test_a_password_that_ray_would_show(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        said = (
            "^the password on the command line would be shown by Ray's dashboard: put the URL into DIALIN_STORAGE, or "
            "the password into ~/.pgpass$"
        )
        monkeypatch.setattr(sys, "argv", ["dialin", "run", f"--storage={url}", "--on", "127.0.0.1:1"])
        with pytest.raises(UsageError, match=said):
            ray_cluster.check("127.0.0.1:1", url, "digits", Placement())
        monkeypatch.setattr(sys, "argv", ["dialin", "run", "--on", "127.0.0.1:1"])
        with pytest.raises(DialinError, match="Connection refused"):
            ray_cluster.check("127.0.0.1:1", url, "digits", Placement())

    def test_where_no_cluster_answers(self, inside: Inside, postgres_url: str) -> None:
        said = inside("run", "digits", "--on", "127.0.0.1:1", "--storage", postgres_url)
        assert (said.status, said.out) == (1, "")
        assert said.err == "dialin: no Ray cluster answers at 127.0.0.1:1 (Connection refused)\n"
        assert value(postgres_url, "SELECT count(*) FROM studies") == 0

    def test_what_is_no_address(self, inside: Inside, postgres_url: str) -> None:
        said = inside("run", "digits", "--on", "slurm", "--storage", postgres_url)
        assert said.status == 2
        assert "--on is ray, or an address such as ray://HOST:10001 or HOST:6379, but got 'slurm'\n" in said.err

    def test_without_ray(self, inside: Inside, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)  # what cannot be imported
        said = inside("run", "digits", "--on", "ray", "--storage", postgres_url)
        assert said.status == 2
        assert said.err == "dialin: workers on a Ray cluster need Ray: pip install 'dialin[ray]'\n"

    def test_an_objective_by_value(self) -> None:
        objective = ByValue("notebook:net", "net", "", Path("notebook"), None, {})
        with pytest.raises(UsageError, match="name a file that all of them have"):
            ray_cluster.check("ray", "postgresql://localhost/x", objective, Placement())

    def test_another_source_on_the_node(self, tmp_path: Path) -> None:
        assignment = Assignment("sqlite://", "tiny-1", str(TINY), (Slot(("cpu",), 0, None),), 1, tmp_path, tmp_path)
        with pytest.raises(
            DialinError, match=r"the source of .*tiny.py here \(\w{8}\) is not the study's \(abcdef01\)"
        ):
            ray_worker._begun(ray_worker.Orders(assignment, "abcdef0123", str(OBJECTIVES)))


def node(cpus: float, gpus: float = 0) -> Mapping[str, Any]:
    return {"Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}}


@pytest.mark.parametrize(
    ("has", "placement", "share", "room"),
    [
        ([node(0), node(1), node(2)], Placement(), Share(1, 0), 3),
        ([node(8), node(8)], Placement(workers=4), Share(4, 0), 4),
        ([node(8), node(2)], Placement(workers=3), Share(2, 0), 5),
        ([node(2)], Placement(workers=9), Share(1, 0), 2),
        ([node(64, 8), node(16)], Placement(), Share(8, 1), 8),
        ([node(64, 8), node(16)], Placement(devices="cpu"), Share(1, 0), 80),
        ([node(64, 8), node(4, 1)], Placement(per_device=7), Share(1, 7), 60),
        ([node(0)], Placement(), Share(1, 0), 0),
    ],
)
def test_workers_get_the_cpus_that_leave_room_for_all(
    has: list[Mapping[str, Any]], placement: Placement, share: Share, room: int
) -> None:
    assert share_of(has, placement) == share
    assert share.room(has) == room


@pytest.mark.parametrize("per_gpu", range(1, 33))
def test_the_parts_of_a_gpu_fit_into_one(per_gpu: int) -> None:
    assert round(Share(1, per_gpu).gpus * 10_000) * per_gpu <= 10_000


def test_numbers_of_none_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--workers must be at least 1, but got -1$"):
        share_of([node(4)], Placement(workers=-1))
    with pytest.raises(UsageError, match=r"^--per-device must be at least 1, but got 0$"):
        share_of([node(4, 1)], Placement(per_device=0))


@pytest.mark.parametrize("placement", [Placement(devices="0,2"), Placement(per_device=2)])
def test_gpus_are_not_named_or_counted_where_ray_gives_them(placement: Placement) -> None:
    with pytest.raises(UsageError, match=r"--devices names GPUs of this machine|--per-device 2 counts"):
        share_of([node(4)], placement)
