"""Errors as people read them."""

from collections.abc import Generator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(error: type[Exception], told: str) -> Generator[None]:
    """The block raises this error, and says why in one line that matches."""
    with pytest.raises(error, match=told) as caught:
        yield
    assert "\n" not in str(caught.value)
