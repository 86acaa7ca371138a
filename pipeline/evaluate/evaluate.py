"""Evaluate coders inside the language models they were trained on: from sums to reports.

Runs that share a model, a text and a context length share its passes: one short pass up to the
sites for their means, then one pass in which each batch runs through the untouched model once and,
for each run, again from the run's site on. What ablating a site costs is measured in the same pass
and kept beside the store, see `ablations.py`. The ablation mean and the mean of explained variance
are the same one, over the evaluation text: a report depends on nothing but the run, the model and
the text, whether or not the store is still there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from actstore.files import make_folder
from pipeline.config.stages import EvalConfig
from pipeline.device import pick_device
from pipeline.disk import require_run_writable, why_unwritable
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.ablations import OnTokens, find_site_means, slot_of
from pipeline.evaluate.geometry import (
    dead_cosine,
    encoder_decoder_cosine,
    max_cosine,
    mutual_mmcs,
    others_cosine,
)
from pipeline.evaluate.intervals import intervals
from pipeline.evaluate.metrics import Latents, Number, measured, of_sums, perplexity_of
from pipeline.evaluate.passes import AblationPass, SplicePass, measure, nll_at
from pipeline.evaluate.report import (
    TABLE,
    EvalReport,
    Inserted,
    Overlap,
    WorstContext,
    save_report,
    write_table,
)
from pipeline.evaluate.setup import (
    EvalContext,
    EvalSetting,
    EvalSite,
    LoadedSAE,
    load_eval_context,
    load_sae,
)
from pipeline.evaluate.sums import Columns
from pipeline.lm.tokenizer import Tokenizer
from pipeline.progress import OnProgress, counter
from pipeline.runs.default_text import DefaultTexts
from pipeline.runs.folder import Provenance
from pipeline.runs.kinds import RunKind, by_kind
from pipeline.runs.names import beside
from pipeline.runs.replaced import has_weights_of, replaced_note
from pipeline.tables import many


def notes_on(
    scene: EvalContext, trained: Provenance, left_out: Sequence[str], config: EvalConfig
) -> tuple[str, ...]:
    """On the model, the text, and which rows count, one sentence each."""
    setting = scene.setting
    notes = [setting.read.note] if setting.read.note else []
    if setting.model != trained.model and not has_weights_of(scene.lm.files, trained):
        notes.append(f"trained on activations of {trained.model}, evaluated in {setting.model}")
    notes += replaced_note(trained, scene.lm.files)
    if setting.read.is_of(trained):
        notes.append(f"evaluated on {setting.text}, the text it was trained on: not held out")
    if left_out and not config.as_trained:
        words = ", ".join(left_out)
        notes.append(f"training left out {words}: add `as_trained=True` to leave it out here too")
    if scene.contexts.numel() < config.tokens:
        notes.append(
            f"{setting.text} holds {scene.contexts.numel()} tokens in whole contexts; "
            f"{config.tokens} were asked for"
        )
    return tuple(notes)


L0_MOVED = 0.01
FEW_TOKENS, FEW_CONTEXTS, FEW_DEAD = 100_000, 30, 10
"""Below these, numbers that rest on them say so."""


def caveats_on(
    metrics: Mapping[str, Number], *, n_tokens: int, n_contexts: int, l0_trained: float | None
) -> Iterator[str]:
    """What numbers rest on, where that is little, and how far L0 is from that of training."""
    l0, n_dead = metrics["l0"], metrics["n_dead"]
    if l0 is not None and l0_trained and abs(l0 / l0_trained - 1) > L0_MOVED:
        moved = l0 / l0_trained - 1
        more = "more" if moved > 0 else "fewer"
        yield (
            f"L0 is {l0:.1f} on this text, {abs(moved):.0%} {more} than the {l0_trained:.1f} that "
            "it was fitted to"
        )
    added = metrics.get("ce_added")
    if added is not None and added < 0:
        yield (
            f"the model predicts this text better with the SAE than alone, by {-added:.4f} nats: "
            "loss added and recovered tell little here, look at the KL divergence"
        )
    if metrics["loss_recovered_mean"] is None:
        yield (
            "putting the site at its mean does not raise the loss of this text, so there is "
            "nothing to recover: look at the loss added"
        )
    if n_dead and n_tokens < FEW_TOKENS:
        yield (
            f"features that are active on fewer than one in {n_tokens // 3:,} tokens may count as "
            f"dead on {n_tokens:,}: raise `tokens`"
        )
    if n_dead and n_dead < FEW_DEAD:
        yield f"the dead-feature cosines are of {many(int(n_dead), 'dead feature')} alone"
    if n_contexts < FEW_CONTEXTS:
        yield f"the intervals are of {many(n_contexts, 'context')} alone: raise `tokens`"


def worst_contexts(
    sums: Columns,
    contexts: Int32[Tensor, "contexts ctx_len"],
    tokenizer: Tokenizer,
    *,
    n: int,
) -> tuple[WorstContext, ...]:
    """The `n` contexts with the largest rise of their summed loss; none whose loss does not rise.

    Of equal ones those that come first in the text.
    """
    clean, spliced = sums["nll_clean"], sums["nll_spliced"]
    found: list[WorstContext] = []
    for i in np.argsort(clean - spliced, kind="stable")[:n].tolist():
        if spliced[i] > clean[i]:
            losses = np.array([clean[i], spliced[i]]) / sums["n_predictions"][i]
            perplexity = perplexity_of(losses)
            found.append(
                WorstContext(
                    context=i,
                    ce_clean=float(losses[0]),
                    ce_patched=float(losses[1]),
                    perplexity_difference=float(perplexity[1] - perplexity[0]),
                    text=tokenizer.decode(contexts[i].tolist()),
                )
            )
    return tuple(found)


def report_of(
    scene: EvalContext,
    subject: LoadedSAE,
    view: SplicePass,
    ablations: Columns,
    config: EvalConfig,
) -> EvalReport:
    """The report of one run, but for its overlaps with others."""
    sums = view.sums | ablations
    totals = {name: values.sum(keepdims=True) for name, values in sums.items()}
    if not totals["n_predictions"].any():
        left_out = ", ".join(view.place.excluded.words) or "nothing"
        raise ConfigError(
            f"{subject.path} leaves no prediction of {scene.setting.text} to count: contexts have "
            f"{scene.setting.ctx_len} tokens, and {left_out} is left out"
        )
    if not all(np.isfinite(total).all() for total in totals.values()):
        clean, spliced = (of_sums(totals)[name].item() for name in ("ce_clean", "ce_patched"))
        raise DataError(
            f"losses of {subject.path} are not finite (clean {clean:.4g}, spliced {spliced:.4g}): "
            f"the run's weights or the activations at {subject.site} overflow or hold NaN; "
            "try --precision fp32"
        )
    coder, sparsity = subject.coder, view.sparsity
    latents = Latents(
        density=sparsity.density,
        dead=sparsity.dead,
        dead_cosine=dead_cosine(coder.W_dec, sparsity.dead),
        others_cosine=others_cosine(coder.W_dec, sparsity.dead, seed=config.seed),
        encoder_decoder_cosine=encoder_decoder_cosine(coder),
        max_cosine=max_cosine(coder.W_dec),
    )
    to_dead, metrics = latents.dead_cosine, measured(totals, latents)
    notes = notes_on(scene, subject.provenance, subject.left_out.words, config)
    caveats = caveats_on(
        metrics, n_tokens=int(totals["n_tokens"].item()), n_contexts=len(sums["n_tokens"]),
        l0_trained=subject.l0_trained,
    )  # fmt: skip
    return EvalReport(
        run=subject.path,
        sha256=subject.sha256,
        site=str(subject.site),
        arch=subject.arch,
        d_in=coder.d_in,
        d_sae=coder.d_sae,
        model=scene.setting.model,
        trained_on_model=subject.provenance.model,
        text=scene.setting.text,
        precision=scene.precision,
        ctx_len=scene.setting.ctx_len,
        n_tokens=int(totals["n_tokens"].item()),
        n_predictions=int(totals["n_predictions"].item()),
        excluded=view.place.excluded.words,
        metrics=metrics,
        l0_quantiles=sparsity.l0_quantiles,
        density=tuple(latents.density.tolist()),
        dead_cosine=None if to_dead is None else tuple(to_dead.tolist()),
        encoder_decoder_cosine=tuple(latents.encoder_decoder_cosine.tolist()),
        max_cosine=tuple(latents.max_cosine.tolist()),
        overlaps=(),
        intervals=intervals(sums, n=config.n_bootstrap, seed=config.seed),
        inserted=_inserted(sums, subject, config.layers),
        worst=worst_contexts(sums, scene.contexts, scene.tokenizer, n=config.n_worst),
        notes=(*subject.notes, *notes, *caveats),
    )


def _inserted(sums: Columns, subject: LoadedSAE, layers: tuple[int, ...]) -> tuple[Inserted, ...]:
    n, clean = sums["n_predictions"].sum(), sums["nll_clean"].sum()
    found: list[Inserted] = []
    for layer in dict.fromkeys(layers):
        site = subject.site.at(layer)
        ce = (nll := sums[nll_at(site)].sum()) / n
        found.append(Inserted(site=str(site), ce_patched=float(ce), added=float((nll - clean) / n)))
    return tuple(found)


COMPARED = 8
"""Most runs whose dictionaries are compared, each with each."""


def evaluate(config: EvalConfig, *, on_progress: OnProgress | None = None) -> tuple[Any, ...]:
    """One report per run, of whatever kind it is, in the order of `config.runs`.

    Each is saved in the folder of its run; of several of a kind, a table in `config.out`, or in the
    folder that they have in common.

    Raises:
        ConfigError: no run, a run named twice, a model without a run's site, width or context or
            without a layer asked for, a text of which nothing counts, or a folder that may only
            be read.
        CheckpointError: a run cannot be used, or is of a kind that is not known.
        ModelError: a language model cannot be used.
        TextError: the text cannot be used.
        StoreError: a store that baselines are fitted on is damaged.
        DataError: a loss is not finite.
    """
    if not config.runs:
        raise ConfigError("no run to evaluate: type saepipe eval RUN, RUN being a training's --out")
    if len(set(config.runs)) < len(config.runs):
        raise ConfigError(f"a run is named twice in {', '.join(map(str, config.runs))}")
    config = replace(config, out=_together(config))
    _require_writable(config)  # before minutes of work
    reports: dict[Path, Any] = {}
    for kind, runs in by_kind(config.runs).items():
        for report in kind.evaluate(replace(config, runs=tuple(runs)), on_progress=on_progress):
            reports[report.run] = report
    return tuple(reports[path] for path in config.runs)


def draw(config: EvalConfig, reports: Sequence[Any]) -> dict[RunKind, tuple[Path, ...]]:
    """Draw what `evaluate(config)` found: of one run into its folder, or what compares several.

    Returns:
        Of each kind of run, the files; those that compare several lie beside their table.
    """
    drawn: dict[RunKind, tuple[Path, ...]] = {}
    for kind, runs in by_kind(config.runs).items():
        its = [one for one in reports if one.run in runs]
        alone = len(its) == 1
        drawn[kind] = kind.eval_figures(*its) if alone else kind.comparison(its, _together(config))
    return drawn


def _require_writable(config: EvalConfig) -> None:
    for run in config.runs:
        require_run_writable(run, what="evaluation")
    folder = _together(config)
    if len(config.runs) > 1 and (why := why_unwritable(folder)):
        raise ConfigError(
            f"{folder} cannot be written to ({why}), where the table of these runs goes: choose "
            "another --out"
        )


def _together(config: EvalConfig) -> Path:
    """The folder of what is told of several runs."""
    return config.out or beside(config.runs)


def evaluate_saes(
    config: EvalConfig, *, on_progress: OnProgress | None = None
) -> tuple[EvalReport, ...]:
    """One report per SAE, in the order of `config.runs`, saved as `evaluate` says."""
    device = pick_device(config.device)
    subjects = [load_sae(path, device=device) for path in config.runs]
    texts, groups = DefaultTexts(config.text_column), dict[EvalSetting, list[LoadedSAE]]()
    for subject in subjects:
        groups.setdefault(EvalSetting.of(subject, config, texts), []).append(subject)
    reports: dict[Path, EvalReport] = {}
    for setting, together in groups.items():
        scene = load_eval_context(setting, together, config, device=device)
        for report in _evaluate_together(scene, together, config, on_progress):
            reports[report.run] = report
    overlaps = _overlaps(subjects)
    found = tuple(replace(reports[path], overlaps=overlaps[path]) for path in config.runs)
    for report in found:
        save_report(report)
    if len(found) > 1:
        folder = _together(config)
        make_folder(folder)
        write_table(found, folder / TABLE)
    return found


def _evaluate_together(
    scene: EvalContext,
    subjects: Sequence[LoadedSAE],
    config: EvalConfig,
    on_progress: OnProgress | None,
) -> list[EvalReport]:
    """Reports of runs that share a model, a text and a context length."""
    batches = [batch.to(scene.lm.device) for batch in scene.contexts.split(config.batch_size)]

    def told(stage: str) -> OnTokens:
        return counter(on_progress, stage=stage, total=scene.contexts.numel(), unit="tokens")

    places = [subject.eval_site(as_trained=config.as_trained) for subject in subjects]
    stores: dict[EvalSite, list[Path]] = {}
    for place, subject in zip(places, subjects, strict=True):
        stores.setdefault(place, []).append(subject.provenance.path)
    slots = {
        place: slot_of(place, scene, batch_size=config.batch_size, beside=paths)
        for place, paths in stores.items()
    }
    kept = {place: found for place, slot in slots.items() if (found := slot.load())}
    grounds = {place: ground for place, (ground, _) in kept.items()}
    ablations = {place: sums for place, (_, sums) in kept.items()}
    unknown = [place for place in slots if place not in kept]
    if unknown:
        grounds |= find_site_means(scene.lm, batches, unknown, told("mean"))
    ablated = [AblationPass(place, grounds[place]) for place in unknown]
    runs = [
        SplicePass(subject.coder, place, grounds[place], layers=config.layers)
        for subject, place in zip(subjects, places, strict=True)
    ]
    measure(scene.lm, batches, [*ablated, *runs], grounds, told("losses"))
    for view in ablated:
        ablations[view.place] = view.sums
        slots[view.place].keep(grounds[view.place], view.sums)
    return [
        report_of(scene, subject, view, ablations[view.place], config)
        for subject, view in zip(subjects, runs, strict=True)
    ]


def _overlaps(subjects: Sequence[LoadedSAE]) -> dict[Path, tuple[Overlap, ...]]:
    """Of each run, with every other that is as wide; none of more runs than are compared."""
    found: dict[Path, list[Overlap]] = {subject.path: [] for subject in subjects}
    if len(subjects) > COMPARED:
        return dict.fromkeys(found, ())
    for one, other in combinations(subjects, 2):
        if one.coder.d_in == other.coder.d_in:
            there, back = mutual_mmcs(one.coder.W_dec, other.coder.W_dec)
            found[one.path].append(Overlap(run=other.path, mmcs=there))
            found[other.path].append(Overlap(run=one.path, mmcs=back))
    return {path: tuple(overlaps) for path, overlaps in found.items()}
