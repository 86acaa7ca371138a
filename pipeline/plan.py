"""What a harvest is going to do, worked out before anything heavy is loaded.

Torch-free: a finished store is recognised within a second.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from actstore.addition import under_way
from actstore.layout import plan_layout
from actstore.manifest import Manifest, SiteSpec, StoreSpec, differences
from actstore.settle import settled
from pipeline.config import HarvestConfig
from pipeline.errors import ConfigError
from pipeline.families import Shape, Site
from pipeline.hub import ModelFiles
from pipeline.reuse import find_equal
from pipeline.room import bytes_free, estimated_bytes, require_room
from pipeline.text import TextSource, open_text
from pipeline.tokenizer import Tokenizer, load_tokenizer

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

State = Literal["new", "resume", "extend", "add", "complete"]


@dataclass(frozen=True, kw_only=True)
class HarvestPlan:
    """What is there already, what is to come, and whether it fits.

    A config that asks for more sites and for more rows takes two: once the first is carried out,
    plan again, until the state is "complete".
    """

    config: HarvestConfig
    sites: tuple[Site, ...]
    """To write: all of the store, or with "add" those that it lacks."""
    spec: StoreSpec
    """Of these sites; with `model_precision` "auto" where a new store leaves it to the device."""
    state: State
    n_rows: int
    """Rows per site when done; whole contexts."""
    rows_to_write: int
    """Rows per site still to come, at most: an interrupted harvest has some of them."""
    bytes_to_write: int
    """Estimate of what that takes on disk."""
    bytes_free: int
    source_exhausted: bool
    """A store is complete because its text ended, not because it has the rows asked for."""
    found: Path | None = None
    """A complete store elsewhere that holds what is asked for, where `config.out` holds nothing."""


def make_plan(config: HarvestConfig) -> HarvestPlan:
    """Compare what is asked for with what is there.

    Raises:
        ConfigError: a site or context length that the model does not have, a disk without room, or
            a store that is being written with other sites.
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
    there = _store_at(config.out)
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
    if there is None:
        return _from_nothing(config, spec)
    _refuse_another(config, spec, there)
    return _from_store(config, spec, there)


def _store_at(path: Path) -> Manifest | None:
    if path.is_symlink() and not path.exists():
        raise ConfigError(
            f"{path} is a link to {path.readlink()}, which is gone: remove it, "
            "or choose another --out"
        )
    return settled(path)


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


def _refuse_another(config: HarvestConfig, spec: StoreSpec, there: Manifest) -> None:
    """Sites may differ, and the layout is the store's unless another was asked for."""
    found = list(differences(_comparable(there.spec), _comparable(spec)))
    if config.shard_rows is not None:
        fitting = {  # the layout follows the widest of the sites the store was begun with
            plan_layout(
                widths=(site.width,),
                itemsize=spec.storage.itemsize,
                ctx_len=config.ctx_len,
                shard_rows=config.shard_rows,
            )[1]
            for site in there.spec.sites
        }
        if there.spec.shard_rows not in fitting:
            found.append(f"shard_rows: {there.spec.shard_rows} there, {config.shard_rows} now")
    if found:
        raise ConfigError(
            f"{config.out} holds another harvest ({'; '.join(found)}): choose another --out"
        )


def _comparable(spec: StoreSpec) -> dict[str, Any]:
    own = ("sites", "chunk_rows", "shard_rows")
    return {key: value for key, value in spec.as_json().items() if key not in own}


def _from_nothing(config: HarvestConfig, spec: StoreSpec) -> HarvestPlan:
    n_rows = _whole_contexts(config)
    same = None if config.out.exists() else find_equal(config.out, spec, n_rows=n_rows)
    if same is None:
        return _checked(_plan(config, spec, "new", n_rows=n_rows, rows_to_write=n_rows))
    found, there = same
    return replace(_complete(config, there), found=found)


def _from_store(config: HarvestConfig, spec: StoreSpec, there: Manifest) -> HarvestPlan:
    n_rows = _whole_contexts(config)
    missing = tuple(site for site in spec.sites if site not in there.spec.sites)
    if there.state == "writing":
        if missing:
            raise _other_sites(f"{config.out} is being written with", there.spec.sites, missing)
        return _plan(config, there.spec, "resume", n_rows=n_rows, rows_to_write=n_rows)
    enough = there.source_exhausted or there.n_rows >= n_rows
    if enough and not missing:
        return _complete(config, there)
    if missing:
        return _addition(config, missing, there)
    more = n_rows - there.n_rows
    return _checked(_plan(config, there.spec, "extend", n_rows=n_rows, rows_to_write=more))


def _addition(config: HarvestConfig, missing: tuple[SiteSpec, ...], there: Manifest) -> HarvestPlan:
    """Of the sites that are missing; or of those of an addition that was begun, so that it ends."""
    begun = under_way(config.out)
    sites = missing if begun is None else begun.spec.sites
    if set(sites).isdisjoint(missing):
        raise _other_sites(f"{config.out} is just being given", sites, missing)
    spec = replace(there.spec, sites=sites)
    plan = _plan(config, spec, "add", n_rows=there.n_rows, rows_to_write=there.n_rows)
    return plan if begun is not None else _checked(plan)


def _other_sites(what: str, first: tuple[SiteSpec, ...], then: tuple[SiteSpec, ...]) -> ConfigError:
    names, more = ([site.name for site in sites] for sites in (first, then))
    return ConfigError(
        f"{what} {', '.join(names)}: finish that first (--site {' --site '.join(names)}), "
        f"then ask for {', '.join(more)}"
    )


def _complete(config: HarvestConfig, there: Manifest) -> HarvestPlan:
    short = there.source_exhausted and there.n_rows < _whole_contexts(config)
    plan = _plan(config, there.spec, "complete", n_rows=there.n_rows, rows_to_write=0)
    return replace(plan, source_exhausted=short)


def _plan(
    config: HarvestConfig, spec: StoreSpec, state: State, *, n_rows: int, rows_to_write: int
) -> HarvestPlan:
    return HarvestPlan(
        config=config,
        sites=tuple(Site.parse(site.name) for site in spec.sites),
        spec=spec,
        state=state,
        n_rows=n_rows,
        rows_to_write=rows_to_write,
        bytes_to_write=estimated_bytes(spec, n_rows=rows_to_write),
        bytes_free=bytes_free(config.out),
        source_exhausted=False,
    )


def _checked(plan: HarvestPlan) -> HarvestPlan:
    require_room(plan.config.out, n_bytes=plan.bytes_to_write, free=plan.bytes_free)
    return plan


def _whole_contexts(config: HarvestConfig) -> int:
    """The rows asked for, rounded up."""
    return -(-config.tokens // config.ctx_len) * config.ctx_len


def with_precision(plan: HarvestPlan, precision: str) -> HarvestPlan:
    """The plan, with the model's precision as the device decided it."""
    source = {**plan.spec.source, "model_precision": precision}
    return replace(plan, spec=replace(plan.spec, source=source))
