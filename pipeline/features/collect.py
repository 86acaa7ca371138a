"""Find out what every feature of a run fires on, and write it into the run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from actstore.reader import ActStore
from pipeline.config import FeaturesConfig
from pipeline.device import pick_device
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.evaluate.geometry import dead_cosine, encoder_decoder_cosine
from pipeline.evaluate.subject import Subject, load_subject
from pipeline.features.attribution import (
    IGNORED,
    Attribution,
    attribute,
    load_path,
    writes_to_the_stream,
)
from pipeline.features.files import Facts, FeatureSet
from pipeline.features.found import Scan
from pipeline.features.nearest import nearest
from pipeline.features.save import Directions, save
from pipeline.features.scan import scan
from pipeline.features.source import Words, open_store
from pipeline.finetune_run import FinetunedRun, is_finetuned
from pipeline.provenance import Provenance
from pipeline.run import Run


@dataclass(frozen=True, kw_only=True)
class FeaturesProgress:
    """Where the pass over the store stands."""

    n_done: int
    """Tokens."""
    n_tokens: int


def collect(
    config: FeaturesConfig, *, on_progress: Callable[[FeaturesProgress], None] | None = None
) -> FeatureSet:
    """Everything in `RUN/features`: found and written, or reused where it is there already.

    Raises:
        ConfigError: the store does not fit the run, or is gone.
        CheckpointError: the run cannot be used.
        StoreError: the store cannot be read.
        DataError: an activation of a feature is not finite.
        OSError: the disk is full or fails.
    """
    run = config.run.resolve()
    config = replace(config, run=run, store=config.store and config.store.resolve())
    subject = load_subject(run, device=pick_device(config.device))
    store = open_store(config, subject)
    words = Words.of(subject, store)
    facts = _facts(config, subject, store, words)
    there = _same(facts)
    if there is not None:
        return there

    def tell(n_done: int) -> None:
        if on_progress is not None:
            on_progress(FeaturesProgress(n_done=n_done, n_tokens=facts.n_tokens))

    found = scan(config, store, facts.site, subject.coder, on_tokens=tell)
    attribution, why = _attribution(subject, words)
    return save(
        run,
        replace(
            facts,
            attributed=attribution is not None,
            notes=(*facts.notes, *why, *_dead(found)),
        ),
        found,
        _directions(subject, found, attribution),
        texts=words.texts,
        of_logits=words.of_logits,
    )


def _facts(config: FeaturesConfig, subject: Subject, store: ActStore, words: Words) -> Facts:
    """All that can be told before the store is read."""
    source = Provenance.of(store, site=str(subject.site))
    wanted = store.n_rows if config.tokens is None else config.tokens
    n_tokens = min(store.n_contexts, -(-wanted // source.ctx_len)) * source.ctx_len
    return Facts(
        config=config,
        coder=_identity(config.run),
        arch=subject.arch,
        site=str(subject.site),
        store=source.path,
        store_fingerprint=store.fingerprint,
        model=subject.model,
        text=source.text,
        n_tokens=n_tokens,
        ctx_len=source.ctx_len,
        has_texts=not words.missing,
        attributed=words.head is not None and writes_to_the_stream(subject.site),
        notes=_notes(subject, source, words, n_tokens=n_tokens, wanted=wanted),
    )


def _notes(
    subject: Subject, source: Provenance, words: Words, *, n_tokens: int, wanted: int
) -> tuple[str, ...]:
    """What a reader must know."""
    notes = list(subject.notes)
    if source.model != subject.model:
        notes.append(
            f"activations are those of {source.model or 'an unknown model'}, and the coder is one "
            f"of {subject.model or 'an unknown model'}"
        )
    elif source.fingerprint != subject.provenance.fingerprint:
        notes.append(
            f"{source.path} is not the store that the run was trained from, or has changed since"
        )
    if n_tokens < wanted:
        notes.append(f"the store holds {n_tokens:,} tokens; {wanted:,} were asked for")
    if words.missing:
        notes.append(f"tokens stand as numbers: {words.missing}")
    return tuple(notes)


def _identity(run: Path) -> str:
    """What identifies the weights of a run: checksums of its files."""
    if is_finetuned(run):
        tuned = FinetunedRun.open(run)
        return f"{tuned.run.sha256}+{tuned.sha256}"
    return Run.open(run).sha256


def _same(wanted: Facts) -> FeatureSet | None:
    """What is there, if it is whole and is what would be found again."""
    try:
        there = FeatureSet.open(wanted.config.run)
        there.check()
    except CheckpointError:
        return None
    found = there.facts
    config = replace(found.config, run=wanted.config.run, device=wanted.config.device)
    free = {name: getattr(wanted, name) for name in ("saepipe", "notes", "sha256")}
    return replace(there, reused=True) if replace(found, config=config, **free) == wanted else None


def _attribution(subject: Subject, words: Words) -> tuple[Attribution | None, tuple[str, ...]]:
    """Which tokens each feature promotes, and what a reader must know of that or its lack."""
    if words.head is None:
        lack = words.missing
    else:
        W_dec = subject.coder.W_dec
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
    return None, (f"no tokens are promoted or suppressed: {lack}",)


def _dead(found: Scan) -> tuple[str, ...]:
    if found.n_active.any():
        return ()
    return (f"no feature is active on any of {found.n_tokens:,} tokens: all of them are dead",)


def _directions(subject: Subject, found: Scan, attribution: Attribution | None) -> Directions:
    """What the weights say; which features are dead, the store says."""
    W_dec = subject.coder.W_dec.detach()
    indices, cosines = nearest(W_dec)
    to_dead = dead_cosine(W_dec, torch.from_numpy(found.n_active == 0))
    return Directions(
        neighbours=indices.numpy(),
        neighbour_cosines=cosines.numpy(),
        dead_cosine=None if to_dead is None else to_dead.numpy(),
        encoder_decoder_cosine=encoder_decoder_cosine(subject.coder).numpy(),
        attribution=attribution,
    )
