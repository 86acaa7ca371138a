"""The model and the text of a fine-tuning, which may be others later, under the same names."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.config.stages import FinetuneConfig
from pipeline.errors import ConfigError, TextError
from pipeline.runs.replaced import fingerprint_at_hand, is_another
from pipeline.runs.sae_run import SAERun
from pipeline.text.open import open_text


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Fingerprints; empty where it is not known, as in what earlier versions wrote."""

    model_fingerprint: str = ""
    text_fingerprint: str = ""

    @staticmethod
    def of(config: FinetuneConfig, run: SAERun) -> "Sources":
        """Those at hand; whoever cannot do without one that is not there tells when it is used."""
        text = ""
        with suppress(TextError, OSError):
            text = open_text(config.text, column=config.text_column).fingerprint()
        model = fingerprint_at_hand(*model_of(config, run))
        return Sources(model_fingerprint=model, text_fingerprint=text)

    def changed(self, now: "Sources", config: FinetuneConfig, run: SAERun) -> str:
        """Which of them is another now, in words; empty where none is known to be."""
        model, _ = model_of(config, run)
        pairs = {
            f"the weights of {model}": (self.model_fingerprint, now.model_fingerprint),
            f"the text {config.text}": (self.text_fingerprint, now.text_fingerprint),
        }
        return " and ".join(what for what, both in pairs.items() if is_another(*both))


def model_of(config: FinetuneConfig, run: SAERun) -> tuple[str, str]:
    """The model that the SAE goes into, its own unless told otherwise, and its revision."""
    source = run.provenance
    name = source.model if config.model is None else config.model
    return name, (source.revision if name == source.model else "") or "main"


def model_needed(config: FinetuneConfig, runs: Sequence[SAERun]) -> tuple[str, str]:
    """As `model_of`, of all of them, where there is no going on without one.

    Raises:
        ConfigError: nothing names it, or the runs are of several.
    """
    named = {model_of(config, run): run for run in runs}
    if len(named) > 1:
        names = " and ".join(f"{run.path} of {name}" for (name, _), run in named.items())
        raise ConfigError(
            f"these runs are of several models, {names}: name runs of one, or with --model the "
            "one that all go into"
        )
    name, revision = next(iter(named))
    if not name:
        raise ConfigError(
            f"{config.run} does not say which model its activations are from: name it with --model"
        )
    return name, revision


def as_it_was(document: Any) -> Any:  # noqa: ANN401 - JSON
    """What an earlier version wrote, with the settings that it had no names for.

    Decay led to zero before it could lead to the start.
    """
    config = document.get("config") if isinstance(document, dict) else None
    if isinstance(config, dict):
        config.setdefault("decay_to", "zero")
    return document
