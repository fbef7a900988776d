"""What TensorBoard itself reads of a trial: its scalars, its recipe, and one curve after an adoption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from told import COMPLETE, HAND_BACK, INFO, going_on_after, made, point, tell

from search.trackers import Ending


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of one scalar of the trial."""
    found = EventAccumulator(str(folder / "tensorboard" / INFO.name)).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def curve(epochs: int) -> list[tuple[int, float]]:
    return [(epoch, pytest.approx(point(epoch).metrics["accuracy"])) for epoch in range(1, epochs + 1)]  # type: ignore[misc]


def test_every_metric_is_a_scalar_by_epoch(tmp_path: Path) -> None:
    tell(made("tensorboard", tmp_path), INFO, [1, 2, 3, 4], COMPLETE)
    assert scalars(tmp_path, "accuracy") == curve(4)
    found = EventAccumulator(str(tmp_path / "tensorboard" / "trial-00012")).Reload()
    assert {*found.Tags()["scalars"]} == {"accuracy", "train_loss", "lr", "trial_value"}
    assert [event.wall_time for event in found.Scalars("lr")] == [1e9 + epoch for epoch in (1, 2, 3, 4)]


def test_a_killed_worker_has_told_every_epoch_that_it_recorded(tmp_path: Path) -> None:
    tracker = made("tensorboard", tmp_path)
    tell(tracker, INFO, [1, 2], ending=None)
    assert scalars(tmp_path, "accuracy") == curve(2)
    tracker.end(HAND_BACK)


@pytest.mark.parametrize("ending", [HAND_BACK, None])
def test_an_adopted_trial_is_one_curve_without_gap_or_double_step(tmp_path: Path, ending: Ending | None) -> None:
    """The owner before got to epoch 3; its last checkpoint was of epoch 2."""
    before = made("tensorboard", tmp_path)
    tell(before, INFO, [1, 2, 3], ending)
    tell(made("tensorboard", tmp_path), going_on_after(2), [3, 4, 5], COMPLETE)
    assert scalars(tmp_path, "accuracy") == curve(5)
    if ending is None:
        before.end(HAND_BACK)


def test_a_tensorboard_that_is_looking_sees_one_curve_too(tmp_path: Path) -> None:
    tell(made("tensorboard", tmp_path), INFO, [1, 2, 3], HAND_BACK)
    looking = EventAccumulator(str(tmp_path / "tensorboard" / INFO.name)).Reload()
    tell(made("tensorboard", tmp_path), going_on_after(2), [3, 4], COMPLETE)
    looking.Reload()
    assert [event.step for event in looking.Scalars("accuracy")] == [1, 2, 3, 4]


def test_an_owner_whose_clock_was_ahead_is_no_second_curve(tmp_path: Path) -> None:
    tell(made("tensorboard", tmp_path), INFO, [1, 2, 3], HAND_BACK)
    (file,) = (tmp_path / "tensorboard" / INFO.name).iterdir()
    file.rename(file.with_name(file.name.replace(file.name.split(".")[3], "9999999999")))
    tell(made("tensorboard", tmp_path), going_on_after(2), [3, 4], COMPLETE)
    assert scalars(tmp_path, "accuracy") == curve(4)


def test_an_adopter_that_shares_no_disk_has_the_whole_curve(tmp_path: Path) -> None:
    tell(made("tensorboard", tmp_path), going_on_after(3), [4], COMPLETE)
    assert scalars(tmp_path, "accuracy") == curve(4)


def test_the_hparams_tab_compares_trials_with_knobs_of_their_own(tmp_path: Path) -> None:
    other = replace(INFO, number=13, recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9})
    tracker = made("tensorboard", tmp_path)
    tell(tracker, INFO, [1, 2, 3, 4], COMPLETE)
    tell(tracker, other, [1], Ending("pruned", 0.5, best_epoch=1))
    rows = hparams(tmp_path / "tensorboard")
    assert rows == {
        "trial-00012": {**INFO.recipe, "value": pytest.approx(0.8)},
        "trial-00013": {**other.recipe, "value": pytest.approx(0.5)},
    }


def hparams(folder: Path) -> dict[str, dict[str, object]]:
    """The rows of the HParams tab as its plugin computes them: a trial's knobs, and its scalar `value`."""
    seen = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = backend_context.Context(
        TBContext(logdir=str(folder), multiplexer=seen, data_provider=MultiplexerDataProvider(seen, str(folder)))
    )
    column = api_pb2.ColParams(metric=api_pb2.MetricName(tag="trial_value"))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, col_params=[column], allowed_statuses=api_pb2.Status.values()
    )
    handler = list_session_groups.Handler(RequestContext(), context, "", request)
    rows = {}
    for group in handler.run().session_groups:
        (session,) = group.sessions
        knobs = {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
        values = {metric.name.tag: metric.value for metric in session.metric_values}
        rows[session.name] = {**knobs, "value": values["trial_value"]}
    return rows
