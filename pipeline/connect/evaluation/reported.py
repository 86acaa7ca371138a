"""From what was summed over a text to a report on each connector."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from pipeline.config import EvalConfig
from pipeline.connect.connector import Connector
from pipeline.connect.evaluation.ends import Ends
from pipeline.connect.evaluation.mlp_weights import layer_weights
from pipeline.connect.evaluation.outputs import OutputStats
from pipeline.connect.evaluation.recovered import losses_of, number, resampled, with_losses
from pipeline.connect.evaluation.report import CONNECTOR, TAU, ConnectorReport
from pipeline.connect.evaluation.scores import above_of, explained_of, scored
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.scene import Scene
from pipeline.evaluate.sums import Columns


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
    scene: Scene, ends: Ends, measured: Measured, config: EvalConfig
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


def _shared(scene: Scene, ends: Ends, measured: Measured) -> dict[str, Any]:
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


def _require_sound(scene: Scene, ends: Ends, measured: Measured) -> None:
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
