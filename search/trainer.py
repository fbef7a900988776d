"""One trial from its claim to its settlement: sampled, trained through whichever door its objective has, recorded.

`search.worker` makes one `Trainer` for the study it works on and hands it every trial that it claims or adopts.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial

from search import bare, loop, space
from search.checkpointer import Checkpointer
from search.data import Data, Folds
from search.failures import failure, from_storage
from search.interrupt import Interrupt
from search.judge import Judge
from search.keeper import LeaseKeeper
from search.memory import give_back_freed
from search.micro_batch_size import KILLS_IN_A_ROW, MicroBatchSize
from search.micro_batches import free
from search.narrowing import narrowed
from search.objective import Objective, Task
from search.own_trial import OwnTrial, own_folder
from search.peak_memory import PeakMemory
from search.randomness import seed_everything
from search.reporter import TrialReporter
from search.reporting import Interrupted, Result
from search.shelf import Shelf
from search.sizes import StoredSizes
from search.space import Recipe
from search.telling import Teller
from search.training import train
from search.watchdog import Watchdog
from storage import queries
from storage.claims import Checkpoint, DrawnMeanwhile, Lease, LeaseLost, Settlement
from storage.file_names import trial_number
from storage.first_trials import FirstTrial
from storage.optuna_internals import suggest_unless_asked
from storage.outcomes import Outcome
from storage.patience import DATABASE_ERRORS, DatabaseAway
from storage.provenance import noted, trial_seed
from storage.queries import SettledTrial
from storage.retention import WEIGHTS_KEPT, retire_weights, worth_keeping
from storage.shared import SharedStorage
from storage.studies import StudyRecord
from storage.suggesting import CannotBeDrawn, SuggestingTrial

# So often a recipe is drawn again that another worker has drawn at the same moment.
MOST_DRAWS = 5


@dataclass(frozen=True)
class Trainer:
    """What all trials of a study are trained with on one device.

    Attributes:
        data: None where the objective trains itself.
        data_root: the folder of data sets, for an own loop.
        folder: the study's, for logs and an own loop's files. shelf: for its checkpoints.
        path: the file of the objective's module, whose frames an error shows.
        teller: makes what tells the trackers of a trial.
        sizes: how much of a batch has fitted into memory.
        watchdog: ends the process when training hangs.
        judge: says after each epoch whether a trial goes on.
        provenance: what this process trains with, as it is on record (`storage.provenance`).
        first_trials: what an own loop's recipe is in the study's first trials.
    """

    storage: SharedStorage
    study: optuna.Study
    record: StudyRecord
    objective: Objective
    data: Data | Folds | None
    data_root: Path
    device: torch.device
    folder: Path
    shelf: Shelf
    path: Path
    interrupt: Interrupt
    teller: Callable[[Trial, Lease], Teller]
    sizes: StoredSizes
    watchdog: Watchdog
    judge: Judge
    provenance: str
    first_trials: tuple[FirstTrial, ...] = ()

    def train(self, trial: Trial, lease: Lease, folder: Path, keeper: LeaseKeeper) -> SettledTrial:
        """Train a trial held under `lease` and settle it; `folder` is the trial's own.

        Raises:
            Interrupted: it is to be handed back, or Paused. LeaseLost: it is another's. DatabaseAway: the database went
            away, and has not come back within the limit.
        """
        suggesting = SuggestingTrial(trial)
        teller = self.teller(suggesting, lease)
        try:
            return self._train_and_settle(suggesting, lease, folder, keeper, teller)
        except BaseException:  # handed back, or another's
            teller.hand_back()
            raise

    def _train_and_settle(
        self, trial: SuggestingTrial, lease: Lease, folder: Path, keeper: LeaseKeeper, teller: Teller
    ) -> SettledTrial:
        reporter = TrialReporter(
            self.storage,
            trial,
            lease,
            epochs=self.record.length,
            device=str(self.device),
            checkpointer=Checkpointer(
                self.storage,
                lease,
                folder=folder.name,
                shelf=self.shelf,
                interrupt=self.interrupt,
                shares_cores=self.device.type == "cpu",
            ),
            interrupt=self.interrupt,
            listener=teller,
            beat=self.watchdog.beat,
            judge=self.judge,
            memory=PeakMemory(self.device).bytes,
        )
        try:
            with self.watchdog.watching(trial.number):
                result, frames = self._train(trial, lease, reporter, teller, folder), ""
        except (LeaseLost, DatabaseAway):
            raise
        except (Exception, SystemExit) as error:  # whatever a person's module raises is theirs, and one trial's
            if isinstance(error, DATABASE_ERRORS) and from_storage(error):
                raise
            if self.interrupt.requested:
                raise Interrupted from error  # their own child processes got the signal as well
            raised = failure(error, self.path)
            result, frames = Result(Outcome.ERROR, reason=str(raised)), raised.frames
            if frames:  # a refusal whose line says all has none: trackers say it at the end
                print(frames, file=sys.stderr)
        finally:
            reporter.finish()
            give_back_freed()
            if self.device.type == "cuda":
                free(self.device)  # for whoever else is on it
        return self._settle(trial, keeper, reporter, teller, result, frames)

    def _train(
        self, trial: SuggestingTrial, lease: Lease, reporter: TrialReporter, teller: Teller, folder: Path
    ) -> Result:
        seed = trial_seed(self.record.seed, trial.number)
        seed_everything(seed)
        kills = self.storage.kills_in_a_row(lease)
        if kills >= KILLS_IN_A_ROW and self.objective.trains_itself:
            return Result(Outcome.OUT_OF_MEMORY, reason=f"killed for want of memory {kills} times in a row")
        if self.objective.function is not None:
            self._use_device()
            function, knobs = self.objective.function, self.objective.knobs
            return bare.play(trial, lambda shown: function(narrowed(shown, knobs)), reporter)
        if self.objective.train is not None:
            self._use_device()
            with self.storage.sampling(trial):
                _note(trial, self._noted(trial))
            run = self._run(trial, seed, reporter, folder, lease)
            return loop.play(run, self.objective)
        return self._train_task(trial, seed, reporter, teller, MicroBatchSize(self.sizes, kills))

    def _use_device(self) -> None:
        """A bare "cuda" in a person's own code means this worker's."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _run(self, trial: SuggestingTrial, seed: int, reporter: TrialReporter, folder: Path, lease: Lease) -> loop.Run:
        return loop.Run(
            OwnTrial(trial),
            self.objective,
            device=self.device,
            seed=seed,
            data=self.data_root,
            folder=lambda: own_folder(folder, lease.generation),
            reporter=reporter,
            sample=lambda: self._own_recipe(trial),
            recorded=lambda: self.storage.get_trial(lease.trial_id).intermediate_values,
        )

    def _own_recipe(self, trial: SuggestingTrial) -> Recipe:
        """The recipe of an own loop that asks for one: in a study's first trials those that it starts with."""
        with self.storage.sampling(trial):
            first = self.first_trials[trial.number] if trial.number < len(self.first_trials) else None
            if first is not None and suggest_unless_asked(trial, first.params):
                trial.set_user_attr("origin", first.origin)
            recipe, before = space.sample(trial, self.objective), trial.user_attrs
            told = self._told(recipe)
            if moved := _moved(before, told, trial.filled):
                raise CannotBeDrawn(moved)
            _note(trial, told)
        return recipe

    def _train_task(
        self, trial: SuggestingTrial, seed: int, reporter: TrialReporter, teller: Teller, micro_batch: MicroBatchSize
    ) -> Result:
        """Dialin's own loop: recipe and model are sampled in one transaction before it."""
        drawn = self._draw(trial, seed)
        if isinstance(drawn, Result):
            return drawn
        recipe, task = drawn
        assert self.data is not None
        teller.trains(task, self.data, recipe.batch_size, self.device, self.objective.precision)
        result = train(
            task,
            self.data,
            recipe,
            self.objective,
            device=self.device,
            seed=seed,
            reporter=reporter,
            new_task=lambda: self.objective.task(trial),
            micro_batch=micro_batch,
        )
        if micro_batch.size is not None:  # its curve is rounded otherwise than that of whole batches
            trial.set_user_attr("micro_batch", micro_batch.size)
        return result

    def _draw(self, trial: SuggestingTrial, seed: int) -> tuple[Recipe, Task] | Result:
        """A recipe and its model; drawn again where another worker has drawn the same meanwhile."""
        new = not trial.asked and not trial.params
        for _ in range(MOST_DRAWS):
            with suppress(DrawnMeanwhile):
                return self._drawn(trial, seed, once=new)
            trial.start_over()
        return self._drawn(trial, seed, once=False)

    def _drawn(self, trial: SuggestingTrial, seed: int, once: bool) -> tuple[Recipe, Task] | Result:
        before = trial.user_attrs
        raised: BaseException | None = None
        with self.storage.sampling(trial, once):
            try:
                recipe = space.sample(trial, self.objective)
            except CannotBeDrawn as why:
                return Result(Outcome.PRUNED, reason=str(why))
            seed_everything(seed)
            try:
                task = self.objective.task(trial)
            except CannotBeDrawn as why:
                return Result(Outcome.PRUNED, reason=str(why))
            except (Exception, SystemExit) as error:  # what was sampled is kept on record all the same
                raised = error
            else:
                _keep_to(self.objective, trial, parameters=_count_of_parameters(task))
            told = self._told(recipe) | {"model": self._own_params(trial)} | self._noted(trial)
            if moved := _moved(before, told, trial.filled):
                return Result(Outcome.PRUNED, reason=moved)
            _note(trial, told)
        if isinstance(raised, optuna.TrialPruned):
            return Result(Outcome.PRUNED, reason=f"refused by the model: {raised}")
        if raised is not None:
            raise raised
        return recipe, task

    def _told(self, recipe: Recipe) -> dict[str, Any]:
        """What a trial's page says of its recipe."""
        real = {"recipe": recipe.summary(), "settings": recipe.as_dict(), "lr": recipe.lr}
        return real | {"device": str(self.device)}

    def _noted(self, trial: Trial) -> dict[str, Any]:
        """The trial's seed, and what it is trained with from this owner on."""
        seed, generation = trial_seed(self.record.seed, trial.number), self.storage.lease_of(trial).generation
        return noted(trial.user_attrs, seed, generation, self.provenance)

    def _own_params(self, trial: Trial) -> dict[str, Any]:
        """What a trial has suggested besides the recipe."""
        common = {knob.name for knob in space.recipe_knobs(self.objective)}
        return {name: value for name, value in trial.params.items() if name not in common}

    def _told_at_the_end(self, trial: Trial) -> dict[str, Any]:
        """An own loop's knobs beside its recipe; without a recipe they are the recipe."""
        if "recipe" in trial.user_attrs:
            return {"model": self._own_params(trial)}
        told = {"recipe": space.in_words(trial.params), "settings": dict(trial.params), "device": str(self.device)}
        return told | self._noted(trial)

    def _settle(
        self,
        trial: Trial,
        keeper: LeaseKeeper,
        reporter: TrialReporter,
        teller: Teller,
        result: Result,
        traceback: str,
    ) -> SettledTrial:
        unrecorded, peak = reporter.unrecorded_seconds, reporter.peak_memory()
        leading = self._leads(result)
        weights = self._save_weights(reporter, result) if leading else None
        teller.end(result, kept=leading)  # while the trial is still held: pictures are hung on running ones
        epochs, seconds = self.storage.cost(self.storage.lease_of(trial))
        if epochs:
            memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
            _keep_to(self.objective, trial, epoch_seconds=seconds / epochs, memory=memory)
        attrs: dict[str, Any] = {"outcome": result.outcome.value, "seconds": round(seconds, 3), "epochs": epochs}
        optional = {"reason": result.reason, "traceback": traceback, "best_epoch": result.best_epoch}
        attrs |= peak | {key: value for key, value in optional.items() if value}
        if self.objective.trains_itself:  # it may suggest until its end
            attrs |= self._told_at_the_end(trial)
        settlement = Settlement(result.outcome, result.reason, result.best_epoch, weights, attrs, unrecorded)
        keeper.lease = None
        self.storage.settle(self.study, trial, settlement, result.value)
        reporter.checkpointer.discard(weights)
        self._tidy()
        value = result.value if result.outcome is Outcome.COMPLETE else None
        recipe = attrs.get("recipe", "") or trial.user_attrs.get("recipe", "")
        return SettledTrial(trial.number, result.outcome, value, epochs, seconds, recipe, result.reason, time.time())

    def _leads(self, result: Result) -> bool:
        """Whether it is among the study's best so far, whose weights and pictures are kept."""
        if result.outcome is not Outcome.COMPLETE or result.value is None:
            return False
        return worth_keeping(self.storage, self.record, result.value)

    def _save_weights(self, reporter: TrialReporter, result: Result) -> Checkpoint | None:
        if result.weights is None:
            return None
        return reporter.checkpointer.save_weights(result.best_epoch or 0, result.weights)

    def _tidy(self) -> None:
        """Remove the files of trials that are among the best no more, and this one's if it never was."""
        if self.objective.function is not None:
            return  # a bare function leaves none
        self.shelf.remove(retire_weights(self.storage, self.record))
        if not self.objective.trains_itself or self.record.confirms:
            return
        leaders = {number for number, _value in queries.leaders(self.storage, self.record, WEIGHTS_KEPT)}
        for own in self.folder.glob("trial-*/own.g*"):
            number = trial_number(own.parent.name)
            if number is not None and number not in leaders and self._is_over(number):
                shutil.rmtree(own, ignore_errors=True)

    def _is_over(self, number: int) -> bool:
        """Whether the trial is settled, or deleted."""
        try:
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.record.study_id, number)
            return self.storage.get_trial(trial_id).state.is_finished()
        except KeyError:
            return True


def _note(trial: Trial, attrs: Mapping[str, Any]) -> None:
    for key, value in attrs.items():
        trial.set_user_attr(key, value)


def _keep_to(objective: Objective, trial: Trial, **measured: float | None) -> None:
    """Set the constraints that an objective has on what was measured of a trial."""
    for name, value in measured.items():
        if name in objective.at_most and value is not None:
            trial.set_constraint(name, value / objective.at_most[name] - 1)


def _count_of_parameters(task: Task) -> int:
    return sum(one.numel() for one in task.net.parameters() if one.requires_grad)


def _moved(before: Mapping[str, Any], now: Mapping[str, Any], added: Mapping[str, Any]) -> str:
    """Why a trial that was sampled already cannot go on: the objective does not draw its recipe any more.

    `added`: knobs that it has had all along, without their being knobs.
    """
    for of in ("settings", "model"):
        drawn = before.get(of)
        if drawn is None or of not in now:
            continue
        today = json.loads(json.dumps(now[of]))
        for name in {**drawn, **today}:
            if drawn.get(name) != today.get(name) and not (name in added and name not in drawn):
                said = f"{name} was {drawn[name]}" if name in drawn else f"{name} was not there"
                return f"{said} when it was sampled, which is not searched any more"
    return ""
