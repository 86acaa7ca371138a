"""Write_page(config): which parts, in which order.

What stands in the page of some runs, in the order it stands there.

Makes the page of one or more runs.
"""

from collections.abc import Sequence
from pathlib import Path

from actstore.files import make_folder, write_file
from pipeline.config.stages import ReportConfig
from pipeline.errors import ConfigError
from pipeline.features.feature import BEFORE
from pipeline.report.connectors import (
    connector_browsed,
    connector_headline,
    connector_tiles,
    connectors_view,
)
from pipeline.report.experiment import Chapter, experiment_view
from pipeline.report.gather import ConnectorExhibit, SAEExhibit, gather
from pipeline.report.render import PageView, Part, Tile, render
from pipeline.report.saes import coder_data, coder_tiles, coders_view, headline
from pipeline.report.tables import many
from pipeline.runs.folder import Provenance


def view(exhibits: Sequence[SAEExhibit | ConnectorExhibit]) -> PageView:
    """The page about these runs: connectors before sparse autoencoders.

    Raises:
        CheckpointError: the curves of one are damaged.
    """
    coders = [m for m in exhibits if isinstance(m, SAEExhibit)]
    connectors = [m for m in exhibits if isinstance(m, ConnectorExhibit)]
    parts: list[Part] = []
    if connectors:
        parts.append(connectors_view(connectors))
    if coders:
        parts.append(coders_view(coders))
    return PageView(
        kind="Connector report" if connectors else "Sparse autoencoder report",
        title=_title(connectors, coders),
        lead=_lead([m.run.provenance for m in exhibits]),
        tiles=_tiles(connectors, coders),
        parts=parts,
        data={
            "before": BEFORE,
            "connectors": [connector_browsed(exhibit) for exhibit in connectors],
            "runs": [coder_data(exhibit) for exhibit in coders],
        },
    )


def _title(connectors: Sequence[ConnectorExhibit], coders: Sequence[SAEExhibit]) -> str:
    """The one connector, or the one autoencoder; else how many there are."""
    if len(connectors) == 1:
        return f"Connector {connector_headline(connectors[0])}"
    if len(coders) == 1 and not connectors:
        return headline(coders[0])
    counts = [(len(connectors), "connector"), (len(coders), "sparse autoencoder")]
    return " and ".join(many(n, what) for n, what in counts if n)


def _tiles(connectors: Sequence[ConnectorExhibit], coders: Sequence[SAEExhibit]) -> list[Tile]:
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


def require_file(out: Path) -> None:
    """Raise ConfigError where a page cannot be written because a folder is there."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder, a report is one file: type --out {out}/report.html")


def write_page(config: ReportConfig) -> Path:
    """Write one self-contained HTML file about `config.runs`; gives its path.

    It tells what lies in the runs' folders; of what does not, which command makes it.

    Raises:
        ConfigError: there is no run, or `config.out` is a folder.
        CheckpointError: a folder holds no finished run, or a file of it is damaged.
        OSError: `config.out` cannot be written.
    """
    require_file(config.out)
    page = render(view(gather(config.runs, n_features=config.n_features)))
    make_folder(config.out.parent)
    write_file(config.out, [page])
    return config.out


def write_experiment(
    title: str,
    *,
    out: Path,
    lead: str = "",
    kind: str = "Experiment",
    tiles: Sequence[Tile] = (),
    chapters: Sequence[Chapter],
) -> Path:
    """Write one self-contained HTML file about an experiment; gives its path.

    Args:
        title: The page's heading.
        out: The file.
        lead: One line below the heading.
        kind: A few words above it.
        tiles: The few numbers in front.
        chapters: What follows, each under its own heading.

    Raises:
        ConfigError: `out` is a folder.
        OSError: `out` cannot be written.
    """
    require_file(out)
    page = render(experiment_view(title, kind=kind, lead=lead, tiles=tiles, chapters=chapters))
    make_folder(out.parent)
    write_file(out, [page])
    return out
