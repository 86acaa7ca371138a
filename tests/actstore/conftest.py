"""What makes the many small stores of these tests cheap to write."""

import pytest

from actstore import files


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """Where nothing is synced, threads to wait for the disk cost more than they save."""
    monkeypatch.setattr(files, "SIDE_BY_SIDE", 1)
