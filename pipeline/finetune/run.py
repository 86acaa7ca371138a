"""What a fine-tuning leaves on disk: a run directory of kind `finetune`.

    run.json            config, the SAE's own config and provenance, report, which model and text
    sae.safetensors     the frozen SAE, byte for byte, so that the run stands alone
    tuned.safetensors   c and d, and of which latents something was learned
    metrics.jsonl       one line per step
    features.json       the features moved most: their effects, what they fire on before and after

The directory is written under a temporary name (`pipeline.finetune.unfinished`) and renamed: it is
whole or absent. Figures are drawn into it afterwards, by `pipeline.plots.finetune`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from actstore.files import write_file, write_json
from pipeline.config.architectures import InputNorm
from pipeline.config.serialization import UNLESS_DEFAULT, from_json, located, portable, to_json
from pipeline.config.stages import FinetuneConfig
from pipeline.config.training import TrainConfig
from pipeline.errors import CheckpointError, ConfigError, NoSuchArchitectureError
from pipeline.finetune.meaning import FEATURES, Meaning, read_meaning
from pipeline.finetune.sources import Sources, as_it_was
from pipeline.finetune.unfinished import FREE
from pipeline.foreign import not_a_run
from pipeline.runs.belongs import RUN, checksum_of
from pipeline.runs.curves import METRICS, read_curves
from pipeline.runs.folder import (
    FORMAT,
    Provenance,
    differences,
    load_tensors,
    require_own,
    saepipe_version,
    save_tensors,
)
from pipeline.runs.kinds import says_kind
from pipeline.runs.sae_run import CODER, SAERun
from pipeline.sae.sae import TunedSAE

TUNED = "tuned.safetensors"


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What fine-tuning did. Losses are nats per prediction."""

    run: Path
    """The SAE's run."""
    out: Path
    model: str
    """The language model the SAE is spliced into."""
    revision: str
    trained_on_model: str
    """The language model whose activations the SAE was trained on."""
    site: str
    trained_on_site: str
    together_with: tuple[str, ...] = ()
    """Other sites whose features learned with these: losses are those of all together."""
    text: str
    n_train_tokens: int
    n_heldout_tokens: int
    n_steps: int
    ce_base: float
    """On held-out contexts, as the two after it: the model without the SAE."""
    ce_spliced: float
    """The SAE spliced in, before learning: `c = 1, d = 0`."""
    ce_finetuned: float
    """The SAE spliced in, after learning."""
    loss_first: float
    """Mean training loss of the first 5 % of the steps."""
    loss_last: float
    """Mean training loss of the last 5 % of the steps."""
    notes: tuple[str, ...]
    """What a reader of these numbers must know, one sentence each."""
    explained_variance: float | None = None
    """Of the site's activations on the held-out contexts, by the frozen SAE in this model."""
    l0: float | None = None
    """Latents of the frozen SAE that are active a token there."""
    n_learned: int | None = None
    """Latents that were ever active in learning."""
    n_changed: int | None = None
    """Latents whose scale or bias is another now; without a price of change, most of the above."""
    ce_by_epoch: tuple[float, ...] = ()
    """Held-out loss after each epoch, of the contexts that the epoch is chosen by."""
    best_epoch: int | None = None
    """Whose numbers these are, from 1; None where it is the last."""
    n_questions: int | None = None
    """Held-out questions to be answered; None where the text has none."""
    exact_base: float | None = None
    """Share of them that the model without the SAE answers exactly, by greedy decoding."""
    exact_spliced: float | None = None
    exact_finetuned: float | None = None
    general_text: str = ""
    """Another text, which tells what was forgotten; empty where there is none."""
    n_general_tokens: int = 0
    ce_general_base: float | None = None
    """Loss on that text, as the two after it (nats a token)."""
    ce_general_spliced: float | None = None
    ce_general_finetuned: float | None = None
    reused: bool = False
    """The run was there already, complete and of the same config."""

    @property
    def origin(self) -> tuple[str, ...]:
        """What whoever uses its SAE alone must know, a sentence each."""
        told = f"fine-tuned on {self.text} through a scale and a bias per feature"
        if not self.together_with:
            return (told,)
        others = " and ".join(self.together_with)
        return told, f"learned together with features of {others}, which are not in the model here"

    def __repr__(self) -> str:
        losses = {
            "the model alone": self.ce_base,
            "spliced in": self.ce_spliced,
            "fine-tuned": self.ce_finetuned,
        }
        told = ", ".join(f"{words} {ce:.4f}" for words, ce in losses.items())
        return (
            f"FinetuneReport({self.out}: loss {told}, on {self.n_heldout_tokens:,} held-out tokens "
            f"of {self.text})"
        )


@dataclass(frozen=True, kw_only=True)
class _Frozen:
    """Where the frozen SAE is from."""

    config: TrainConfig
    store: Provenance
    sha256: str
    input_norm: InputNorm = field(default="none", metadata=UNLESS_DEFAULT)


@dataclass(frozen=True, kw_only=True)
class _Document:
    """run.json."""

    format: int = FORMAT
    kind: Literal["finetune"] = "finetune"
    saepipe: str = field(default_factory=saepipe_version)
    config: FinetuneConfig
    coder: _Frozen
    report: FinetuneReport
    sha256: str
    """Of tuned.safetensors."""
    sources: Sources = field(default_factory=Sources)
    curves_sha256: str = ""
    """Of metrics.jsonl; empty in runs of versions that did not say."""


@dataclass(frozen=True, kw_only=True)
class FinetunedRun:
    """A fine-tuning on disk."""

    path: Path
    config: FinetuneConfig
    """As it ran, the paths absolute."""
    run: SAERun
    """The frozen SAE's run, as kept in this directory."""
    report: FinetuneReport
    sha256: str
    sources: Sources = field(default_factory=Sources)
    curves_sha256: str = ""
    """Of its losses; empty in runs of versions that did not say."""

    @staticmethod
    def open(path: str | Path) -> "FinetunedRun":
        """A fine-tuning, which is whole if it is there.

        Raises:
            CheckpointError: there is none at `path`, or its run.json is damaged.
        """
        path = Path(path)
        try:
            content = as_it_was(json.loads((path / RUN).read_bytes()))
            told = from_json(_Document, content, where=RUN)
            told = located(told, path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(not_a_run(path, made_by="saepipe finetune")) from error
        except NoSuchArchitectureError as error:
            raise error.of(path) from error
        except (OSError, ValueError, RecursionError, ConfigError) as error:
            raise CheckpointError(f"{path / RUN} is damaged: {error}") from error
        sae = told.coder
        source = sae.store.from_here()
        run = SAERun(
            path=path,
            config=sae.config,
            provenance=source,
            sha256=sae.sha256,
            input_norm=sae.input_norm,
        )
        return FinetunedRun(
            path=path,
            config=told.config,
            run=run,
            report=told.report,
            sha256=told.sha256,
            sources=told.sources,
            curves_sha256=told.curves_sha256,
        )

    @cached_property
    def sae(self) -> TunedSAE:
        """The SAE with its scales and biases, on the CPU, read when it is first asked for.

        Raises:
            CheckpointError: a file of it is missing or damaged.
        """
        return self.load_sae(torch.device("cpu"))

    def load_sae(self, device: torch.device) -> TunedSAE:
        """The SAE with its `c` and `d`, in float32, every byte checked.

        Raises:
            CheckpointError: a file of it is missing or damaged.
        """
        tuned = TunedSAE(self.run.load_sae(device))
        advice = "fine-tune again into another --out"
        tensors = load_tensors(self.path / TUNED, sha256=self.sha256, advice=advice)
        if "learned" not in tensors:  # as from earlier versions: a gradient moves d away from zero
            tensors["learned"] = tensors["d"] != 0
        tuned.load_state_dict(tensors, strict=False)
        return tuned.requires_grad_(False)

    def losses(self) -> list[float]:
        """Of each step's batch before its update (nats).

        Raises:
            CheckpointError: they are gone or damaged, or another run's.
        """
        lines = list(read_curves(self.path / METRICS))
        require_own(self.path / METRICS, self.curves_sha256)
        return [line["loss"] for line in lines]

    def meaning(self) -> Meaning | None:
        """Which features it moved, and what that does; None where its file is gone.

        Raises:
            CheckpointError: the file is damaged.
        """
        return read_meaning(self.path, sha256=self.sha256)

    @property
    def decayed_scale(self) -> float:
        """What weight decay alone makes of the scale of a feature that no gradient reaches."""
        config, report = self.config, self.report
        if config.decay_to == "start" or config.train == "bias":
            return 1.0
        epochs = len(report.ce_by_epoch)
        told = report.best_epoch is not None and epochs
        steps = report.n_steps * (report.best_epoch or 0) // epochs if told else report.n_steps
        return (1 - config.lr * config.weight_decay) ** steps


def is_finetuned(path: Path) -> bool:
    """Whether the run at `path`, if there is one, says that it is a fine-tuning."""
    return says_kind(path) == "finetune"


def finished_report(config: FinetuneConfig, run: SAERun, sources: Sources) -> FinetuneReport | None:
    """The report of the same fine-tuning if `config.out` holds it; None if nothing is there."""
    out = config.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not is_finetuned(out):
        raise ConfigError(f"{out} exists and is not a fine-tuning: choose another --out")
    there = FinetunedRun.open(out)
    if changed := differences(there.config, config, free=FREE):
        raise ConfigError(
            f"{out} holds a fine-tuning of another configuration ({changed}): choose another --out"
        )
    if there.run.sha256 != run.sha256:
        raise ConfigError(
            f"{out} was fine-tuned before {run.path} was trained again: choose another --out"
        )
    if replaced := there.sources.changed(sources, config, run):
        raise ConfigError(f"{out} was fine-tuned before {replaced} changed: choose another --out")
    there.load_sae(torch.device("cpu"))  # damage shows here, not later
    return replace(there.report, out=out, reused=True)


def write_run(
    folder: Path,
    config: FinetuneConfig,
    run: SAERun,
    sources: Sources,
    tuned: TunedSAE,
    report: FinetuneReport,
    *,
    losses: Sequence[float],
    meaning: Meaning,
) -> None:
    """Write all of it into `folder`, which will be `config.out`."""
    learned = {"c": tuned.c.detach(), "d": tuned.d.detach(), "learned": tuned.learned}
    sha256 = save_tensors(folder / TUNED, learned)
    write_file(folder / CODER, [(run.path / CODER).read_bytes()])
    lines = ({"step": i, "loss": loss} for i, loss in enumerate(losses, start=1))
    write_file(folder / METRICS, [json.dumps(line).encode() + b"\n" for line in lines])
    write_json(folder / FEATURES, to_json(replace(meaning, sha256=sha256)))
    frozen = _Frozen(
        config=run.config, store=run.provenance, sha256=run.sha256, input_norm=run.input_norm
    )
    document = _Document(
        config=config,
        coder=frozen,
        report=report,
        sha256=sha256,
        sources=sources,
        curves_sha256=checksum_of(folder / METRICS),
    )
    write_json(folder / RUN, to_json(portable(document, config.out)))
