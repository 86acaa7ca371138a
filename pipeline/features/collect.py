"""collect_features(config): find out what every feature of a run fires on, into the run.

One pass over a store in the order of its texts, each row encoded once. Memory does not grow with
the store: two shards, two blocks of latents, and the entries that are kept, about 300 bytes for
each of a feature's contexts.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

from actstore.manifest import CONTEXT_TOKENS
from actstore.reader import ActStore
from pipeline.config.stages import FeaturesConfig
from pipeline.device import pick_device
from pipeline.disk import require_run_writable
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.evaluate.setup import LoadedSAE, load_sae
from pipeline.features.files import Facts, FeatureSet, identity_of
from pipeline.features.samples import Sampler, Samples
from pipeline.features.save import save
from pipeline.finetune.run import FinetunedRun, is_finetuned
from pipeline.lm.hub import ModelFiles
from pipeline.lm.logits import IGNORED, Ranked, attribute, has_path, load_path
from pipeline.lm.tokenizer import Tokenizer, load_tokenizer
from pipeline.progress import OnProgress, counter
from pipeline.runs.folder import Provenance
from pipeline.runs.replaced import fingerprint_at_hand, is_another, replaced_note
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import Coder
from pipeline.stores import has_tokens, looked_for
from pipeline.text.contexts import ReadAhead
from pipeline.text.token_text import TokenTexts
from pipeline.training.batches import as_tensor


def n_features(run: Path) -> int:
    """How many the SAE in a folder has, fine-tuned or not.

    Raises:
        CheckpointError: there is no complete run.
    """
    return (FinetunedRun.open(run).run if is_finetuned(run) else SAERun.open(run)).d_sae


def collect_features(
    config: FeaturesConfig, *, on_progress: OnProgress | None = None
) -> FeatureSet:
    """Everything in `RUN/features`: found and written, or reused where it is there already.

    Raises:
        ConfigError: the store does not fit the run, or is gone, or the run may only be read.
        CheckpointError: the run cannot be used.
        StoreError: the store cannot be read.
        DataError: an activation of a feature is not finite.
        OSError: the disk is full or fails.
    """
    run = config.run.resolve()
    config = replace(config, run=run, store=config.store and config.store.resolve())
    subject = load_sae(run, device=pick_device(config.device))
    store = open_store(config, subject)
    words = Words.of(subject, store)
    facts = _facts(config, subject, store, words)
    there = _same(facts, harvested=subject.provenance)
    if there is not None:
        return there
    require_run_writable(run, what="features")
    samples = sample_store(config, store, facts.site, subject.coder, on_progress=on_progress)
    attribution, lack = _attribution(subject, words)
    notes = [*facts.notes, *lack]
    if not samples.n_active.any():
        notes.append(
            f"no feature is active on any of {samples.n_tokens:,} tokens: all of them are dead"
        )
    facts = replace(facts, attributed=bool(attribution), notes=tuple(notes))
    texts, of_logits = words.texts, words.of_logits
    return save(run, facts, samples, subject.coder, attribution, texts=texts, of_logits=of_logits)


def store_of(source: Provenance, run: Path, given: Path | None, *, holding: str) -> Path:
    """Where the store to read is: as given, or that which the run was trained from.

    Raises:
        ConfigError: that one is not to be found.
    """
    path = source.find(run) if given is None else given
    if path is None and not source.fingerprint:
        raise ConfigError(
            f"{run} was not trained from a store: name one that holds {holding}, with --store"
        )
    if path is None:
        raise ConfigError(
            f"the store that {run} was trained from is not found: "
            f"{looked_for(source.path, source.fingerprint)}; name it, or another that holds "
            f"{holding}, with --store"
        )
    return path


def open_store(config: FeaturesConfig, subject: LoadedSAE) -> ActStore:
    """The store to read, sure to have activations that the coder can take."""
    site, d_in = str(subject.site), subject.coder.d_in
    path = store_of(subject.provenance, config.run, config.store, holding=site)
    store = ActStore.open(path)
    if site not in store.sites:
        raise ConfigError(
            f"{config.run} is about {site}, and {path} holds {', '.join(store.sites)}: name a "
            f"store that holds {site}, with --store"
        )
    if store.width(site) != d_in:
        raise ConfigError(
            f"{config.run} is an SAE of {d_in} dimensions, and {site} of {path} has "
            f"{store.width(site)}: name a store of the model it was trained on, with --store"
        )
    if not has_tokens(store.spec):
        raise ConfigError(
            f"{path} was imported without token ids, and features are shown by the contexts that "
            "they fire in: import it with --tokens-file, or name a store that has them with --store"
        )
    return store


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """What tokens are in text: those of the store, and those that logits are of."""

    texts: TokenTexts
    of_logits: TokenTexts
    head: Tokenizer | None
    """Of the model that the SAE is in; None where it was not found."""
    missing: str
    """Why a tokenizer was not found; empty where all were."""

    @staticmethod
    def of(subject: LoadedSAE, store: ActStore) -> "Words":
        """Those of the model that the store is of, and of the model that the SAE is in."""
        source = _source(store, subject)
        head, missing = _tokenizer(subject.model, subject.revision)
        if (source.model, source.revision) in (("", ""), (subject.model, subject.revision)):
            read = head
        else:
            read, why = _tokenizer(source.model, source.revision)
            missing = missing or why
        return Words(texts=_texts(read), of_logits=_texts(head), head=head, missing=missing)


def _source(store: ActStore, subject: LoadedSAE) -> Provenance:
    return Provenance.of(store, site=str(subject.site)).named_as(subject.provenance)


def _tokenizer(model: str, revision: str) -> tuple[Tokenizer | None, str]:
    if not model:
        return None, "neither the run nor the store says which model the activations are from"
    try:
        return load_tokenizer(model, revision=revision or "main"), ""
    except ModelError as error:
        return None, str(error)


def _texts(tokenizer: Tokenizer | None) -> TokenTexts:
    return TokenTexts(lambda _: None) if tokenizer is None else TokenTexts(tokenizer.token_bytes)


def _facts(config: FeaturesConfig, subject: LoadedSAE, store: ActStore, words: Words) -> Facts:
    """All that can be told before the store is read."""
    source, notes = _source(store, subject), list(subject.notes)
    n_tokens = n_contexts_of(store, config.tokens) * source.ctx_len
    fingerprint = fingerprint_at_hand(subject.model, subject.revision)
    notes += replaced_note(source, ModelFiles(subject.model, subject.revision or "main"))
    if source.model != subject.model:
        notes.append(
            f"activations are those of {source.model or 'an unknown model'}, and the SAE is one "
            f"of {subject.model or 'an unknown model'}"
        )
    elif subject.provenance.fingerprint and not subject.provenance.is_in(store):
        notes.append(
            f"{source.path} is not the store that the run was trained from, or has changed since"
        )
    if config.tokens is not None and n_tokens < config.tokens:
        notes.append(f"the store holds {n_tokens:,} tokens; {config.tokens:,} were asked for")
    if words.missing:
        notes.append(f"tokens stand as numbers: {words.missing}")
    return Facts(
        config=config,
        coder=identity_of(config.run),
        arch=subject.arch,
        site=str(subject.site),
        store=source.path,
        store_fingerprint=store.fingerprint,
        model=subject.model,
        model_fingerprint=fingerprint,
        text=source.text,
        n_tokens=n_tokens,
        ctx_len=source.ctx_len,
        has_texts=not words.missing,
        attributed=words.head is not None
        and has_path(subject.model, subject.site, revision=subject.revision or "main"),
        notes=tuple(notes),
    )


def of_replaced_model(facts: Facts, now: str, *, harvested: Provenance) -> bool:
    """Whether features are of other weights than those that the model at hand has by `now`.

    What an earlier version found, which does not say, is of those that the store was harvested of.
    """
    own = harvested.model_fingerprint if facts.model == harvested.model else ""
    return is_another(facts.model_fingerprint or own, now)


def _same(wanted: Facts, *, harvested: Provenance) -> FeatureSet | None:
    """What is there, if it is whole and is what would be found again."""
    try:
        there = FeatureSet.open(wanted.config.run)
        there.check()
    except CheckpointError:
        return None
    facts = there.facts
    if of_replaced_model(facts, wanted.model_fingerprint, harvested=harvested):
        return None
    own = {name: getattr(wanted.config, name) for name in ("run", "store", "device")}
    config = replace(facts.config, **own)
    found = ("saepipe", "store", "model", "model_fingerprint", "text", "notes", "sha256")
    if not wanted.has_texts:  # its model is out of reach now: what was found with it is more
        found += ("has_texts", "attributed")
    free = {name: getattr(wanted, name) for name in found}
    return replace(there, reused=True) if replace(facts, config=config, **free) == wanted else None


def _attribution(subject: LoadedSAE, words: Words) -> tuple[dict[str, Ranked], tuple[str, ...]]:
    """Which tokens each feature promotes, and what a reader must know of that or its lack."""
    lack, W_dec = words.missing, subject.coder.W_dec
    if words.head is not None:
        try:
            path = load_path(
                subject.model,
                subject.site,
                revision=subject.revision or "main",
                n_vocab=words.head.n_vocab,
                device=W_dec.device,
            )
            return attribute(path, W_dec), (IGNORED,)
        except (ModelError, ConfigError) as error:
            lack = str(error)
    return {}, (f"no tokens are promoted or suppressed: {lack}",)


Contexts = tuple[
    int,
    Int32[np.ndarray, "contexts ctx_len"],
    Int64[np.ndarray, "contexts ctx_len"],
    Shaped[np.ndarray, "rows width"],
]
"""Contexts that follow each other: the number of the first, their tokens, which row belongs to each
token, and the rows as stored (bfloat16 as its bits, uint16)."""

BLOCK = {"cpu": 2**22}
"""Latents in memory at once, as many as whole contexts give, and at least one context."""
GPU_BLOCK = 2**25


@torch.inference_mode()
def sample_store(
    config: FeaturesConfig,
    store: ActStore,
    site: str,
    coder: Coder,
    *,
    on_progress: OnProgress | None = None,
) -> Samples:
    """Encode the store's first contexts in fp32, as many as `config.tokens` needs."""
    ctx_len = store.spec.ctx_len
    n_contexts = n_contexts_of(store, config.tokens)
    sampler = Sampler(config, d_sae=coder.d_sae, ctx_len=ctx_len)
    tell = counter(on_progress, stage="features", total=n_contexts * ctx_len, unit="tokens")
    with (
        ThreadPoolExecutor(1, "saepipe-keep") as keeper,  # one block is kept, the next encoded
        closing(encoded(store, site, coder, n_contexts=n_contexts)) as blocks,
    ):
        kept = keeper.submit(int)
        for first, tokens, z in blocks:
            kept.result()
            tell(sampler.n_tokens)
            kept = keeper.submit(sampler.add, z, tokens, first=first)
        kept.result()
    tell(sampler.n_tokens)
    return sampler.result()


Encoded = tuple[int, Int32[np.ndarray, "contexts ctx_len"], Float[Tensor, "contexts ctx_len d_sae"]]
"""Contexts that follow each other: the number of the first, their tokens and their latents."""


def encoded(
    store: ActStore, site: str, coder: Coder, *, n_contexts: int
) -> Generator[Encoded, None, None]:
    """The store's first so many contexts, encoded in fp32, a block of them at a time.

    Close it where it is not read to its end: it reads ahead.
    """
    ctx_len, device = store.spec.ctx_len, coder.W_dec.device
    per_block = max(1, BLOCK.get(device.type, GPU_BLOCK) // (ctx_len * coder.d_sae))
    with closing(ReadAhead(_shards(store, site, n_contexts), items=1)) as shards:
        for first, tokens, rows, acts in iter(shards.get, None):
            for start in range(0, len(tokens), per_block):
                block = slice(start, start + per_block)
                x = as_tensor(acts[rows[block].reshape(-1)])  # one token after another
                z = coder.encode(x.to(device).float()).unflatten(0, (-1, ctx_len))
                yield first + start, tokens[block], z


def n_contexts_of(store: ActStore, tokens: int | None) -> int:
    """Whole contexts, as many as hold so many tokens, or as there are."""
    if tokens is None:
        return store.n_contexts
    return min(store.n_contexts, -(-tokens // store.spec.ctx_len))


def _shards(store: ActStore, site: str, n_contexts: int) -> Iterator[Contexts]:
    """The first so many contexts of a store, a shard of them at a time."""
    per_shard = store.spec.shard_rows // store.spec.ctx_len
    for shard in range(-(-n_contexts // per_shard)):
        first = shard * per_shard
        tokens = store.shard(CONTEXT_TOKENS, shard)
        context, position = (store.shard(name, shard) for name in ("context_id", "position"))
        rows = np.empty(tokens.shape, np.int64)
        rows[context - first, position] = np.arange(len(context))
        n = min(per_shard, n_contexts - first)
        yield first, tokens[:n], rows[:n], store.shard(site, shard)
