"""Fine-tune a language model through the features of one coder.

The coder is spliced into the model at its site, every weight of both is frozen, and one scale `c`
and one bias `d` per latent are learned: `z = f(c * pre + d)`. AdamW's weight decay pulls `c`
towards 0, not 1, and so inhibits a little whatever the text does not need.

The gradient starts at the logits, of which only a slice is alive at a time, and ends at the site:
below it nothing requires one, so nothing is kept for it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from pipeline.config import FinetuneConfig
from pipeline.cross_entropy import backward_cross_entropy, cross_entropy_sum
from pipeline.device import pick_device, pick_dtype
from pipeline.errors import DataError
from pipeline.families import Site
from pipeline.finetune_run import FinetuneReport, FinetuneStep, finished_report, save_run
from pipeline.heldout import split_contexts
from pipeline.model import LanguageModel, load_model
from pipeline.run import Run
from pipeline.shifts import find_shifts
from pipeline.sites import Edit, splice
from pipeline.splicing import check_fits, splicer
from pipeline.tokenizer import load_tokenizer
from pipeline.tuned import TunedCoder

OnStep = Callable[[FinetuneStep], None]

N_ENDS = 20
"""Steps over which the first and the last training loss of a report are averaged."""


def finetune(config: FinetuneConfig, *, on_step: OnStep | None = None) -> FinetuneReport:
    """Learn `c` and `d`, and write them with their analysis and figures into `config.out`.

    A run that is there already, complete and of the same config, is reused.

    Raises:
        ConfigError: `out` holds something else, or the site, width or context does not fit.
        CheckpointError: the coder's run cannot be used.
        ModelError: the language model cannot be used.
        TextError: the text cannot be read or is too short to learn from and to measure on.
        DataError: the loss is not finite.
    """
    config = replace(config, run=config.run.resolve(), out=config.out.resolve())
    run = Run.open(config.run)
    done = finished_report(config, run)
    if done is not None:
        return done
    device = pick_device(config.device)
    coder = TunedCoder(run.load_coder(device))
    lm, site = _place(config, run, coder, device)
    tokenizer = load_tokenizer(lm.name, revision=lm.files.revision)
    texts = split_contexts(
        config.text,
        tokenizer,
        ctx_len=config.ctx_len,
        n_train=config.steps_per_epoch * config.batch_size,
        n_heldout=config.heldout_contexts,
        column=config.text_column,
    )

    def heldout_loss(edits: dict[Site, Edit]) -> float:
        return mean_cross_entropy(lm, texts.heldout, edits, batch_size=config.batch_size)

    through = {site: splicer(coder)}
    ce_base, ce_spliced = heldout_loss({}), heldout_loss(through)
    losses = _learn(config, lm, site, coder, texts.train, on_step)
    shifts = find_shifts(lm, site, coder, texts.train, tokenizer, batch_size=config.batch_size)
    report = FinetuneReport(
        run=config.run,
        out=config.out,
        model=lm.name,
        revision=lm.files.revision,
        trained_on_model=run.provenance.model,
        site=str(site),
        trained_on_site=run.provenance.site,
        text=config.text,
        n_train_tokens=texts.train.numel(),
        n_heldout_tokens=texts.heldout.numel(),
        n_steps=len(losses),
        ce_base=ce_base,
        ce_spliced=ce_spliced,
        ce_finetuned=heldout_loss(through),
        loss_first=float(np.mean(losses[:N_ENDS])),
        loss_last=float(np.mean(losses[-N_ENDS:])),
        notes=(*_transplant_notes(run, lm, site), *texts.notes),
    )
    save_run(config, run, coder, report, losses=losses, shifts=shifts)
    return report


def _place(
    config: FinetuneConfig, run: Run, coder: TunedCoder, device: torch.device
) -> tuple[LanguageModel, Site]:
    """The language model and the site to splice the coder into: its own unless told otherwise.

    Raises:
        ConfigError: the site or the context is not of this model, or the width not the coder's.
    """
    source = run.provenance
    own = config.model is None
    lm = load_model(
        source.model if config.model is None else config.model,
        revision=source.revision if own else "main",
        device=device,
        dtype=pick_dtype(config.precision, device),
    )
    site = Site.parse(config.site or source.site)
    check_fits(lm, site, d_in=coder.d_in, ctx_len=config.ctx_len, run=config.run)
    return lm, site


def _transplant_notes(run: Run, lm: LanguageModel, site: Site) -> tuple[str, ...]:
    source = run.provenance
    if (lm.name, str(site)) == (source.model, source.site):
        return ()
    return (
        f"the coder was trained on {source.site} of {source.model} and is fine-tuned at {site} "
        f"of {lm.name}",
    )


@torch.no_grad()
def mean_cross_entropy(
    lm: LanguageModel,
    contexts: Int32[Tensor, "contexts ctx_len"],
    edits: dict[Site, Edit],
    *,
    batch_size: int,
) -> float:
    """Cross-entropy over all predictions inside these contexts (nats), with edits at some sites.

    Raises:
        DataError: it is not finite.
    """
    total = 0.0
    with splice(lm, edits):
        for batch in contexts.split(batch_size):
            tokens = batch.to(lm.device)
            total += cross_entropy_sum(lm, lm.hidden(tokens), tokens)
    n_predictions = len(contexts) * (contexts.shape[1] - 1)
    return _finite(total / n_predictions, lm)


def _learn(
    config: FinetuneConfig,
    lm: LanguageModel,
    site: Site,
    coder: TunedCoder,
    contexts: Int32[Tensor, "contexts ctx_len"],
    on_step: OnStep | None,
) -> list[float]:
    """Train `c` and `d` in place.

    Returns:
        The loss of each step's batch before its update (nats).
    """
    optimizer = torch.optim.AdamW(
        [coder.c, coder.d], lr=config.lr, weight_decay=config.weight_decay
    )
    n_steps = config.epochs * -(-len(contexts) // config.batch_size)
    losses: list[float] = []
    with splice(lm, {site: splicer(coder)}):
        for chosen in _batches(len(contexts), config):
            tokens = contexts[chosen].to(lm.device)
            optimizer.zero_grad()
            loss = backward_cross_entropy(lm, lm.hidden(tokens), tokens)
            optimizer.step()
            losses.append(_finite(loss.item(), lm))
            if on_step is not None:
                on_step(FinetuneStep(step=len(losses), n_steps=n_steps, loss=losses[-1]))
    return losses


def _batches(n_contexts: int, config: FinetuneConfig) -> Iterator[Tensor]:
    """Indices of the contexts of each step: every context once per epoch, in an order by seed."""
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(n_contexts)
        yield from torch.from_numpy(order).split(config.batch_size)


def _finite(loss: float, lm: LanguageModel) -> float:
    if not math.isfinite(loss):
        raise DataError(
            f"the loss of {lm.name} with the coder at its site is {loss}: lower --lr, or try "
            "--precision fp32"
        )
    return loss
