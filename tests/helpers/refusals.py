"""Errors as people read them."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest


@contextmanager
def refused(error: type[Exception], told: str) -> Generator[None]:
    """The block raises this error, and says why in one line that matches."""
    with pytest.raises(error, match=told) as caught:
        yield
    assert "\n" not in str(caught.value)


def may_only_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no file be put into this folder, as far as is asked before any work: root might."""

    def made(*, dir: Path) -> Any:
        if dir.resolve() == folder.resolve():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))
        return TemporaryFile(dir=dir)

    monkeypatch.setattr("pipeline.disk.TemporaryFile", made)
