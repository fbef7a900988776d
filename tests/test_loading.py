"""An objective is found by name, dotted path or file; a mistake is one line, with a person's own frames."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from forgetting import imports_forgotten
from torch import nn

from search.errors import ObjectiveError
from search.failures import RaisedError, failure, person_frames
from search.loading import builtin_objectives, resolve
from search.objective import Objective
from storage.errors import UsageError

GOOD = '''
"""A made-up objective."""
import torch
from torch import nn
from search import Data, Objective

def data(root):
    rows = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    return Data(rows, rows)

def model(trial):
    return nn.Linear(2, 3)

objective = Objective(model=model, data=data, loss=nn.CrossEntropyLoss(), epochs=2)
'''
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_imports(tmp_path: Path) -> Iterator[None]:
    with imports_forgotten(tmp_path):
        yield


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file in the test's working folder."""

    def to(name: str, text: str = GOOD) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return to


def complaint(reference: str) -> str:
    """The one line that is said when this reference cannot be resolved."""
    with pytest.raises(UsageError) as caught:
        resolve(reference)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    return str(caught.value)


def raised(reference: str) -> RaisedError:
    with pytest.raises(RaisedError) as caught:
        resolve(reference)
    assert "\n" not in str(caught.value)
    return caught.value


class TestWhatIsFound:
    def test_a_file(self, write: Write) -> None:
        path = write("my-model.py")
        found = resolve("./my-model.py")
        assert isinstance(found.objective, Objective)
        assert (found.reference, found.name, found.path) == (str(path), "my_model", path)
        assert found.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found.notes == ()

    def test_an_objective_of_another_name_in_a_file(self, write: Write) -> None:
        path = write("nets.py", GOOD + "net2 = Objective(model=model, data=data, loss=nn.MSELoss())\n")
        found = resolve(f"{path}:net2")
        assert isinstance(found.objective.loss, nn.MSELoss)
        assert (found.reference, found.name) == (f"{path}:net2", "nets_net2")

    def test_its_reference_finds_it_again_from_another_folder(
        self, write: Write, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write("deep/my_model.py")
        first = resolve("deep/my_model.py")
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert resolve(first.reference).source_sha256 == first.source_sha256

    def test_a_dotted_path_below_the_current_folder(self, write: Write) -> None:
        write("team/__init__.py", "")
        path = write("team/nets.py", GOOD + "wide = objective\n")
        assert resolve("team.nets").reference == "team.nets"
        found = resolve("team.nets:wide")
        assert (found.reference, found.name, found.path) == ("team.nets:wide", "nets_wide", path)

    def test_a_file_that_changed_is_read_again_and_leaves_no_bytecode(self, write: Write) -> None:
        before = resolve(str(write("my_model.py"))).objective.epochs
        path = write("my_model.py", GOOD.replace("epochs=2", "epochs=3"))  # Same size, same second.
        assert (before, resolve(str(path)).objective.epochs) == (2, 3)
        assert not (path.parent / "__pycache__").exists()

    def test_a_file_is_compiled_as_if_python_ran_it(self, write: Write) -> None:
        # Annotations are values there unless the file itself says otherwise, as a dataclass or pydantic needs.
        path = write("my_model.py", GOOD + "def f(x: int): pass\nassert f.__annotations__ == {'x': int}\n")
        assert resolve(str(path)).name == "my_model"

    @pytest.mark.parametrize("name", [*builtin_objectives()])
    def test_every_builtin_by_its_name(self, name: str) -> None:
        found = resolve(name)
        assert (found.reference, found.name) == (name, name)
        assert resolve(f"objectives.{name}").reference == name

    def test_a_builtin_is_listed_with_what_it_says_of_itself(self) -> None:
        assert {"digits", "fashion_mnist"} <= {*builtin_objectives()}
        assert all(builtin_objectives().values())

    def test_listing_builtins_imports_nothing_and_leaves_helpers_out(self, write: Write) -> None:
        folder = write("a.py", '"""Says this.\n\nNot this."""\nobjective = 1 / 0\n').parent
        write("b.py", "objective: int = 1 / 0\n")
        write("helper.py", '"""No objective in here."""\n')
        write("_private.py", "objective = 1\n")
        assert builtin_objectives(folder) == {"a": "Says this.", "b": ""}

    def test_listing_builtins_does_not_import_torch(self) -> None:
        program = "import sys, search.loading as s; s.builtin_objectives(); print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


class TestWhereAPersonsFolderIs:
    def test_a_neighbour_can_be_imported_but_hides_no_library(self, write: Write) -> None:
        write("neighbour.py", "EPOCHS = 5\n")
        write("json.py", "raise RuntimeError('not the json that was meant')\n")
        path = write("my_model.py", "import json, neighbour\n" + GOOD.replace("epochs=2", "epochs=neighbour.EPOCHS"))
        assert resolve(str(path)).objective.epochs == 5
        assert sys.path[-1] == str(path.parent)

    @pytest.mark.parametrize("other", ["search.py", "storage/__init__.py", "objectives/nets.py"])
    def test_a_neighbour_with_a_name_of_dialins_is_said(self, write: Write, other: str) -> None:
        write(other, "")
        (note,) = resolve(str(write("my_model.py"))).notes
        package = other.partition("/")[0].removesuffix(".py")
        assert f"`import {package}` gives dialin's, not yours" in note
        assert note.startswith(other.partition("/")[0])

    def test_a_folder_of_data_called_storage_is_no_clash(self, write: Write) -> None:
        write("storage/numbers.csv", "")
        assert resolve(str(write("my_model.py"))).notes == ()

    def test_a_module_called_search_loads_and_is_said(self, write: Write) -> None:
        found = resolve(str(write("search.py")))
        assert found.name == "search"
        assert "search.py has the name of a package of dialin's" in found.notes[0]
        assert Objective.__module__ == "search.objective"

    def test_a_file_named_as_a_library_leaves_the_library_alone(self, write: Write) -> None:
        library = sys.modules["random"]
        resolve(str(write("random.py")))
        assert sys.modules["random"] is library

    def test_what_a_file_defines_can_be_unpickled_by_another_process(self, write: Write) -> None:
        path = write("my_data.py", GOOD + "class Rows:\n    def __len__(self): return 11\n")
        resolve(str(path))
        program = (
            "import pickle, sys; sys.path.append(sys.argv[1]); print(len(pickle.loads(bytes.fromhex(sys.argv[2]))))"
        )
        pickled = pickle.dumps(sys.modules["my_data"].Rows()).hex()
        command = [sys.executable, "-c", program, str(path.parent), pickled]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "11"


class TestWhatIsNotThere:
    def test_an_unknown_name_lists_the_builtins_and_suggests_a_close_one(self) -> None:
        said = complaint("digit")
        assert said.startswith("no objective 'digit': did you mean digits? built in are adult, cifar10, digits")
        assert "./my_model.py" in said

    def test_a_name_like_no_other_suggests_nothing(self) -> None:
        assert "did you mean" not in complaint("zzzz")
        assert complaint("").startswith("no objective ''")
        assert complaint("..").startswith("no objective '..'")

    def test_a_file_named_without_its_ending_is_suggested(self, write: Write) -> None:
        write("my_model.py")
        assert "did you mean ./my_model.py?" in complaint("my_model")

    def test_a_missing_file(self) -> None:
        assert complaint("./gone.py") == "no file ./gone.py; `dialin init ./gone.py` writes one to start from"
        assert complaint("./gone.py:net").startswith("no file ./gone.py;")

    def test_a_folder_and_a_file_of_another_kind(self, write: Write) -> None:
        write("folder.py/inside.py")
        write("notes.txt", "")
        assert "folder.py is a folder" in complaint("./folder.py")
        assert "./notes.txt is not a Python file" in complaint("./notes.txt")

    @pytest.mark.parametrize("name", ["no.such.module", "json.nothing", "nothing:net", "json.decoder.x"])
    def test_a_missing_module(self, name: str) -> None:
        assert f"no module {name.partition(':')[0]!r}" in complaint(name)

    def test_a_module_without_a_source_file(self, write: Write) -> None:
        write("plain/nothing.txt", "")
        assert "sys is not a module with a source file" in complaint("sys:path")
        assert "plain is not a module with a source file" in complaint("plain:net")


class TestAModuleWithoutAnObjective:
    def test_another_objective_in_it_is_named(self, write: Write) -> None:
        write("my_model.py", GOOD.replace("objective = ", "net2 = "))
        assert complaint("./my_model.py") == (
            "my_model.py has no `objective`, but `net2` is an Objective: name it ./my_model.py:net2"
        )

    def test_what_it_defines_instead_is_said(self, write: Write) -> None:
        write("my_model.py", "from json import dumps\nclass Net: pass\ndef train(): pass\n")
        assert "has no `objective`; it defines Net (class), train (function);" in complaint("./my_model.py")
        write("empty.py", "")
        assert "it defines nothing; write objective = Objective(" in complaint("./empty.py")

    def test_a_function_of_something_else_than_a_trial_is_no_objective(self, write: Write) -> None:
        write("old.py", "def objective(trial, width): return 1.0\n")
        said = complaint("./old.py")
        assert "`objective` in old.py is a function, but none that takes a trial and nothing else" in said
        assert "objective = Objective(model=..., data=...)" in said

    def test_a_function_of_another_name_is_named(self, write: Write) -> None:
        write("old.py", "def tune_me(trial): return 1.0\ndef main(): pass\n")
        assert "if tune_me(trial) is an Optuna objective, name it ./old.py:tune_me" in complaint("./old.py")

    @pytest.mark.parametrize(("value", "said"), [("[1]", "a list"), ("int", "a class"), ("None", "no `objective`")])
    def test_anything_else_is_no_objective(self, write: Write, value: str, said: str) -> None:
        write("my_model.py", f"objective = {value}\n")
        assert said in complaint("./my_model.py")


class TestAModuleThatRaises:
    def test_the_line_names_the_place_and_the_frames_are_a_persons_own(self, write: Write) -> None:
        write("helper.py", "import json\ndef read():\n    return json.loads('{')\n")
        write("my_model.py", "import helper\nrows = helper.read()\n")
        error = raised("./my_model.py")
        assert str(error).startswith("helper.py:3: JSONDecodeError: Expecting property name")
        assert [line.split('"')[1].rpartition("/")[2] for line in error.frames.splitlines() if "File" in line] == [
            "my_model.py",
            "helper.py",
        ]
        assert error.frames.splitlines()[-1].startswith("json.decoder.JSONDecodeError")

    def test_causes_are_told_with_a_persons_own_frames(self, write: Write) -> None:
        text = "import json\ntry: json.loads('{')\nexcept ValueError as e: raise RuntimeError('no') from e\n"
        write("my_model.py", text)
        error = raised("./my_model.py")
        assert str(error) == "my_model.py:3: RuntimeError: no"
        assert "direct cause" in error.frames
        assert "json/decoder.py" not in error.frames
        assert "loading.py" not in error.frames

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("x = 1\ndef f(:\n", "my_model.py:2: SyntaxError: "),
            ("x = 1 \0\n", "Error: source code string cannot contain null bytes"),  # its kind changed in 3.11.4
            (
                "\n\nraise SystemExit(3)\n",
                "my_model.py:3: exits when imported (SystemExit: 3); put",
            ),
            ("import sys\nsys.exit()\n", "my_model.py:2: exits when imported (SystemExit)"),
            (
                "import no_such_library\n",
                "my_model.py:1: ModuleNotFoundError: No module named 'no_such_library'",
            ),
            ("raise ValueError('first\\nsecond')\n", "my_model.py:1: ValueError: first"),
            ("raise ValueError\n", "my_model.py:1: ValueError"),
            (
                "class E(Exception):\n    def __str__(self): 1 / 0\nraise E\n",
                "my_model.py:3: E: (its",
            ),
            ("from . import nets\n", "my_model.py:1: ImportError: attempted relative import"),
        ],
    )
    def test_whatever_it_raises_is_one_line(self, write: Write, text: str, said: str) -> None:
        write("my_model.py", text)
        error = raised("./my_model.py")
        assert said in str(error)
        assert "search/loading.py" not in error.frames
        assert "importlib" not in error.frames

    def test_an_argument_that_dialin_refuses_is_said_at_its_place(self, write: Write) -> None:
        write("my_model.py", GOOD.replace("epochs=2", "epochs=0"))
        error = raised("./my_model.py")
        assert str(error) == "my_model.py:14: epochs must be an integer of at least 1, but got 0"
        assert "search/objective.py" not in error.frames

    def test_a_syntax_error_in_a_neighbour_names_the_neighbour(self, write: Write) -> None:
        write("helper.py", "a = 1\nb = (\n")
        write("my_model.py", "import helper\n")
        assert str(raised("./my_model.py")).startswith("helper.py:2: SyntaxError: '(' was never closed")

    def test_a_failed_module_is_forgotten_and_can_be_mended(self, write: Write) -> None:
        path = write("my_model.py", "1 / 0\n")
        assert str(raised(str(path))).startswith("my_model.py:1: ZeroDivisionError")
        assert "my_model" not in sys.modules
        assert resolve(str(write("my_model.py"))).objective.epochs == 2

    def test_a_dotted_module_and_its_package(self, write: Write) -> None:
        write("team/__init__.py", "import no_such_library\n")
        write("team/nets.py")
        assert str(raised("team.nets")).startswith("team/__init__.py:1: ModuleNotFoundError")
        write("crew/__init__.py", "")
        write("crew/nets.py", "\n1 / 0\n")
        error = raised("crew.nets")
        assert str(error) == "crew/nets.py:2: ZeroDivisionError: division by zero"
        assert "importlib" not in error.frames

    def test_ctrl_c_during_the_import_is_not_a_mistake_in_it(self, write: Write) -> None:
        path = write("my_model.py", "raise KeyboardInterrupt\n")
        with pytest.raises(KeyboardInterrupt):
            resolve(str(path))


def test_an_error_from_within_a_library_names_what_was_being_done(write: Write) -> None:
    path = write("my_model.py")
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    said = failure(caught.value.with_traceback(caught.tb.tb_next), path, "the loss")  # Without this test's frame.
    assert str(said).startswith("the loss: JSONDecodeError: Expecting property name")
    assert "File" not in said.frames
    assert isinstance(said, ObjectiveError)


def test_a_module_that_is_installed_has_its_package_for_its_own(tmp_path: Path) -> None:
    installed = Path(optuna.__file__)  # As a person's own package may be.
    with pytest.raises(ValueError, match="sideways") as caught:
        optuna.create_study(direction="sideways")  # type: ignore[arg-type]
    assert "in create_study" in person_frames(caught.value, installed)
    assert "in create_study" not in person_frames(caught.value, tmp_path / "my_model.py")
