"""Makes the page of one or more runs: which parts, in which order."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from actstore.files import make_folder, write_file
from pipeline.config.stages import ReportConfig
from pipeline.errors import ConfigError
from pipeline.report.experiment import Chapter, experiment_view
from pipeline.report.render import Exhibit, PageView, Tile, render
from pipeline.report.saes import SAEExhibit
from pipeline.runs.folder import Provenance
from pipeline.runs.kinds import says_kind
from pipeline.runs.names import names_of
from pipeline.tables import many

EXHIBITS = {"connector": "pipeline.connect.page.part:ConnectorExhibit"}
"""What a page shows of runs that are no SAEs, by their kind."""


def gather(paths: Sequence[Path], *, n_features: int) -> tuple[Exhibit, ...]:
    """What is known of each run, in the order given, each once.

    Raises:
        ConfigError: there is no run.
        CheckpointError: a folder holds no finished run, or a file of it is damaged.
    """
    if not paths:
        raise ConfigError("a report needs a run: saepipe report RUN [RUN...]")
    distinct = list({path.resolve(): path for path in paths}.values())
    names = names_of([path.resolve() for path in distinct])
    return tuple(
        _exhibit_class(path).gather(path, name, n_features=n_features)
        for path, name in zip(distinct, names, strict=True)
    )


def _exhibit_class(path: Path) -> type[Exhibit]:
    module, _, name = EXHIBITS.get(says_kind(path), "").partition(":")
    return getattr(import_module(module), name) if module else SAEExhibit


def view(exhibits: Sequence[Exhibit]) -> PageView:
    """The page about these runs: sparse autoencoders after what is made of them.

    Raises:
        CheckpointError: the curves of one are damaged.
    """
    kinds: dict[type[Exhibit], list[Exhibit]] = {}
    for exhibit in sorted(exhibits, key=lambda one: isinstance(one, SAEExhibit)):
        kinds.setdefault(type(exhibit), []).append(exhibit)
    first = next(iter(kinds.values()))
    alone = first[0] if len(first) == 1 else None  # the one that the page is about
    if alone and (len(kinds) == 1 or not isinstance(alone, SAEExhibit)):
        title, tiles = alone.headline, alone.tiles
    else:
        title = " and ".join(many(len(its), kind.noun) for kind, its in kinds.items())
        tiles = []
    return PageView(
        kind=first[0].title,
        title=title,
        lead=_lead([exhibit.provenance for exhibit in exhibits]),
        tiles=tiles,
        parts=[kind.part(its) for kind, its in kinds.items()],
    )


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
    """
    require_file(out)
    page = render(experiment_view(title, kind=kind, lead=lead, tiles=tiles, chapters=chapters))
    make_folder(out.parent)
    write_file(out, [page])
    return out
