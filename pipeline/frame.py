"""Columns of numbers as a pandas DataFrame, where pandas is installed."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pipeline.errors import ConfigError


def make_frame(columns: Mapping[str, object]) -> Any:  # noqa: ANN401 - pandas need not be installed
    """A pandas DataFrame.

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise ConfigError("a frame needs pandas, which is not here: pip install pandas") from None
    return pandas.DataFrame(dict(columns))
