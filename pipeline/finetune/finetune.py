"""Fine-tune a language model through the features of one SAE, or of several at once.

Each SAE is spliced into the model at its site, every weight of all is frozen, and one scale `c`
and one bias `d` per latent are learned: `z = f(c * pre + d)`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actstore.files import partial_of
from pipeline.config.stages import FinetuneConfig
from pipeline.disk import writing
from pipeline.finetune.learn import Course, Learner, learn, trained_of
from pipeline.finetune.meaning import find_meaning
from pipeline.finetune.measure import Measured, fidelity
from pipeline.finetune.parts import Made, Part, finished, parts_of, save
from pipeline.finetune.plan import OnPlan, make_plan
from pipeline.finetune.run import FinetuneReport
from pipeline.finetune.setting import Setting, open_setting
from pipeline.finetune.unfinished import kept_in, unfinished
from pipeline.lm.hooks import in_float
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site
from pipeline.progress import OnProgress, Progress
from pipeline.runs.folder import training_in
from pipeline.runs.replaced import has_weights_of, replaced_note
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE

ENDS_SHARE = 20
"""The first and the last training loss of a report are means over one in so many steps."""


@torch.inference_mode(mode=False)
@torch.enable_grad()
def finetune(
    config: FinetuneConfig,
    *,
    on_plan: OnPlan | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[FinetuneReport, ...]:
    """Learn `c` and `d`, and write them with their analysis into `config.out`.

    A run that is there already, complete and of the same config, model and text, is reused; one
    that was stopped is gone on with, to the same bits on a CPU. Ctrl-C leaves a checkpoint behind.

    Returns:
        A report of each SAE, in the order that the model computes their sites.

    Raises:
        ConfigError: `out` holds something else, or is worked on by another process, or began with
            another model or text, or the site, width or context does not fit, or the memory does
            not do.
        CheckpointError: the SAE's run cannot be used, or the disk fails.
        ModelError: the language model cannot be used.
        TextError: the text cannot be read or is too short to learn from and to measure on.
        DataError: the loss is not finite.
    """
    parts = parts_of(config)
    paths = [part.run.path for part in parts]
    config = replace(config, run=paths[0], beside=tuple(paths[1:]), out=config.out.resolve())
    done = finished(config, parts)
    if done is not None:
        return done
    with training_in(partial_of(config.out)):
        done = finished(config, parts)  # by now, another process may have ended
        if done is not None:
            return done
        runs = [part.run for part in parts]
        with unfinished(config, runs, parts[0].sources) as folder:
            return _finetune(config, parts, folder, on_plan, on_progress)


def _finetune(
    config: FinetuneConfig,
    parts: Sequence[Part],
    folder: Path,
    on_plan: OnPlan | None,
    on_progress: OnProgress | None,
) -> tuple[FinetuneReport, ...]:
    setting = open_setting(config, [part.run for part in parts])
    lm, task = setting.lm, setting.task
    tuned = {part.site: TunedSAE(part.run.load_sae(lm.device)) for part in parts}
    fidelities = {
        site: fidelity(lm, site, coder.sae, task.heldout, batch_size=config.batch_size)
        for site, coder in tuned.items()
    }
    words = "; ".join(
        f"explained variance {_told(ev)}, L0 {l0:.1f} at {site}"
        for site, (ev, l0) in fidelities.items()
    )
    _tell(on_progress, "splice", 1, 1, words)
    through = {
        site: in_float(coder.with_error if config.keep_error else coder)
        for site, coder in tuned.items()
    }
    base, began = setting.measure({}), time.perf_counter()
    spliced = setting.measure(through)
    if on_plan is not None:
        n_latents = [coder.sae.d_sae for coder in tuned.values()]
        seconds = time.perf_counter() - began
        on_plan(make_plan(setting, config, n_latents, seconds=seconds))
    trained = {site: trained_of(coder, config) for site, coder in tuned.items()}
    learner = _learner(config, trained)
    with setting.learning(through):
        course = learn(
            lm, learner, task, config, keeping=kept_in(folder),
            on_step=lambda course, total: _tell(
                on_progress, "finetune", len(course.losses), total, _loss_words(course)
            ),
        )  # fmt: skip
    for site, coder in tuned.items():
        coder.learned.copy_(learner.reached(trained[site].values()))
    measured = {"base": base, "spliced": spliced, "finetuned": setting.measure(through)}
    made = list[Made]()
    for part in parts:
        site, coder = part.site, tuned[part.site]
        report = _report(setting, part, coder, course, measured, fidelities[site])
        with setting.learning({other: through[other] for other in tuned if other != site}):
            meaning = find_meaning(
                lm, site, coder, task, setting.tokenizer, config,
                on_progress=on_progress if len(parts) == 1 else _named(on_progress, site),
            )  # fmt: skip
        made.append(Made(part=part, tuned=coder, report=report, meaning=meaning))
    with writing(config.out):
        save(folder, config.out, made, losses=course.losses)
    return tuple(one.report for one in made)


def _report(
    setting: Setting,
    part: Part,
    tuned: TunedSAE,
    course: Course,
    measured: Mapping[str, Measured],
    fidelity: tuple[float | None, float],
) -> FinetuneReport:
    config, lm, task, source = part.config, setting.lm, setting.task, part.run.provenance
    n_ends = max(1, len(course.losses) // ENDS_SHARE)
    changed = (tuned.c != 1) | (tuned.d != 0)
    return FinetuneReport(
        run=config.run,
        out=config.out,
        model=lm.name,
        revision=lm.files.revision,
        trained_on_model=source.model,
        site=str(part.site),
        trained_on_site=source.site,
        together_with=tuple(str(site) for site in setting.sites if site != part.site),
        text=config.text,
        n_train_tokens=int(task.train.present.sum()),
        n_heldout_tokens=int(task.heldout.present.sum()),
        n_steps=len(course.losses),
        loss_first=float(np.mean(course.losses[:n_ends])),
        loss_last=float(np.mean(course.losses[-n_ends:])),
        notes=(*_moved(part.run, lm, part.site), *setting.notes),
        explained_variance=fidelity[0],
        l0=fidelity[1],
        n_learned=int(tuned.learned.sum()),
        n_changed=int(changed.sum()),
        ce_by_epoch=tuple(course.by_epoch),
        best_epoch=course.best_epoch if course.best else None,
        n_questions=None if task.asked is None else len(task.asked),
        general_text=setting.general_text,
        n_general_tokens=0 if setting.general is None else setting.general.tokens.numel(),
        **{
            f"{what}_{when}": value
            for when, one in measured.items()
            for what, value in asdict(one).items()
        },
    )


def _learner(config: FinetuneConfig, trained: Mapping[Site, Mapping[str, Tensor]]) -> Learner:
    alone = len(trained) == 1
    numbers = {
        name if alone else f"{site}.{name}": x
        for site, own in trained.items()
        for name, x in own.items()
    }
    return Learner(
        numbers,
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


def _named(on_progress: OnProgress | None, site: Site) -> OnProgress:
    """Tells of a stage that each site has."""

    def tell(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, stage=f"{progress.stage} of {site}"))

    return tell


def _tell(on_progress: OnProgress | None, stage: str, done: int, total: int, words: str) -> None:
    if on_progress is not None:
        on_progress(Progress(stage=stage, done=done, total=total, unit="steps", words=words))
