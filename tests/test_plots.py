"""Pictures of a trial: what they count, when there are any, and where they hang."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from optuna.artifacts import download_artifact, get_all_artifact_meta
from studies import engines_disposed
from told import COMPLETE, INFO, made, point
from torch import Tensor

from search.artifacts import Artifacts
from search.trackers import Ending, Point, TrialInfo, figures
from search.trackers.plots import MOST_PAIRS, Plots, Seen
from storage import attachments, studies
from storage.claims import Claimant, new_uuid
from storage.shared import open_storage
from storage.studies import StudySpec

Pairs = list[tuple[Any, Any]]
SCORES = torch.eye(3)[[0, 1, 2, 2, 1]]
SPEC = StudySpec("tiny", "", "accuracy", "maximize", 4, 5, 0, "tpe", "none")


def drawn(tmp_path: Path, pairs: Pairs | None, ending: Ending = COMPLETE, epochs: int = 4) -> list[str]:
    """Names of the pictures that a trial gets, each opened once."""
    found = []

    def attach(path: Path) -> None:
        height, width, _ = imread(path).shape
        assert width > height > 300
        found.append(path.name)

    plots = made("plots", tmp_path)
    plots.start(replace(INFO, attach=attach))
    for epoch in range(1, epochs + 1):
        plots.epoch(point(epoch))
    plots.end(replace(ending, predict=None if pairs is None else lambda: iter(pairs)))
    return found


class TestWhich:
    def test_classes_get_a_confusion_matrix(self, tmp_path: Path) -> None:
        pairs = [(SCORES, torch.tensor([0, 1, 2, 0, 0]))]
        assert drawn(tmp_path, pairs) == ["learning-curve.png", "confusion-matrix.png"]

    def test_numbers_get_their_residuals(self, tmp_path: Path) -> None:
        pairs = [(torch.randn(20, 1), torch.randn(20, 1))]
        assert drawn(tmp_path, pairs) == ["learning-curve.png", "residuals.png"]

    @pytest.mark.parametrize(
        "pairs",
        [
            None,
            [],
            [({"boxes": []}, [])],
            [(torch.randn(4, 7), torch.zeros(5, dtype=torch.int64))],
            [(torch.randn(4, 7), torch.randn(5))],
            [(torch.randn(2, 1001), torch.zeros(2, dtype=torch.int64))],
        ],
    )
    def test_whatever_else_has_its_curve(self, tmp_path: Path, pairs: Pairs | None) -> None:
        assert drawn(tmp_path, pairs) == ["learning-curve.png"]

    def test_a_predict_that_fails_costs_its_own_picture(self, tmp_path: Path) -> None:
        found: list[str] = []

        def fail() -> Iterator[tuple[Any, Any]]:
            yield SCORES, torch.zeros(5, dtype=torch.int64)
            raise ValueError("no")

        plots = Plots(tmp_path)
        plots.start(replace(INFO, attach=lambda path: found.append(path.name)))
        plots.epoch(point(1))
        with pytest.raises(ValueError, match="no"):
            plots.end(replace(COMPLETE, predict=fail))
        assert found == ["learning-curve.png"]

    @pytest.mark.parametrize("ending", [replace(COMPLETE, kept=False), Ending("pruned", 0.5), Ending("handed back")])
    def test_only_trials_whose_weights_are_kept_get_any(self, tmp_path: Path, ending: Ending) -> None:
        assert drawn(tmp_path, [(SCORES, torch.tensor([0, 1, 2, 0, 0]))], ending) == []

    def test_an_adopter_draws_the_whole_curve(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Point] = []
        draw = figures.learning_curve

        def look(info: TrialInfo, points: Sequence[Point], ending: Ending) -> Figure:
            seen.extend(points)
            return draw(info, points, ending)

        monkeypatch.setattr(figures, "learning_curve", look)
        plots = Plots(tmp_path)
        plots.start(replace(INFO, history=(point(1), point(2)), attach=lambda _path: None))
        plots.epoch(point(3))
        plots.end(COMPLETE)
        assert [one.epoch for one in seen] == [1, 2, 3]


class TestSeen:
    def counts(self, *pairs: tuple[Tensor, Tensor]) -> list[list[int]] | None:
        seen = Seen()
        assert seen.look(pairs)
        return None if seen.counts is None else seen.counts.tolist()

    def test_true_classes_are_rows_and_batches_add_up(self) -> None:
        first, second = (SCORES[:3], torch.tensor([0, 1, 1])), (SCORES[3:], torch.tensor([0, 1]))
        assert self.counts(first, second) == [[1, 0, 1], [0, 2, 1], [0, 0, 0]]

    def test_targets_below_zero_are_left_out(self) -> None:
        assert self.counts((SCORES, torch.tensor([0, -100, -100, -100, -100]))) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
    def test_one_logit_against_nought_or_one_is_two_classes(self, dtype: torch.dtype) -> None:
        logits, targets = torch.tensor([[-1.0], [2.0], [3.0]]), torch.tensor([[0], [0], [1]])
        assert self.counts((logits, targets.to(dtype))) == [[1, 1], [0, 1]]

    def test_a_number_that_is_neither_nought_nor_one_makes_it_a_regression(self) -> None:
        zeros = torch.zeros(3)
        assert self.counts((zeros, zeros), (zeros, torch.tensor([0.0, 1.0, 0.5]))) is None

    def test_every_pixel_of_a_segmentation_counts(self) -> None:
        scores = torch.eye(2)[torch.tensor([[[0, 1], [1, 1]]])].movedim(-1, 1)
        assert self.counts((scores, torch.tensor([[[0, 1], [0, 1]]]))) == [[1, 1], [0, 2]]

    def test_pairs_are_thinned_evenly_and_stay_pairs(self) -> None:
        values = torch.arange(40_000, dtype=torch.float32)
        seen = Seen()
        assert seen.look((values + 100_000 * batch + 1, values + 100_000 * batch) for batch in range(5))
        predicted, true = seen.pairs
        assert (predicted - true == 1).all()
        assert MOST_PAIRS / 4 < len(true) <= MOST_PAIRS
        assert {int(one) // 100_000 for one in true} == {0, 1, 2, 3, 4}


class TestFigures:
    """They are drawn without a complaint of matplotlib's (a warning is an error here); how they look, people judge."""

    @pytest.mark.parametrize("classes", [1, 2, 10, 30, 31, 200])
    def test_few_classes_and_many(self, tmp_path: Path, classes: int) -> None:
        counts = torch.eye(classes, dtype=torch.int64) * 40
        counts[0, -1] = 1
        figures.save(figures.confusion_matrix(INFO, counts, COMPLETE), tmp_path / "matrix.png")

    def test_a_class_that_never_occurs_and_one_that_is_always_right(self, tmp_path: Path) -> None:
        for classes in (3, 40):
            counts = torch.zeros(classes, classes, dtype=torch.int64)
            counts[0, 0] = 5
            figures.save(figures.confusion_matrix(INFO, counts, COMPLETE), tmp_path / "matrix.png")

    @pytest.mark.parametrize("count", [1, 50, 5000])
    def test_few_residuals_and_many_and_those_that_are_no_numbers(self, tmp_path: Path, count: int) -> None:
        true = torch.randn(count)
        true[0] = float("nan")
        figures.save(figures.residuals(INFO, torch.randn(count), true, COMPLETE), tmp_path / "residuals.png")

    @pytest.mark.parametrize("metrics", [{}, {"value": 0.5}, {"accuracy": float("nan"), "train_loss": float("inf")}])
    def test_a_curve_with_gaps(self, tmp_path: Path, metrics: dict[str, float]) -> None:
        points = [point(1), Point(2, metrics, 1.0, 0.0)]
        for told in (points, points[1:]):
            figures.save(figures.learning_curve(INFO, told, Ending("complete", None)), tmp_path / "curve.png")


def test_a_file_hangs_on_its_trial_once_until_it_is_forgotten(storage_url: str, tmp_path: Path) -> None:
    with engines_disposed():
        storage = open_storage(storage_url, Claimant(new_uuid()))
        record = studies.create(storage, SPEC, stem="tiny")
        trial = optuna.load_study(study_name=record.name, storage=storage).ask()
        artifacts = Artifacts(tmp_path / "files")
        picture = tmp_path / "curve.png"
        for content in ("the first owner's", "the adopter's"):
            picture.write_text(content)
            artifacts.attach(trial, picture)
        (meta,) = get_all_artifact_meta(trial)
        assert (meta.filename, meta.mimetype) == ("curve.png", "image/png")
        download_artifact(artifact_store=artifacts, artifact_id=meta.artifact_id, file_path=str(tmp_path / "back"))
        assert (tmp_path / "back").read_text() == "the adopter's"

        assert attachments.attached(storage, record) == [meta.artifact_id]
        other = studies.create(storage, SPEC, stem="tiny")
        assert attachments.attached(storage, other) == []
        artifacts.forget([meta.artifact_id, "never-there"])
        assert [*(tmp_path / "files" / "artifacts").iterdir()] == []
