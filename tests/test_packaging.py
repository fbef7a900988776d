"""What the project promises as a whole: what it installs, the README's commands, who may import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("search", "objectives", "storage")

# The ground floor first. A module imports from its own layer and those below; one that is not here fails.
LAYERS = (
    """storage storage.*""",
    """search search.errors search.objective search.data search.datasets search.metrics search.space
    search.knobs search.narrowing search.wishes search.settings search.fused search.optimizers
    search.schedules search.arguments""",
    """objectives objectives.*""",
    """search.training search.curve search.evaluation search.steps search.streams search.predictions
    search.batches search.layout search.checkpoints search.randomness search.failures search.snapshots
    search.reporting search.loop search.micro_batches search.exactness search.micro_batch_size
    search.graphed search.python_state search.fingerprint""",
    """search.strategy search.auto search.improvement search.curve_model search.curve_points search.epoch_cost
    search.grace search.recipe_space search.judge search.chooser search.strategies
    search.samplers search.portfolio search.transfer search.first_trials search.worker search.fleet search.devices
    search.device_memory search.crew
    search.assignment search.interrupt
    search.keeper search.bare search.own_trial search.trainer search.loading
    search.pace search.preflight search.preload search.restarts search.preview search.reporter search.outbox
    search.checkpointer search.shelf search.checkpoint_settings search.foresight search.uncompiled
    search.trial_log search.by_value search.children search.artifacts search.telling search.trackers search.trackers.*
    search.shared_data search.module_state search.packing search.memory search.sizes search.watchdog
    search.space_changes search.test_split search.provenance search.peak_memory search.told search.hooks""",
    """search.cli search.cli_train search.cli_one search.cli_studies search.cli_look search.cli_storage
    search.cli_queue
    search.cli_confirm search.confirming search.confirmation search.confirmation_page search.intervals search.ranking
    search.foreground search.chart search.trial_page search.logs search.options search.live search.feed search.launch
    search.ray_fleet search.ray_worker search.ray_cluster
    search.solo search.queue_worker search.attendant search.allowed search.kept search.left_alone
    search.place search.searches search.terms
    search.views search.notebook search.api search.calls search.detached
    search.printing
    search.dashboard search.check search.check_lines search.check_own search.cli_report search.trial_table
    search.cost_table search.written search.advice search.advice.* search.advice_text search.report search.report.*
    search.promises search.comparing search.replay search.own_source search.plain_torch search.plain_loop
    search.export_facts search.model_card search.export search.answers search.cli_answer
    search.plain_answers search.cli_serve search.server search.server.*
    search.template search.knob_table search.integrations search.integrations.*""",
)
# What a layer must not know: values need no database and no terminal, and the database needs no tensors.
OUTSIDE = {"sqlalchemy", "psycopg", "typer", "rich", "optuna_dashboard", "storage"}
FORBIDDEN = {1: {"torch", "torchvision", "sklearn"}, 2: OUTSIDE, 3: OUTSIDE, 4: OUTSIDE}
# But every layer speaks of errors, of how a trial can end and of how many there are.
VOCABULARY = {"storage.errors", "storage.outcomes", "storage.words"}


PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# What may unpickle, and why: what it reads came through a pipe from the command that started the process, as the
# process's own orders did.
PIPES_ONLY = {"search/packing.py"}
UNPICKLING = {"load", "loads", "open", "Unpickler", "read_pickle"}


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that git knows, or would take if it were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(path for name in listing.split("\0") if name and (path := ROOT / name).is_file())


@cache
def modules() -> dict[str, Path]:
    """The packages' modules by dotted name."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def layer(module: str) -> int | None:
    """1 is the ground floor; None: in no layer."""
    for number, patterns in enumerate(LAYERS, start=1):
        if any(fnmatch(module, pattern) for pattern in patterns.split()):
            return number
    return None


def imports(source: str) -> set[str]:
    """The modules that a module imports at run time, anywhere in it: ours by name, others as written."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides which package is meant"
            assert node.module is not None
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in modules() else node.module for name in names}
        todo += ast.iter_child_nodes(node)
    return found


def metadata() -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def readme_commands() -> list[str]:
    """The README's first two fenced blocks."""
    return re.findall(r"^```\w*\n(.*?)\n```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[:2]


def test_the_distribution_needs_what_the_design_lists_and_no_more() -> None:
    project = metadata()
    assert project["name"] == "dialin"
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "MIT"
    assert project["scripts"] == {"dialin": "search.cli:main"}
    assert set(project["dependencies"]) == {  # type: ignore[call-overload]
        "optuna>=5,<6",
        "torch>=2.11",
        "torchvision",
        "sqlalchemy>=2",
        "optuna-dashboard",
        "psycopg[binary]",
        "typer",
        "rich",
        "scikit-learn",
        "pandas",
        "plotly",
        "scipy",
        "cmaes",
        "pyyaml",
        "cloudpickle",
        "matplotlib",
        "safetensors",
    }
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_every_constraint_is_an_exact_pin_and_every_direct_dependency_has_one() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)] == []
    names = [pin.partition("==")[0] for pin in pins]
    assert names == sorted(set(names))
    project = metadata()
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    wanted = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]  # type: ignore[misc]
    assert {re.split(r"[\[<>=]", one)[0] for one in wanted} - {"dialin"} <= set(names)


def test_no_file_names_a_package_index() -> None:
    # Written in pieces: this file is one of those that are searched.
    option = "|".join(("--(extra-)?index-" + "url", "--find-" + "links", "--trusted-" + "host"))
    host = "|".join(("pyp" + r"i\.org", "python" + "hosted", "download" + r"\.pytorch", "conda" + r"\.anaconda"))
    pattern = re.compile(f"{option}|{host}|/(simple|whl)/")
    named = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked_files()
        if path != Path(__file__) and (match := pattern.search(path.read_text(errors="replace")))
    ]
    assert named == []


def test_the_readme_opens_with_the_two_commands() -> None:
    install, test = readme_commands()
    assert install.split(" && ") == [
        "python3 -m venv .venv",
        ". .venv/bin/activate",
        "pip install -e . -c constraints.txt",
        "dialin run digits",
    ]
    assert test.startswith(".venv/bin/pip install -e '.[test]' -c constraints.txt && .venv/bin/python -m pytest")
    above = (ROOT / "README.md").read_text().partition(test)[0]
    assert "\n## " not in above


def test_continuous_integration_takes_its_commands_from_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script
    assert "pip install" not in script
    # The script's own way of finding them gives the same two.
    finder = re.search(r"mapfile -t commands < <\((.*)\)$", script, re.MULTILINE)
    assert finder is not None
    shown = subprocess.run(["bash", "-c", finder.group(1)], cwd=ROOT, check=True, capture_output=True, text=True)
    assert shown.stdout.splitlines() == readme_commands()


@pytest.mark.parametrize("readme", ["", "# Dialin\n\n```sh\ndialin run digits\n```\n"])
def test_continuous_integration_fails_without_the_readmes_commands(tmp_path: Path, readme: str) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    (tmp_path / "README.md").write_text(readme)
    ended = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "two commands" in ended.stderr
    assert (tmp_path / ".venv").is_dir()


def test_everything_in_the_packages_is_installed_with_them() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    installed = ["*.py", *patterns.get("*", [])]
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in tracked_files()
        if path.relative_to(ROOT).parts[0] in PACKAGES and not any(fnmatch(path.name, pattern) for pattern in installed)
    ]
    assert missing == []


def test_every_module_has_a_layer() -> None:
    assert [name for name in modules() if layer(name) is None] == []


@pytest.mark.parametrize("module", modules())
def test_no_module_imports_upwards(module: str) -> None:
    own = layer(module)
    assert own is not None
    found = imports(modules()[module].read_text()) - VOCABULARY
    assert sorted(name for name in found if (layer(name) or 0) > own) == []
    assert sorted(name for name in found if name.partition(".")[0] in FORBIDDEN.get(own, set())) == []


def test_an_objective_is_short_and_knows_only_what_an_author_needs() -> None:
    for name, path in modules().items():
        if name.startswith("objectives."):
            assert len(path.read_text().splitlines()) < 120, name
            ours = {other for other in imports(path.read_text()) if other in modules()}
            assert sorted(other for other in ours if layer(other) != 2) == [], name


def test_the_layer_test_sees_an_import_wherever_it_stands() -> None:
    source = """
from typing import TYPE_CHECKING
from search import Objective, devices
if TYPE_CHECKING:
    from search.live import View
else:
    import search.fleet
def later():
    import storage.errors as errors
"""
    assert imports(source) == {"typing", "search", "search.devices", "search.fleet", "storage.errors"}


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in python_files()}
    assert {str(name): length for name, length in lengths.items() if length > 400} == {}


def test_nothing_is_unpickled() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{getattr(call, 'lineno', 0)}: {ast.unparse(call)}"
        for path in python_files()
        if path != Path(__file__)
        for call in ast.walk(ast.parse(path.read_text()))
        if unpickles(call)
    ]
    assert {place.partition(":")[0] for place in found} == PIPES_ONLY
    assert len(found) == 1


def unpickles(call: ast.AST) -> bool:
    """Whether it can run what it reads: pickle and its kin, a class of theirs, torch.load without weights_only=True."""
    if isinstance(call, ast.ClassDef):
        return any(ast.unparse(base).endswith("Unpickler") for base in call.bases)
    if not isinstance(call, ast.Call):
        return False
    name = ast.unparse(call.func)
    if name == "torch.load":
        return not any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)
    package, _, function = name.rpartition(".")
    return function in UNPICKLING and (package in PICKLES or function == "read_pickle")


@pytest.mark.parametrize(
    ("expression", "dangerous"),
    [
        ("pickle.load(f)", True),
        ("pickle.loads(b)", True),
        ("joblib.load(f)", True),
        ("pandas.read_pickle(f)", True),
        ("torch.load(f)", True),
        ("torch.load(f, weights_only=False)", True),
        ("torch.load(f, map_location='cpu', weights_only=True)", False),
        ("json.load(f)", False),
        ("class Mine(pickle.Unpickler): pass", True),
        ("class Mine(Unpickler): pass", True),
        ("class Mine(Mapping): pass", False),
    ],
)
def test_the_test_for_unpickling_knows_what_is_dangerous(expression: str, dangerous: bool) -> None:
    assert any(unpickles(node) for node in ast.walk(ast.parse(expression))) is dangerous


def python_files() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py"]
