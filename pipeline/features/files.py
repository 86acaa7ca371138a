"""`RUN/features/`: what is known of a run's features, read and checked.

    features.json      what was read, with which settings, and the SHA-256 of each file below
    features.parquet   one row a feature, in order
    examples.parquet   one row a context of a feature: feature after feature, `top` before `spread`
    samples.parquet    one row an active token of a feature
    tokens.parquet     every token that occurs in them, as its bytes

The folder is written under a temporary name and renamed (`save.py`): it is whole or absent. Each
Parquet file is held to its checksum when it is read.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from jaxtyping import Float32, Float64, Int64

from actstore.manifest import Manifest
from actstore.reader import ActStore
from pipeline.config.serialization import from_json, located
from pipeline.config.stages import FeatureOrder, FeaturesConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.features.feature import (
    BEFORE,
    Examples,
    Feature,
    Neighbour,
    TokenEffect,
    TokenValues,
    TopContexts,
)
from pipeline.frame import make_frame
from pipeline.runs.belongs import told_by
from pipeline.runs.folder import saepipe_version
from pipeline.stores import locate, looked_for
from pipeline.tables import Column, Table, as_html, percent
from pipeline.text.token_text import TokenTexts, label, visible

FOLDER, FACTS = "features", "features.json"
TABLES = ("features", "examples", "samples", "tokens")
FORMAT = 1
_SHOWN = 15


def has_features(run: Path) -> bool:
    """Whether features were found for the weights of a run.

    What is damaged there is told when it is read.
    """
    try:
        return _is_of(run, _read_facts(run))
    except CheckpointError:
        return (run / FOLDER / FACTS).exists()


def identity_of(run: Path) -> str:
    """What identifies the weights of a run: checksums of its files, as its run.json has them.

    Empty where there is none.
    """
    told = told_by(run)
    frozen = told.get("coder")
    known = [frozen] if isinstance(frozen, dict) else []
    return "+".join(str(its.get("sha256", "")) for its in (*known, told))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Where the features are from."""

    format: int = FORMAT
    saepipe: str = field(default_factory=saepipe_version)
    config: FeaturesConfig
    """As it ran, the paths absolute."""
    coder: str
    """What identifies the run's weights."""
    arch: str
    site: str
    store: Path
    store_fingerprint: str
    model: str
    """Whose logits are attributed; empty where the run does not say."""
    model_fingerprint: str = ""
    """Of its weights; empty where they were not found, and where an earlier version wrote this."""
    text: str
    n_tokens: int
    ctx_len: int
    has_texts: bool
    """Whether the tokenizer was found: else tokens stand as numbers."""
    attributed: bool
    """Whether there are promoted and suppressed tokens."""
    notes: tuple[str, ...]
    """What a reader must know, one sentence each."""
    sha256: tuple[str, ...] = ()
    """Of the files, in the order of `TABLES`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet:
    """The features of a run as they lie on disk; each file is read and checked when needed."""

    run: Path
    facts: Facts
    reused: bool = False
    """They were there already, of the same config, SAE and store."""

    @staticmethod
    def open(run: str | Path) -> "FeatureSet":
        """The features that were found for a run.

        Raises:
            CheckpointError: there are none, or they are damaged, or of the weights of another run.
        """
        run = Path(run)
        facts = _read_facts(run)
        if not _is_of(run, facts):
            raise CheckpointError(
                f"{run / FOLDER} is of the weights of another run: find the features again with "
                f"saepipe features {run}"
            )
        return FeatureSet(run=run, facts=facts)

    def __len__(self) -> int:
        return len(self.index)

    def fires_on(self, feature: Feature) -> list[str]:
        """The tokens that it is most active on in its top contexts, each once."""
        return [*map(self.texts.alone, dict.fromkeys(feature.top.tokens[:, BEFORE].tolist()))]

    def _repr_html_(self) -> str:
        """What a notebook shows: those that are active most often."""
        rows: list[list[str]] = []
        for index in ordered(self, "frequency")[:_SHOWN].tolist():
            one = self.feature(index)
            tokens = "  ".join(map(label, self.fires_on(one)))
            numbers = (percent(one.frequency), f"{one.max:.3g}", f"{one.mean:.3g}")
            rows.append([str(index), *numbers, tokens])
        columns = [
            *(Column(head=head, align="right") for head in ("feature", "active on", "max", "mean")),
            Column(head="fires on"),
        ]
        title = f"{len(self):,} features of {self.run.name}, the most frequent"
        return as_html(Table(title=title, columns=columns, sections=[rows]))

    def __repr__(self) -> str:
        n_alive = int((self.n_active > 0).sum())
        read = f"{self.facts.n_tokens:,} tokens of {visible(self.facts.text) or 'a text'}"
        return f"FeatureSet({self.run}, {len(self):,} features, {n_alive:,} active on {read})"

    @cached_property
    def index(self) -> Int64[np.ndarray, " n"]:
        """Of each feature."""
        return self._column("index").astype(np.int64)

    @cached_property
    def n_active(self) -> Int64[np.ndarray, " n"]:
        """Tokens on which each is above zero."""
        return self._column("n_active")

    @cached_property
    def frequency(self) -> Float64[np.ndarray, " n"]:
        """As a fraction of the tokens read."""
        return self._column("frequency")

    @cached_property
    def mean(self) -> Float64[np.ndarray, " n"]:
        """Of activations above zero; 0 for a dead feature."""
        return self._column("mean")

    @cached_property
    def max(self) -> Float32[np.ndarray, " n"]:
        """Largest activation."""
        return self._column("max")

    @cached_property
    def dead_cosine(self) -> Float64[np.ndarray, " n"]:
        """Cosine of each dictionary row with the mean dead row; NaN without dead features."""
        return self._column("dead_cosine")

    @cached_property
    def encoder_decoder_cosine(self) -> Float64[np.ndarray, " n"]:
        """Cosine of what each reads with what it writes."""
        return self._column("encoder_decoder_cosine")

    @cached_property
    def texts(self) -> TokenTexts:
        """Texts of all tokens that occur."""
        table = self._table("tokens")
        known = zip(table["token"].to_pylist(), table["bytes"].to_pylist(), strict=True)
        return TokenTexts(dict(known).get)

    def feature(self, index: int) -> Feature:
        """All that is known of one feature.

        Raises:
            ConfigError: there is no such feature.
            CheckpointError: a file is missing or damaged.
        """
        if not (isinstance(index, Integral) and 0 <= index < len(self)):
            raise ConfigError(f"{self.run} has features 0 to {len(self) - 1}, got {index!r}")
        told: dict[str, Any] = self._table("features").slice(index, 1).to_pylist()[0]
        examples, samples = self._rows_of("examples", index), self._rows_of("samples", index)
        n_top = examples["kind"].to_pylist().count("top")
        near = zip(told["neighbours"], told["neighbour_cosines"], strict=True)
        return Feature(
            index=index,
            **{name: told[name] for name in ("n_active", "frequency", "mean", "max")},
            top=_examples(examples.slice(0, n_top)),
            spread=_examples(examples.slice(n_top)),
            sample=TokenValues(
                token=samples["token"].to_numpy(), value=samples["value"].to_numpy()
            ),
            promoted=_effects(told, "promoted"),
            suppressed=_effects(told, "suppressed"),
            neighbours=tuple(Neighbour(index=i, cosine=cosine) for i, cosine in near),
            dead_cosine=told["dead_cosine"],
            encoder_decoder_cosine=told["encoder_decoder_cosine"],
        )

    def top(self, feature: int, n: int = 10) -> TopContexts:
        """The contexts that a feature is most active in, the most active first, to look at.

        Raises:
            ConfigError: there is no such feature.
            CheckpointError: a file is missing or damaged.
        """
        found = self.feature(feature)
        percent = f"{100 * found.frequency:.3g} %"
        return TopContexts(
            title=f"feature {feature} of {self.run.name}, active on {percent} of tokens",
            activations=tuple(found.top.value[:n].tolist()),
            passages=tuple(found.top.passages(self.texts)[:n]),
        )

    def to_frame(self) -> Any:  # noqa: ANN401 - pandas need not be installed
        """One row a feature, all that features.parquet holds, as a pandas DataFrame.

        Raises:
            ConfigError: pandas is not installed.
            CheckpointError: a file is missing or damaged.
        """
        return make_frame(self._table("features").to_pydict())

    def open_store(self) -> ActStore:
        """The store that was read.

        Raises:
            ConfigError: it is not to be found.
            StoreError: it is damaged.
        """
        facts = self.facts
        path = locate(facts.store, facts.store_fingerprint, run=self.run, grown=self._grew_to)
        if path is None:
            raise ConfigError(
                f"the store that features of {self.run} were found in is not found: "
                f"{looked_for(facts.store, facts.store_fingerprint)}; find the features again in "
                f"another, with saepipe features {self.run} --store"
            )
        return ActStore.open(path)

    def _grew_to(self, there: Manifest) -> bool:
        """Whether a store is the one that was read, given rows or sites since."""
        facts, spec = self.facts, there.spec
        return (
            facts.site in spec.names
            and (spec.ctx_len, spec.source.get("text", "")) == (facts.ctx_len, facts.text)
            and there.n_rows >= facts.n_tokens
        )

    def check(self) -> None:
        """Read everything.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        for name in TABLES:
            self._table(name)

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """Those that were read."""
        return {}

    def _table(self, name: str) -> Any:  # noqa: ANN401 - pyarrow is not typed
        if name in self._tables:
            return self._tables[name]
        file = f"{name}.parquet"
        known: dict[str, str] = dict(zip(TABLES, self.facts.sha256, strict=False))
        try:
            data = (self.run / FOLDER / file).read_bytes()
            if hashlib.sha256(data).hexdigest() != known.get(name):
                raise ValueError(f"its checksum does not match {FACTS}")  # noqa: TRY301
            table = parquet.read_table(pyarrow.BufferReader(data)).combine_chunks()
        except (OSError, ValueError) as error:  # what pyarrow raises is one of these
            raise _damaged(self.run, file, error) from error
        return self._tables.setdefault(name, table)

    @cached_property
    def _starts(self) -> dict[str, Int64[np.ndarray, " starts"]]:
        """Where the rows of each feature begin."""
        numbers = np.arange(len(self) + 1)
        return {
            name: np.searchsorted(self._table(name)["feature"].to_numpy(), numbers)
            for name in ("examples", "samples")
        }

    def _rows_of(self, name: str, index: int) -> Any:  # noqa: ANN401 - pyarrow is not typed
        start, stop = self._starts[name][index : index + 2].tolist()
        return self._table(name).slice(start, stop - start)

    def _column(self, name: str) -> Any:  # noqa: ANN401 - of any dtype
        return self._table("features")[name].to_numpy()


def _read_facts(run: Path) -> Facts:
    try:
        document = json.loads((run / FOLDER / FACTS).read_bytes())
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")  # noqa: TRY301
        return located(from_json(Facts, document, where=FACTS), run)
    except FileNotFoundError:
        raise CheckpointError(
            f"{run} has no features yet: find them with saepipe features {run}"
        ) from None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise _damaged(run, FACTS, error) from error


def _is_of(run: Path, facts: Facts) -> bool:
    """Whether they are of the weights that a run has, if a run is still there."""
    return identity_of(run) in ("", facts.coder)


def ordered(features: FeatureSet, by: FeatureOrder, *, seed: int = 0) -> Int64[np.ndarray, " n"]:
    """All features: the most frequent first, the largest first, by number, or at random.

    Equals stand by number. The dead come last, but for `index`.
    """
    match by:
        case "frequency":
            return np.lexsort((features.index, -features.n_active))
        case "max":
            return np.lexsort((features.index, -features.max))
        case "index":
            return features.index
        case "random":
            shuffled = np.random.default_rng(seed).permutation(len(features))
            return shuffled[np.argsort(features.n_active[shuffled] == 0, kind="stable")]
        case _:
            assert_never(by)


def _damaged(run: Path, file: str, error: Exception) -> CheckpointError:
    """One line about a file of `RUN/features`."""
    return CheckpointError(
        f"{run / FOLDER / file} is missing or damaged ({error}): find the features again with "
        f"saepipe features {run}"
    )


def _examples(rows: Any) -> Examples:  # noqa: ANN401 - pyarrow is not typed
    def window(name: str) -> Any:  # noqa: ANN401
        column = rows[name].combine_chunks()
        return column.flatten().to_numpy().reshape(len(rows), column.type.list_size)

    return Examples(
        context=rows["context"].to_numpy(),
        position=rows["position"].to_numpy(),
        value=rows["value"].to_numpy(),
        tokens=window("tokens"),
        values=window("values"),
    )


def _effects(told: dict[str, Any], end: str) -> tuple[TokenEffect, ...]:
    columns = (told[end], told[f"{end}_text"], told[f"{end}_effect"])
    return tuple(
        TokenEffect(token=token, text=text, effect=effect)
        for token, text, effect in zip(*columns, strict=True)
    )
