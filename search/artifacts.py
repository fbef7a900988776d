"""Files that hang on trials and that optuna-dashboard shows: where they lie, and how one gets there.

The worker hangs a trial's pictures up, `dialin dashboard` serves them. They are Optuna's own artifacts: a file named
by a UUID under the files root, and its description among the trial's system attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import Trial

from storage.attachments import PREFIX
from storage.optuna_internals import trial_id_of


class Artifacts(FileSystemArtifactStore):
    """One folder for all studies of a files root; it is made when the first file comes."""

    def __init__(self, files: Path) -> None:
        self._folder = files / "artifacts"
        super().__init__(self._folder)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        super().write(artifact_id, content_body)

    def attach(self, trial: Trial, path: Path) -> None:
        """Hang a copy of a file on a running trial; one of the same name, by an owner before, is overwritten.

        Raises:
            OSError: the folder cannot be written.
            LeaseLost, KeyError, ...: the trial is another's by now.
        """
        for meta in get_all_artifact_meta(trial):
            if meta.filename == path.name:
                key, told = f"{PREFIX}{meta.artifact_id}", json.dumps(asdict(meta))
                trial.storage.set_trial_system_attr(trial_id_of(trial), key, told)  # says so where the lease is lost
                with open(path, "rb") as file:
                    self.write(meta.artifact_id, file)
                return
        upload_artifact(artifact_store=self, file_path=str(path), study_or_trial=trial)

    def forget(self, artifact_ids: Iterable[str]) -> None:
        """Remove files (`storage.attachments` knows a study's); those that are not there are gone already."""
        for artifact_id in artifact_ids:
            with suppress(ArtifactNotFound):
                self.remove(artifact_id)
