"""What a harvest is going to do, and whether it fits, worked out before anything heavy is loaded.

A finished store is recognised within a second, here or elsewhere: of each store that is met one
small file is read. Torch-free.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from actstore.addition import under_way
from actstore.codec import kept_bits
from actstore.errors import StoreError
from actstore.layout import plan_layout
from actstore.ledger import holds_rows
from actstore.manifest import Manifest, SiteSpec, StoreSpec, differences
from actstore.reader import ActStore, peek
from actstore.removal import find_stores, remove_rowless
from actstore.settle import settled
from pipeline.config.stages import UNSAID, HarvestConfig
from pipeline.disk import nearest_there, why_unwritable
from pipeline.errors import ConfigError
from pipeline.fingerprints import NOW, scheme_of
from pipeline.lm.asked import sites_asked
from pipeline.lm.chat import load_chat_template
from pipeline.lm.hub import ModelFiles
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.progress import size
from pipeline.stores import known_folders
from pipeline.text.columns import Column
from pipeline.text.open import open_text
from pipeline.text.source import TextSource

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

State = Literal["new", "resume", "extend", "add", "complete"]

# Bytes on disk for each byte of activations, measured on a small trained Pythia: an estimate.
_RATIO = {"raw": 1.0, "lz4": 0.75, "zstd": 0.70}
_SIGN_AND_EXPONENT_BITS = 4.5  # compressed, beside the mantissa's: measured on rounded bfloat16
_METADATA_BYTES = 8  # a row's token, context, position and document, compressed, about
_HEADROOM = 1.02


_NO_END = (
    "the model names no end-of-text token: where the text has several documents, each follows the "
    "one before with nothing between, unless --documents separate"
)


@dataclass(frozen=True, kw_only=True)
class HarvestPlan:
    """What is there already, what is to come, and whether it fits.

    A config that asks for more sites and for more rows takes two: once the first is carried out,
    plan again, until the state is "complete".
    """

    config: HarvestConfig
    spec: StoreSpec
    """Its sites are to be written: all of the store, or with "add" those that it lacks. Its
    `model_precision` is "auto" where a new store leaves it to the device."""
    state: State
    n_rows: int
    """Rows per site when done; whole contexts."""
    rows_to_write: int
    """Rows per site still to come, at most: an interrupted harvest has some of them."""
    found: Path | None = None
    """A complete store elsewhere that holds what is asked for, where `config.out` holds nothing."""
    notes: tuple[str, ...] = ()
    """What people should know of its rows."""

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """To write, in the store's order."""
        return tuple(Site.parse(site.name) for site in self.spec.sites)

    @cached_property
    def bytes_to_write(self) -> int:
        """Estimate of what the rows to come take on disk."""
        kept, itemsize = kept_bits(self.spec.codec), self.spec.storage.itemsize
        if kept is None:
            per_value = itemsize * _RATIO[self.spec.codec]
        else:  # what is left of a mantissa is noise, and the zeros behind it take no room
            per_value = min((_SIGN_AND_EXPONENT_BITS + kept) / 8, itemsize * _RATIO["lz4"])
        width = sum(site.width for site in self.spec.sites)
        return round(self.rows_to_write * (width * per_value + _METADATA_BYTES))

    @cached_property
    def _place(self) -> Path:
        """The store's folder, or what there is above it."""
        return nearest_there(self.config.out)

    @cached_property
    def bytes_free(self) -> int:
        """On the disk where the store is, or would be."""
        return shutil.disk_usage(self._place).free

    def fitting(self) -> "HarvestPlan":
        """The plan, if the disk can be written to and has room for it."""
        if why := why_unwritable(self._place):
            raise ConfigError(f"{self.config.out} cannot be written ({why}): choose another --out")
        needed, free = self.bytes_to_write * _HEADROOM, self.bytes_free
        if needed > free:
            raise ConfigError(
                f"{self.config.out} needs about {size(needed)}, {size(needed - free)} more than "
                f"the {size(free)} that its disk has free: lower --tokens, or choose another --out"
            )
        return self

    def with_precision(self, precision: str) -> "HarvestPlan":
        """The plan, with the model's precision as the device decided it."""
        source = {**self.spec.source, "model_precision": precision}
        return replace(self, spec=replace(self.spec, source=source))


def make_plan(config: HarvestConfig) -> HarvestPlan:
    """Compare what is asked for with what is there.

    Raises:
        ConfigError: a site or context length that the model does not have, a disk that is too full,
            another harvest where this one is to go, or one that is under way with other sites.
        ModelError: the model cannot be found, reached or read.
        TextError: the text cannot be found, reached or read.
        StoreError: the path holds something else than a store.
    """
    if not config.sites:
        raise ConfigError("no site to harvest: name one, as in --site mlp_out.1")
    files = ModelFiles(config.model, config.revision)
    asked = sites_asked(config.sites, files, trust_remote_code=config.trust_remote_code)
    if config.ctx_len > asked.n_positions:
        raise ConfigError(
            f"contexts of {config.ctx_len} tokens do not fit into {config.model}, which takes "
            f"{asked.n_positions} at most: type --ctx-len {asked.n_positions} or less"
        )
    tokenizer = load_tokenizer(config.model, revision=config.revision)
    chat = None
    if config.chat_template:
        chat = load_chat_template(config.model, revision=config.revision)
    text = open_text(config.text, column=Column(config.text_column, chat and chat.text))
    there, precision = _store_at(config.out), config.precision
    if precision == "auto" and there is not None:
        precision = there.spec.source.get("model_precision", precision)
    source = {  # equal ones give equal rows
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": files.fingerprint(),
        "model_precision": precision,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "text": config.text,
        "text_column": config.text_column,
        "text_fingerprint": text.fingerprint(),
        "special_tokens": config.special_tokens,
        "documents": config.documents,
    }
    if config.trust_remote_code:
        source["trust_remote_code"] = True
    if chat is not None:
        source["chat_template"] = chat.fingerprint
    spec = StoreSpec.of(
        widths={str(site): width for site, width in asked.widths.items()},
        ctx_len=config.ctx_len,
        dtype=DTYPES[config.dtype],
        codec=config.codec,
        shard_rows=config.shard_rows,
        seed=config.seed,
        source=source,
    )
    no_end = tokenizer.eos_id is None and config.documents == "joined" and chat is None
    notes = (*asked.notes, *((_NO_END,) * no_end))
    named = {"model_fingerprint": files, "text_fingerprint": text}
    if there is None:
        return replace(_from_nothing(config, spec, named), notes=notes)
    _refuse_another(config, _as_told(spec, there, named), there)
    return replace(_from_store(config, spec, there), notes=notes)


def _store_at(path: Path) -> Manifest | None:
    if path.is_symlink() and not path.exists():
        raise ConfigError(
            f"{path} is a link to {path.readlink()}, which is gone: remove it, "
            "or choose another --out"
        )
    there = settled(path)
    begun = there is not None and there.state == "writing" and not path.is_symlink()
    if begun and not holds_rows(path):
        return None if remove_rowless(path) else settled(path)
    return there


def _as_told(
    spec: StoreSpec, there: Manifest, named: Mapping[str, ModelFiles | TextSource]
) -> StoreSpec:
    """The spec, its fingerprints made the way that those of a store that is there were.

    A store of before is reused and extended by those it has: of what is new, they may tell less.
    """
    stored = {key: str(there.spec.source.get(key, "")) for key in named}
    again = {
        key: one.fingerprint_like(stored[key])
        for key, one in named.items()
        if scheme_of(stored[key]) != NOW
    }
    return replace(spec, source={**spec.source, **again})


def _refuse_another(config: HarvestConfig, spec: StoreSpec, there: Manifest) -> None:
    """Sites may differ, and the layout is the store's unless another was asked for."""
    known = [
        name
        for name in ("model", "text")
        if spec.source[key := f"{name}_fingerprint"] == there.spec.source.get(key)
    ]
    was, now = (_comparable(one, but=known) for one in (there.spec, spec))
    found = list(differences(was, now))
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


def _comparable(spec: StoreSpec, *, but: Sequence[str]) -> dict[str, Any]:
    """What must not differ; `but` are the names whose fingerprints tell more."""
    own = ("sites", "chunk_rows", "shard_rows")
    told = {key: value for key, value in spec.as_json().items() if key not in own}
    source = {key: value for key, value in told["source"].items() if key not in but}
    return told | {"source": UNSAID | source}


def _from_nothing(
    config: HarvestConfig, spec: StoreSpec, named: Mapping[str, ModelFiles | TextSource]
) -> HarvestPlan:
    """A complete store elsewhere that holds every row, value by value; a new one without."""
    n_rows = rows_asked(config)
    spec.require_sensible(n_rows)
    if not config.out.exists():
        for path, there in _stores_near(config.out):
            if _holds(there, _as_told(spec, there, named), n_rows):
                with suppress(StoreError):  # one that is damaged serves nobody
                    now = settled(path) or there
                    ActStore.open(path)
                    return replace(_complete(config, now), found=path)
    return HarvestPlan(
        config=config, spec=spec, state="new", n_rows=n_rows, rows_to_write=n_rows
    ).fitting()


def _from_store(config: HarvestConfig, spec: StoreSpec, there: Manifest) -> HarvestPlan:
    n_rows = rows_asked(config)
    plan = HarvestPlan(
        config=config, spec=there.spec, state="resume", n_rows=n_rows, rows_to_write=n_rows
    )
    missing = tuple(site for site in spec.sites if site not in there.spec.sites)
    if there.state == "writing":
        if missing:
            raise _other_sites(f"{config.out} is being written with", there.spec.sites, missing)
        return plan
    if missing:
        return _addition(config, missing, there)
    if there.source_exhausted or there.n_rows >= n_rows:
        return _complete(config, there)
    return replace(plan, state="extend", rows_to_write=n_rows - there.n_rows).fitting()


def _addition(config: HarvestConfig, missing: tuple[SiteSpec, ...], there: Manifest) -> HarvestPlan:
    """Of the sites that are missing; or of those of an addition that was begun, so that it ends."""
    begun = under_way(config.out)
    sites = missing if begun is None else begun.spec.sites
    if set(sites).isdisjoint(missing):
        raise _other_sites(f"{config.out} is just being given", sites, missing)
    spec, n_rows = replace(there.spec, sites=sites), there.n_rows
    plan = HarvestPlan(config=config, spec=spec, state="add", n_rows=n_rows, rows_to_write=n_rows)
    return plan if begun is not None else plan.fitting()


def _other_sites(what: str, first: tuple[SiteSpec, ...], then: tuple[SiteSpec, ...]) -> ConfigError:
    names, more = ([site.name for site in sites] for sites in (first, then))
    return ConfigError(
        f"{what} {', '.join(names)}: finish that first (--site {' --site '.join(names)}), "
        f"then ask for {', '.join(more)}"
    )


def _complete(config: HarvestConfig, there: Manifest) -> HarvestPlan:
    n_rows = there.n_rows
    return HarvestPlan(
        config=config, spec=there.spec, state="complete", n_rows=n_rows, rows_to_write=0
    )


def rows_asked(config: HarvestConfig) -> int:
    """Rows a site, rounded up to whole contexts."""
    return -(-config.tokens // config.ctx_len) * config.ctx_len


_SOURCE = ("model_fingerprint", "tokenizer_fingerprint", "text_fingerprint", "text_column", *UNSAID)
"""What of a source decides its rows; names of models and texts do not."""


def link(found: Path, out: Path) -> None:
    """Make `out` a link to a store that was found, relative to the folder that it lies in."""
    out.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(found.resolve(), out.parent.resolve())
    try:
        out.symlink_to(target, target_is_directory=True)
    except FileExistsError:
        if not (out.is_symlink() and out.resolve() == found.resolve()):  # typed twice at once
            raise ConfigError(f"{out} is there already: choose another --out") from None
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be made a link ({error.strerror}): use the store itself, --out {found}"
        ) from error


def _stores_near(out: Path) -> list[tuple[Path, Manifest]]:
    """Beside `out`, then below the folders that SAEPIPE_STORES names.

    What is met and cannot be read is somebody else's, and passed over.
    """
    try:
        beside = sorted(out.parent.iterdir())
    except OSError:
        beside = []
    found: list[tuple[Path, object]] = []
    for path in beside:
        with suppress(StoreError):
            found.append((path, peek(path)))
    for folder in known_folders():
        with suppress(StoreError):
            found += find_stores(folder)
    return [(path, there) for path, there in found if isinstance(there, Manifest)]


def _holds(there: Manifest, wanted: StoreSpec, n_rows: int) -> bool:
    spec = there.spec
    source, asked = (UNSAID | dict(one.source) for one in (spec, wanted))
    return (
        there.state == "complete"
        and (there.n_rows >= n_rows or there.source_exhausted)
        and set(spec.sites) >= set(wanted.sites)
        and (spec.ctx_len, spec.dtype, spec.seed) == (wanted.ctx_len, wanted.dtype, wanted.seed)
        and kept_bits(spec.codec) == kept_bits(wanted.codec)  # exact codecs all give the same
        and all(source.get(key) == asked[key] for key in _SOURCE)
        and asked["model_precision"] in ("auto", source.get("model_precision"))
    )
