"""docker-compose.yml, read as Compose reads it, against what the commands accept; no Docker engine is needed.

The services' own command lines run here on a test database: the environment is the service's own, with the
host `database` replaced by the test server and the folders by the test's.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from command import Running
from postgres_server import PostgresServer
from sqlalchemy.engine import URL, make_url
from studies import Inside

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"POSTGRES_PASSWORD": "fromTheTest1"}
OURS = ("server", "worker", "worker-gpu", "dialin")
# What the file's first lines tell people to type, from the command's name on.
HEADER_COMMANDS = re.findall(
    r"^#.*docker compose run --rm (?:dialin|worker-gpu) (\w.*?)(?:   .*)?$",
    (ROOT / "docker-compose.yml").read_text(),
    re.MULTILINE,
)


class MissingSettingError(Exception):
    """A variable of the form ${NAME:?message} is not set."""


def substitute(value: Any, settings: dict[str, str]) -> Any:
    """Compose's ${NAME}, ${NAME:-default} and ${NAME:?message}, anywhere in the file; $$ is a dollar sign."""
    if isinstance(value, dict):
        return {key: substitute(inner, settings) for key, inner in value.items()}
    if isinstance(value, list):
        return [substitute(inner, settings) for inner in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name, operator, word = match["name"], match["operator"], match["word"]
        if match[0] == "$$":
            return "$"
        if settings.get(name):
            return settings[name]
        if operator == ":?":
            raise MissingSettingError(f"{name}: {word}")
        return word or ""

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<word>[^}]*))?\}", one, value)


@cache
def written() -> dict[str, Any]:
    """The file as it is written, anchors resolved."""
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return compose


def services(settings: dict[str, str] = SETTINGS) -> dict[str, Any]:
    """The services as Compose sees them with these variables set."""
    found: dict[str, Any] = substitute(written(), settings)["services"]
    return found


def has_volume_at(name: str, path: str) -> bool:
    """Whether a volume that the file declares is mounted at this place in the service's container."""
    volumes = [volume.partition(":") for volume in services()[name]["volumes"]]
    return any(target == path and source in written()["volumes"] for source, _, target in volumes)


def test_without_a_password_nothing_starts_and_the_message_says_where_it_goes() -> None:
    with pytest.raises(MissingSettingError, match=r"POSTGRES_PASSWORD: write it into \.env"):
        services({})


def test_no_password_is_in_the_repository() -> None:
    for name, service in written()["services"].items():
        assert "env_file" not in service, "a second place for secrets"
        for variable, value in service.get("environment", {}).items():
            assert "PASSWORD" not in variable or value.startswith("${POSTGRES_PASSWORD:?"), name
            assert "://" not in value or "dialin:${POSTGRES_PASSWORD:?" in value, name
    example = (ROOT / ".env.example").read_text()
    assert "POSTGRES_PASSWORD=\n" in example
    assert ".env\n" in (ROOT / ".gitignore").read_text()
    assert "PASSWORD" not in (ROOT / "Dockerfile").read_text()


def test_every_setting_is_explained_in_the_example() -> None:
    names = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert names == set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


def test_the_database_keeps_its_data_and_says_when_it_is_ready() -> None:
    database = services()["database"]
    name, _, version = database["image"].partition(":")
    assert name == "postgres"
    assert int(version) >= 18
    assert has_volume_at("database", "/var/lib/postgresql")
    assert database["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert all(services()[name]["depends_on"]["database"]["condition"] == "service_healthy" for name in OURS)


def test_every_service_reaches_the_database_that_is_started() -> None:
    created = services()["database"]["environment"]
    for name in OURS:
        url = make_url(services()[name]["environment"]["DIALIN_STORAGE"])
        assert url == URL.create(
            "postgresql",
            created["POSTGRES_USER"],
            created["POSTGRES_PASSWORD"],
            "database",
            5432,
            created["POSTGRES_DB"],
        )


def test_ports_are_published_on_loopback_only() -> None:
    ports = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert ports == {"server": ["127.0.0.1:8080:8080"]}
    assert not any("network_mode" in service for service in services().values())


def test_checkpoints_and_data_lie_on_volumes_that_all_share() -> None:
    for name in OURS:
        assert services()[name]["environment"]["DIALIN_FILES"] == "/files"
        assert services()[name]["environment"]["DIALIN_DATA"] == "/data"
        assert has_volume_at(name, "/files")
        assert has_volume_at(name, "/data")
    folder = services(SETTINGS | {"DATA_FOLDER": "/srv/datasets"})["worker"]["volumes"]
    assert "/srv/datasets:/data" in folder


def test_only_the_gpu_worker_asks_for_gpus_and_only_in_its_profile() -> None:
    asking = {name for name, service in services().items() if "deploy" in service}
    assert asking == {"worker-gpu"}
    (device,) = services()["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["count"], device["capabilities"]) == ("all", ["gpu"])
    assert services()["worker-gpu"]["profiles"] == ["gpu"]
    assert "profiles" not in services()["worker"]


def test_workers_can_be_scaled_and_have_time_to_hand_back() -> None:
    for name in ("worker", "worker-gpu"):
        service = services()[name]
        assert "container_name" not in service
        assert "ports" not in service
        assert service["stop_grace_period"] == "10s"
        assert service["init"] is True
        assert service["restart"] == "unless-stopped"


def test_whatever_trains_or_tries_an_objective_has_shared_memory_for_its_batches() -> None:
    assert {services()[name]["shm_size"] for name in OURS} == {"1gb"}


def test_the_image_runs_the_command_as_a_user_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["dialin"]' in lines
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("root", "0")
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert {"search", "objectives", "storage", "pyproject.toml", "constraints.txt"} <= copied
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


Options = Callable[[str], set[str]]


@pytest.fixture
def options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Options:
    """Which options a command has, as its help says."""
    monkeypatch.setenv("COLUMNS", "200")

    def of(command: str) -> set[str]:
        helped = Inside(capsys, monkeypatch)(command, "--help")
        assert helped.status == 0, helped.err
        return set(re.findall(r"--[a-z-]+", helped.out))

    return of


@pytest.mark.parametrize("name", OURS)
def test_a_service_uses_only_options_that_its_command_has(name: str, options: Options) -> None:
    command, *rest = services()[name]["command"]
    assert {word for word in rest if word.startswith("--")} <= options(command)


@pytest.mark.parametrize("line", HEADER_COMMANDS)
def test_the_header_names_commands_that_exist(line: str, options: Options) -> None:
    command, *rest = line.split()
    assert {word for word in rest if word.startswith("--")} <= options(command)


@pytest.fixture
def environment(postgres_server: PostgresServer, postgres_url: str, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """A service's own environment, with the test's database for `database` and the test's folders."""
    fresh = make_url(postgres_url)
    role = services()["database"]["environment"]["POSTGRES_USER"]
    # The image's POSTGRES_USER is the superuser.
    postgres_server.execute(
        f"DO $$ BEGIN CREATE ROLE {role} SUPERUSER LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )

    def of(name: str) -> dict[str, str]:
        found: dict[str, str] = dict(services()[name]["environment"])
        own = make_url(found["DIALIN_STORAGE"])
        here = own.set(host=None, port=None, database=fresh.database, query=fresh.query)
        found["DIALIN_STORAGE"] = here.render_as_string(hide_password=False)
        for variable in ("DIALIN_FILES", "DIALIN_DATA"):
            folder = tmp_path / found[variable].lstrip("/")
            folder.mkdir(exist_ok=True)
            found[variable] = str(folder)
        return found

    return of


def trials_by_state(url: str, study: str) -> Counter[str]:
    """How many trials are in which of Optuna's states; none while there is no study, or no table."""
    with psycopg.connect(url) as connection:
        if connection.execute("SELECT to_regclass('trials')").fetchone() == (None,):
            return Counter()
        rows = connection.execute(
            "SELECT state::text, count(*) FROM trials JOIN studies USING (study_id)"
            " WHERE study_name = %s GROUP BY state",
            (study,),
        )
        return Counter(dict(rows.fetchall()))


def fetch(url: str, token: str) -> str | None:
    """The page when the answer is 200, None while nobody answers."""
    try:
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
            page: str = answer.read().decode()
            return page
    except (urllib.error.URLError, ConnectionError):
        return None


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.new_database
def test_services_started_together_on_an_empty_database_finish_a_study_that_was_left(
    start_dialin: Callable[..., Running], environment: Callable[[str], dict[str, str]], postgres_url: str
) -> None:
    port = free_port()
    maker = start_dialin("token", "create", "me", **environment("dialin"))
    assert maker.wait() == 0, maker.stderr
    token = maker.stdout.strip()
    command = [word.replace("8080", port) for word in services()["server"]["command"]]
    server = start_dialin(*command, **environment("server"))
    workers = [start_dialin(*services()[name]["command"], **environment(name)) for name in ("worker", "worker-gpu")]
    # What `cpus: 1` does in a container: without it each worker computes on every core, in the others' way.
    cores = sorted(os.sched_getaffinity(0))
    for number, worker in enumerate(workers):
        os.sched_setaffinity(worker.pid, {cores[number % len(cores)]})
    starter = start_dialin(
        *("run", "digits", "--study", "digits-1", "--trials", 6, "--epochs", 1, "--workers", 1),
        **environment("dialin"),
    )

    starter.wait_until(lambda: trials_by_state(postgres_url, "digits-1")["RUNNING"])
    starter.interrupt()
    starter.wait(timeout=30)
    # The workers end when they like; the server stays, so it is the one to be waited with.
    server.wait_until(
        lambda: (
            {*trials_by_state(postgres_url, "digits-1")} <= {"COMPLETE", "PRUNED"}
            and trials_by_state(postgres_url, "digits-1").total() == 6
        ),
        timeout=120,
    )
    server.wait_until(lambda: fetch(f"http://127.0.0.1:{port}/dashboard/", token))
    assert "digits-1" in (fetch(f"http://127.0.0.1:{port}/v1/studies", token) or "")
    for running in [*workers, server]:
        assert running.process.poll() in (None, 0), running.stderr
        running.send_signal(signal.SIGTERM)
        running.wait(timeout=10)
        assert "Traceback" not in running.stdout + running.stderr
    assert trials_by_state(postgres_url, "digits-1").total() == 6
