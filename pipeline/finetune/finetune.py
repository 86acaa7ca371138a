"""Fine-tune a language model through the features of one SAE.

The SAE is spliced into the model at its site, every weight of both is frozen, and one scale `c`
and one bias `d` per latent are learned: `z = f(c * pre + d)`.
"""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from actstore.files import partial_of
from pipeline.config.stages import FinetuneConfig
from pipeline.disk import writing
from pipeline.finetune.learn import Course, Learner, learn, trained_of
from pipeline.finetune.meaning import find_meaning
from pipeline.finetune.measure import fidelity
from pipeline.finetune.run import FinetuneReport, finished_report, save_run
from pipeline.finetune.setting import open_setting
from pipeline.finetune.sources import Sources
from pipeline.finetune.unfinished import kept_in, unfinished
from pipeline.lm.families import Site
from pipeline.lm.hooks import in_float
from pipeline.lm.model import LanguageModel
from pipeline.progress import OnProgress, Progress
from pipeline.runs.folder import training_in
from pipeline.runs.replaced import has_weights_of, replaced_note
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE

ENDS_SHARE = 20
"""The first and the last training loss of a report are means over one in so many steps."""


@torch.inference_mode(mode=False)
@torch.enable_grad()
def finetune(config: FinetuneConfig, *, on_progress: OnProgress | None = None) -> FinetuneReport:
    """Learn `c` and `d`, and write them with their analysis into `config.out`.

    A run that is there already, complete and of the same config, model and text, is reused; one
    that was stopped is gone on with, to the same bits on a CPU. Ctrl-C leaves a checkpoint behind.

    Raises:
        ConfigError: `out` holds something else, or is worked on by another process, or began with
            another model or text, or the site, width or context does not fit.
        CheckpointError: the SAE's run cannot be used, or the disk fails.
        ModelError: the language model cannot be used.
        TextError: the text cannot be read or is too short to learn from and to measure on.
        DataError: the loss is not finite.
    """
    config = replace(config, run=config.run.resolve(), out=config.out.resolve())
    run = SAERun.open(config.run)
    sources = Sources.of(config, run)
    done = finished_report(config, run, sources)
    if done is not None:
        return done
    with training_in(partial_of(config.out)):
        done = finished_report(config, run, sources)  # by now, another process may have ended
        if done is not None:
            return done
        with unfinished(config, run, sources) as folder:
            return _finetune(config, run, sources, folder, on_progress)


def _finetune(
    config: FinetuneConfig,
    run: SAERun,
    sources: Sources,
    folder: Path,
    on_progress: OnProgress | None,
) -> FinetuneReport:
    setting = open_setting(config, run)
    lm, site, task, source = setting.lm, setting.site, setting.task, run.provenance
    tuned = TunedSAE(run.load_sae(lm.device))
    ev, l0 = fidelity(lm, site, tuned.sae, task.heldout, batch_size=config.batch_size)
    _tell(on_progress, "splice", 1, 1, f"explained variance {_told(ev)}, L0 {l0:.1f} at {site}")
    through = {site: in_float(tuned.with_error if config.keep_error else tuned)}
    base, spliced = setting.measure({}), setting.measure(through)
    learner = _learner(config, tuned)
    with setting.learning(through):
        course = learn(
            lm, learner, task, config, keeping=kept_in(folder),
            on_step=lambda course, total: _tell(
                on_progress, "finetune", len(course.losses), total, _loss_words(course)
            ),
        )  # fmt: skip
    tuned.learned.copy_(learner.reached())
    finetuned = setting.measure(through)
    n_ends = max(1, len(course.losses) // ENDS_SHARE)
    changed = (tuned.c != 1) | (tuned.d != 0)
    report = FinetuneReport(
        run=config.run,
        out=config.out,
        model=lm.name,
        revision=lm.files.revision,
        trained_on_model=source.model,
        site=str(site),
        trained_on_site=source.site,
        text=config.text,
        n_train_tokens=int(task.train.present.sum()),
        n_heldout_tokens=int(task.heldout.present.sum()),
        n_steps=len(course.losses),
        loss_first=float(np.mean(course.losses[:n_ends])),
        loss_last=float(np.mean(course.losses[-n_ends:])),
        notes=(*_moved(run, lm, site), *setting.notes),
        explained_variance=ev,
        l0=l0,
        n_learned=int(tuned.learned.sum()),
        n_changed=int(changed.sum()),
        ce_by_epoch=tuple(course.by_epoch),
        best_epoch=course.best_epoch if course.best else None,
        n_questions=None if task.asked is None else len(task.asked),
        general_text=setting.general_text,
        n_general_tokens=0 if setting.general is None else setting.general.tokens.numel(),
        **{
            f"{what}_{when}": value
            for when, one in (("base", base), ("spliced", spliced), ("finetuned", finetuned))
            for what, value in asdict(one).items()
        },
    )
    meaning = find_meaning(
        lm, site, tuned, task, setting.tokenizer, config, on_progress=on_progress
    )
    with writing(config.out):
        save_run(folder, config, run, sources, tuned, report, losses=course.losses, meaning=meaning)
    return report


def _learner(config: FinetuneConfig, tuned: TunedSAE) -> Learner:
    return Learner(
        trained_of(tuned, config),
        lr=config.lr,
        weight_decay=config.weight_decay,
        towards_start=config.decay_to == "start",
        change_l1=config.change_l1,
    )


def _moved(run: SAERun, lm: LanguageModel, site: Site) -> list[str]:
    """What is said where the SAE is not in the model, or at the site, that it is of."""
    source = run.provenance
    same_model = lm.name == source.model or has_weights_of(lm.files, source)
    notes = replaced_note(source, lm.files)
    if same_model and str(site) == source.site:
        return [*notes]
    moved = (
        f"the SAE was trained on {source.site} of {source.model} and is fine-tuned at {site} "
        f"of {lm.name}"
    )
    return [moved, *notes]


def _loss_words(course: Course) -> str:
    held = f", held out {course.by_epoch[-1]:.4f}" if course.by_epoch else ""
    return f"loss {course.losses[-1]:.4f}{held}"


def _told(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _tell(on_progress: OnProgress | None, stage: str, done: int, total: int, words: str) -> None:
    if on_progress is not None:
        on_progress(Progress(stage=stage, done=done, total=total, unit="steps", words=words))
