"""What steering did: texts beside those of the model alone, and numbers of them; kept in the run.

RUN/steer/123.json          feature 123 raised
RUN/steer/123-clamp.json    held at a value; 12-40-ablate.json: two turned off
RUN/steer/12+7.json         several runs: with the first
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from actstore.files import make_folder, write_json
from pipeline.config.serialization import from_json, located, portable, to_json
from pipeline.config.stages import SteerConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.frame import make_frame
from pipeline.runs.belongs import is_of
from pipeline.runs.folder import saepipe_version
from pipeline.tables import Column, Table, as_html, many

FOLDER = "steer"
FORMAT = 1
FIGURES = (".png", ".svg")
Edit = Literal["add", "clamp", "ablate"]
_NAME = 100
"""Characters of a name; a longer one ends with a part of its checksum."""


@dataclass(frozen=True, kw_only=True)
class SteeredFeature:
    """One feature, and where it is."""

    run: Path
    site: str
    feature: int


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What the model wrote after a prompt, and how the model alone reads it."""

    text: str
    """Without the prompt; where the model ended it, with its end of text."""
    n_tokens: int
    perplexity: float
    """Of the new tokens, in the model that is not steered."""
    activations: tuple[float, ...]
    """Of each feature the mean over the new tokens, in the model that is not steered."""
    changed: float
    """Share of tokens that are others than in the text of the model alone."""


@dataclass(frozen=True, kw_only=True)
class SteeredText:
    """One prompt, or one sample of it, gone on with by the model alone and steered."""

    prompt: str
    sample: int
    """Its number, from 0."""
    clean: Continuation
    steered: tuple[Continuation, ...]
    """In the order of the effects."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One strength, over all texts."""

    strength: str
    """As it was asked for: `5x`; empty for ablating, and for the model alone."""
    amounts: tuple[float, ...]
    """Of each feature what is added to its activation, or what that is set to."""
    perplexity: float
    """Of all new tokens, in the model that is not steered."""
    activations: tuple[float, ...]
    """Of each feature the mean over all new tokens, in the model that is not steered."""
    changed: float
    """Share of new tokens that are others than in the texts of the model alone."""


@dataclass(frozen=True, kw_only=True)
class SteerReport:
    """What steering did to some texts. Numbers are of the model that is not steered, reading them.

    Perplexity says what the edit costs, the activation of the feature what it brings.
    """

    format: int = FORMAT
    saepipe: str = field(default_factory=saepipe_version)
    config: SteerConfig
    """As it ran, the paths absolute."""
    sha256: str
    """Of the weights of the first run."""
    features: tuple[SteeredFeature, ...]
    edit: Edit
    """`add` for `scale`."""
    model: str
    revision: str
    precision: str
    """Of the model; SAEs always compute in float32."""
    temperature: float
    """0 where the likeliest token was taken each time."""
    clean: Effect
    """The model alone."""
    effects: tuple[Effect, ...]
    """One a strength, in the order they were asked for."""
    texts: tuple[SteeredText, ...]
    """Prompt after prompt, sample after sample."""
    notes: tuple[str, ...]
    """What a reader of these numbers must know, one sentence each."""

    @property
    def is_sweep(self) -> bool:
        """Whether several strengths were tried."""
        return len(self.effects) > 1

    @property
    def path(self) -> Path:
        """The file that it is kept in."""
        return self.features[0].run / FOLDER / f"{name_of(self.config)}.json"

    @property
    def title(self) -> str:
        """Which features are steered, in words."""
        verb = {"add": "raised", "clamp": "held", "ablate": "off"}[self.edit]
        return f"{', '.join(self.names)} {verb}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of each feature; with its site where there are several."""
        sites = {its.site for its in self.features}
        return tuple(
            f"feature {its.feature}" + (f" at {its.site}" if len(sites) > 1 else "")
            for its in self.features
        )

    def label(self, effect: Effect) -> str:
        """A strength as it stands in tables: `+5x`, `= 3`, `off`, `clean`."""
        if not effect.amounts:
            return "clean"
        if self.edit == "ablate":
            return "off"
        sign = "= " if self.edit == "clamp" else "" if effect.strength.startswith("-") else "+"
        return sign + effect.strength

    def to_frame(self) -> Any:  # noqa: ANN401 - pandas need not be installed
        """One row a strength, the model alone first, as a pandas DataFrame.

        Raises:
            ConfigError: pandas is not installed.
        """
        rows = (self.clean, *self.effects)
        return make_frame({
            "strength": [self.label(one) for one in rows],
            "perplexity": [one.perplexity for one in rows],
            **{name: [one.activations[i] for one in rows] for i, name in enumerate(self.names)},
            "changed": [one.changed for one in rows],
        })  # fmt: skip

    def _repr_html_(self) -> str:
        """What a notebook shows: the texts, side by side."""
        heads = ["prompt", *map(self.label, (self.clean, *self.effects))]
        rows = [
            [one.prompt, *(its.text for its in (one.clean, *one.steered))] for one in self.texts
        ]
        columns = [Column(head=head) for head in heads]
        return as_html(Table(title=self.title, columns=columns, sections=[rows]))

    def __repr__(self) -> str:
        told = "; ".join(
            f"{self.label(one)} perplexity {one.perplexity:.4g}, activation "
            + ", ".join(f"{value:.3g}" for value in one.activations)
            for one in (self.clean, *self.effects)
        )
        texts = many(len(self.texts), "text")
        return f"SteerReport({self.title}: {told}; {texts} in {self.path})"


def name_of(config: SteerConfig) -> str:
    """Of the file without its ending: by features and edit, so that they have one each."""
    name = "+".join("-".join(map(str, its)) for its in config.features)
    name += "-ablate" if config.ablate else "-clamp" if config.clamp else ""
    if len(name) <= _NAME:
        return name
    return f"{name[:_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def keep(report: SteerReport) -> Path:
    """Write a report into the folder of its first run, whole or not at all; gives the file.

    The figures of the one that it takes the place of go.
    """
    path = report.path
    make_folder(path.parent)
    for ending in FIGURES:
        path.with_suffix(ending).unlink(missing_ok=True)
    write_json(path, to_json(portable(report, path.parent)))
    return path


def steerings_of(run: Path) -> tuple[SteerReport, ...]:
    """The reports that are kept in a run and are of its weights, by the names of their files.

    Raises:
        CheckpointError: one is damaged, or another version wrote it.
    """
    folder = run / FOLDER
    paths = sorted(folder.glob("*.json"), key=_in_order) if folder.is_dir() else []
    return tuple(one for one in map(_read, paths) if is_of(run, one.sha256))


def _in_order(path: Path) -> tuple[Sequence[object], str]:
    """By the number of its first feature, adding before what else is done to the same."""
    digits = path.stem.replace("+", "-").split("-")[0]
    return [int(digits) if digits.isdecimal() else -1], path.stem


def _read(path: Path) -> SteerReport:
    try:
        told = located(from_json(SteerReport, json.loads(path.read_bytes())), path.parent)
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is not a report that this version can read: {error}; make it again with "
            f"saepipe steer, or remove it"
        ) from error
    if told.format != FORMAT or not told.features:
        raise CheckpointError(
            f"{path} is of format {told.format}, this saepipe reads format {FORMAT}"
        )
    here = path.parent.parent  # a run may have moved
    first, *others = told.features
    return replace(told, features=(replace(first, run=here), *others))
