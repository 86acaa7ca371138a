"""Cases of a test that run with `pytest -m slow` alone: others show the same of it each time."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest


def slow(*values: Any, id: str | None = None) -> Any:
    """These values of one case, as a slow one."""
    return pytest.param(*values, id=id, marks=pytest.mark.slow)


def cases(all_of_them: Mapping[str, Any], *, fast: Collection[str]) -> list[Any]:
    """Every case under its name, those slow that are not named as fast."""
    assert fast and set(fast) <= all_of_them.keys()
    return [
        pytest.param(value, id=name, marks=() if name in fast else pytest.mark.slow)
        for name, value in all_of_them.items()
    ]
