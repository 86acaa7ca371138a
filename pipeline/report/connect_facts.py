"""What a connector is, for people: a few facts and numbers in front, every setting folded away."""

from pipeline.codec import to_json
from pipeline.connect.evaluation.report import ConnectorReport
from pipeline.connect.pair import End
from pipeline.report.connect_gather import ConnectorMaterial
from pipeline.report.facts import flat, named
from pipeline.report.parts import Tile
from pipeline.report.words import number

_STARTS = {
    "random": "random weights",
    "weights": "E2 W D1 of the layer between",
    "regression": "ridge regression",
}


def connector_headline(material: ConnectorMaterial) -> str:
    """From where to where: `resid_pre.1 → mlp_out.1 (l1 = 0.01)`."""
    run = material.run
    return f"{run.source.site} → {run.target.site} (l1 = {run.config.l1:g})"


def connector_facts(material: ConnectorMaterial) -> dict[str, str]:
    """The few that say what one is looking at."""
    run = material.run
    config, store = run.config, run.provenance
    tokens = store.n_rows if config.tokens is None else config.tokens
    epochs = tokens / store.n_rows if store.n_rows else 0
    bias = " + b" if config.bias else ""
    line = f"z1 W{bias}"
    return {
        "reads": _end(run.source),
        "predicts": _end(run.target),
        "language model": named(store.model, store.revision),
        "text": store.text or "unknown",
        "map": f"z2 = {f'relu({line})' if config.activation == 'relu' else line}",
        "penalty": f"{config.l1:g} Σ|W|, {'proximal steps' if config.proximal else 'by gradient'}",
        "began with": _STARTS[config.start],
        "trained on": f"{tokens:,} tokens, {epochs:.3g} x the store",
        "step": f"{config.batch_size:,} tokens, learning rate {config.lr:g}",
    }


def connector_settings(material: ConnectorMaterial) -> dict[str, str]:
    """Every setting and everything known of the store and of both ends."""
    run = material.run
    return {
        **flat(to_json(run.config)),
        **flat(to_json(run.source), prefix="source."),
        **flat(to_json(run.target), prefix="target."),
        **flat(to_json(run.provenance), prefix="store."),
    }


def connector_tiles(material: ConnectorMaterial) -> list[Tile]:
    """The few numbers in front of a page about one connector."""
    tiles: list[Tile] = []
    if material.evaluation:
        tiles += _scores(material.evaluation)
    if material.connections and material.connections.reading.effects:
        found = material.connections.reading.effects.connected
        note = f"correlation over {found.n:,} removed inputs"
        tiles.append(Tile(name="predicted and true effect", value=number(found.pearson), note=note))
    return tiles


def _scores(report: ConnectorReport) -> list[Tile]:
    scored = report.connector
    tiles = [
        Tile(
            name="FVU",
            value=number(scored.fvu),
            note=f"of the variance of {report.n_alive:,} outputs is unexplained",
        ),
        Tile(
            name="weights an output",
            value=number(scored.nonzero_mean),
            note=f"not zero, of {report.n_in:,}; {number(scored.above_mean)} above {report.tau:g}",
        ),
    ]
    if scored.loss_recovered is not None:
        tiles.append(
            Tile(
                name="loss recovered",
                value=number(scored.loss_recovered),
                note=f"{number(report.loss_recovered_sae)} with the SAE alone, 0 with zeros",
            )
        )
    return tiles


def _end(end: End) -> str:
    return f"{end.d_sae:,} features at {end.site}, of {end.run.name}"
