"""Evaluate connectors inside the language model: latents predicted, loss recovered.

A model and a text are loaded once. Connectors between the same two SAEs share everything: one short
pass up to the second site for the means of its latents, then one in which each batch runs through
the untouched model once and, for each connector and each baseline, again from the second site on.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import EvalConfig
from pipeline.connect.evaluation.ends import Ends, Rows, find_rows, load_ends
from pipeline.connect.evaluation.fitted import fit_baselines
from pipeline.connect.evaluation.outputs import OutputStats, OutputSums
from pipeline.connect.evaluation.report import ConnectorReport
from pipeline.connect.evaluation.reported import Measured, reports_of
from pipeline.connect.evaluation.splice import Splices
from pipeline.connect.pair import End
from pipeline.connect.run import ConnectorRun
from pipeline.cross_entropy import slices
from pipeline.device import pick_device
from pipeline.errors import ConfigError
from pipeline.evaluate.evaluation import OnProgress
from pipeline.evaluate.fidelity import losses
from pipeline.evaluate.grounds import OnTokens
from pipeline.evaluate.notes import notes_on
from pipeline.evaluate.report import EvalProgress, Stage
from pipeline.evaluate.scene import Scene, load_scene
from pipeline.evaluate.subject import Setting
from pipeline.replay import Replay
from pipeline.sites import reading
from pipeline.splicing import check_fits


def evaluate_connectors(
    config: EvalConfig, *, on_progress: OnProgress | None = None
) -> tuple[ConnectorReport, ...]:
    """One report per run, in the order of `config.runs`; all of them are connectors.

    Raises:
        ConfigError: no run, a run named twice, a model without the sites, widths or context, or a
            text of which nothing counts.
        CheckpointError: a run, or an SAE that it lies between, cannot be used.
        ModelError: a language model cannot be used.
        TextError: the text cannot be used.
        StoreError: the store, for the baselines, is damaged.
        DataError: a loss is not finite.
    """
    if not config.runs:
        raise ConfigError("no run to evaluate: type saepipe eval RUN, RUN being a training's --out")
    if len(set(config.runs)) < len(config.runs):
        raise ConfigError(f"a run is named twice in {', '.join(map(str, config.runs))}")
    device = pick_device(config.device)
    between: dict[tuple[End, End], list[ConnectorRun]] = {}
    for path in config.runs:
        run = ConnectorRun.open(path)
        if not (config.model or run.provenance.model):
            raise ConfigError(
                f"{path} does not say which language model its activations are from: if they are "
                "from one, name it with --model"
            )
        between.setdefault((run.source, run.target), []).append(run)
    scenes: dict[Setting, Scene] = {}
    reports: dict[Path, ConnectorReport] = {}
    for runs in between.values():
        ends = load_ends(runs, device=device)
        setting = Setting.of(replace(ends.target, path=runs[0].path), config)
        scene = _scene(scenes, setting, ends, config, device=device)
        for report in _evaluate_between(scene, ends, config, on_progress):
            reports[report.run] = report
    return tuple(reports[path] for path in config.runs)


def _scene(
    scenes: dict[Setting, Scene],
    setting: Setting,
    ends: Ends,
    config: EvalConfig,
    *,
    device: torch.device,
) -> Scene:
    """The model and the text, loaded when they are first asked for; sure to fit both SAEs."""
    subjects = (ends.source, ends.target)
    if setting not in scenes:
        scenes.clear()  # one language model at a time
        scenes[setting] = load_scene(setting, subjects, replace(config, layers=()), device=device)
    for subject in subjects:
        check_fits(
            scenes[setting].lm,
            subject.site,
            d_in=subject.coder.d_in,
            ctx_len=setting.ctx_len,
            run=subject.path,
        )
    return scenes[setting]


def _evaluate_between(
    scene: Scene, ends: Ends, config: EvalConfig, on_progress: OnProgress | None
) -> list[ConnectorReport]:
    """Reports of connectors between the same SAEs."""
    batches = [batch.to(scene.lm.device) for batch in scene.contexts.split(config.batch_size)]

    def told(stage: Stage) -> OnTokens:
        def tell(n_done: int) -> None:
            if on_progress is not None:
                n_tokens = scene.contexts.numel()
                on_progress(EvalProgress(stage=stage, n_done=n_done, n_tokens=n_tokens))

        return tell

    baselines = fit_baselines(ends, device=scene.lm.device)
    trained = [run.load_connector(scene.lm.device) for run in ends.runs]
    maps = (*trained, *baselines.maps.values())
    rows = find_rows(scene.lm, batches, ends, told("mean"), as_trained=config.as_trained)
    outputs = find_outputs(scene, batches, ends, rows, told("mean"))
    splices = Splices(ends, maps, outputs)
    _measure(scene, batches, rows, splices, told("losses"))
    measured = Measured(
        maps=maps,
        baselines=tuple(baselines.maps),
        errors=tuple(errors.per_output for errors in splices.errors),
        outputs=outputs,
        n_active=splices.n_active,
        sums=splices.sums,
        excluded=ends.left_out if config.as_trained else (),
        notes=(*notes_on(scene, ends.target.provenance, ends.left_out, config), *baselines.notes),
    )
    return reports_of(scene, ends, measured, config)


@torch.no_grad()
def find_outputs(
    scene: Scene, batches: Sequence[Tensor], ends: Ends, rows: Rows, on_tokens: OnTokens
) -> OutputStats:
    """Statistics of the second SAE's latents; nothing above the sites runs."""
    target = ends.pair.target
    sums, n_tokens = OutputSums(target.d_sae, device=scene.lm.device), 0
    with reading(scene.lm, ends.sites) as read:
        for tokens in batches:
            acts = read(tokens)
            x2 = acts[ends.sites[1]][rows.kept(tokens, acts)]
            for part in slices(x2):
                sums.add(target.encode(x2[part].float()))
            n_tokens += tokens.numel()
            on_tokens(n_tokens)
    return sums.result()


@torch.no_grad()
def _measure(
    scene: Scene, batches: Sequence[Tensor], rows: Rows, splices: Splices, on_tokens: OnTokens
) -> None:
    """Sum what all edited passes cost, over all batches."""
    replay, n_tokens = Replay(scene.lm, splices.sites), 0
    for tokens in batches:
        clean = replay.clean(tokens)
        kept = rows.kept(tokens, {site: replay.acts(site) for site in splices.sites})
        edited = splices.edited(replay, kept)
        found = losses(scene.lm, clean, edited, tokens, diverging=splices.diverging)
        splices.sum_up(found, kept)
        n_tokens += tokens.numel()
        on_tokens(n_tokens)
