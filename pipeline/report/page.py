"""Makes the page of one or more runs: which parts, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from actstore.errors import StoreError
from actstore.files import make_folder, write_file
from pipeline.config.stages import EvalConfig, FeaturesConfig, ReportConfig
from pipeline.disk import why_unwritable
from pipeline.errors import ConfigError, TextError
from pipeline.progress import OnProgress
from pipeline.report.experiment import Chapter, experiment_view
from pipeline.report.render import Exhibit, PageView, Tile, render
from pipeline.report.saes import SAEExhibit
from pipeline.runs.folder import Provenance
from pipeline.runs.kinds import kind_of
from pipeline.runs.names import names_of, public
from pipeline.tables import many


def gather(paths: Sequence[Path], *, n_features: int) -> tuple[Exhibit, ...]:
    """What is known of each run, in the order given, each once."""
    if not paths:
        raise ConfigError("a report needs a run: saepipe report RUN [RUN...]")
    distinct = list({path.resolve(): path for path in paths}.values())
    names = names_of([path.resolve() for path in distinct])
    return tuple(
        kind_of(path).exhibit.get().gather(path, name, n_features=n_features)
        for path, name in zip(distinct, names, strict=True)
    )


def view(exhibits: Sequence[Exhibit]) -> PageView:
    """The page about these runs: sparse autoencoders after what is made of them."""
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
        "model": {public(source.model) or "unknown" for source in sources},
        "site": {source.site for source in sources},
        "text": {public(source.text) or "unknown" for source in sources},
    }
    alone = {"text": "trained on"}  # evaluations are on another
    told = [
        f"{alone.get(name, name)} {values.pop()}" if len(values) == 1 else many(len(values), name)
        for name, values in parts.items()
    ]
    return " · ".join(told)


def require_file(out: Path) -> None:
    """Raise ConfigError where no page can be written: a folder is there, or may only be read."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder, a report is one file: type --out {out}/report.html")
    if why := why_unwritable(out.parent):
        raise ConfigError(f"{out} cannot be written ({why}): choose another --out")


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """A page, and what was made for it."""

    path: Path
    made: tuple[str, ...]
    """What was missing: `the evaluation of RUN`, `features of RUN`."""
    notes: tuple[str, ...]
    """Why the rest could not be made."""

    def _repr_html_(self) -> str:
        """What a notebook shows: where to open it."""
        where = escape(self.path.resolve().as_uri(), quote=True)
        return f'<a href="{where}" target="_blank">{escape(repr(self))}</a>'

    def __repr__(self) -> str:
        made = f", made {', '.join(self.made)}" if self.made else ""
        return f"ReportSummary({self.path}{made}{''.join(f'; {note}' for note in self.notes)})"


def write_report(config: ReportConfig, *, on_progress: OnProgress | None = None) -> ReportSummary:
    """Write a page, having made what is missing for it: evaluations, and what features fire on.

    Features that cannot be found, as of a run whose store is gone, are noted, and evaluations on a
    text that cannot be reached; the page tells how to make them.

    Raises:
        ConfigError: there is no run, `config.out` is a folder, or a run cannot be evaluated.
        CheckpointError: a folder holds no finished run, or a file of it is damaged.
        ModelError: a language model cannot be used.
        TextError: the text that was asked for cannot be used.
        StoreError: a store that is needed is damaged.
        DataError: a loss or an activation is not finite.
    """
    require_file(config.out)  # before hours of work
    made, notes = list[str](), list[str]()
    kinds = {run: kind_of(run) for run in config.runs}
    if missing := tuple(run for run, kind in kinds.items() if kind.evaluation(run) is None):
        from pipeline.evaluate.evaluate import evaluate  # it brings the language model

        wanted = EvalConfig(
            runs=missing, text=config.text, text_column=config.text_column, tokens=config.tokens,
            device=config.device,
        )  # fmt: skip
        try:
            evaluate(wanted, on_progress=on_progress)
            made += [f"the evaluation of {run}" for run in missing]
        except TextError as error:  # as of one of the hub, where there is no network
            if config.text is not None:
                raise
            notes.append(f"not evaluated: {error}")
    for run, kind in kinds.items():
        try:
            if not kind.has_features(run):
                of = FeaturesConfig(run=run, store=config.store, device=config.device)
                kind.features(of, on_progress=on_progress)
                made.append(f"features of {run}")
        except (ConfigError, StoreError) as error:
            notes.append(str(error))
    return ReportSummary(path=write_page(config), made=tuple(made), notes=tuple(notes))


def write_page(config: ReportConfig) -> Path:
    """Write one self-contained HTML file about `config.runs`; gives its path.

    It tells what lies in the runs' folders; of what does not, which command makes it.
    """
    require_file(config.out)
    return _write(view(gather(config.runs, n_features=config.n_features)), config.out)


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
    shown = experiment_view(title, kind=kind, lead=lead, tiles=tiles, chapters=chapters)
    return _write(shown, out)


def _write(shown: PageView, out: Path) -> Path:
    page = render(shown)
    make_folder(out.parent)
    write_file(out, [page])
    return out
