"""What is evaluated: a coder from a run of any kind; and in what: a model and a text."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import EvalConfig
from pipeline.errors import ConfigError
from pipeline.evaluate.place import Exclusion, Place
from pipeline.families import Site
from pipeline.finetune_run import FinetunedRun, is_finetuned
from pipeline.heldout import heldout_text
from pipeline.provenance import Provenance
from pipeline.run import Run
from pipeline.splicing import Coder


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A coder, its place, and where it is from."""

    path: Path
    coder: Coder
    arch: str
    model: str
    """The language model it belongs in: a transplanted coder's new one."""
    revision: str
    site: Site
    provenance: Provenance
    left_out: Exclusion
    """Rows of its site that it was not trained on."""
    notes: tuple[str, ...] = ()

    def place(self, *, as_trained: bool) -> Place:
        """Its site, and whether what training left out is left out here, too."""
        return Place(site=self.site, excluded=self.left_out if as_trained else Exclusion())


@dataclass(frozen=True)
class Setting:
    """What runs must have in common to share their forward passes."""

    model: str
    revision: str
    text: str
    ctx_len: int

    @classmethod
    def of(cls, subject: Subject, config: EvalConfig) -> "Setting":
        """The model and the text for this subject.

        Raises:
            ConfigError: neither the config nor the run says which model.
        """
        model = subject.model if config.model is None else config.model
        if not model:
            raise ConfigError(
                f"{subject.path} does not say which model its activations are from: name it "
                "with --model"
            )
        own = model == subject.model
        return cls(
            model=model,
            revision=(subject.revision if own else "") or "main",
            text=config.text or heldout_text(subject.provenance.text),
            ctx_len=subject.provenance.ctx_len,
        )


def load_subject(path: Path, *, device: torch.device) -> Subject:
    """The coder of a training or of a fine-tuning.

    Raises:
        CheckpointError: there is no finished run at `path`, or it is damaged.
    """
    if not is_finetuned(path):
        run = Run.open(path)
        return Subject(
            path=path,
            coder=run.load_coder(device),
            arch=run.config.arch.kind,
            model=run.provenance.model,
            revision=run.provenance.revision,
            site=Site.parse(run.provenance.site),
            provenance=run.provenance,
            left_out=Exclusion.of(run.config),
        )
    tuned = FinetunedRun.open(path)
    return Subject(
        path=path,
        coder=tuned.load_coder(device),
        arch=tuned.run.config.arch.kind,
        model=tuned.report.model,
        revision=tuned.report.revision,
        site=Site.parse(tuned.report.site),
        provenance=tuned.run.provenance,
        left_out=Exclusion.of(tuned.run.config),
        notes=(f"fine-tuned on {tuned.report.text} through a scale and a bias per feature",),
    )
