"""Makes the page of one or more runs."""

from collections.abc import Sequence
from pathlib import Path

from actstore.files import make_folder, write_file
from pipeline.config import ReportConfig
from pipeline.errors import ConfigError
from pipeline.report.experiment import Chapter, experiment_view
from pipeline.report.gather import gather
from pipeline.report.parts import Tile
from pipeline.report.render import render
from pipeline.report.view import view


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
