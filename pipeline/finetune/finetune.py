"""Fine-tune a language model through the features of one SAE.

The SAE is spliced into the model at its site, every weight of both is frozen, and one scale `c`
and one bias `d` per latent are learned: `z = f(c * pre + d)`. AdamW's weight decay pulls `c`
towards 0, not 1, and so inhibits a little whatever the text does not need.

The gradient starts at the logits, of which only a slice is alive at a time, and ends at the site:
below it nothing requires one, so nothing is kept for it.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from actstore.files import partial_of
from pipeline.config.stages import FinetuneConfig
from pipeline.device import pick_device, pick_dtype
from pipeline.disk import writing
from pipeline.errors import ConfigError, DataError
from pipeline.finetune.run import FinetuneReport, finished_report, save_run
from pipeline.finetune.shifts import find_shifts
from pipeline.finetune.sources import Sources, model_of
from pipeline.finetune.unfinished import keep, restore, unfinished
from pipeline.lm.cross_entropy import backward_cross_entropy, cross_entropy_sum
from pipeline.lm.families import Site
from pipeline.lm.hooks import Edit, in_float, splice
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.tokenizer import Tokenizer, load_tokenizer
from pipeline.progress import OnProgress, Progress
from pipeline.runs.folder import training_in
from pipeline.runs.replaced import has_weights_of, replaced_note
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE
from pipeline.text.heldout import Split, split_contexts
from pipeline.training.loop import deferred_interrupt

KEEP_EVERY = 100
"""Steps between checkpoints, which are small: four vectors of a number per feature."""
ENDS_SHARE = 20
"""The first and the last training loss of a report are means over one in so many steps."""


@torch.inference_mode(mode=False)
@torch.enable_grad()
def finetune(config: FinetuneConfig, *, on_progress: OnProgress | None = None) -> FinetuneReport:
    """Learn `c` and `d`, and write them with their analysis into `config.out`.

    A run that is there already, complete and of the same config, model and text, is reused; one
    that was stopped is gone on with, to the same bits on a CPU. Ctrl-C leaves a checkpoint behind.

    Raises:
        ConfigError: `out` holds something else, or is worked on by another process, or began with
            another model or text, or the site, width or context does not fit.
        CheckpointError: the SAE's run cannot be used, or the disk fails.
        ModelError: the language model cannot be used.
        TextError: the text cannot be read or is too short to learn from and to measure on.
        DataError: the loss is not finite.
    """
    config = replace(config, run=config.run.resolve(), out=config.out.resolve())
    run = SAERun.open(config.run)
    sources = Sources.of(config, run)
    done = finished_report(config, run, sources)
    if done is not None:
        return done
    with training_in(partial_of(config.out)):
        done = finished_report(config, run, sources)  # by now, another process may have ended
        if done is not None:
            return done
        with unfinished(config, run, sources) as folder:
            return _finetune(config, run, sources, folder, on_progress)


def _finetune(
    config: FinetuneConfig,
    run: SAERun,
    sources: Sources,
    folder: Path,
    on_progress: OnProgress | None,
) -> FinetuneReport:
    device, source = pick_device(config.device), run.provenance
    tuned, site = TunedSAE(run.load_sae(device)), Site.parse(config.site or source.site)
    lm, tokenizer, split = _load(config, run, tuned, site)
    through = {site: in_float(tuned)}
    heldout_loss = partial(mean_cross_entropy, lm, split.heldout, batch_size=config.batch_size)
    ce_base, ce_spliced = heldout_loss({}), heldout_loss(through)
    losses = _learn(config, folder, lm, tuned, through, split.train, on_progress)
    ce_finetuned = heldout_loss(through)
    n_ends = max(1, len(losses) // ENDS_SHARE)
    moved = (
        f"the SAE was trained on {source.site} of {source.model} and is fine-tuned at {site} "
        f"of {lm.name}"
    )
    same_model = lm.name == source.model or has_weights_of(lm.files, source)
    notes = [] if same_model and str(site) == source.site else [moved]
    notes += replaced_note(source, lm.files)
    report = FinetuneReport(
        run=config.run,
        out=config.out,
        model=lm.name,
        revision=lm.files.revision,
        trained_on_model=source.model,
        site=str(site),
        trained_on_site=source.site,
        text=config.text,
        n_train_tokens=split.train.numel(),
        n_heldout_tokens=split.heldout.numel(),
        n_steps=len(losses),
        ce_base=ce_base,
        ce_spliced=ce_spliced,
        ce_finetuned=ce_finetuned,
        loss_first=float(np.mean(losses[:n_ends])),
        loss_last=float(np.mean(losses[-n_ends:])),
        notes=(*notes, *split.notes),
    )
    shifts = find_shifts(lm, site, tuned, split.train, tokenizer, batch_size=config.batch_size)
    with writing(config.out):
        save_run(folder, config, run, sources, tuned, report, losses=losses, shifts=shifts)
    return report


def _load(
    config: FinetuneConfig, run: SAERun, tuned: TunedSAE, site: Site
) -> tuple[LanguageModel, Tokenizer, Split]:
    """The model the SAE goes into, and the texts."""
    source, device = run.provenance, tuned.W_dec.device
    name, revision = model_of(config, run)
    if not name:
        raise ConfigError(
            f"{config.run} does not say which model its activations are from: name it with --model"
        )
    dtype = pick_dtype(config.precision, device)
    lm = load_model(name, revision=revision, device=device, dtype=dtype)
    lm.require_fits(site, d_in=tuned.d_in, ctx_len=config.ctx_len, run=config.run)
    tokenizer = load_tokenizer(name, revision=revision, special_tokens=source.special_tokens)
    split = split_contexts(
        config.text,
        tokenizer,
        ctx_len=config.ctx_len,
        n_train=config.steps_per_epoch * config.batch_size,
        n_heldout=config.heldout_contexts,
        column=config.text_column,
    )
    return lm, tokenizer, split


@torch.no_grad()
def mean_cross_entropy(
    lm: LanguageModel,
    contexts: Int32[Tensor, "contexts ctx_len"],
    edits: dict[Site, Edit],
    *,
    batch_size: int,
) -> float:
    """Cross-entropy over all predictions inside these contexts (nats), with edits at some sites."""
    total = 0.0
    with splice(lm, edits):
        for batch in contexts.split(batch_size):
            tokens = batch.to(lm.device)
            total += cross_entropy_sum(lm, lm.hidden(tokens), tokens)
    n_predictions = len(contexts) * (contexts.shape[1] - 1)
    return _finite(total / n_predictions, lm)


def _learn(
    config: FinetuneConfig,
    folder: Path,
    lm: LanguageModel,
    tuned: TunedSAE,
    through: dict[Site, Edit],
    contexts: Int32[Tensor, "contexts ctx_len"],
    on_progress: OnProgress | None,
) -> list[float]:
    """Train `c` and `d` in place; gives the loss of each step's batch before its update (nats).

    What was kept in the folder is gone on from. Ctrl-C takes effect between steps.
    """
    optimizer = torch.optim.AdamW(
        [tuned.c, tuned.d], lr=config.lr, weight_decay=config.weight_decay
    )
    n_steps = config.epochs * -(-len(contexts) // config.batch_size)
    losses = restore(folder, tuned, optimizer)
    with splice(lm, through), deferred_interrupt() as presses:
        try:
            for chosen in islice(_batches(len(contexts), config), len(losses), None):
                tokens = contexts[chosen].to(lm.device)
                optimizer.zero_grad()
                loss = backward_cross_entropy(lm, lm.hidden(tokens), tokens)
                optimizer.step()
                losses.append(_finite(loss.item(), lm))
                if len(losses) % KEEP_EVERY == 0 or len(losses) == n_steps:
                    keep(folder, tuned, optimizer, losses)
                if on_progress is not None:
                    on_progress(
                        Progress(
                            stage="finetune", done=len(losses), total=n_steps, unit="steps",
                            words=f"loss {losses[-1]:.4f}",
                        )
                    )  # fmt: skip
                if presses:
                    raise KeyboardInterrupt  # noqa: TRY301 - the place where it is safe
        except KeyboardInterrupt:
            if len(presses) < 2 and losses:
                keep(folder, tuned, optimizer, losses)
            raise
    return losses


def _batches(n_contexts: int, config: FinetuneConfig) -> Iterator[Tensor]:
    """Indices of the contexts of each step: every context once per epoch, in an order by seed."""
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(n_contexts)
        yield from torch.from_numpy(order).split(config.batch_size)


def _finite(loss: float, lm: LanguageModel) -> float:
    if not math.isfinite(loss):
        raise DataError(
            f"the loss of {lm.name} with the SAE at its site is {loss}: lower --lr, or try "
            "--precision fp32"
        )
    return loss
