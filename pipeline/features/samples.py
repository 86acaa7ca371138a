"""What one pass over a store keeps of every feature: numbers, top contexts, random samples.

Memory does not grow with the store: of each feature the best few entries of a long stream are kept
(`Leaders`). A random sample is the best of random scores, each a function of a seed and of what it
is for (`keys_of`): the same sample comes out whatever the blocks, shards and threads in which rows
were met.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, Int64, Shaped, UInt64
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from pipeline.config.stages import FeaturesConfig
from pipeline.errors import DataError
from pipeline.features.feature import AFTER, BEFORE


def entry_dtype(score: str, **payload: object) -> np.dtype:
    """The dtype of entries: their keys, and what comes along with them.

    No two entries of a stream agree in feature, context and position. A score is an unsigned
    integer, or a float that is never below zero.
    """
    fields: list[tuple[object, ...]] = [
        ("feature", np.int32), ("score", score), ("context", np.int64), ("position", np.int32),
    ]  # fmt: skip
    for name, kind in payload.items():
        fields.append((name, *kind) if isinstance(kind, tuple) else (name, kind))
    return np.dtype(fields)


_PART = 2**22  # latents whose active pairs are held at once: at worst all, 50 bytes each

_WINDOW = (BEFORE + 1 + AFTER,)
_CONTEXT = {
    "value": np.float32, "tokens": (np.int32, _WINDOW), "values": (np.float32, _WINDOW),
}  # fmt: skip
TOP = entry_dtype("f4", **_CONTEXT)
SPREAD = entry_dtype("u8", **_CONTEXT)
VALUES = entry_dtype("u8", value=np.float32, token=np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What was kept; entries are in order of their features."""

    n_tokens: int
    n_active: Int64[np.ndarray, " d_sae"]
    """Tokens on which each feature is above zero."""
    total: Float64[np.ndarray, " d_sae"]
    """Of its activations."""
    max: Float32[np.ndarray, " d_sae"]
    top: Shaped[np.ndarray, " _"]
    """Contexts of largest activation, of dtype `TOP`, in descending order."""
    spread: Shaped[np.ndarray, " _"]
    """Contexts drawn at random, of dtype `SPREAD`, in descending order of activation."""
    values: Shaped[np.ndarray, " _"]
    """Tokens drawn at random, of dtype `VALUES`."""


@final
class Sampler:
    """Keeps samples of the blocks it is given, in any order."""

    def __init__(self, config: FeaturesConfig, *, d_sae: int, ctx_len: int) -> None:
        self.n_tokens = 0
        self._config, self._d_sae, self._ctx_len = config, d_sae, ctx_len
        self._n_active = np.zeros(d_sae, np.int64)
        self._total = np.zeros(d_sae)
        self._max = np.zeros(d_sae, np.float32)
        self._top = Leaders(d_sae, config.n_top, TOP)
        self._spread = Leaders(d_sae, config.n_spread, SPREAD)
        self._values = Leaders(d_sae, config.n_values, VALUES)
        self._keys = keys_of(np.arange(d_sae), seed=config.seed, use=FEATURES)

    def add(
        self,
        z: Float[Tensor, "contexts ctx_len d_sae"],
        tokens: Int32[np.ndarray, "contexts ctx_len"],
        *,
        first: int,
    ) -> None:
        """Take in the latents of contexts that follow each other, the first of number `first`."""
        self._add_contexts(z, tokens, first)
        rows, n_rows = z.flatten(0, 1), max(1, _PART // self._d_sae)
        for start in range(0, tokens.size, n_rows):
            part = slice(start, start + n_rows)
            self._add_pairs(rows[part], tokens.reshape(-1)[part], first * self._ctx_len + start)
        self.n_tokens += tokens.size

    def result(self) -> Samples:
        """What all blocks so far have given."""
        spread = self._spread.best()
        order = np.lexsort(
            (spread["position"], spread["context"], -spread["value"], spread["feature"])
        )
        return Samples(
            n_tokens=self.n_tokens,
            n_active=self._n_active,
            total=self._total,
            max=self._max,
            top=self._top.best(),
            spread=spread[order],
            values=self._values.best(),
        )

    def _add_contexts(
        self,
        z: Float[Tensor, "contexts ctx_len d_sae"],
        tokens: Int32[np.ndarray, "contexts ctx_len"],
        first: int,
    ) -> None:
        """A context counts once for a feature, by the largest of its activations there."""
        peak = z.amax(1).cpu().numpy()
        if not np.isfinite(peak).all():
            raise DataError(
                f"features of {self._config.run} are not finite: its weights, or the rows of the "
                "store, overflow or hold NaN; train again, with a lower --lr"
            )
        np.maximum(self._max, peak.max(0), out=self._max)
        numbers = keys_of(first + np.arange(len(z)), seed=self._config.seed, use=CONTEXTS)
        drawn = paired(numbers[:, None], self._keys[None])
        for leaders, score in ((self._top, peak), (self._spread, drawn)):
            context, feature = np.nonzero((peak > 0) & (score >= leaders.bound))
            entries = _windows(z, tokens, context, feature, dtype=leaders.dtype)
            entries["score"] = score[context, feature]
            entries["context"] += first
            leaders.add(entries)

    def _add_pairs(
        self, z: Float[Tensor, "rows d_sae"], tokens: Int32[np.ndarray, " rows"], first: int
    ) -> None:
        """Every token on which a feature is active, `first` being the number of the first row."""
        active, values = _active(z)
        starts = np.arange(len(z) + 1) * self._d_sae
        n_of_row = np.diff(np.searchsorted(active, starts))
        feature = active - np.repeat(starts[:-1], n_of_row)
        self._n_active += np.bincount(feature, minlength=self._d_sae)
        self._total += np.bincount(feature, values, minlength=self._d_sae)
        rows = keys_of(first + np.arange(len(z)), seed=self._config.seed, use=ROWS)
        score = paired(np.repeat(rows, n_of_row), self._keys[feature])
        kept = np.flatnonzero(self._values.admits(feature, score))
        row = active[kept] // self._d_sae
        entries = np.empty(len(kept), VALUES)
        entries["feature"], entries["score"] = feature[kept], score[kept]
        entries["context"], entries["position"] = np.divmod(first + row, self._ctx_len)
        entries["value"], entries["token"] = values[kept], tokens[row]
        self._values.add(entries)


def _active(
    z: Float[Tensor, "rows d_sae"],
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Where latents are above zero, numbered row after row, and their values."""
    if z.device.type == "cpu":
        flat = z.reshape(-1).numpy()
        where = np.flatnonzero(flat > 0)
        return where, flat[where]
    where = (z > 0).reshape(-1).nonzero()[:, 0]
    return where.cpu().numpy(), z.reshape(-1)[where].cpu().numpy()


def _windows(
    z: Float[Tensor, "contexts ctx_len d_sae"],
    tokens: Int32[np.ndarray, "contexts ctx_len"],
    context: Int64[np.ndarray, " n"],
    feature: Int64[np.ndarray, " n"],
    *,
    dtype: np.dtype,
) -> Shaped[np.ndarray, " n"]:
    """An entry for each pair, about the first token of its largest activation; without score."""
    at, of = (torch.from_numpy(i).to(z.device) for i in (context, feature))
    columns = z[at, :, of].cpu().numpy()
    position = columns.argmax(1)
    entries = np.empty(len(context), dtype)
    entries["feature"], entries["context"], entries["position"] = feature, context, position
    entries["value"] = columns[np.arange(len(columns)), position]
    entries["values"] = _around(columns, 0)[np.arange(len(columns)), position]
    entries["tokens"] = _around(tokens, -1)[context, position]
    return entries


def _around(
    rows: Shaped[np.ndarray, "n ctx_len"], beyond: int
) -> Shaped[np.ndarray, "n ctx_len window"]:
    """A view of the window of every place of every row."""
    padded = np.full((len(rows), BEFORE + rows.shape[1] + AFTER), beyond, rows.dtype)
    padded[:, BEFORE:-AFTER] = rows
    return sliding_window_view(padded, BEFORE + 1 + AFTER, axis=1)


_MIN_BUFFER = 2**14  # entries: sorting fewer at a time costs more than it saves


@final
class Leaders:
    """Keeps, of every feature, the `n` entries of largest score: exactly what a sort would keep.

    Equal scores are ordered by context and position, so that the result does not depend on how
    the stream was cut, nor on its order. What is below a feature's `n`-th score is thrown away at
    once; the rest waits in a buffer, as long as all that is kept, and is then merged in by a sort.
    No more than `2 n_features n` entries and one addition are held.
    """

    def __init__(self, n_features: int, n: int, dtype: np.dtype) -> None:
        self.n = n
        self.dtype = dtype
        self.bound = np.zeros(n_features, dtype["score"])
        """Of each feature the score that an entry must reach to be among its `n` best so far."""
        self._best = np.empty(0, dtype)
        self._buffer: list[Shaped[np.ndarray, " _"]] = []
        self._n_buffered = 0
        self._max_buffered = max(_MIN_BUFFER, n_features * n)

    def admits(
        self, feature: Int[np.ndarray, "*pairs"], score: Shaped[np.ndarray, "*pairs"]
    ) -> Bool[np.ndarray, "*pairs"]:
        """Which pairs may be among the best: only of these need an entry be made."""
        return score >= self.bound[feature]

    def add(self, entries: Shaped[np.ndarray, " n"]) -> None:
        """Take in some entries, in any order."""
        self._buffer.append(entries[self.admits(entries["feature"], entries["score"])])
        self._n_buffered += len(self._buffer[-1])
        if self._n_buffered > self._max_buffered:
            self._merge()

    def best(self) -> Shaped[np.ndarray, " n"]:
        """What is kept: feature after feature, of each the largest score first."""
        self._merge()
        return self._best

    def _merge(self) -> None:
        entries = np.concatenate([self._best, *self._buffer])
        order = _order(entries)
        feature = entries["feature"][order]
        starts = np.searchsorted(feature, np.arange(len(self.bound)))
        rank = np.arange(len(order)) - starts[feature]
        self._best = entries[order[rank < self.n]]
        last = order[rank == self.n - 1]
        self.bound[entries["feature"][last]] = entries["score"][last]
        self._buffer, self._n_buffered = [], 0


def _order(entries: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """By feature, then descending score, then context and position.

    One sort of 64 bits, of which the feature takes the first and the score the rest, takes a tenth
    of the time of a sort by four keys: that is left for those that it finds equal.
    """
    feature, score = entries["feature"], entries["score"]
    # The bits of a float that is not negative are in the order of its values.
    bits = ~(score if score.dtype.kind == "u" else score.view(f"u{score.dtype.itemsize}"))
    n_bits = 63 - int(feature.max(initial=0)).bit_length()
    n_lost = max(0, 8 * bits.dtype.itemsize - n_bits)
    key = (feature.astype(np.uint64) << n_bits) | (bits >> n_lost).astype(np.uint64)
    order = np.argsort(key)
    ordered = key[order]
    equal = ordered[1:] == ordered[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        of = order[tied]
        keys = (entries["position"][of], entries["context"][of], bits[of], feature[of])
        order[tied] = of[np.lexsort(keys)]
    return order


ROWS, CONTEXTS, FEATURES = range(3)
"""What keys are for: those of one use tell nothing of another's."""
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def keys_of(
    numbers: Int[np.ndarray, "*shape"], *, seed: int, use: int
) -> UInt64[np.ndarray, "*shape"]:
    """A random number for each number: the same number gives the same one."""
    start = _scrambled(np.array([seed % 2**64], np.uint64) * _STEP + _STEP)  # scalars would warn
    start = _scrambled(start + np.array([use], np.uint64) * _STEP)
    return _scrambled(start + numbers.astype(np.uint64) * _STEP)


def paired(
    one: UInt64[np.ndarray, "..."], other: UInt64[np.ndarray, "..."]
) -> UInt64[np.ndarray, "..."]:
    """A random number for each pair of keys; shapes are broadcast.

    For a fixed key of one side this is a one-to-one map of the other side's: as random as they
    are. One multiplication takes the pairs of two features apart, and is all that there is time
    for: it is done for every active pair of a store.
    """
    mixed = one ^ other
    mixed ^= mixed >> _SHIFTS[2]
    mixed *= _FACTORS[0]
    return mixed


def _scrambled(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[2])
