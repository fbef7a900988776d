"""What cannot be done as asked is one line on standard error that names the thing, before any trial is spent."""

from __future__ import annotations

import gzip
import socket
from pathlib import Path

import pytest
from command import Dialin
from studies import TINY, TINY_TEXT, Inside, Said, rows
from torchvision.datasets import FashionMNIST

# Taken by the tests of a study that exists; its metric's direction can be edited.
SCORED = (
    TINY_TEXT.replace(
        "objective = Objective(",
        "class Score:\n"
        "    def update(self, outputs, targets):\n"
        "        self.seen = float(outputs.mean())\n\n"
        "    def compute(self):\n"
        "        return self.seen\n\n"
        "    def reset(self):\n"
        "        self.seen = 0.0\n\n\n"
        "objective = Objective(",
    )
    .replace('metric=("accuracy", "loss")', 'metric=Score(), direction="maximize"')
    .replace("epochs=4", "epochs=1")
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'dialin.db'}"


def studies(url: str) -> list[str]:
    """Names of the studies in a database; none where there is no database."""
    if not Path(url.removeprefix("sqlite:///")).exists():
        return []
    return [name for (name,) in rows(url, "SELECT study_name FROM studies")]


def assert_one_line(said: Said, status: int, *fragments: str) -> None:
    """Nothing but one line on standard error, which says all of this."""
    assert (said.status, said.out) == (status, "")
    assert said.err.startswith("dialin: ")
    assert said.err.count("\n") == 1, said.err
    for fragment in fragments:
        assert fragment in said.err


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "fragments"),
        [
            (["run", "digit"], ["no objective 'digit'", "did you mean digits?"]),
            (["run", "./nothing.py"], ["no file ./nothing.py", "dialin init"]),
            (["run", "digits", "--trials", "-3"], ["--trials", "1"]),
            (["run", "digits", "--trials", "0"], ["--trials", "1"]),
            (["run", "digits", "--epochs", "0"], ["--epochs", "1"]),
            (["run", "digits", "--workers", "0"], ["--workers", "1"]),
            (["run", "digits", "--seed", "-1"], ["--seed", "0"]),
            (["run", "digits", "--sampler", "grid"], ["no sampler 'grid'", "tpe, gp, cmaes, qmc, random"]),
            (["run", "digits", "--pruner", "best"], ["no pruner 'best'", "hyperband, asha, median, none"]),
            (["run", "digits", "--rate", "3"], ["--rate"]),
            (["run", "digits", "--data", "nowhere"], ["nowhere", "--data"]),
            (["run", "digits", "--storage", "mysql://host/name"], ["mysql", "sqlite:///", "postgresql://"]),
            (["run", "digits", "--storage", "studies.db"], ["studies.db", "sqlite:///"]),
            (["run", "digits", "--devices", "7"], ["--devices '7'", "no device"]),
            (["run"], ["OBJECTIVE"]),
            (["search"], ["search"]),
            (["resume", "--trials", "many"], ["--trials", "'many'"]),
            (["best", "--top", "0"], ["--top", "1"]),
            (["best", "--format", "xml"], ["--format", "xml"]),
            (["best", "--format", "yaml", "--json"], ["--json is --format json", "--format yaml", "leave one"]),
            (["trials", "--format", "csv", "--json"], ["--json is --format json", "--format csv", "leave one"]),
            (["init", "my_model.txt"], ["my_model.txt", ".py"]),
            (["worker", "digits-1", "--wait"], ["--wait"]),
            (["check", "nothing"], ["no objective 'nothing'"]),
            (["objectives", "nothing"], ["no objective 'nothing'"]),
        ],
        ids=" ".join,
    )
    def test_a_mistake_is_one_line_and_leaves_no_study(
        self, inside: Inside, url: str, arguments: list[str], fragments: list[str]
    ) -> None:
        assert_one_line(inside(*arguments), 2, *fragments)
        assert studies(url) == []

    @pytest.mark.parametrize("command", ["status", "best", "stop", "resume", "worker", "confirm"])
    def test_an_unknown_study_is_named(self, inside: Inside, command: str, tmp_path: Path) -> None:
        assert_one_line(inside(command, "digits-9"), 2)
        assert [path.name for path in tmp_path.iterdir() if path.name != "dialin-files"] == []


class TestDatabases:
    def test_a_folder_that_is_not_there(self, inside: Inside, tmp_path: Path) -> None:
        assert_one_line(inside("run", TINY, "--storage", "sqlite:///no/such/studies.db"), 1, "no/such")
        assert not (tmp_path / "no").exists()

    def test_a_server_that_is_not_running(self, inside: Inside) -> None:
        with socket.socket() as taken:  # bound, and nobody listens
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            said = inside("status", "--storage", f"postgresql://me:secret@127.0.0.1:{port}/studies")
        assert_one_line(said, 1, f"127.0.0.1:{port}")
        assert "secret" not in said.err

    def test_a_file_that_is_no_database(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "dialin.db").write_text("these are my notes, and no database at all" * 100)
        said = inside("run", TINY)
        assert said.status in (1, 2)
        assert_one_line(said, said.status, "dialin.db")

    def test_a_folder_in_the_place_of_the_file(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "dialin.db").mkdir()
        said = inside("run", TINY)
        assert said.status in (1, 2)
        assert_one_line(said, said.status, "dialin.db")


MISTAKES = {
    "no objective in the module": (
        TINY_TEXT.replace("objective = Objective(", "searched = Objective("),
        ["mine.py has no `objective`", "mine.py:searched"],
    ),
    "outputs that do not fit the loss": (
        TINY_TEXT.replace("nn.Linear(width, 2)", "nn.Linear(width, 1)"),
        ["the loss of outputs float32 (16, 1), targets int64 (16,)"],
    ),
    "a first loss that is not finite": (
        TINY_TEXT.replace("return split(points, ", "return split(points / 0, "),
        ["the first loss is nan", "the inputs already hold nan or infinity"],
    ),
    "no data": (TINY_TEXT.replace("torch.randn(160, 4", "torch.randn(0, 4"), ["mine.py:19: the whole split is empty"]),
    "a metric that is no number": (
        SCORED.replace("return self.seen", 'return "high"'),
        ["metric 'score' must compute one number, but got 'high'"],
    ),
    "data that raises": (TINY_TEXT.replace("points = torch.randn", "points = torch.rondn"), ["data()", "rondn"]),
    "a model that is no network": (
        TINY_TEXT.replace("return nn.Sequential(", 'return "a network"  # ('),
        ["model must return a torch.nn.Module or a Task, but returned str"],
    ),
}


class TestObjectives:
    def test_what_dialin_refuses_in_a_module_needs_no_frames(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(TINY_TEXT.replace('metric=("accuracy", "loss")', 'metric="acuracy"'))
        assert_one_line(inside("run", "mine.py"), 2, "mine.py:", "but got 'acuracy': did you mean 'accuracy'?")

    @pytest.mark.parametrize(
        ("text", "led_to_it"),
        [
            ("try:\n    open('not there')\nexcept OSError:\n    raise ObjectiveError('no file')", "open('not there')"),
            ("def named(name):\n    return Objective(metric=name)\n\nnamed('acuracy')", "named('acuracy')"),
        ],
    )
    def test_what_led_to_a_refusal_is_in_its_frames(
        self, text: str, led_to_it: str, inside: Inside, tmp_path: Path
    ) -> None:
        (tmp_path / "mine.py").write_text(f"from search import Objective, ObjectiveError\n{text}\n")
        *frames, line = inside("run", "mine.py").err.splitlines()
        assert line.startswith("dialin: mine.py:")
        assert any(led_to_it in frame for frame in frames)

    @pytest.mark.parametrize("mistake", [*MISTAKES])
    def test_a_mistake_is_one_line_before_a_trial_is_spent(self, inside: Inside, tmp_path: Path, mistake: str) -> None:
        text, fragments = MISTAKES[mistake]
        (tmp_path / "mine.py").write_text(text)
        said = inside("run", "mine.py")
        assert said.status == 2
        *frames, line = said.err.splitlines()
        assert line.startswith("dialin: ")
        for fragment in fragments:
            assert fragment in line
        assert not any("/search/" in frame for frame in frames)
        assert [*tmp_path.glob("*.db")] == []

    def test_a_module_that_raises_shows_its_own_frames_and_none_of_ours(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "helper.py").write_text("def half():\n    return 1 / 0\n")
        (tmp_path / "mine.py").write_text("import helper\n\nhalf = helper.half()\n")
        ended = inside("run", "mine.py")
        assert (ended.status, ended.out) == (2, "")
        frames, line = ended.err.rstrip().rsplit("\n", 1)
        assert line == "dialin: helper.py:2: ZeroDivisionError: division by zero"
        files = [told.split('"')[1] for told in frames.splitlines() if told.lstrip().startswith("File ")]
        assert [Path(file).name for file in files] == ["mine.py", "helper.py"]

    def test_a_module_that_ends_its_process_is_a_failure_and_no_hang(self, inside: Inside, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text("import os\n\nos._exit(3)\n")
        assert_one_line(inside("run", "mine.py"), 1, "mine.py ended its process (exit code 3)")


def test_a_temporary_folder_too_long_for_a_socket_is_named(dialin: Dialin, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    ended = dialin("run", "digits", TMPDIR=str(deep))
    assert ended.returncode == 2
    assert f"the temporary folder {deep}: AF_UNIX path too long; let TMPDIR name another" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


class TestData:
    @pytest.fixture(autouse=True)
    def only_what_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DIALIN_DATA", raising=False)

    def raw(self, tmp_path: Path) -> Path:
        folder = tmp_path / "data" / "FashionMNIST" / "raw"
        folder.mkdir(parents=True)
        return folder

    def test_missing_data_says_where_it_looked_and_how_to_get_it(self, inside: Inside, tmp_path: Path) -> None:
        self.raw(tmp_path)
        assert_one_line(inside("run", "fashion_mnist", "--data", "data"), 2, str(tmp_path / "data"), "download=True")

    def test_a_truncated_file_is_named(self, inside: Inside, tmp_path: Path, url: str) -> None:
        raw = self.raw(tmp_path)
        for name, _md5 in FashionMNIST.resources:
            (raw / name).write_bytes(gzip.compress(bytes(10_000), mtime=0))
        torn = raw / FashionMNIST.resources[0][0]
        torn.write_bytes(torn.read_bytes()[:-10])
        assert_one_line(inside("run", "fashion_mnist", "--data", "data"), 2, torn.name)
        assert studies(url) == []


class TestAStudyThatExists:
    @pytest.fixture
    def mine(self, inside: Inside, tmp_path: Path) -> Path:
        """A study `mine-1` of this file, with a trial left in its budget."""
        path = tmp_path / "mine.py"
        path.write_text(SCORED)
        assert inside("run", "mine.py", "--trials", 1, "--workers", 1).status == 0
        return path

    def test_run_does_not_touch_it_and_names_resume(self, inside: Inside, mine: Path, url: str) -> None:
        assert_one_line(
            inside("run", TINY, "--study", "mine-1"), 2, "'mine-1' exists", f"`dialin resume mine-1 --objective {mine}`"
        )
        assert studies(url) == ["mine-1"]

    def test_its_objective_is_never_taken_from_the_database(self, inside: Inside, mine: Path) -> None:
        for command in (("resume", "--trials", "+1"), ("worker", "mine-1")):
            assert_one_line(inside(*command), 2, f"{mine}, which is not built in", f"--objective {mine}")

    def test_another_objective_is_refused(self, inside: Inside, mine: Path) -> None:
        for said in (
            inside("resume", "--trials", "+1", "--objective", TINY),
            inside("worker", "mine-1", "--objective", TINY),
        ):
            assert_one_line(said, 2, "'mine-1' searches", "mine.py", "tiny.py")

    def test_another_direction_is_refused(self, inside: Inside, mine: Path) -> None:
        mine.write_text(SCORED.replace('direction="maximize"', 'direction="minimize"'))
        for said in (
            inside("resume", "--trials", "+1", "--objective", "mine.py"),
            inside("worker", "mine-1", "--objective", "mine.py"),
        ):
            assert_one_line(said, 2, "was made to maximize", "now says minimize")

    def test_a_budget_below_what_is_taken_is_refused(self, inside: Inside, mine: Path) -> None:
        assert inside("resume", "--trials", "2", "--objective", "mine.py", "--workers", 1).status == 0
        assert_one_line(inside("resume", "--trials", "1", "--objective", "mine.py"), 2, "--trials 1")

    def test_weights_cannot_be_written_where_there_is_no_folder(self, inside: Inside, mine: Path) -> None:
        said = inside("best", "--weights", "no/such/best.pt")
        assert said.status == 2
        assert said.err == "dialin: cannot write no/such/best.pt: No such file or directory\n"


def test_best_before_any_complete_trial_says_where_to_look(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TINY_TEXT.replace("epochs=4", "epochs=1"))
    diverging = TINY_TEXT.replace(
        "def model(trial: Trial) -> nn.Module:\n",
        "class Late(nn.Module):\n"
        "    calls = 0\n\n"
        "    def forward(self, points):\n"
        "        self.calls += 1\n"
        "        return points / (0 if self.calls > 5 else 1)\n\n\n"
        "def model(trial: Trial) -> nn.Module:\n",
    ).replace("nn.Sequential(", "nn.Sequential(Late(), ")
    (tmp_path / "mine.py").write_text(diverging)
    run = inside("run", "mine.py", "--trials", 2, "--workers", 1, "--pruner", "none")
    assert "2 diverged" in run.out
    assert_one_line(inside("best"), 1, "mine-1 has no complete trial", "dialin status mine-1")
