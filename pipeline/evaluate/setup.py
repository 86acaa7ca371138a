"""Which SAE is evaluated, from a run of any kind; in which model, on which text, at which rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from pipeline.config.architectures import Penalised
from pipeline.config.stages import Documents, EvalConfig, SpecialTokens
from pipeline.config.training import TrainConfig
from pipeline.device import pick_dtype, pick_precision
from pipeline.errors import CheckpointError, ConfigError
from pipeline.finetune.fold import FOLDED, is_folded
from pipeline.finetune.run import FinetunedRun, is_finetuned
from pipeline.lm.chat import load_chat_template
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import Tokenizer, load_tokenizer
from pipeline.runs.advice import wanted_l0
from pipeline.runs.default_text import DefaultTexts, EvalText
from pipeline.runs.folder import Provenance
from pipeline.runs.imported import Imported, imported, origin_of, site_named
from pipeline.runs.replaced import moving_told
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import Coder
from pipeline.text.heldout import load_contexts

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ExcludedRows:
    """Rows that training left out: see `pipeline.training.feed`."""

    positions: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    norms: float | None = None
    """Rows whose norm is above so many times the median."""

    @staticmethod
    def of(config: TrainConfig) -> "ExcludedRows":
        """What a training of this config left out."""
        return ExcludedRows(
            positions=tuple(sorted({*config.exclude_positions})),
            tokens=tuple(sorted({*config.exclude_tokens})),
            norms=config.exclude_norms,
        )

    @property
    def words(self) -> tuple[str, ...]:
        """As a reader of a report is told; empty for nothing."""
        named: list[str] = []
        for what, values in (("position", self.positions), ("token", self.tokens)):
            if values:
                some = [*map(str, values[:_SHOWN]), *(["..."] if len(values) > _SHOWN else [])]
                named.append(f"{what}{'s' * (len(values) > 1)} {', '.join(some)}")
        if self.norms is not None:
            named.append(f"rows whose norm is above {self.norms:g} times the median")
        return tuple(named)


@dataclass(frozen=True, kw_only=True)
class EvalSite:
    """A site, and the rows of it that are left as they are and not counted."""

    site: Site
    excluded: ExcludedRows

    def kept(
        self,
        tokens: Int[Tensor, "contexts ctx_len"],
        acts: Float[Tensor, "contexts ctx_len width"],
        *,
        limit: float | None,
    ) -> Bool[Tensor, "contexts ctx_len"]:
        """Which rows are edited and counted; `limit` is the largest norm, where rows go by that."""
        kept = torch.ones_like(tokens, dtype=torch.bool)
        kept[:, list(self.excluded.positions)] = False
        if self.excluded.tokens:
            banned = torch.tensor(self.excluded.tokens, device=tokens.device)
            kept &= torch.isin(tokens, banned, invert=True)
        if limit is not None:
            kept &= torch.linalg.vector_norm(acts.float(), dim=-1) <= limit
        return kept


@dataclass(frozen=True, kw_only=True)
class LoadedSAE:
    """A coder, its place, and where it is from."""

    path: Path
    sha256: str
    """Of the run's own weights."""
    coder: Coder
    arch: str
    model: str
    """The language model it belongs in: a transplanted coder's new one."""
    revision: str
    site: Site
    provenance: Provenance
    left_out: ExcludedRows
    """Rows of its site that it was not trained on."""
    l0_trained: float | None = None
    """Active latents of a row as training left them: what was asked for, or what there was."""
    notes: tuple[str, ...] = ()

    def eval_site(self, *, as_trained: bool) -> EvalSite:
        """Its site, and whether what training left out is left out here, too."""
        return EvalSite(site=self.site, excluded=self.left_out if as_trained else ExcludedRows())


@dataclass(frozen=True)
class EvalSetting:
    """What runs must have in common to share their forward passes."""

    model: str
    revision: str
    read: EvalText
    ctx_len: int
    special_tokens: SpecialTokens
    documents: Documents

    @property
    def text(self) -> str:
        """What reports call the text."""
        return self.read.words

    @classmethod
    def of(cls, subject: LoadedSAE, config: EvalConfig, texts: DefaultTexts) -> "EvalSetting":
        """The model and the text for this subject."""
        model = subject.model if config.model is None else config.model
        if not model:
            raise ConfigError(
                f"{subject.path} does not say which model its activations are from: name it "
                "with --model"
            )
        own = model == subject.model
        read = EvalText(
            source=config.text or "", column=config.text_column, chat=config.chat_template
        )
        return cls(
            model=model,
            revision=(subject.revision if own else "") or "main",
            read=read if config.text is not None else texts.of(subject.provenance, subject.path),
            ctx_len=subject.provenance.ctx_len,
            special_tokens=subject.provenance.special_tokens,
            documents=subject.provenance.documents,
        )


def load_sae(path: Path, *, device: torch.device) -> LoadedSAE:
    """The coder of a training or of a fine-tuning."""
    tuned = FinetunedRun.open(path) if is_finetuned(path) else None
    run = tuned.run if tuned else SAERun.open(path)
    where = tuned.report if tuned else run.provenance
    folded, foreign = is_folded(path), imported(path)
    its_own = tuned is None or where.model == tuned.report.trained_on_model
    return LoadedSAE(
        path=path,
        sha256=(tuned or run).sha256,
        coder=(tuned or run).load_sae(device),
        arch=run.config.arch.kind,
        model=run.provenance.model if its_own else where.model,
        revision=where.revision,
        site=site_named(where.site, path),
        provenance=run.provenance,
        left_out=ExcludedRows.of(run.config),
        l0_trained=None if tuned or folded or foreign else l0_of(run),
        notes=tuned.report.origin if tuned else _origin(folded=folded, foreign=foreign),
    )


def _origin(*, folded: bool, foreign: Imported | None) -> tuple[str, ...]:
    """What whoever uses an SAE must know that no training of ours made."""
    told = (f"folded from a fine-tuning, which {FOLDED} names",) * folded
    return told if foreign is None else (*told, origin_of(foreign), *foreign.notes)


def l0_of(run: SAERun) -> float | None:
    """The L0 that an SAE is fitted to, or that of its last rows; None where no curve tells."""
    arch = run.config.arch
    if not isinstance(arch, Penalised) or arch.l0 is not None:
        return wanted_l0(arch, d_sae=run.d_sae)
    try:
        return float(run.metrics["l0"])
    except CheckpointError:
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalContext:
    """A setting, loaded."""

    setting: EvalSetting
    lm: LanguageModel
    precision: str
    tokenizer: Tokenizer
    contexts: Int32[Tensor, "contexts ctx_len"]
    """On the CPU."""


def load_eval_context(
    setting: EvalSetting, subjects: Sequence[LoadedSAE], config: EvalConfig, *, device: torch.device
) -> EvalContext:
    """The language model, sure to fit its subjects, and the text."""
    dtype = pick_dtype(config.precision, device)
    with moving_told(subjects[0].path, named=config.model):
        lm = load_model(
            setting.model, revision=setting.revision, device=device, dtype=dtype,
            trust_remote_code=config.trust_remote_code,
        )  # fmt: skip
    for subject in subjects:
        site = subject.site
        lm.require_fits(site, d_in=subject.coder.d_in, ctx_len=setting.ctx_len, run=subject.path)
        for layer in config.layers:
            lm.module_of(site.at(layer))
    tokenizer = load_tokenizer(
        setting.model, revision=setting.revision, special_tokens=setting.special_tokens
    )
    chat = None
    if setting.read.chat:
        chat = load_chat_template(setting.model, revision=setting.revision)
    contexts = load_contexts(
        setting.read.source,
        tokenizer,
        ctx_len=setting.ctx_len,
        n=-(-config.tokens // setting.ctx_len),
        column=setting.read.column,
        chat=chat,
        documents=setting.documents,
        start=setting.read.start,
    )
    return EvalContext(
        setting=setting,
        lm=lm,
        precision=pick_precision(config.precision, device=device),
        tokenizer=tokenizer,
        contexts=contexts,
    )
