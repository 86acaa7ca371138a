"""Evaluate connectors inside the model; from sums to reports.

What connectors keep of the features they predict, and of the model's loss.

From what was summed over a text to a report on each connector.

Connectors and their baselines in the place of a part of the model.

The first site is read and left as it is. In the place of the second stands, one pass each, what
the second SAE decodes from the latents that a map predicts; what it decodes from its own latents,
the best that any map can do; and zero, the worst.

Evaluate connectors inside the language model: latents predicted, loss recovered.

A model and a text are loaded once. Connectors between the same two SAEs share everything: one short
pass up to the second site for the means of its latents, then one in which each batch runs through
the untouched model once and, for each connector and each baseline, again from the second site on.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from pipeline.config.stages import EvalConfig
from pipeline.connect.connector import Connector, End, Latents
from pipeline.connect.report import CONNECTOR, TAU, ConnectorReport
from pipeline.connect.run import ConnectorRun
from pipeline.connect.scores import (
    Errors,
    OutputStats,
    OutputSums,
    above_of,
    explained_of,
    layer_weights,
    losses_of,
    number,
    predict,
    resampled,
    scored,
    with_losses,
)
from pipeline.connect.setup import Ends, Rows, find_rows, fit_baselines, load_ends
from pipeline.device import pick_device
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.ablations import OnTokens
from pipeline.evaluate.evaluate import OnProgress, notes_on
from pipeline.evaluate.metrics import (
    CLEAN,
    Columns,
    ContextSums,
    Losses,
    exact,
    losses,
    sum_kept,
    zeros,
)
from pipeline.evaluate.report import EvalProgress, Phase
from pipeline.evaluate.setup import EvalContext, EvalSetting, load_eval_context
from pipeline.lm.cross_entropy import slices
from pipeline.lm.hooks import reading
from pipeline.lm.replay import Replay


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What the passes over a text gave, for all connectors between the same SAEs."""

    maps: tuple[Connector, ...]
    """The connectors, in the order of their runs, then the baselines."""
    baselines: tuple[str, ...]
    """Names of the latter."""
    errors: tuple[Tensor, ...]
    """Of each map and output `[n_out]`, the squared error summed over rows in float64."""
    outputs: OutputStats
    n_active: int
    """Inputs that were active, in all rows together."""
    sums: Columns
    """See `Splices.sums`."""
    excluded: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def n_runs(self) -> int:
        """Connectors among the maps."""
        return len(self.maps) - len(self.baselines)


def reports_of(
    scene: EvalContext, ends: Ends, measured: Measured, config: EvalConfig
) -> list[ConnectorReport]:
    """A report on each connector.

    Raises:
        ConfigError: no prediction of the text counts.
        DataError: a loss is not finite.
    """
    _require_sound(scene, ends, measured)
    draws = resampled(measured.sums, n=config.n_bootstrap, seed=config.seed)
    names = (*(CONNECTOR for _ in ends.runs), *measured.baselines)
    maps = [
        with_losses(
            scored(name, connector, errors, measured.outputs, tau=TAU), measured.sums, draws, i=i
        )
        for i, (name, connector, errors) in enumerate(
            zip(names, measured.maps, measured.errors, strict=True)
        )
    ]
    shared, baselines = _shared(scene, ends, measured), maps[measured.n_runs :]
    return [
        ConnectorReport(
            run=run.path,
            activation=run.config.activation,
            start=run.config.start,
            l1=run.config.l1,
            maps=(scored_map, *baselines),
            explained=_listed(explained_of(errors, measured.outputs).numpy()),
            above=tuple(above_of(connector, tau=TAU).tolist()),
            **shared,
        )
        for run, scored_map, errors, connector in zip(
            ends.runs, maps, measured.errors, measured.maps, strict=False
        )
    ]


def _shared(scene: EvalContext, ends: Ends, measured: Measured) -> dict[str, Any]:
    """The fields that all of these reports share."""
    setting, outputs, sums = scene.setting, measured.outputs, _totals(measured.sums)
    return {
        "source": ends.source.path,
        "target": ends.target.path,
        "sites": tuple(map(str, ends.sites)),
        "model": setting.model,
        "revision": setting.revision,
        "text": setting.text,
        "precision": scene.precision,
        "ctx_len": setting.ctx_len,
        "n_tokens": outputs.n_rows,
        "n_predictions": int(sums["n_predictions"].item()),
        "excluded": measured.excluded,
        "n_in": ends.pair.source.d_sae,
        "n_out": ends.pair.target.d_sae,
        "n_alive": int(outputs.alive.sum()),
        "l0_in": measured.n_active / outputs.n_rows,
        "l0_out": outputs.l0,
        "tau": TAU,
        "layer": layer_weights(scene.lm, *ends.sites, tau=TAU),
        **{name: number(value) for name, value in losses_of(sums).items()},
        "notes": measured.notes,
    }


def _require_sound(scene: EvalContext, ends: Ends, measured: Measured) -> None:
    """Refuse sums from which no number can be made."""
    path, setting, sums = ends.runs[0].path, scene.setting, _totals(measured.sums)
    if not sums["n_predictions"].any():
        left_out = ", ".join(measured.excluded) or "nothing"
        raise ConfigError(
            f"{path} leaves no prediction of {setting.text} to count: contexts have "
            f"{setting.ctx_len} tokens, and {left_out} is left out"
        )
    if broken := [name for name, total in sums.items() if not np.isfinite(total).all()]:
        of_maps = [str(run.path) for i, run in enumerate(ends.runs) if f"nll_{i}" in broken]
        raise DataError(
            f"losses of {', '.join(of_maps) or path} are not finite: weights of a connector or of "
            f"its SAEs, or activations at {ends.sites[0]} or {ends.sites[1]}, overflow or hold "
            "NaN; try --precision fp32"
        )


def _totals(sums: Columns) -> Mapping[str, np.ndarray]:
    return {name: values.sum(keepdims=True) for name, values in sums.items()}


def _listed(values: Float64[np.ndarray, " n"]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else value for value in values.tolist())


ZERO, SAE = "zero", "sae"
"""Passes beside those of the maps, which have their numbers for names."""


@final
class Splices:
    """Edited passes of batches, and what they cost.

    Args:
        ends: Both sites, and their SAEs.
        maps: From latents to latents.
        outputs: Statistics of the rows that count.
    """

    def __init__(self, ends: Ends, maps: tuple[Connector, ...], outputs: OutputStats) -> None:
        self.sites = tuple(dict.fromkeys(ends.sites))
        self.diverging = tuple(range(len(maps)))
        self.errors = [Errors(outputs, device=connector.W.device) for connector in maps]
        self.n_active = 0
        """Inputs that were active, in all rows together."""
        self._ends, self._maps, self._outputs = ends, maps, outputs
        self._sums = ContextSums()

    def edited(
        self, replay: Replay, kept: Bool[Tensor, "contexts ctx_len"]
    ) -> dict[Hashable, Tensor]:
        """Last hidden states of the edited passes of a batch, by name."""
        source, target = self._ends.sites
        x1, x2 = replay.acts(source).flatten(0, 1), replay.acts(target).flatten(0, 1)
        values: dict[Hashable, Tensor] = {name: x2.clone() for name in (ZERO, SAE, *self.diverging)}
        rows = kept.flatten().nonzero()[:, 0]
        values[ZERO][rows] = 0
        table = zeros(len(self._maps) + 1, kept.numel(), device=kept.device)
        for part in slices(rows):
            self._edit(x1, x2, rows[part], values, table)
        for name, per_row in zip(self._of_rows, table.view(-1, *kept.shape), strict=True):
            self._sums.add(name, per_row.sum(-1))
        shape = (*kept.shape, -1)
        return {name: replay.edited(target, value.view(shape)) for name, value in values.items()}

    def _edit(
        self,
        x1: Tensor,
        x2: Tensor,
        rows: Tensor,
        values: Mapping[Hashable, Tensor],
        table: Float64[Tensor, "sums all_rows"],
    ) -> None:
        """Write what stands in some rows, and what these rows add to the sums."""
        pair, at = self._ends.pair, rows.to(table.device)
        latents = Latents(
            z1=pair.source.encode(x1[rows].float()), z2=pair.target.encode(x2[rows].float())
        )
        self.n_active += int((latents.z1 > 0).sum())
        mean = self._outputs.mean.to(table.device)
        table[-1, at] = (exact(latents.z2) - mean).square().sum(-1)
        values[SAE][rows] = pair.target.decode(latents.z2).to(x2.dtype)
        for i, connector in enumerate(self._maps):
            z2_hat = predict(connector, latents)
            table[i, at] = self.errors[i].add(latents.z2, z2_hat)
            values[i][rows] = pair.target.decode(z2_hat).to(x2.dtype)

    def sum_up(self, found: Losses, kept: Bool[Tensor, "contexts ctx_len"]) -> None:
        """Sum what a batch's passes lost where it counts."""
        counted = kept[:, :-1]
        self._sums.add("n_predictions", exact(counted.float()).sum(-1))
        for name in (CLEAN, ZERO, SAE, *self.diverging):
            self._sums.add(f"nll_{name}", sum_kept(found.nll[name], counted))
        for name in self.diverging:
            self._sums.add(f"kl_{name}", sum_kept(found.kl[name], counted))

    @property
    def _of_rows(self) -> tuple[str, ...]:
        return (*(f"error_{name}" for name in self.diverging), "spread")

    @property
    def sums(self) -> Columns:
        """Of each context: `nll_PASS`, and of each map `kl_MAP` and `error_MAP`; `spread`."""
        return self._sums.all()


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
    scenes: dict[EvalSetting, EvalContext] = {}
    reports: dict[Path, ConnectorReport] = {}
    for runs in between.values():
        ends = load_ends(runs, device=device)
        setting = EvalSetting.of(replace(ends.target, path=runs[0].path), config)
        scene = _scene(scenes, setting, ends, config, device=device)
        for report in _evaluate_between(scene, ends, config, on_progress):
            reports[report.run] = report
    return tuple(reports[path] for path in config.runs)


def _scene(
    scenes: dict[EvalSetting, EvalContext],
    setting: EvalSetting,
    ends: Ends,
    config: EvalConfig,
    *,
    device: torch.device,
) -> EvalContext:
    """The model and the text, loaded when they are first asked for; sure to fit both SAEs."""
    subjects = (ends.source, ends.target)
    if setting not in scenes:
        scenes.clear()  # one language model at a time
        scenes[setting] = load_eval_context(
            setting, subjects, replace(config, layers=()), device=device
        )
    for subject in subjects:
        scenes[setting].lm.require_fits(
            subject.site, d_in=subject.coder.d_in, ctx_len=setting.ctx_len, run=subject.path
        )
    return scenes[setting]


def _evaluate_between(
    scene: EvalContext, ends: Ends, config: EvalConfig, on_progress: OnProgress | None
) -> list[ConnectorReport]:
    """Reports of connectors between the same SAEs."""
    batches = [batch.to(scene.lm.device) for batch in scene.contexts.split(config.batch_size)]

    def told(stage: Phase) -> OnTokens:
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
    scene: EvalContext, batches: Sequence[Tensor], ends: Ends, rows: Rows, on_tokens: OnTokens
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
    scene: EvalContext, batches: Sequence[Tensor], rows: Rows, splices: Splices, on_tokens: OnTokens
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
