"""Evaluate coders inside the language models they were trained on.

Runs that share a model, a text and a context length share its passes: one short pass up to the
sites for their means, then per batch one clean pass, one zero- and one mean-ablated pass per
site, and one patched pass per run. The ablation mean and the mean of explained variance are the
same one, over the evaluation text: a report depends on nothing but the run, the model and the
text, whether or not the store is still there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int32
from torch import Tensor

from pipeline.config import EvalConfig
from pipeline.device import pick_device, pick_dtype, pick_precision
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.fidelity import Prediction, loss_recovered
from pipeline.evaluate.geometry import dead_cosine
from pipeline.evaluate.passes import Measured, OnTokens, measure, site_means
from pipeline.evaluate.report import EvalProgress, EvalReport, Stage
from pipeline.evaluate.subject import Setting, Subject, load_subject
from pipeline.heldout import load_contexts
from pipeline.model import LanguageModel, load_model
from pipeline.splicing import Coder, check_fits
from pipeline.tokenizer import load_tokenizer

OnProgress = Callable[[EvalProgress], None]


def evaluate(
    config: EvalConfig, *, on_progress: OnProgress | None = None
) -> tuple[EvalReport, ...]:
    """One report per run, in the order of `config.runs`.

    Raises:
        ConfigError: no run, a run named twice, or a model without a run's site, width or context.
        CheckpointError: a run cannot be used.
        ModelError: a language model cannot be used.
        TextError: the text cannot be used.
        DataError: a loss is not finite.
    """
    if not config.runs:
        raise ConfigError("no run to evaluate: type saepipe eval RUN, RUN being a training's --out")
    if len(set(config.runs)) < len(config.runs):
        raise ConfigError(f"a run is named twice in {', '.join(map(str, config.runs))}")
    device = pick_device(config.device)
    groups: dict[Setting, list[Subject]] = {}
    for path in config.runs:
        subject = load_subject(path, device=device)
        groups.setdefault(Setting.of(subject, config), []).append(subject)
    reports: dict[object, EvalReport] = {}
    for setting, subjects in groups.items():
        for report in _evaluate_together(setting, subjects, config, device, on_progress):
            reports[report.run] = report
    return tuple(reports[path] for path in config.runs)


def _evaluate_together(
    setting: Setting,
    subjects: Sequence[Subject],
    config: EvalConfig,
    device: torch.device,
    on_progress: OnProgress | None,
) -> list[EvalReport]:
    """Reports of runs that share a model, a text and a context length."""
    lm, contexts = _load(setting, subjects, config, device)
    batches = [batch.to(device) for batch in contexts.split(config.batch_size)]

    def told(stage: Stage) -> OnTokens:
        def tell(n_done: int) -> None:
            if on_progress is not None:
                on_progress(EvalProgress(stage=stage, n_done=n_done, n_tokens=contexts.numel()))

        return tell

    sites = sorted({subject.site for subject in subjects})
    means = site_means(lm, batches, sites, told("mean"))
    prediction, measured = measure(lm, batches, subjects, means, told("losses"))
    return [
        EvalReport(
            run=subject.path,
            site=str(subject.site),
            arch=subject.arch,
            model=setting.model,
            trained_on_model=subject.provenance.model,
            text=setting.text,
            precision=pick_precision(config.precision, device=device),
            ctx_len=setting.ctx_len,
            n_tokens=contexts.numel(),
            notes=_notes(subject, setting, lm, contexts, config),
            **_loss_numbers(subject, i, prediction),
            **_coder_numbers(subject.coder, measured[i]),
        )
        for i, subject in enumerate(subjects)
    ]


def _load(
    setting: Setting, subjects: Sequence[Subject], config: EvalConfig, device: torch.device
) -> tuple[LanguageModel, Int32[Tensor, "contexts ctx_len"]]:
    """The language model, sure to fit its subjects, and the text."""
    dtype = pick_dtype(config.precision, device)
    lm = load_model(setting.model, revision=setting.revision, device=device, dtype=dtype)
    for subject in subjects:
        check_fits(
            lm, subject.site, d_in=subject.coder.d_in, ctx_len=setting.ctx_len, run=subject.path
        )
    contexts = load_contexts(
        setting.text,
        load_tokenizer(setting.model, revision=setting.revision),
        ctx_len=setting.ctx_len,
        n=-(-config.tokens // setting.ctx_len),
        column=config.text_column,
    )
    return lm, contexts


def _loss_numbers(subject: Subject, i: int, prediction: Prediction) -> dict[str, Any]:
    """The fields of a report about the language model's losses.

    Raises:
        DataError: a loss is not finite.
    """
    clean, patched = prediction.ce_clean, prediction.ce(f"patched {i}")
    zero, mean = prediction.ce(f"zero {subject.site}"), prediction.ce(f"mean {subject.site}")
    if not all(map(math.isfinite, (clean, patched, zero, mean))):
        raise DataError(
            f"losses of {subject.path} are not finite (clean {clean:.4g}, patched {patched:.4g}): "
            f"the run's weights or the activations at {subject.site} overflow or hold NaN; "
            "try --precision fp32"
        )
    return {
        "n_predictions": prediction.n,
        "ce_clean": clean,
        "ce_patched": patched,
        "ce_zero": zero,
        "ce_mean": mean,
        "loss_recovered": loss_recovered(clean=clean, patched=patched, ablated=zero),
        "loss_recovered_mean": loss_recovered(clean=clean, patched=patched, ablated=mean),
        "kl": prediction.kl(f"patched {i}"),
    }


def _coder_numbers(coder: Coder, measured: Measured) -> dict[str, Any]:
    """The fields of a report about the coder itself."""
    reconstruction, sparsity = measured.reconstruction, measured.sparsity
    dead = sparsity.dead
    cosine = dead_cosine(coder.W_dec, dead)
    return {
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
        "explained_variance": reconstruction.explained_variance,
        "mse": reconstruction.mse,
        "cosine": reconstruction.cosine,
        "relative_bias": reconstruction.relative_bias,
        "l0": sparsity.l0,
        "l1": sparsity.l1,
        "density": tuple(sparsity.density.tolist()),
        "n_dead": int(dead.sum()),
        "frac_dead": dead.double().mean().item(),
        "dead_cosine": None if cosine is None else tuple(cosine.tolist()),
        "dead_cosine_mean": _mean(cosine, dead),
        "alive_cosine_mean": _mean(cosine, ~dead),
    }


def _mean(cosine: Float64[Tensor, " d_sae"] | None, chosen: Bool[Tensor, " d_sae"]) -> float | None:
    if cosine is None or not chosen.any():
        return None
    return cosine[chosen].mean().item()


def _notes(
    subject: Subject,
    setting: Setting,
    lm: LanguageModel,
    contexts: Int32[Tensor, "contexts ctx_len"],
    config: EvalConfig,
) -> tuple[str, ...]:
    """What a reader must know about how these numbers came about."""
    notes = list(subject.notes)
    if setting.model != subject.provenance.model:
        notes.append(
            f"trained on activations of {subject.provenance.model}, evaluated in {setting.model}"
        )
    elif subject.provenance.model_fingerprint not in ("", lm.fingerprint()):
        notes.append(f"the weights of {setting.model} have changed since its store was harvested")
    if setting.text == subject.provenance.text:
        notes.append(f"evaluated on {setting.text}, the text it was trained on: not held out")
    if contexts.numel() < config.tokens:
        notes.append(
            f"{setting.text} holds {contexts.numel()} tokens in whole contexts; "
            f"{config.tokens} were asked for"
        )
    return tuple(notes)
