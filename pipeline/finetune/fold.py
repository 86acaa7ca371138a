"""fold(run, out): a fine-tuning as a plain SAE, which every tool takes that knows no `c` and `d`.

    run.json            as of a training: the SAE's config and provenance, without curves
    sae.safetensors     W_enc scaled by c, c * b_enc + d, all else as it was
    folded.json         which fine-tuning it is from

What only a folded run has stands beside run.json, not in it, so that versions that know no folding
open it, too. The directory is written under a temporary name and renamed: it is whole or absent.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from actstore.files import write_json
from pipeline.config.serialization import from_json, located, portable, to_json
from pipeline.errors import CheckpointError, ConfigError
from pipeline.finetune.run import FinetunedRun, FinetuneReport
from pipeline.finetune.sources import Sources
from pipeline.formats.table import seems_foreign
from pipeline.runs.folder import FORMAT, Provenance, saepipe_version
from pipeline.runs.kinds import says_kind
from pipeline.runs.sae_run import SAERun
from pipeline.runs.whole import is_taken, made_whole
from pipeline.whereabouts import place_of

FOLDED = "folded.json"


@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """What was folded into which SAE."""

    run: Path
    """The fine-tuning."""
    out: Path
    arch: str
    model: str
    """The language model that the SAE belongs in now: the one of the fine-tuning, as the site."""
    site: str
    text: str
    """What was fine-tuned on."""
    d_sae: int
    notes: tuple[str, ...]
    """What a user of the SAE must know, one sentence each."""
    reused: bool = False
    """It was there already, folded from the same weights."""


@dataclass(frozen=True, kw_only=True)
class _Document:
    """folded.json."""

    format: int = FORMAT
    saepipe: str = field(default_factory=saepipe_version)
    report: FoldReport
    finetune: FinetuneReport
    sources: Sources
    """Of the fine-tuning."""
    sha256_coder: str
    """Of the SAE that was frozen."""
    sha256_tuned: str
    """Of its scales and biases."""
    sha256: str
    """Of the folded weights."""


def fold(run: Path, out: Path) -> FoldReport:
    """Write the plain SAE that computes what a fine-tuned one does.

    What is there already, folded from the same weights, is reused.

    Raises:
        ConfigError: `out` holds something else, or is worked on by another process.
        CheckpointError: `run` is no fine-tuning, or is damaged; or the disk fails.
    """
    tuned, out = _fine_tuned(run), out.resolve()
    return made_whole(
        out, there=lambda: _finished(tuned, out), make=lambda partial: _fold(tuned, out, partial)
    )


def is_folded(run: Path) -> bool:
    """Whether the run in a folder was folded, and so has no curves."""
    return (run / FOLDED).exists()


def require_folding(run: Path) -> None:
    """Hold what a folder says of its folding, if it was folded, to what that must be.

    Raises:
        CheckpointError: it is damaged.
    """
    if is_folded(run):
        _read(run)


def _fine_tuned(run: Path) -> FinetunedRun:
    foreign = seems_foreign(str(run))
    if foreign and not run.exists():
        raise CheckpointError(
            f"{run} is not on this disk: if it is a fine-tuning on the hub, type saepipe pull "
            f"{run} --out RUN, and name that"
        )
    run = run.resolve()
    kind = says_kind(run)
    if foreign or kind == SAERun.KIND:
        raise CheckpointError(
            f"{run} is a plain SAE, which has nothing to fold: name a run of saepipe finetune"
        )
    if kind not in ("", "finetune"):
        raise CheckpointError(f"{run} is a {kind} run, not one of saepipe finetune")
    return FinetunedRun.open(run)


def _finished(tuned: FinetunedRun, out: Path) -> FoldReport | None:
    """The report of the same folding if `out` holds it; None if nothing is there."""
    if not is_taken(out):
        return None
    if not is_folded(out):
        raise ConfigError(f"{out} exists and is not a folded SAE: choose another --out")
    there = SAERun.open(out)
    told = _read(out)
    wanted = (tuned.run.sha256, tuned.sha256, there.sha256)
    if (told.sha256_coder, told.sha256_tuned, told.sha256) != wanted:
        raise ConfigError(
            f"{out} was folded from another fine-tuning than {tuned.path}, or before that was "
            "made again: choose another --out"
        )
    there.load_sae(torch.device("cpu"))  # damage shows here, not later
    return replace(told.report, run=tuned.path, out=out, reused=True)


def _read(out: Path) -> _Document:
    try:
        told = from_json(_Document, json.loads((out / FOLDED).read_bytes()), where=FOLDED)
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{out / FOLDED} is damaged ({error}): put a copy back, or choose another --out"
        ) from error
    return located(told, out)


def _fold(tuned: FinetunedRun, out: Path, partial: Path) -> FoldReport:
    plain, frozen, source = tuned.sae.fold(), tuned.run, _provenance(tuned)
    config = replace(frozen.config, arch=frozen.config.arch.untied, out=partial)
    run = replace(frozen, path=partial, config=config, provenance=source, sha256="")
    run = run.finish(plain)
    report = FoldReport(
        run=tuned.path,
        out=out,
        arch=config.arch.kind,
        model=source.model,
        site=source.site,
        text=tuned.report.text,
        d_sae=run.d_sae,
        notes=_notes(tuned, run),
    )
    document = _Document(
        report=report,
        finetune=tuned.report,
        sources=tuned.sources,
        sha256_coder=frozen.sha256,
        sha256_tuned=tuned.sha256,
        sha256=run.sha256,
    )
    write_json(partial / FOLDED, to_json(portable(document, out)))
    return report


def _provenance(tuned: FinetunedRun) -> Provenance:
    """The SAE's own, but for the model and the site that the fine-tuning put it into."""
    source, report = tuned.run.provenance, tuned.report
    if report.model != report.trained_on_model:
        source = replace(
            source,
            model=report.model,
            revision=report.revision,
            model_fingerprint=tuned.sources.model_fingerprint,
            model_at=place_of(report.model),
        )
    return replace(source, site=report.site)


def _notes(tuned: FinetunedRun, run: SAERun) -> tuple[str, ...]:
    kind, was, notes = run.config.arch.kind, tuned.run.config.arch.kind, list[str]()
    if kind != was:
        notes.append(
            f"a {was} encoder that is scaled is not the dictionary any more: this is a {kind} SAE, "
            "which computes the same"
        )
    if tuned.config.keep_error:
        notes.append(
            "it was fine-tuned with what the SAE does not explain left in; spliced in, a plain SAE "
            "leaves that out"
        )
    now, before = run.provenance, tuned.run.provenance.named_as(run.provenance)
    if (now.model, now.site) != (before.model, before.site):
        notes.append(
            f"the SAE is one of {now.site} of {now.model} now, and its store holds activations of "
            f"{before.site} of {before.model}"
        )
    return tuple(notes)
