"""What stands in the page of some runs, in the order it stands there."""

from collections.abc import Sequence

from pipeline.features.feature import BEFORE
from pipeline.provenance import Provenance
from pipeline.report.coders import coder_data, coder_tiles, coders_view
from pipeline.report.connect_facts import connector_headline, connector_tiles
from pipeline.report.connect_gather import ConnectorMaterial
from pipeline.report.connectors import connector_browsed, connectors_view
from pipeline.report.facts import headline
from pipeline.report.gather import Material
from pipeline.report.parts import PageView, Part, Tile
from pipeline.report.words import many


def view(materials: Sequence[Material | ConnectorMaterial]) -> PageView:
    """The page about these runs: connectors before sparse autoencoders.

    Raises:
        CheckpointError: the curves of one are damaged.
    """
    coders = [m for m in materials if isinstance(m, Material)]
    connectors = [m for m in materials if isinstance(m, ConnectorMaterial)]
    parts: list[Part] = []
    if connectors:
        parts.append(connectors_view(connectors))
    if coders:
        parts.append(coders_view(coders))
    return PageView(
        kind="Connector report" if connectors else "Sparse autoencoder report",
        title=_title(connectors, coders),
        lead=_lead([m.run.provenance for m in materials]),
        tiles=_tiles(connectors, coders),
        parts=parts,
        data={
            "before": BEFORE,
            "connectors": [connector_browsed(material) for material in connectors],
            "runs": [coder_data(material) for material in coders],
        },
    )


def _title(connectors: Sequence[ConnectorMaterial], coders: Sequence[Material]) -> str:
    """The one connector, or the one autoencoder; else how many there are."""
    if len(connectors) == 1:
        return f"Connector {connector_headline(connectors[0])}"
    if len(coders) == 1 and not connectors:
        return headline(coders[0])
    counts = [(len(connectors), "connector"), (len(coders), "sparse autoencoder")]
    return " and ".join(many(n, what) for n, what in counts if n)


def _tiles(connectors: Sequence[ConnectorMaterial], coders: Sequence[Material]) -> list[Tile]:
    """Those of the run that is in the title."""
    if len(connectors) == 1:
        return connector_tiles(connectors[0])
    if len(coders) == 1 and not connectors and coders[0].evaluation:
        return coder_tiles(coders[0].evaluation)
    return []


def _lead(sources: Sequence[Provenance]) -> str:
    """What the runs have in common, and in how many ways they differ."""
    parts = {
        "model": {source.model or "unknown" for source in sources},
        "site": {source.site for source in sources},
        "text": {source.text or "unknown" for source in sources},
    }
    told = [
        f"{name} {values.pop()}" if len(values) == 1 else many(len(values), name)
        for name, values in parts.items()
    ]
    return " · ".join(told)
