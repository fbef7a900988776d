"""What `dialin init` writes runs as it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from forgetting import imports_forgotten

from search.loading import resolve
from search.objective import Objective
from search.preview import first_batch
from search.randomness import seed_everything
from search.reporting import EpochResult, Verdict
from search.space import recipe_from_params, starting_points
from search.template import write_template
from search.training import train
from storage.errors import UsageError


@pytest.fixture(autouse=True)
def own_imports(tmp_path: Path) -> Iterator[None]:
    with imports_forgotten(tmp_path):
        yield


class Watching:
    """A reporter that lets every epoch go on."""

    def restore(self) -> None:
        return None

    def report(self, result: EpochResult, state: Callable[[], dict[str, Any]] | None) -> Verdict:
        return Verdict.GO_ON

    def between_batches(self, batch: int, state: Callable[[], dict[str, Any]]) -> None:
        pass

    def interrupted(self) -> bool:
        return False


def test_what_is_written_loads_and_trains_to_a_sensible_accuracy(tmp_path: Path) -> None:
    write_template(tmp_path / "tumours.py")
    loaded = resolve(str(tmp_path / "tumours.py"))
    objective = loaded.objective
    assert first_batch(loaded, tmp_path).metrics["accuracy"] < 0.9
    params = starting_points(objective)[0] | {"width": 32, "depth": 1, "dropout": 0.1}
    seed_everything(0)
    task = objective.task(optuna.trial.FixedTrial(params))
    result = train(
        task,
        objective.data(tmp_path),
        recipe_from_params(params, objective),
        objective,
        device=torch.device("cpu"),
        seed=0,
        reporter=Watching(),
    )
    assert result.value is not None
    assert result.value >= 0.93


def test_its_own_commands_name_the_file_that_was_written(tmp_path: Path) -> None:
    write_template(tmp_path / "tumours.py")
    text = (tmp_path / "tumours.py").read_text()
    assert "dialin run tumours.py" in text
    assert "my_model.py" not in text


def test_it_stays_short(tmp_path: Path) -> None:
    write_template(tmp_path / "my_model.py")
    assert len((tmp_path / "my_model.py").read_text().splitlines()) <= 45


def test_it_describes_itself_in_listings(tmp_path: Path) -> None:
    write_template(tmp_path / "my_model.py")
    objective: Objective = resolve(str(tmp_path / "my_model.py")).objective
    assert objective.description.startswith("Breast tumours")


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "my_model.py"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"my_model.py exists already; .*--force"):
        write_template(path)
    assert path.read_text() == "mine"
    write_template(path, force=True)
    assert "objective = Objective(" in path.read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_model", "must end in .py"),
        ("my_model.txt", "must end in .py"),
        ("no/such/folder/my_model.py", "no folder "),
        ("search.py", "the name of a package of dialin's"),
        ("folder.py", "folder.py exists already"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UsageError, match=said) as caught:
        write_template(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_cannot_be_written_over(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*folder\.py: Is a directory"):
        write_template(tmp_path / "folder.py", force=True)
