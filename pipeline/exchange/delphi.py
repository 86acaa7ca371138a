"""export_delphi(run, out): the active latents of a store as the cache that delphi explains from.

    OUT/MODULE/
        config.json                 which model, which text, how many tokens
        FIRST_LAST.safetensors      of a range of latents, both ends included:
            locations [n, 3]        context, position, latent less FIRST; uint16, or uint32
            activations [n]         float16
            tokens [contexts, ctx_len]

The files are those of delphi 0.1.1 (`delphi/latents/cache.py`, save_splits), and its LatentDataset
reads them. It keeps the cache in memory while it writes; here each block of the store goes to the
files of its ranges at once, so that memory does not grow with the text.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from actstore.files import write_json
from actstore.reader import ActStore
from pipeline.config.keywords import told_in_settings
from pipeline.config.stages import FeaturesConfig
from pipeline.device import pick_device
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluate.setup import load_sae
from pipeline.exchange.whole import whole_folder
from pipeline.features.collect import encoded, n_contexts_of, open_store
from pipeline.limits import limits_told
from pipeline.lm.families import Shape
from pipeline.lm.hub import ModelFiles
from pipeline.lm.sites import LayerSite, ModuleSite, Site
from pipeline.progress import OnProgress, counter

FAINTEST = 1e-5
"""delphi takes what is not above it for inactive."""


@dataclass(frozen=True, kw_only=True)
class DelphiExport:
    """What was written."""

    folder: Path
    """OUT/MODULE."""
    module: str
    n_tokens: int
    n_active: int
    """Pairs of a token and a latent."""
    n_files: int
    n_bytes: int
    reused: bool
    """The same was there already."""


@told_in_settings
@limits_told()
def export_delphi(
    run: str | PathLike[str],
    *,
    out: str | PathLike[str],
    store: str | PathLike[str] | None = None,
    tokens: int | None = None,
    n_splits: int = 5,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> DelphiExport:
    """Write what a run's latents are on the contexts of a store, as delphi's cache.

        sp.export_delphi("runs/topk", out="latents")

    Args:
        run: Of an SAE, plain or fine-tuned.
        out: The folder that gets MODULE; SAEs of several modules can share it.
        store: None means the one it was trained from.
        tokens: To read, in whole contexts from the store's first; None means all.
        n_splits: Files, each of a range of latents. delphi loads them one by one.
        device: That computes.
        on_progress: Told the tokens done.

    Raises:
        CheckpointError: the run cannot be used, or the disk fails.
        ConfigError: the store does not fit, or the folder holds something else, or an activation
            is more than float16 holds.
        StoreError: the store cannot be read.
    """
    run, out = Path(run).resolve(), Path(out).resolve()
    subject = load_sae(run, device=pick_device(device))
    config = FeaturesConfig(
        run=run, store=None if store is None else Path(store).resolve(), tokens=tokens
    )
    acts, site, d_sae = open_store(config, subject), str(subject.site), subject.coder.d_sae
    if not 1 <= n_splits <= d_sae:
        raise ConfigError(f"n_splits must be 1 to {d_sae}, as many as there are latents")
    n_contexts, ctx_len = n_contexts_of(acts, tokens), acts.spec.ctx_len
    # as delphi cuts, so that the files have its names
    ends = torch.linspace(0, d_sae, steps=n_splits + 1).long().tolist()
    small = max(n_contexts, ctx_len, *(b - a for a, b in pairwise(ends))) <= 2**16
    kind = np.dtype(np.uint16 if small else np.uint32)
    module = _module_name(subject.site, model=subject.model, revision=subject.revision)
    tell = counter(on_progress, stage="export", total=n_contexts * ctx_len, unit="tokens")
    n_active = 0
    with whole_folder(out / module, option="--out") as folder:
        with ExitStack() as files:
            parts = [_Part(folder.partial, a, b, kind, files) for a, b in pairwise(ends)]
            text = files.enter_context((folder.partial / "tokens.raw").open("w+b"))
            blocks = files.enter_context(
                closing(encoded(acts, site, subject.coder, n_contexts=n_contexts))
            )
            with torch.inference_mode():
                for first, its, z in blocks:
                    text.write(np.ascontiguousarray(its, "<i4").tobytes())
                    n_active += _split(z, parts, first=first)
                    tell((first + len(its)) * ctx_len)
            for part in parts:
                part.finish(text, shape=(n_contexts, ctx_len))
        (folder.partial / "tokens.raw").unlink()
        write_json(
            folder.partial / "config.json",
            _config(acts, model=subject.model, n_tokens=n_contexts * ctx_len, n_splits=n_splits),
        )
    written = [path for path in folder.out.iterdir() if path.is_file()]
    return DelphiExport(
        folder=folder.out,
        module=module,
        n_tokens=n_contexts * ctx_len,
        n_active=n_active,
        n_files=len(parts),
        n_bytes=sum(path.stat().st_size for path in written),
        reused=folder.reused,
    )


class _Part:
    """The file of one range of latents: what is active goes to two raw files, then into it."""

    def __init__(
        self, folder: Path, first: int, end: int, kind: np.dtype, files: ExitStack
    ) -> None:
        self.first, self.end, self.kind, self.n = first, end, kind, 0
        self._path = folder / f"{first}_{end - 1}.safetensors"
        self._raw = {name: self._path.with_suffix(f".{name}") for name in ("at", "values")}
        self._at, self._values = (
            files.enter_context(path.open("w+b")) for path in self._raw.values()
        )

    def add(self, locations: Shaped[np.ndarray, "n 3"], values: Shaped[np.ndarray, " n"]) -> None:
        """Take in active latents, contexts in ascending order."""
        self._at.write(np.ascontiguousarray(locations, self.kind).tobytes())
        self._values.write(np.ascontiguousarray(values, "<f2").tobytes())
        self.n += len(values)

    def finish(self, tokens: BinaryIO, *, shape: tuple[int, int]) -> None:
        """Write the file, and remove the raw ones."""
        code = "U16" if self.kind.itemsize == 2 else "U32"
        tensors = {
            "locations": (code, [self.n, 3], self._at),
            "activations": ("F16", [self.n], self._values),
            "tokens": ("I32", [*shape], tokens),
        }
        with self._path.open("wb") as whole:
            whole.write(_head({name: told[:2] for name, told in tensors.items()}))
            for _, _, raw in tensors.values():
                raw.flush()
                raw.seek(0)
                shutil.copyfileobj(raw, whole, 2**22)
        for path in self._raw.values():
            path.unlink()


def _head(tensors: Mapping[str, tuple[str, list[int]]]) -> bytes:
    """How a file of safetensors begins whose tensors follow in this order."""
    head, start = dict[str, object](), 0
    for name, (code, shape) in tensors.items():
        end = start + int(code[1:]) // 8 * int(np.prod(shape, dtype=np.int64))
        head[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
        start = end
    told = json.dumps(head, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    return len(told).to_bytes(8, "little") + told


def _split(z: Float[Tensor, "contexts ctx_len d_sae"], parts: list[_Part], *, first: int) -> int:
    """Give each range what is active of a block of contexts; how many pairs that is."""
    at = (z > FAINTEST).nonzero()
    values = z[at[:, 0], at[:, 1], at[:, 2]]
    if len(values) and float(values.max()) > torch.finfo(torch.float16).max:
        raise ConfigError(
            f"a latent is {float(values.max()):.6g} on a token, and delphi keeps float16, at most "
            "65504: its cache cannot hold this SAE"
        )
    values = values.half().cpu().numpy()
    places = at.cpu().numpy()
    places[:, 0] += first
    for part in parts:
        its = (places[:, 2] >= part.first) & (places[:, 2] < part.end)
        part.add(places[its] - [0, 0, part.first], values[its])
    return len(values)


def _config(store: ActStore, *, model: str, n_tokens: int, n_splits: int) -> dict[str, object]:
    """What delphi's CacheConfig has, and the model whose tokenizer its loader takes."""
    source = store.spec.source
    return {
        "dataset_repo": source.get("text", ""),
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 1,
        "cache_ctx_len": store.spec.ctx_len,
        "n_tokens": n_tokens,
        "n_splits": n_splits,
        "model_name": model,
    }


def _module_name(site: Site, *, model: str, revision: str) -> str:
    """The module inside the base model whose output a site is, `layers.3.mlp`.

    Where it is the input of one, or the model's config.json is not to be had, the site itself.
    """
    if isinstance(site, ModuleSite):
        return str(site).partition(".")[2]
    if isinstance(site, LayerSite) and site.side == "out":
        try:
            shape = Shape.of(ModelFiles(model, revision or "main").config, name=model)
        except (ModelError, ConfigError):
            return str(site)
        return shape.family.module_path(site)
    return str(site)
