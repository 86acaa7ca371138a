"""What a fine-tuning leaves on disk: a run directory of kind `finetune`.

    run.json            config, the coder's own config and provenance, report
    sae.safetensors     the frozen coder, byte for byte, so that the run stands alone
    tuned.safetensors   c and d
    metrics.jsonl       one line per step
    features.json       the features moved most, with their top tokens before and after
    loss.png  scales_biases.png

The directory is written under a temporary name and renamed: it is whole or absent.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save

from actstore.files import make_folder, partial_of, sync_folder, write_file, write_json
from pipeline.config.serialization import from_json, to_json
from pipeline.config.stages import FinetuneConfig
from pipeline.config.training import TrainConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.finetune.shifts import Shifts
from pipeline.plots.finetune import loss_figure, scales_and_biases_figure
from pipeline.plots.style import save as save_figure
from pipeline.runs.curves import METRICS
from pipeline.runs.folder import FORMAT, RUN, Provenance, load_tensors, saepipe_version
from pipeline.runs.kinds import says_kind
from pipeline.runs.sae_run import CODER, SAERun
from pipeline.sae.sae import TunedSAE

TUNED, FEATURES = "tuned.safetensors", "features.json"
LOSS_FIGURE, SCALES_FIGURE = "loss.png", "scales_biases.png"

# What may differ between a fine-tuning and the run that is reused for it.
FREE = {"out", "device"}


@dataclass(frozen=True, kw_only=True)
class FinetuneStep:
    """Where a fine-tuning stands."""

    step: int
    """Steps done."""
    n_steps: int
    loss: float
    """Of this step's batch, before its update (nats)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What fine-tuning did. Losses are nats per prediction."""

    run: Path
    """The coder's run."""
    out: Path
    model: str
    """The language model the coder is spliced into."""
    revision: str
    trained_on_model: str
    """The language model whose activations the coder was trained on."""
    site: str
    trained_on_site: str
    text: str
    n_train_tokens: int
    n_heldout_tokens: int
    n_steps: int
    ce_base: float
    """On held-out contexts, as the two after it: the model without the coder."""
    ce_spliced: float
    """The coder spliced in, before learning: `c = 1, d = 0`."""
    ce_finetuned: float
    """The coder spliced in, after learning."""
    loss_first: float
    """Mean training loss of the first 5 % of the steps."""
    loss_last: float
    """Mean training loss of the last 5 % of the steps."""
    notes: tuple[str, ...]
    """What a reader of these numbers must know, one sentence each."""
    reused: bool = False
    """The run was there already, complete and of the same config."""


@dataclass(frozen=True, kw_only=True)
class _CoderDocument:
    """Where the frozen coder is from."""

    config: TrainConfig
    store: Provenance
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Document:
    """run.json."""

    format: int = FORMAT
    kind: Literal["finetune"] = "finetune"
    saepipe: str = field(default_factory=saepipe_version)
    config: FinetuneConfig
    coder: _CoderDocument
    report: FinetuneReport
    sha256: str
    """Of tuned.safetensors."""


@dataclass(frozen=True, kw_only=True)
class FinetunedRun:
    """A fine-tuning on disk."""

    path: Path
    config: FinetuneConfig
    """As it ran, the paths absolute."""
    run: SAERun
    """The frozen coder's run, as kept in this directory."""
    report: FinetuneReport
    sha256: str

    @staticmethod
    def open(path: Path) -> "FinetunedRun":
        """A fine-tuning, which is whole if it is there.

        Raises:
            CheckpointError: there is none at `path`, or its run.json is damaged.
        """
        try:
            document = from_json(_Document, json.loads((path / RUN).read_bytes()), where=RUN)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path} is not a run: it has no {RUN}; saepipe finetune makes one"
            ) from error
        except (OSError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{path / RUN} is damaged: {error}") from error
        coder = document.coder
        run = SAERun(path=path, config=coder.config, provenance=coder.store, sha256=coder.sha256)
        config, report, sha256 = document.config, document.report, document.sha256
        return FinetunedRun(path=path, config=config, run=run, report=report, sha256=sha256)

    def load_sae(self, device: torch.device) -> TunedSAE:
        """The coder with its `c` and `d`, in float32, every byte checked.

        Raises:
            CheckpointError: a file of it is missing or damaged.
        """
        coder = TunedSAE(self.run.load_sae(device))
        tensors = load_tensors(
            self.path / TUNED, sha256=self.sha256, advice="fine-tune again into another --out"
        )
        coder.load_state_dict(tensors, strict=False)
        return coder.requires_grad_(False)


def is_finetuned(path: Path) -> bool:
    """Whether the run at `path`, if there is one, says that it is a fine-tuning."""
    return says_kind(path) == "finetune"


def finished_report(config: FinetuneConfig, run: SAERun) -> FinetuneReport | None:
    """The report of the same fine-tuning if `config.out` holds it; None if nothing is there.

    Args:
        config: with absolute paths.
        run: what `config.run` holds now.

    Raises:
        ConfigError: `config.out` holds something else.
        CheckpointError: it holds a damaged fine-tuning.
    """
    out = config.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not is_finetuned(out):
        raise ConfigError(f"{out} exists and is not a fine-tuning: choose another --out")
    found = FinetunedRun.open(out)
    changed = [
        f"{f.name}: {getattr(found.config, f.name)} there, {getattr(config, f.name)} now"
        for f in fields(config)
        if f.name not in FREE and getattr(found.config, f.name) != getattr(config, f.name)
    ]
    if changed:
        raise ConfigError(
            f"{out} holds a fine-tuning of another configuration ({'; '.join(changed)}): "
            "choose another --out"
        )
    if found.run.sha256 != run.sha256:
        raise ConfigError(
            f"{out} was fine-tuned before {run.path} was trained again: choose another --out"
        )
    found.load_sae(torch.device("cpu"))  # damage shows here, not later
    return replace(found.report, out=out, reused=True)


def save_run(
    config: FinetuneConfig,
    run: SAERun,
    coder: TunedSAE,
    report: FinetuneReport,
    *,
    losses: Sequence[float],
    shifts: Shifts,
) -> None:
    """Write the whole directory under a temporary name, then rename it to `config.out`.

    Raises:
        OSError: the disk is full or fails; `config.out` is as it was.
    """
    partial = partial_of(config.out)
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    learned = {"c": coder.c.detach().cpu(), "d": coder.d.detach().cpu()}
    tuned = save(learned)
    write_file(partial / TUNED, [tuned])
    write_file(partial / CODER, [(run.path / CODER).read_bytes()])
    lines = ({"step": i, "loss": loss} for i, loss in enumerate(losses, start=1))
    write_file(partial / METRICS, [json.dumps(line).encode() + b"\n" for line in lines])
    write_json(partial / FEATURES, to_json(shifts))
    heldout = {name: getattr(report, name) for name in ("ce_base", "ce_spliced", "ce_finetuned")}
    save_figure(loss_figure(losses, **heldout), partial / LOSS_FIGURE)
    c, d = (learned[name].numpy() for name in ("c", "d"))
    save_figure(scales_and_biases_figure(c, d), partial / SCALES_FIGURE)
    document = _Document(
        config=config,
        coder=_CoderDocument(config=run.config, store=run.provenance, sha256=run.sha256),
        report=report,
        sha256=hashlib.sha256(tuned).hexdigest(),
    )
    write_json(partial / RUN, to_json(document))
    partial.rename(config.out)
    sync_folder(config.out.parent)
