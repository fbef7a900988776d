"""What an objective costs and which parts of the recipe work for it, found out in seconds.

Called by `dialin check`, which prints each line as it comes; `first_batch` (in search/preview.py) is all that
`dialin run` asks for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search import optimizers, schedules
from search.batches import EvaluationBatches, TrainingBatches
from search.check_lines import CheckLine, duration, memory_line
from search.check_own import check_own
from search.data import Data, size
from search.errors import ObjectiveError
from search.evaluation import evaluate
from search.exactness import TOLERANCE, compare
from search.loading import LoadedObjective
from search.objective import Task
from search.optimizers import Optimizer, build_for
from search.preview import blamed, build_task, default_recipe, load_data, spread, try_out
from search.space import Recipe
from search.steps import Stepper, rest_frozen_norms
from storage.words import counted

# Batches that each optimizer trains on; a rate that explodes at once shows in three.
BATCHES = 3
# Time is measured for so long or for a whole epoch, and after two steps: the first ones allocate.
MEASURED_SECONDS = 1.0
UNTIMED_STEPS = 2
# Samples to time an evaluation on: a few to warm up, then as many as take no longer than the steps.
EVALUATED = (256, 8192)
# Schedules are fractions of the run: a longer one has the same shape and takes longer to compute.
MOST_STEPS = 10_000


@dataclass(frozen=True)
class _Bench:
    """Everything that is checked: one task, put back to the same weights before each use."""

    loaded: LoadedObjective
    data: Data
    folds: int
    task: Task
    device: torch.device
    weights: dict[str, Any]

    @property
    def sizes(self) -> list[int]:
        """The smallest and the largest batch size, or the only one."""
        sizes = self.loaded.objective.batch_sizes
        return sorted({min(sizes), max(sizes)})

    def batches(self, batch_size: int) -> TrainingBatches:
        return TrainingBatches(
            self.data,
            self.task.augment,
            batch_size,
            seed=0,
            device=self.device,
            epoch_batches=self.loaded.objective.epoch_batches,
        )

    def steps(self, recipe: Recipe, batches: Iterable[Any]) -> Iterator[Tensor]:
        """Train from the same weights at the full rate; yield each batch's mean loss, left on the device."""
        self.task.net.load_state_dict(self.weights)
        stepper = Stepper(self.task, build_for(self.task, recipe), self.loaded.objective, self.device)
        stepper.start_epoch()
        for batch in batches:
            total, weight = stepper.loss(batch)
            stepper.add(total, weight)
            if stepper.full:
                stepper.step()
            yield (total / weight).detach()


def check(
    loaded: LoadedObjective,
    data_root: Path,
    device: torch.device | str,
    trials: int,
    *,
    workers: int = 1,
    threads: int | None = None,
) -> Iterator[CheckLine]:
    """Try an objective with every optimizer and schedule, measure an epoch, estimate a study.

    What trains itself is run up to its first report; see search/check_own.py.

    Args:
        loaded: the objective, as `search.loading.resolve` found it.
        data_root: what the objective's `data` is called with.
        device: where to train.
        trials: the study's trials, for the estimate.
        workers: how many workers the study will have, for the estimate.
        threads: CPU threads that each of them will have; by default what torch takes now.

    Yields:
        A line for each check, those that fail among them.

    Raises:
        ObjectiveError: the objective does not get through a first batch, so that nothing else can be said.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        if loaded.objective.trains_itself:
            yield from check_own(loaded, data_root, torch.device(device), trials, workers)
            return
        started = time.perf_counter()
        bench, told = _prepare(loaded, data_root, torch.device(device))
        yield CheckLine("first batch", True, told, time.perf_counter() - started)
        for optimizer in optimizers.resolve_all(loaded.objective.optimizers).values():
            yield _tried(f"optimizer {optimizer.name}", bench, partial(_optimizer, bench, optimizer))
        for schedule in schedules.resolve_all(loaded.objective.schedules).values():
            yield _tried(f"schedule {schedule.name}", bench, partial(_schedule, bench, schedule))
        yield _tried("micro-batches", bench, partial(_micro_batches, bench))
        yield from _costs(bench, trials, workers)
    finally:
        torch.set_num_threads(before)


def _prepare(loaded: LoadedObjective, data_root: Path, device: torch.device) -> tuple[_Bench, str]:
    data, task = load_data(loaded, data_root), build_task(loaded)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    preview = try_out(loaded, data, task, device)
    weights = deepcopy(task.net.state_dict())  # Only now do lazy modules have theirs.
    metric, value = next(iter(preview.metrics.items()))
    told = (
        f"{preview.train} samples to train, {preview.valid} to validate; {preview.parameters:,} parameters; "
        f"untrained: loss {preview.loss:.3g}, {metric} {value:.3g}"
    )
    if len(data.folds) > 1:
        told = f"{len(data.folds)} folds, each with {told}"
    return _Bench(loaded, data.folds[0], len(data.folds), task, device, weights), told


def _tried(what: str, bench: _Bench, work: Callable[[], tuple[str, dict[str, float]]]) -> CheckLine:
    """Do one check; an error in it becomes a line that is not ok."""
    started = time.perf_counter()
    try:
        with blamed("", bench.loaded):
            detail, numbers = work()
        ok = True
    except ObjectiveError as error:
        ok, detail, numbers = False, str(error), {}
    return CheckLine(what, ok, detail, time.perf_counter() - started, numbers)


def _optimizer(bench: _Bench, row: Optimizer) -> tuple[str, dict[str, float]]:
    """Train on a few batches of the smallest and of the largest size."""
    told, numbers = [], {"lr": row.base_lr}
    for batch_size in bench.sizes:
        with blamed(f"at batch {batch_size}", bench.loaded):
            recipe = default_recipe(bench.loaded.objective, batch_size, row)
            steps = bench.steps(recipe, islice(bench.batches(batch_size).epoch(1), BATCHES))
            losses = [float(loss) for loss in steps]
        for step, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                raise ObjectiveError(f"loss {loss} at step {step}, batch {batch_size}, lr {recipe.lr:g}")
        told.append(f"batch {batch_size}: loss {losses[0]:.3g} to {losses[-1]:.3g}")
        numbers[f"loss_at_batch_{batch_size}"] = losses[-1]
    return f"lr {row.base_lr:g}; {'; '.join(told)}", numbers


def _schedule(bench: _Bench, row: schedules.Schedule) -> tuple[str, dict[str, float]]:
    """Compute the factors of a whole run."""
    objective = bench.loaded.objective
    per_epoch = -(-len(bench.batches(max(bench.sizes))) // objective.accumulate)
    steps = min(MOST_STEPS, objective.epochs * per_epoch)
    table = schedules.factors(row, row.defaults, steps)
    if not bool(table.isfinite().all()) or bool((table < 0).any()):
        raise ObjectiveError(f"its factors over {steps} steps are not all finite and at least 0")
    first, highest, last = float(table[0]), float(table.max()), float(table[-1])
    return f"{steps} steps: begins at {first:.3g}, ends at {last:.3g}, highest {highest:.3g}", {"steps": steps}


def _micro_batches(bench: _Bench) -> tuple[str, dict[str, float]]:
    """Compare the gradient of a batch with that of its halves: what does not fit into memory is trained in parts."""
    batch_size, net = bench.sizes[0], bench.task.net
    with blamed(f"at batch {batch_size} and in halves of it", bench.loaded):
        net.load_state_dict(bench.weights)
        net.train()
        rest_frozen_norms(net)
        batch = next(bench.batches(batch_size).epoch(1))
        found = compare(net, lambda part: bench.task.step(net, part), batch)
    numbers = {"exact": float(found.exact), "tolerance": TOLERANCE}
    if math.isfinite(found.difference):
        numbers["difference"] = found.difference
    if not found.exact:
        return f"not exact: {found.why}; a batch that does not fit into memory ends its trial", numbers
    told = f"gradients of a batch and of its halves differ by {found.difference:.1g} of their size"
    return f"exact: {told}; a batch that does not fit into memory is trained in parts", numbers


def _costs(bench: _Bench, trials: int, workers: int) -> Iterator[CheckLine]:
    """Measure an epoch at the smallest and the largest batch and the memory, then estimate the study."""
    measured = {}
    for batch_size in bench.sizes:
        line = _tried(f"epoch at batch {batch_size}", bench, partial(_epoch, bench, batch_size))
        yield line
        if line.ok:
            measured[batch_size] = line.numbers
    yield memory_line(bench.device)
    if measured:
        yield _study(bench, measured, trials, workers)


def _epoch(bench: _Bench, batch_size: int) -> tuple[str, dict[str, float]]:
    """Measure steps, for a moment or a whole epoch, and an evaluation of some samples; extrapolate both."""
    with blamed(f"at batch {batch_size}", bench.loaded):
        batches = bench.batches(batch_size)
        steps = bench.steps(default_recipe(bench.loaded.objective, batch_size), batches.epoch(1))
        list(islice(steps, min(UNTIMED_STEPS, len(batches) - 1)))
        _finish(bench.device)
        started, done = time.perf_counter(), 0
        for _ in steps:
            done += 1
            if time.perf_counter() - started > MEASURED_SECONDS:
                break
        _finish(bench.device)
        step = (time.perf_counter() - started) / done
        evaluation = _evaluation(bench, batch_size)
    seconds = step * len(batches) + evaluation
    told = f"{len(batches)} steps of {1000 * step:.3g} ms, evaluation {duration(evaluation)}"
    numbers = {"epoch_seconds": seconds, "step_seconds": step, "evaluation_seconds": evaluation}
    return f"{duration(seconds)}: {told}", numbers


def _evaluation(bench: _Bench, batch_size: int) -> float:
    """Return the seconds to evaluate the validation split, from a part of it."""
    seconds = 0.0
    for samples in EVALUATED:
        part = spread(bench.data.valid, samples)
        batches = EvaluationBatches(part, bench.data, batch_size, device=bench.device)
        _finish(bench.device)
        started = time.perf_counter()
        # A few samples may lack a class that a metric needs: it took its time all the same.
        with suppress(ObjectiveError):
            objective = bench.loaded.objective
            evaluate(bench.task, batches, objective.metrics, bench.device, objective.precision)
        _finish(bench.device)
        seconds = time.perf_counter() - started
        if seconds > MEASURED_SECONDS / 4:
            break
    return seconds * size(bench.data.valid) / size(part)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _study(bench: _Bench, measured: Mapping[int, Mapping[str, float]], trials: int, workers: int) -> CheckLine:
    """Estimate a study that has every batch size equally often, a step's time linear in the batch size."""
    objective, known = bench.loaded.objective, sorted(measured)

    def between(batch_size: int, key: str) -> float:
        low, high = measured[known[0]][key], measured[known[-1]][key]
        share = (batch_size - known[0]) / max(1, known[-1] - known[0])
        return low + min(max(share, 0.0), 1.0) * (high - low)

    epochs = [
        len(bench.batches(batch_size)) * between(batch_size, "step_seconds") + between(batch_size, "evaluation_seconds")
        for batch_size in objective.batch_sizes
    ]
    trial = bench.folds * objective.epochs * sum(epochs) / len(epochs)
    seconds = trial * -(-trials // workers)
    length = (f"{bench.folds} folds of " if bench.folds > 1 else "") + counted(objective.epochs, "epoch")
    detail = (
        f"{trials} trials of {length} on {counted(workers, 'worker')}: "
        f"about {duration(seconds)} with every epoch trained, none saved by pruning"
    )
    numbers = {"study_seconds": seconds, "trial_seconds": trial, "trials": trials, "workers": workers}
    return CheckLine("study", True, detail, 0.0, numbers)
