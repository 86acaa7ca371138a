"""Fine-tunings that nobody had to compute, to make pages and tables of."""

from pathlib import Path

import torch

from pipeline.config.stages import FinetuneConfig
from pipeline.finetune.effects import Effect, Effects, Kept
from pipeline.finetune.finetune import finetune as finetune_all
from pipeline.finetune.firing import Example, FiredOn
from pipeline.finetune.meaning import Meaning, Moved, Promoted
from pipeline.finetune.plan import OnPlan
from pipeline.finetune.run import FinetunedRun, FinetuneReport, write_run
from pipeline.finetune.sources import Sources
from pipeline.progress import OnProgress
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE


def make_moved(latent: int, *, texts: tuple[str, ...], measured: bool = True) -> Moved:
    """A feature with everything, in these texts."""
    return Moved(
        latent=latent, c=1 + latent / 10, d=-latent / 100,
        examples=tuple(
            Example(left=text, token=text, right=text, before=0.5, after=9.125) for text in texts
        ),
        tokens=tuple(FiredOn(token=text, n=3, before=0.25, after=7.5) for text in texts),
        n_before=30, n_after=60, estimate=0.002, effect=0.0345 if measured else None,
        promoted=tuple(Promoted(token=text, logit=1.5) for text in texts),
        suppressed=tuple(Promoted(token=text, logit=-2.5) for text in texts),
    )  # fmt: skip


def make_meaning(*, texts: tuple[str, ...] = ("a", " b")) -> Meaning:
    """Features 1 to 5, of which the last two were not measured."""
    moved = [make_moved(i, texts=texts, measured=i < 4) for i in range(1, 6)]
    curve = tuple(
        Kept(n=n, ce=ce) for n, ce in ((0, 2.5), (1, 2.25), (2, 1.8), (4, 1.76), (8, 1.75))
    )
    measured = tuple(
        Effect(latent=i, c=1 + i / 10, d=0.0, estimate=0.1, effect=0.1 / i) for i in range(1, 4)
    )
    return Meaning(
        by_effect=tuple(moved[:3]), scaled_up=tuple(moved[2:]), inhibited=(moved[0],),
        raised=(moved[1],), lowered=(), n_tokens=600,
        effects=Effects(n_tokens=1024, n_changed=8, measured=measured, curve=curve),
    )  # fmt: skip


def finetune(
    config: FinetuneConfig,
    *,
    on_plan: OnPlan | None = None,
    on_progress: OnProgress | None = None,
) -> FinetuneReport:
    """What a fine-tuning through one SAE came to."""
    (report,) = finetune_all(config, on_plan=on_plan, on_progress=on_progress)
    return report


def make_tuned(run: Path, out: Path, *, meaning: Meaning | None = None) -> FinetunedRun:
    """The folder of a fine-tuning of the SAE in a folder; nothing of latent 0 was learned."""
    frozen = SAERun.open(run)
    tuned = TunedSAE(frozen.load_sae(torch.device("cpu")))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tuned.c[1:] += 0.1 * torch.randn(tuned.d_sae - 1, generator=generator)
        tuned.d[1:] += 0.1 * torch.randn(tuned.d_sae - 1, generator=generator)
    tuned.learned[1:] = True
    report = FinetuneReport(
        run=run, out=out, model="gpt2", revision="main", trained_on_model="builtin",
        site="mlp_out.3", trained_on_site="mlp_out.1", text="sums", n_train_tokens=5,
        n_heldout_tokens=5, n_steps=2000, ce_base=1.5, ce_spliced=2.5, ce_finetuned=1.75,
        loss_first=2.0, loss_last=1.0, notes=(),
    )  # fmt: skip
    out.mkdir()
    write_run(
        out, FinetuneConfig(run=run, out=out, text="sums"), frozen, Sources(), tuned, report,
        losses=[2.0, 1.0], meaning=meaning or make_meaning(),
    )  # fmt: skip
    return FinetunedRun.open(out)
