"""Write the samples of a run's features, and what its weights say, as `files.py` reads them."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from jaxtyping import Int, Shaped

from actstore.files import (
    in_turn,
    make_folder,
    partial_of,
    remove,
    sync_folder,
    write_file,
    write_json,
)
from pipeline.config.serialization import portable, to_json
from pipeline.evaluate.geometry import dead_cosine, encoder_decoder_cosine, nearest
from pipeline.features.feature import Examples
from pipeline.features.files import FACTS, FOLDER, TABLES, Facts, FeatureSet
from pipeline.features.samples import Samples
from pipeline.lm.logits import Ranked
from pipeline.sae.sae import Coder
from pipeline.text.token_text import TokenTexts


def save(
    run: Path,
    facts: Facts,
    samples: Samples,
    coder: Coder,
    attribution: Mapping[str, Ranked],
    *,
    texts: TokenTexts,
    of_logits: TokenTexts,
) -> FeatureSet:
    """Write the folder of a run's features, in the place of one that is there.

    Checksums are added to the facts; `attribution` is that of `attribute`, or empty, and
    `of_logits` are its tokens.
    """
    tables = {
        "features": _features(samples, coder, attribution, of_logits),
        "examples": _examples(samples, texts),
        "samples": _values(samples),
        "tokens": _tokens(samples, texts),
    }
    folder = run / FOLDER
    partial = partial_of(folder)
    with in_turn(run / f".{FOLDER}"):
        remove(partial)
        make_folder(partial)
        sha256 = [_write(partial / f"{name}.parquet", tables[name]) for name in TABLES]
        facts = replace(facts, sha256=tuple(sha256))
        write_json(partial / FACTS, to_json(portable(facts, run)))
        _put(partial, folder)
    return FeatureSet(run=run, facts=facts)


def _write(path: Path, table: Any) -> str:  # noqa: ANN401 - pyarrow is not typed
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    write_file(path, [data])
    return hashlib.sha256(data).hexdigest()


def _put(partial: Path, folder: Path) -> None:
    """Rename a folder into its place; one that is there is moved aside first, then removed."""
    old = folder.with_name(f"{folder.name}.old")
    remove(old)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync_folder(folder.parent)
    remove(old)


def _features(
    samples: Samples, coder: Coder, attribution: Mapping[str, Ranked], texts: TokenTexts
) -> Any:  # noqa: ANN401
    """What the weights say, and the store: which features are dead, for one."""
    d_sae, n_active, W_dec = coder.d_sae, samples.n_active, coder.W_dec.detach()
    neighbours, cosines = nearest(W_dec)
    to_dead = dead_cosine(W_dec, torch.from_numpy(n_active == 0))
    columns: dict[str, Any] = {
        "index": np.arange(d_sae, dtype=np.int32),
        "n_active": n_active,
        "frequency": n_active / max(1, samples.n_tokens),
        "mean": samples.total / np.maximum(1, n_active),
        "max": samples.max,
        "dead_cosine": pyarrow.nulls(d_sae, pyarrow.float64())
        if to_dead is None
        else to_dead.numpy(),
        "encoder_decoder_cosine": encoder_decoder_cosine(coder).numpy(),
    }
    none = torch.empty((d_sae, 0), dtype=torch.int64), torch.empty((d_sae, 0))
    for end in ("promoted", "suppressed"):
        tokens, effects = attribution.get(end, none)
        columns[end] = _lists(tokens.numpy().astype(np.int32))
        columns[f"{end}_text"] = pyarrow.array(
            [[texts.alone(token) for token in row] for row in tokens.tolist()],
            pyarrow.list_(pyarrow.string()),
        )
        columns[f"{end}_effect"] = _lists(effects.numpy())
    columns["neighbours"] = _lists(neighbours.numpy().astype(np.int32))
    columns["neighbour_cosines"] = _lists(cosines.numpy())
    return pyarrow.table(columns)


def _examples(samples: Samples, texts: TokenTexts) -> Any:  # noqa: ANN401
    """Of each feature the top contexts, then those drawn."""
    both = (samples.top, samples.spread)
    feature = np.concatenate([entries["feature"] for entries in both])
    order = np.argsort(feature, kind="stable")

    def column(name: str) -> Shaped[np.ndarray, "n ..."]:
        return np.concatenate([entries[name] for entries in both])[order]

    kind = pyarrow.DictionaryArray.from_arrays(
        np.repeat(np.arange(2, dtype=np.int8), [len(entries) for entries in both])[order],
        ["top", "spread"],
    )
    examples = Examples(**{f.name: column(f.name) for f in fields(Examples)})
    passages = examples.passages(texts)
    return pyarrow.table(
        {
            "feature": feature[order],
            "kind": kind,
            "rank": np.concatenate([_ranks(entries["feature"]) for entries in both])[order],
            **{name: getattr(examples, name) for name in ("context", "position", "value")},
            "tokens": _windows(examples.tokens),
            "values": _windows(examples.values),
            **{
                name: pyarrow.array([getattr(one, name) for one in passages], pyarrow.string())
                for name in ("before", "token", "after")
            },
        }
    )


def _values(samples: Samples) -> Any:  # noqa: ANN401
    names = ("feature", "context", "position", "token", "value")
    return pyarrow.table({name: np.ascontiguousarray(samples.values[name]) for name in names})


def _tokens(samples: Samples, texts: TokenTexts) -> Any:  # noqa: ANN401
    """Every token of the examples and samples that has bytes."""
    met = (samples.top["tokens"], samples.spread["tokens"], samples.values["token"])
    tokens = np.unique(np.concatenate([ids.reshape(-1) for ids in met]))
    known = [(i, texts.bytes_of(i)) for i in tokens[tokens >= 0].tolist()]
    known = [(token, data) for token, data in known if data is not None]
    return pyarrow.table(
        {
            "token": pyarrow.array([token for token, _ in known], pyarrow.int32()),
            "bytes": pyarrow.array([data for _, data in known], pyarrow.binary()),
            "text": pyarrow.array([texts.alone(token) for token, _ in known], pyarrow.string()),
        }
    )


def _ranks(features: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The place of each entry among those of its feature, given in the features' order."""
    return (np.arange(len(features)) - np.searchsorted(features, features)).astype(np.int32)


def _lists(rows: Shaped[np.ndarray, "n width"]) -> Any:  # noqa: ANN401
    ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pyarrow.ListArray.from_arrays(ends, rows.reshape(-1))


def _windows(rows: Shaped[np.ndarray, "n window"]) -> Any:  # noqa: ANN401
    """Each row as a list of the one length that all have."""
    return pyarrow.FixedSizeListArray.from_arrays(
        np.ascontiguousarray(rows).reshape(-1), rows.shape[1]
    )
