"""From what was summed to what is reported."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from torch import Tensor

from pipeline.config import EvalConfig
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.ablations import Ablations
from pipeline.evaluate.geometry import dead_cosine, encoder_decoder_cosine, max_cosine
from pipeline.evaluate.intervals import intervals
from pipeline.evaluate.metrics import metrics
from pipeline.evaluate.notes import notes_on
from pipeline.evaluate.report import EvalReport, Inserted
from pipeline.evaluate.scene import Scene
from pipeline.evaluate.sparsity import Sparsity
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.sums import Columns
from pipeline.evaluate.views import RunView, nll_at
from pipeline.evaluate.worst import worst_contexts
from pipeline.families import Site
from pipeline.splicing import Coder


def report_of(
    scene: Scene, subject: Subject, view: RunView, ablations: Ablations, config: EvalConfig
) -> EvalReport:
    """The report of one run, but for its overlaps with others.

    Raises:
        ConfigError: no prediction of the text counts.
        DataError: a loss is not finite.
    """
    sums = view.sums | ablations.sums
    totals = {name: values.sum(keepdims=True) for name, values in sums.items()}
    if not totals["n_predictions"].any():
        left_out = ", ".join(view.place.excluded.words) or "nothing"
        raise ConfigError(
            f"{subject.path} leaves no prediction of {scene.setting.text} to count: contexts have "
            f"{scene.setting.ctx_len} tokens, and {left_out} is left out"
        )
    numbers = {name: value.item() for name, value in metrics(totals).items()}
    if not all(np.isfinite(total).all() for total in totals.values()):
        clean, patched = numbers["ce_clean"], numbers["ce_patched"]
        raise DataError(
            f"losses of {subject.path} are not finite (clean {clean:.4g}, patched {patched:.4g}): "
            f"the run's weights or the activations at {subject.site} overflow or hold NaN; "
            "try --precision fp32"
        )
    return EvalReport(
        run=subject.path,
        site=str(subject.site),
        arch=subject.arch,
        model=scene.setting.model,
        trained_on_model=subject.provenance.model,
        text=scene.setting.text,
        precision=scene.precision,
        ctx_len=scene.setting.ctx_len,
        n_tokens=int(totals["n_tokens"].item()),
        n_predictions=int(totals["n_predictions"].item()),
        excluded=view.place.excluded.words,
        **{name: None if math.isnan(value) else value for name, value in numbers.items()},
        **_sparsity_numbers(view.sparsity),
        **_geometry_numbers(subject.coder, view.sparsity.dead),
        overlaps=(),
        intervals=intervals(sums, n=config.n_bootstrap, seed=config.seed),
        inserted=_inserted(sums, subject, config.layers),
        worst=worst_contexts(sums, scene.contexts, scene.tokenizer, n=config.n_worst),
        notes=_notes(scene, subject, config),
    )


def _sparsity_numbers(sparsity: Sparsity) -> dict[str, Any]:
    """The fields of a report about single latents and single tokens."""
    return {
        "l0_quantiles": sparsity.l0_quantiles,
        "density": tuple(sparsity.density.tolist()),
        "n_dead": int(sparsity.dead.sum()),
        "frac_dead": sparsity.dead.double().mean().item(),
        "n_rare": sparsity.n_rare,
        "n_frequent": sparsity.n_frequent,
    }


def _geometry_numbers(coder: Coder, dead: Bool[Tensor, " d_sae"]) -> dict[str, Any]:
    """The fields of a report about the directions of a coder."""
    to_dead = dead_cosine(coder.W_dec, dead)
    reads_as_writes, nearest = encoder_decoder_cosine(coder), max_cosine(coder.W_dec)
    return {
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
        "dead_cosine": None if to_dead is None else tuple(to_dead.tolist()),
        "dead_cosine_mean": _mean(to_dead, dead),
        "alive_cosine_mean": _mean(to_dead, ~dead),
        "encoder_decoder_cosine": tuple(reads_as_writes.tolist()),
        "encoder_decoder_cosine_median": float(np.median(reads_as_writes.numpy())),
        "max_cosine": tuple(nearest.tolist()),
        "max_cosine_mean": nearest.mean().item(),
    }


def _mean(cosine: Float64[Tensor, " d_sae"] | None, chosen: Bool[Tensor, " d_sae"]) -> float | None:
    if cosine is None or not chosen.any():
        return None
    return cosine[chosen].mean().item()


def _inserted(sums: Columns, subject: Subject, layers: tuple[int, ...]) -> tuple[Inserted, ...]:
    """What the coder costs at each of these layers."""
    n, clean = sums["n_predictions"].sum(), sums["nll_clean"].sum()
    found: list[Inserted] = []
    for layer in dict.fromkeys(layers):
        site = Site(layer=layer, rank=subject.site.rank)
        ce = (nll := sums[nll_at(site)].sum()) / n
        found.append(Inserted(site=str(site), ce_patched=float(ce), added=float((nll - clean) / n)))
    return tuple(found)


def _notes(scene: Scene, subject: Subject, config: EvalConfig) -> tuple[str, ...]:
    told = notes_on(scene, subject.provenance, subject.left_out.words, config)
    return (*subject.notes, *told)
