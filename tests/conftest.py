"""Factories that several test modules use: a test states only what it is about."""

from pathlib import Path

import pytest

from tests.stores import make_spec, write_store


@pytest.fixture
def make_store(tmp_path: Path):
    """A finished store of random rows: `make_store(n_rows=80, widths={"mlp_out.1": 16}, ...)`."""

    def make(*, n_rows: int = 200, name: str = "acts", **spec) -> Path:
        return write_store(tmp_path / f"{name}.actstore", make_spec(**spec), n_rows=n_rows)

    return make
