"""Settings in messages, `out`, as people type them on the command line, --out."""

import logging
import re
from dataclasses import fields

from pipeline.config.architectures import ARCHS
from pipeline.config.rows import ImportConfig
from pipeline.config.stages import (
    EvalConfig,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
    SteerConfig,
)
from pipeline.config.training import ConnectConfig, TrainConfig
from pipeline.errors import FLAGS
from pipeline.mnist.config import MnistConfig
from pipeline.text.token_text import visible

_CONFIGS = (
    HarvestConfig, TrainConfig, ConnectConfig, EvalConfig, FeaturesConfig, FinetuneConfig,
    ReportConfig, SteerConfig, MnistConfig, ImportConfig, *ARCHS.values(),
)  # fmt: skip
_OTHERS = {*FLAGS, "site", "column", "log", "config", "to", "license", "revision"}
"""Options that are no field of a config, or are called otherwise than it."""
_SETTING = re.compile(r"`([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)?)(=[^`]*)?`")


def as_typed(message: str) -> str:
    """A message with each setting as its option; other words in backquotes stay."""
    known = {f.name for config in _CONFIGS for f in fields(config)} | _OTHERS

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2] or ""
        if name.removeprefix("arch.") not in known:
            return found[0]
        if "." in name or (value not in ("", "=True") and name not in FLAGS):
            return f"--set {name}{value}"
        return f"--{name.replace('_', '-')}"

    return _SETTING.sub(option, message)


class Harmless(logging.Formatter):
    """Warnings, too, name files and texts."""

    def format(self, record: logging.LogRecord) -> str:
        """Each line of it as it may stand on a terminal."""
        return "\n".join(map(visible, super().format(record).split("\n")))
