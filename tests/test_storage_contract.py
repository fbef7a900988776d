"""Optuna's own contract for storages, on the class and the settings that workers use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.testing.pytest_storages import StorageTestCase
from storage_places import connections_closed, worker_on

from storage.shared import SharedStorage

pytest_plugins = ["storage_fixtures"]


@pytest.fixture(scope="module")
def workers_storage(common_url: str) -> Iterator[SharedStorage]:
    with connections_closed():
        yield worker_on(common_url)


class TestAWorkersStorageKeepsOptunasContract(StorageTestCase):
    @pytest.fixture
    def storage(self, workers_storage: SharedStorage) -> Iterator[SharedStorage]:
        """With no study in it. One for all tests: opening a hundred takes longer than the tests."""
        yield workers_storage
        for study in workers_storage.get_all_studies():
            workers_storage.delete_study(study._study_id)
