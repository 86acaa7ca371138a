"""What latents come to: numbers, top contexts and random samples of every feature."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64, Shaped
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from pipeline.config import FeaturesConfig
from pipeline.errors import DataError
from pipeline.features.draw import CONTEXTS, FEATURES, ROWS, keys_of, paired
from pipeline.features.feature import AFTER, BEFORE
from pipeline.features.leaders import Leaders, entry_dtype

_PART = 2**22  # latents whose active pairs are held at once: at worst all, 50 bytes each

_WINDOW = (BEFORE + 1 + AFTER,)
_CONTEXT = {
    "value": np.float32, "tokens": (np.int32, _WINDOW), "values": (np.float32, _WINDOW),
}  # fmt: skip
TOP = entry_dtype("f4", **_CONTEXT)
SPREAD = entry_dtype("u8", **_CONTEXT)
SAMPLE = entry_dtype("u8", value=np.float32, token=np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What one pass found; entries are in order of their features."""

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
    sample: Shaped[np.ndarray, " _"]
    """Tokens drawn at random, of dtype `SAMPLE`."""


@final
class Found:
    """What the blocks so far have given; they may come in any order."""

    def __init__(self, config: FeaturesConfig, *, d_sae: int, ctx_len: int) -> None:
        self.n_tokens = 0
        self._config, self._d_sae, self._ctx_len = config, d_sae, ctx_len
        self._n_active = np.zeros(d_sae, np.int64)
        self._total = np.zeros(d_sae)
        self._max = np.zeros(d_sae, np.float32)
        self._top = Leaders(d_sae, config.n_top, TOP)
        self._spread = Leaders(d_sae, config.n_spread, SPREAD)
        self._sample = Leaders(d_sae, config.n_values, SAMPLE)
        self._keys = keys_of(np.arange(d_sae), seed=config.seed, use=FEATURES)

    def add(
        self,
        z: Float[Tensor, "contexts ctx_len d_sae"],
        tokens: Int32[np.ndarray, "contexts ctx_len"],
        *,
        first: int,
    ) -> None:
        """Take in the latents of contexts that follow each other, the first of number `first`.

        Raises:
            DataError: one of them is not finite.
        """
        self._add_contexts(z, tokens, first)
        rows, n_rows = z.flatten(0, 1), max(1, _PART // self._d_sae)
        for start in range(0, tokens.size, n_rows):
            part = slice(start, start + n_rows)
            self._add_pairs(rows[part], tokens.reshape(-1)[part], first * self._ctx_len + start)
        self.n_tokens += tokens.size

    def result(self) -> Scan:
        """All of it."""
        spread = self._spread.best()
        order = np.lexsort(
            (spread["position"], spread["context"], -spread["value"], spread["feature"])
        )
        return Scan(
            n_tokens=self.n_tokens,
            n_active=self._n_active,
            total=self._total,
            max=self._max,
            top=self._top.best(),
            spread=spread[order],
            sample=self._sample.best(),
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
            entries = windows(z, tokens, context, feature, dtype=leaders.dtype)
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
        kept = np.flatnonzero(self._sample.admits(feature, score))
        row = active[kept] // self._d_sae
        entries = np.empty(len(kept), SAMPLE)
        entries["feature"], entries["score"] = feature[kept], score[kept]
        entries["context"], entries["position"] = np.divmod(first + row, self._ctx_len)
        entries["value"], entries["token"] = values[kept], tokens[row]
        self._sample.add(entries)


def _active(
    z: Float[Tensor, "rows d_sae"],
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Where latents are above zero, numbered row after row, and their values."""
    if z.device.type == "cpu":
        flat = z.reshape(-1).numpy()
        where = np.flatnonzero(flat > 0)
        return where, flat[where]
    found = (z > 0).reshape(-1).nonzero()[:, 0]
    return found.cpu().numpy(), z.reshape(-1)[found].cpu().numpy()


def windows(
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
