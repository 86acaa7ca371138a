"""What a harvest is going to do, worked out before anything heavy is loaded.

Torch-free: a finished store is recognised within a second.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from actstore.manifest import Manifest, StoreSpec, differences
from actstore.reader import peek
from pipeline.config import HarvestConfig
from pipeline.errors import ConfigError
from pipeline.families import Shape, Site
from pipeline.hub import ModelFiles
from pipeline.text import TextSource, open_text
from pipeline.tokenizer import Tokenizer, load_tokenizer

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# Bytes on disk for each byte of activations, measured on a small trained Pythia: an estimate.
RATIO = {"raw": 1.0, "lz4": 0.75, "zstd": 0.70}
METADATA_BYTES = 8  # a row's token, context, position and document, compressed, about
HEADROOM = 1.02


@dataclass(frozen=True, kw_only=True)
class HarvestPlan:
    """What is there already, what is to come, and whether it fits."""

    config: HarvestConfig
    sites: tuple[Site, ...]
    spec: StoreSpec
    """With `model_precision` "auto" where a new store leaves it to the device."""
    state: Literal["new", "resume", "extend", "complete"]
    n_rows: int
    """Rows per site when done; whole contexts."""
    rows_to_write: int
    """Rows per site still to come, at most: an interrupted harvest has some of them."""
    bytes_to_write: int
    """Estimate of what that takes on disk."""
    bytes_free: int
    source_exhausted: bool
    """A store is complete because its text ended, not because it has the rows asked for."""


def make_plan(config: HarvestConfig) -> HarvestPlan:
    """Compare what is asked for with what is there.

    Raises:
        ConfigError: a site or context length that the model does not have, or a disk without room.
        ModelError: the model cannot be found, reached or read.
        TextError: the text cannot be found, reached or read.
        StoreError: the path holds something else, or a harvest of another configuration.
    """
    if not config.sites:
        raise ConfigError("no site to harvest: name one, as in --site mlp_out.1")
    files = ModelFiles(config.model, config.revision)
    shape = Shape.of(files.config, name=config.model)
    sites = tuple(Site.parse(site) for site in config.sites)
    for site in sites:
        shape.check(site, name=config.model)
    if config.ctx_len > shape.n_positions:
        raise ConfigError(
            f"ctx-len {config.ctx_len} is longer than the {shape.n_positions} positions "
            f"that {config.model} knows"
        )
    there = peek(config.out)
    tokenizer = load_tokenizer(config.model, revision=config.revision)
    text = open_text(config.text, column=config.text_column)
    source = _source(config, files=files, tokenizer=tokenizer, text=text, there=there)
    spec = StoreSpec.of(
        widths={str(site): shape.width(site) for site in sites},
        ctx_len=config.ctx_len,
        dtype=DTYPES[config.dtype],
        codec=config.codec,
        shard_rows=config.shard_rows,
        seed=config.seed,
        source=source,
    )
    _refuse_another(config.out, spec, there)
    return _checked(_compare(config, sites=sites, spec=spec, there=there))


def _source(
    config: HarvestConfig,
    *,
    files: ModelFiles,
    tokenizer: Tokenizer,
    text: TextSource,
    there: Manifest | None,
) -> dict[str, object]:
    """Where the rows come from: equal sources give equal rows."""
    precision: object = config.precision
    if precision == "auto" and there is not None:
        precision = there.spec.source.get("model_precision", precision)
    return {
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": files.fingerprint(),
        "model_precision": precision,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "text": config.text,
        "text_column": config.text_column,
        "text_fingerprint": text.fingerprint(),
    }


def _refuse_another(path: Path, spec: StoreSpec, there: Manifest | None) -> None:
    if there is None:
        return
    found = list(differences(there.spec.as_json(), spec.as_json()))
    if found:
        raise ConfigError(
            f"{path} holds another harvest ({'; '.join(found)}): choose another --out"
        )


def _compare(
    config: HarvestConfig, *, sites: tuple[Site, ...], spec: StoreSpec, there: Manifest | None
) -> HarvestPlan:
    n_rows = -(-config.tokens // config.ctx_len) * config.ctx_len
    state: Literal["new", "resume", "extend", "complete"] = "new"
    rows_there, exhausted = 0, False
    if there is not None and there.state == "complete":
        exhausted = there.source_exhausted and there.n_rows < n_rows
        rows_there = there.n_rows
        state = "complete" if exhausted or rows_there >= n_rows else "extend"
        n_rows = rows_there if state == "complete" else n_rows
    elif there is not None:
        state = "resume"
    width = sum(site.width for site in spec.sites)
    row_bytes = width * spec.storage.itemsize * RATIO[config.codec] + METADATA_BYTES
    return HarvestPlan(
        config=config,
        sites=sites,
        spec=spec,
        state=state,
        n_rows=n_rows,
        rows_to_write=n_rows - rows_there,
        bytes_to_write=round((n_rows - rows_there) * row_bytes),
        bytes_free=shutil.disk_usage(_nearest_folder(config.out)).free,
        source_exhausted=exhausted,
    )


def _checked(plan: HarvestPlan) -> HarvestPlan:
    needed = plan.bytes_to_write * HEADROOM
    if plan.state in ("new", "extend") and needed > plan.bytes_free:
        raise ConfigError(
            f"{plan.config.out} needs about {needed / 1e9:.2f} GB and its disk has "
            f"{plan.bytes_free / 1e9:.2f} GB free: lower --tokens, or choose another --out"
        )
    return plan


def with_precision(plan: HarvestPlan, precision: str) -> HarvestPlan:
    """The plan, with the model's precision as the device decided it."""
    source = {**plan.spec.source, "model_precision": precision}
    return replace(plan, spec=replace(plan.spec, source=source))


def _nearest_folder(path: Path) -> Path:
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())
