"""A bare Optuna function, `objective(trial) -> float`, run as it is: `dialin run old.py:objective`.

Its own `trial.report` and `trial.should_prune` record and prune as an epoch does, `raise optuna.TrialPruned` ends it,
what it returns is the trial's value. `script_of` reads what the script itself says about its study, without running
it; `search.loading` makes the `Objective`, the worker calls `play`.
"""

from __future__ import annotations

import ast
import inspect
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna

from search.errors import ObjectiveError
from search.failures import line_of, out_of_memory
from search.metrics import Direction
from search.objective import Objective
from search.own_trial import OwnTrial
from search.reporting import EpochResult, Interrupted, Reporter, Result, Verdict
from storage.outcomes import Outcome

METRIC = "value"
# What an integer column of every database holds.
MOST_STEPS = 2**31 - 1
# What optuna's create_study and optimize are called with and a study of Dialin's takes from the command line.
NOT_TAKEN_OVER = {"sampler": "--sampler", "pruner": "--pruner", "storage": "--storage", "timeout": "--budget"}
_OPTUNAS_DEFAULT = ast.Constant(None)
_UNKNOWN = object()  # What only running the script would tell.


@dataclass(frozen=True)
class Script:
    """What a script says of its study: `direction` and `trials` where it is plain, notes for the person.

    `direction` is None where the script sets it only when it runs: a person must say it.
    """

    direction: Direction | None = "minimize"
    trials: int | None = None
    notes: tuple[str, ...] = ()


class BareTrial(OwnTrial):
    """The trial that the function gets: Optuna's own, but a report is one transaction at most, with cost and lease."""

    def __init__(self, trial: optuna.trial.Trial, reporter: Reporter) -> None:
        super().__init__(trial)
        self._reporter = reporter
        self._reported: dict[int, float] = {}
        self._losing = False
        self._since = time.perf_counter()

    def report(self, value: float, step: int) -> None:
        """As Optuna's: the first value of each step counts. Ends the function when the trial was handed back."""
        number, at = _number(value), _step(step)
        if at in self._reported:
            warnings.warn(f"step {at} was reported already: this value is ignored", stacklevel=2)
            return
        self._reported[at] = number
        verdict = self._record(at, number, {METRIC: number})
        if verdict is Verdict.HAND_BACK:
            raise Interrupted
        self._losing = verdict is Verdict.PRUNE

    def should_prune(self) -> bool:
        """Whether the study's pruner would stop this trial after what it has reported."""
        return self._losing

    def finish(self, value: float) -> None:
        """The cost of a function that reports nothing is recorded when it has returned."""
        if not self._reported:
            self._record(0, None, {METRIC: value})

    @property
    def last(self) -> tuple[int, float] | None:
        """The last step reported and its value."""
        return next(reversed(self._reported.items()), None)

    def _record(self, step: int, value: float | None, metrics: dict[str, float]) -> Verdict:
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        return self._reporter.report(EpochResult(step, value, metrics, seconds, 0), None)


def play(trial: optuna.trial.Trial, function: Callable[[Any], Any], reporter: Reporter) -> Result:
    """Call the function once; how it ended. What it raises passes, but for pruning and want of memory.

    ObjectiveError: it returned no single number.
    """
    bare = BareTrial(trial, reporter)
    try:
        value = _value(function(bare))
    except optuna.TrialPruned as pruned:
        last = bare.last
        reason = str(pruned) or (f"pruned at step {last[0]}" if last else "pruned by the function")
        return Result(Outcome.PRUNED, last[1] if last else None, reason=reason)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return Result(Outcome.OUT_OF_MEMORY, reason=f"out of memory: {line_of(error)}")
    if not math.isfinite(value):
        return Result(Outcome.DIVERGED, reason=f"the function returned {value}")
    bare.finish(value)
    return Result(Outcome.COMPLETE, value)


def takes_a_trial(value: Any) -> bool:
    """Whether it can be called with a trial alone, as optuna's `study.optimize` does."""
    if not callable(value) or isinstance(value, type):
        return False
    try:
        inspect.signature(value).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def objective_of(function: Callable[[Any], Any], script: Script) -> Objective:
    """The Objective that stands for a bare function; "minimize" where nobody has said which way yet."""
    objective = Objective(function=function, metric=METRIC, direction=script.direction or "minimize")
    return objective if script.trials is None else replace(objective, trials=script.trials)


def script_of(source: bytes, name: str) -> Script:
    """What a script's source says of its study. `name`: the file's, for messages.

    ObjectiveError: importing it would run its study, or the study has several objectives.
    """
    tree = ast.parse(source)
    running = _functions_that_optimize(tree)
    for node in _run_when_imported(tree):
        if isinstance(node, ast.Call) and (_optimizes(node) or getattr(node.func, "id", None) in running):
            raise ObjectiveError(
                f"{name}:{node.lineno} runs a study when it is imported: "
                'put it under `if __name__ == "__main__":`, where `dialin run` leaves it alone'
            )
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = next((call for call in calls if _called(call) == "create_study"), None)
    words = {word.arg: word.value for word in made.keywords if word.arg} if made is not None else {}
    if "directions" in words:
        raise ObjectiveError(f"{name} makes a study of several objectives; Dialin searches one")
    constants = _constants(tree)
    given = words.get("direction", _OPTUNAS_DEFAULT)
    direction = _direction(_constant(given, constants))
    said = _constant(given, constants) is not None
    runs = [call for call in calls if _called(call) == "optimize"]
    asked = [_constant(node, constants) for call in runs for node in _budgets(call)]
    trials = next((one for one in asked if isinstance(one, int) and one > 0), None)
    words |= {word.arg: word.value for call in runs for word in call.keywords if word.arg == "timeout"}
    return Script(direction, trials, tuple(_notes(name, direction, said, trials, words)))


def _direction(said: Any) -> Direction | None:
    """None said is Optuna's default; anything but a direction is not known before the script runs."""
    if said == "maximize":
        return "maximize"
    return "minimize" if said in (None, "minimize") else None


def _budgets(call: ast.Call) -> list[ast.expr]:
    """What `optimize(function, n_trials)` has for n_trials."""
    return [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "n_trials")]


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """The names that the script binds exactly once anywhere, and there at module level, with what to."""
    bound = Counter(
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    bound.update(node.arg for node in ast.walk(tree) if isinstance(node, ast.arg))
    values: dict[str, ast.expr] = {}
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is not None:
            values |= {one.id: value for one in targets if isinstance(one, ast.Name) and bound[one.id] == 1}
    return values


def _functions_that_optimize(tree: ast.Module) -> set[str]:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {function.name for function in functions if any(map(_optimizes, ast.walk(function)))}


def _optimizes(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "optimize"


def _notes(
    name: str, direction: Direction | None, said: bool, trials: int | None, words: dict[str, Any]
) -> Iterator[str]:
    source = f"as {name} says" if said else "Optuna's default; --direction maximize for the other way"
    if direction is None:
        yield f"{name} sets its study's direction only when it runs: --direction says it here"
    else:
        yield f"{direction} what the function returns ({source})"
    if trials is not None:
        yield f"{trials} trials unless --trials says otherwise, as {name} says"
    left = [word for word in NOT_TAKEN_OVER if word in words]
    if left:
        options = " and ".join(NOT_TAKEN_OVER[word] for word in left)
        yield f"not taken over from {name}: its {' and '.join(left)}; see {options}"


def _run_when_imported(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node outside functions, classes' methods and `if __name__ == "__main__"`."""
    todo: list[ast.AST] = [*tree.body]
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            todo += node.orelse
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _constant(node: ast.expr, constants: Mapping[str, ast.expr]) -> Any:
    """A literal's value, also by a constant's name; of StudyDirection.MAXIMIZE its name in small letters.

    `_UNKNOWN` for anything else.
    """
    if isinstance(node, ast.Name):
        node = constants.get(node.id, node)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Attribute) and node.attr in ("MINIMIZE", "MAXIMIZE"):
        return node.attr.lower()
    return _UNKNOWN


def _value(returned: Any) -> float:
    single = returned[0] if isinstance(returned, list | tuple) and len(returned) == 1 else returned
    if isinstance(single, list | tuple):
        raise ObjectiveError(f"the function returned {len(single)} values; Dialin searches one objective")
    try:
        return float(single)
    except (TypeError, ValueError):
        raise ObjectiveError(f"the function must return a number, but returned {returned!r:.60}") from None


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"trial.report needs a number, but got {value!r:.60}") from None


def _step(step: Any) -> int:
    try:
        at = int(step)
    except (TypeError, ValueError):
        raise TypeError(f"trial.report needs an integer step, but got {step!r:.60}") from None
    if not 0 <= at <= MOST_STEPS:
        raise ValueError(f"step must be from 0 to {MOST_STEPS}, but got {at}")
    return at
