"""Evaluate connectors inside the language model: latents predicted, loss recovered.

A model and a text are loaded once. Connectors between the same two SAEs share everything: one short
pass up to the second site for the means of its latents, then one in which each batch runs through
the untouched model once and, for each connector and each baseline, again from the second site on.

The first site is read and left as it is. In the place of the second stands, one pass each, what
the second SAE decodes from the latents that a map predicts; what it decodes from its own latents,
the best that any map can do; and zero, the worst.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from actstore.files import make_folder
from pipeline.config.stages import EvalConfig
from pipeline.connect.connector import Connector, Ends, PairLatents
from pipeline.connect.report import (
    CONNECTOR,
    TABLE,
    TAU,
    ConnectorReport,
    MapScores,
    save_connector_report,
    write_connector_table,
)
from pipeline.connect.run import ConnectorRun
from pipeline.connect.scores import (
    OutputStats,
    above_of,
    costs_of,
    explained_of,
    layer_weights,
    losses_of,
    number,
    predict,
    scores_of,
    squared_errors,
)
from pipeline.connect.setup import (
    KeptRows,
    LoadedConnectors,
    find_rows,
    fit_baselines,
    load_connectors,
)
from pipeline.device import pick_device
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.ablations import OnTokens
from pipeline.evaluate.evaluate import notes_on
from pipeline.evaluate.intervals import resampled
from pipeline.evaluate.metrics import Totals
from pipeline.evaluate.setup import EvalContext, EvalSetting, load_eval_context
from pipeline.evaluate.sums import (
    CLEAN,
    ContextSums,
    exact,
    losses,
    sum_kept,
    zeros,
)
from pipeline.lm.cross_entropy import slices
from pipeline.lm.hooks import reading
from pipeline.lm.model import LanguageModel
from pipeline.lm.passes import passes_of
from pipeline.progress import OnProgress, counter
from pipeline.runs.default_text import DefaultTexts
from pipeline.runs.names import beside


def evaluate_connectors(
    config: EvalConfig, *, on_progress: OnProgress | None = None
) -> tuple[ConnectorReport, ...]:
    """One report per run, in the order of `config.runs`; all of them are connectors.

    Reports are written into the folders of their runs; of several, a table into `config.out`, or
    into the folder that the runs have in common.

    Raises:
        ConfigError: a model without the sites, widths or context, or a text of which nothing
            counts.
        CheckpointError: a run, or an SAE that it lies between, cannot be used.
        ModelError: a language model cannot be used.
        TextError: the text cannot be used.
        StoreError: the store, for the baselines, is damaged.
        DataError: a loss is not finite.
    """
    device = pick_device(config.device)
    between = dict[Ends, list[ConnectorRun]]()
    for path in config.runs:
        run = ConnectorRun.open(path)
        if not (config.model or run.provenance.model):
            raise ConfigError(
                f"{path} does not say which language model its activations are from: if they are "
                "from one, name it with --model"
            )
        between.setdefault(run.ends, []).append(run)
    texts, scene, reports = DefaultTexts(config.text_column), None, dict[Path, ConnectorReport]()
    for runs in between.values():
        loaded = load_connectors(runs, device=device)
        subjects = (loaded.source, loaded.target)
        setting = EvalSetting.of(replace(loaded.target, path=runs[0].path), config, texts)
        if scene is None or scene.setting != setting:
            scene = None  # one language model at a time
            scene = load_eval_context(setting, subjects, replace(config, layers=()), device=device)
        for subject in subjects:
            scene.lm.require_fits(
                subject.site, d_in=subject.coder.d_in, ctx_len=setting.ctx_len, run=subject.path
            )
        for report in _evaluate_between(scene, loaded, config, on_progress):
            reports[report.run] = report
    found = tuple(reports[path] for path in config.runs)
    for report in found:
        save_connector_report(report)
    if len(found) > 1:
        folder = config.out or beside(config.runs)
        make_folder(folder)
        write_connector_table(found, folder / TABLE)
    return found


def _evaluate_between(
    scene: EvalContext, loaded: LoadedConnectors, config: EvalConfig, on_progress: OnProgress | None
) -> list[ConnectorReport]:
    """Reports of connectors between the same SAEs."""
    batches = [batch.to(scene.lm.device) for batch in scene.contexts.split(config.batch_size)]

    def told(stage: str) -> OnTokens:
        return counter(on_progress, stage=stage, total=scene.contexts.numel(), unit="tokens")

    baselines, notes = fit_baselines(loaded, device=scene.lm.device)
    trained = [run.load_connector(scene.lm.device) for run in loaded.runs]
    maps = (*trained, *baselines.values())
    kept = find_rows(scene.lm, batches, loaded, told("mean"), as_trained=config.as_trained)
    outputs = find_outputs(scene.lm, batches, loaded, kept, told("mean"))
    splices = Splices(scene.lm, loaded, maps, outputs)
    n_tokens, on_tokens = 0, told("losses")
    for tokens in batches:
        splices.measure(tokens, kept)
        n_tokens += tokens.numel()
        on_tokens(n_tokens)
    return reports_of(scene, loaded, splices, config, baselines=tuple(baselines), notes=notes)


# --- passes over the text --------------------------------------------------------------------


ZERO, SAE = "zero", "sae"
"""Passes beside those of the maps, which have their numbers for names."""


@final
class Splices:
    """Edited passes of batches, and what they cost.

    The maps are the connectors, in the order of their runs, then the baselines.
    """

    def __init__(
        self,
        lm: LanguageModel,
        loaded: LoadedConnectors,
        maps: tuple[Connector, ...],
        outputs: OutputStats,
    ) -> None:
        self.maps, self.outputs = maps, outputs
        self.errors = zeros(len(maps), loaded.pair.target.d_sae, device=lm.device)
        """Squared, of each map and output, summed over rows."""
        self.n_active = 0
        """Inputs that were active, in all rows together."""
        self.sums = ContextSums()
        """`nll_PASS`, and of each map `kl_MAP` and `error_MAP`; `spread`, `n_predictions`."""
        self._lm, self._loaded = lm, loaded
        self._replay = passes_of(lm, dict.fromkeys(loaded.sites))
        self._numbers = range(len(maps))
        self._alive = exact(outputs.alive.to(lm.device).float())
        self._mean = outputs.mean.to(self._alive.device)

    @torch.no_grad()
    def measure(self, tokens: Int[Tensor, "contexts ctx_len"], keeps: KeptRows) -> None:
        """Sum what all edited passes of a batch cost where it counts."""
        clean = self._replay.clean(tokens)
        kept = keeps(tokens, {site: self._replay.acts(site) for site in self._loaded.sites})
        found = losses(self._lm, clean, self._edited(kept), tokens, diverging=self._numbers)
        counted = kept[:, :-1]
        self.sums.add("n_predictions", exact(counted.float()).sum(-1))
        for name in (CLEAN, ZERO, SAE, *self._numbers):
            self.sums.add(f"nll_{name}", sum_kept(found.nll[name], counted))
        for name in self._numbers:
            self.sums.add(f"kl_{name}", sum_kept(found.kl[name], counted))

    def _edited(self, kept: Bool[Tensor, "contexts ctx_len"]) -> dict[Hashable, Tensor]:
        """Last hidden states of the edited passes of a batch, by name."""
        x1, x2 = (self._replay.acts(site).flatten(0, 1) for site in self._loaded.sites)
        values: dict[Hashable, Tensor] = {name: x2.clone() for name in (ZERO, SAE, *self._numbers)}
        rows = kept.flatten().nonzero()[:, 0]
        values[ZERO][rows] = 0
        table = zeros(len(self.maps) + 1, kept.numel(), device=kept.device)
        for part in slices(rows):
            self._edit(x1, x2, rows[part], values, table)
        names = (*(f"error_{name}" for name in self._numbers), "spread")
        for name, per_row in zip(names, table.view(-1, *kept.shape), strict=True):
            self.sums.add(name, per_row.sum(-1))
        target, shape = self._loaded.sites[1], (*kept.shape, -1)
        return {
            name: self._replay.edited(target, value.view(shape)) for name, value in values.items()
        }

    def _edit(
        self,
        x1: Tensor,
        x2: Tensor,
        rows: Tensor,
        values: Mapping[Hashable, Tensor],
        table: Float64[Tensor, "sums all_rows"],
    ) -> None:
        """Write what stands in some rows, and what these rows add to the sums."""
        pair, at = self._loaded.pair, rows.to(table.device)
        latents = PairLatents(
            z1=pair.source.encode(x1[rows].float()), z2=pair.target.encode(x2[rows].float())
        )
        self.n_active += int((latents.z1 > 0).sum())
        table[-1, at] = (exact(latents.z2) - self._mean).square().sum(-1)
        values[SAE][rows] = pair.target.decode(latents.z2).to(x2.dtype)
        for i, connector in enumerate(self.maps):
            z2_hat = predict(connector, latents)
            squared = squared_errors(latents.z2, z2_hat)
            self.errors[i] += squared.sum(0)
            table[i, at] = squared @ self._alive
            values[i][rows] = pair.target.decode(z2_hat).to(x2.dtype)


@torch.no_grad()
def find_outputs(
    lm: LanguageModel,
    batches: Sequence[Tensor],
    loaded: LoadedConnectors,
    kept: KeptRows,
    on_tokens: OnTokens,
) -> OutputStats:
    """Statistics of the second SAE's latents; nothing above the sites runs."""
    target = loaded.pair.target
    outputs, n_tokens = OutputStats(target.d_sae, device=lm.device), 0
    with reading(lm, loaded.sites) as read:
        for tokens in batches:
            acts = read(tokens)
            x2 = acts[loaded.sites[1]][kept(tokens, acts)]
            for part in slices(x2):
                outputs.add(target.encode(x2[part].float()))
            n_tokens += tokens.numel()
            on_tokens(n_tokens)
    return outputs


# --- from sums to reports --------------------------------------------------------------------


def reports_of(
    scene: EvalContext,
    loaded: LoadedConnectors,
    splices: Splices,
    config: EvalConfig,
    *,
    baselines: Sequence[str],
    notes: Sequence[str],
) -> list[ConnectorReport]:
    """A report on each connector; the names of the baselines, and what there is to say of them."""
    setting, outputs, sums = scene.setting, splices.outputs, splices.sums.all()
    excluded = loaded.left_out if config.as_trained else ()
    totals = {name: values.sum(keepdims=True) for name, values in sums.items()}
    _require_sound(totals, loaded, setting, excluded)
    draws = resampled(sums, n=config.n_bootstrap, seed=config.seed)
    names = (*(CONNECTOR for _ in loaded.runs), *baselines)
    errors = splices.errors.cpu()
    maps = [
        MapScores(
            name=name,
            **scores_of(splices.maps[i], errors[i], outputs, tau=TAU),
            **costs_of(totals, draws, i),
        )
        for i, name in enumerate(names)
    ]
    shared: dict[str, Any] = {
        "source": loaded.source.path,
        "target": loaded.target.path,
        "sites": tuple(map(str, loaded.sites)),
        "model": setting.model,
        "revision": setting.revision,
        "text": setting.text,
        "precision": scene.precision,
        "ctx_len": setting.ctx_len,
        "n_tokens": outputs.n_rows,
        "n_predictions": int(totals["n_predictions"].item()),
        "excluded": excluded,
        "n_in": loaded.pair.source.d_sae,
        "n_out": loaded.pair.target.d_sae,
        "n_alive": int(outputs.alive.sum()),
        "l0_in": splices.n_active / outputs.n_rows,
        "l0_out": outputs.l0,
        "tau": TAU,
        "layer": layer_weights(scene.lm, *loaded.sites, tau=TAU),
        **{name: number(value) for name, value in losses_of(totals).items()},
        "notes": (*notes_on(scene, loaded.target.provenance, loaded.left_out, config), *notes),
    }
    return [
        ConnectorReport(
            run=run.path,
            sha256=run.sha256,
            activation=run.config.activation,
            start=run.config.start,
            l1=run.config.l1,
            maps=(maps[i], *maps[len(loaded.runs) :]),
            explained=tuple(
                None if np.isnan(value) else value
                for value in explained_of(errors[i], outputs).tolist()
            ),
            above=tuple(above_of(splices.maps[i], tau=TAU).tolist()),
            **shared,
        )
        for i, run in enumerate(loaded.runs)
    ]


def _require_sound(
    totals: Totals, loaded: LoadedConnectors, setting: EvalSetting, excluded: Sequence[str]
) -> None:
    """Refuse sums from which no number can be made."""
    path = loaded.runs[0].path
    if not totals["n_predictions"].any():
        raise ConfigError(
            f"{path} leaves no prediction of {setting.text} to count: contexts have "
            f"{setting.ctx_len} tokens, and {', '.join(excluded) or 'nothing'} is left out"
        )
    if broken := [name for name, total in totals.items() if not np.isfinite(total).all()]:
        of_maps = [str(run.path) for i, run in enumerate(loaded.runs) if f"nll_{i}" in broken]
        raise DataError(
            f"losses of {', '.join(of_maps) or path} are not finite: weights of a connector or of "
            f"its SAEs, or activations at {loaded.sites[0]} or {loaded.sites[1]}, overflow or hold "
            "NaN; try --precision fp32"
        )
