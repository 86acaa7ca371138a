"""import_sae(source, out): an SAE of another library as a run, which every command takes.

run.json            as of a training, without a store or curves
sae.safetensors     the weights, as ours compute them
imported.json       where it is from, by checksum, and what its user must know
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from actstore.files import write_json
from pipeline.config.grid import Point
from pipeline.config.serialization import to_json
from pipeline.config.training import ConnectConfig, TrainConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.files import named
from pipeline.formats.foreign_sae import Asked, ForeignSAE
from pipeline.formats.table import TENSORS, read_foreign, seems_foreign
from pipeline.lm.sites import Site
from pipeline.lm.widths import held_to_model
from pipeline.runs.belongs import RUN, checksum_of
from pipeline.runs.folder import Provenance, saepipe_version
from pipeline.runs.imported import IMPORTED, Imported, imported
from pipeline.runs.replaced import fingerprint_at_hand
from pipeline.runs.sae_run import CODER, SAERun
from pipeline.runs.sweep import runs_at
from pipeline.runs.whole import is_taken, made_whole
from pipeline.sae.sae import SAE
from pipeline.whereabouts import place_of

CTX_LEN = 128
"""Of contexts to evaluate on, where nothing says how long those of its training were."""
RUNS = Path("runs")
"""Where a source goes that is given to a command in the place of a run."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was imported, and what it is now."""

    source: str
    out: Path
    library: str
    arch: str
    d_in: int
    d_sae: int
    site: str
    """Empty where it does not say, or where there is no such site."""
    model: str
    notes: tuple[str, ...]
    reused: bool = False
    """It was there already, from the same files."""


def import_sae(
    source: str,
    out: Path,
    *,
    site: str | None = None,
    model: str | None = None,
    arch: str | None = None,
    k: int | None = None,
    centred: bool = True,
) -> ImportReport:
    """Make a run of an SAE that another library wrote.

    What is there already, from the same files, is reused.

    Args:
        source: A folder, a file, or `org/repo[/folder][@revision]` of the hub.
        out: Folder of the run.
        site: Where it belongs; None is what its files say.
        model: In which model; None is what its files say.
        arch: Its architecture, of files of no library.
        k: Active latents of a row, of such files.
        centred: Whether `b_dec` is taken from the input, of such files.

    Raises:
        CheckpointError: there is no SAE, or one that we cannot have, or it is damaged.
        ConfigError: a setting is none, or the model has no such site, or one of another width, or
            `out` holds something else.
        ModelError: the name of the model is none.
    """
    if site:
        site = str(Site.parse(site))
    out = out.resolve()
    foreign, library, checksum = _read(source, Asked(arch=arch or "", k=k, centred=centred))
    foreign = replace(foreign, site=site or foreign.site, model=model or foreign.model)
    not_held = _held_to_model(foreign, source, told=model is not None)
    given = {"site": site, "model": model, "arch": arch, "k": k}
    given["centred"] = None if centred else False
    asked = [f"{name}={value}" for name, value in given.items() if value is not None]
    told = Imported(
        saepipe=saepipe_version(),
        source=source,
        library=library,
        checksum=checksum,
        hook=foreign.hook,
        asked=tuple(asked),
        notes=foreign.notes,
        sha256="",
    )
    report = ImportReport(
        source=source,
        out=out,
        library=library,
        arch=foreign.arch.kind,
        d_in=foreign.d_in,
        d_sae=foreign.d_sae,
        site=foreign.site,
        model=foreign.model,
        notes=foreign.notes + _open_questions(foreign) + not_held,
    )

    def make(partial: Path) -> ImportReport:
        run = _run(foreign, partial).finish(SAE.of(foreign))
        write_json(partial / IMPORTED, to_json(replace(told, sha256=run.sha256)))
        return report

    return made_whole(out, there=lambda: _finished(report, told), make=make)


def _read(source: str, asked: Asked) -> tuple[ForeignSAE, str, str]:
    """The SAE, whose it is, and a checksum of its files."""
    path = Path(source).expanduser()
    if (path / RUN).exists():
        raise ConfigError(f"{source} is a run already, which every command takes as it is")
    is_ours = path.is_file() or (path / CODER).exists()
    if seems_foreign(source) or not is_ours:
        foreign, found, files = read_foreign(source, asked)
        return foreign, found.words, files.digest()
    sae = SAE.load(path)
    foreign = ForeignSAE(
        arch=sae.arch, tensors=sae.state_dict(), site=sae.site, input_norm=sae.input_norm
    )
    return foreign, "saepipe", checksum_of(path if path.is_file() else path / CODER)


def _open_questions(foreign: ForeignSAE) -> tuple[str, ...]:
    found = list[str]()
    if not foreign.site:
        was = f", and {foreign.hook!r} is none of ours" if foreign.hook else ""
        found.append(f"it does not say at which site it belongs{was}: name it with `site`")
    if not foreign.model:
        found.append("it does not say in which model it belongs: name it with `model`")
    return tuple(found)


def _held_to_model(foreign: ForeignSAE, source: str, *, told: bool) -> tuple[str, ...]:
    """Hold its width to that of its site; a note where its model is not at hand."""
    if not (foreign.site and foreign.model):
        return ()
    why_not = held_to_model(
        foreign.model, {foreign.site: foreign.d_in}, revision="main", told=told,
        what=f"rows that the SAE {source} reads are",
    )  # fmt: skip
    return (f"it was not held to its model: {why_not}",) if why_not else ()


def _run(foreign: ForeignSAE, partial: Path) -> SAERun:
    """Its run: what only a training knows is as small as it can be."""
    config = TrainConfig(
        store=partial / IMPORTED,
        out=partial,
        site=foreign.site or None,
        arch=foreign.arch,
        expansion=foreign.d_sae / foreign.d_in,
        batch_size=1,
        lr=1e-4,
        normalize="none",
    )
    assert config.d_sae(foreign.d_in) == foreign.d_sae
    at_hand = foreign.model == "builtin" or place_of(foreign.model) is not None
    provenance = Provenance(
        path=partial / IMPORTED,  # beside which losses with the site zeroed are kept
        fingerprint="",
        model=foreign.model,
        revision="",
        model_fingerprint=fingerprint_at_hand(foreign.model, "") if at_hand else "",
        model_at=place_of(foreign.model),
        text=foreign.text,
        site=foreign.site,
        d_in=foreign.d_in,
        ctx_len=foreign.ctx_len or CTX_LEN,
        n_rows=0,
        dtype="float32",
        special_tokens="literal",
    )
    return SAERun(path=partial, config=config, provenance=provenance, input_norm=foreign.input_norm)


def _finished(report: ImportReport, told: Imported) -> ImportReport | None:
    """The report of the same import if its folder holds it; None if nothing is there."""
    out = report.out
    if not is_taken(out):
        return None
    there = imported(out)
    if there is None:
        raise ConfigError(f"{out} exists and is no imported SAE: choose another --out")
    if (there.checksum, there.asked) != (told.checksum, told.asked):
        what = f"other settings ({', '.join(there.asked) or 'none'} there)"
        if there.checksum != told.checksum:
            what = "other files"
        raise ConfigError(
            f"{out} was imported from {there.source}, with {what}: choose another --out, and name "
            "that from then on"
        )
    run = SAERun.open(out)
    if run.sha256 != there.sha256:
        raise CheckpointError(f"{out / IMPORTED} is not of the weights beside it: import it again")
    run.load_sae(torch.device("cpu"))  # damage shows here, not later
    return replace(report, reused=True)


def brought_in(
    paths: Sequence[Path], *, say: Callable[[ImportReport], None] | None = None
) -> list[Path]:
    """These runs; what is an SAE of another library is imported first, into `runs` of this folder.

    Args:
        paths: Of runs, sweeps and sources.
        say: Told of each import; None logs it.

    Raises:
        CheckpointError: a source cannot be had.
        ConfigError: a source does not say what it is, or its folder holds something else.
    """
    found = list[Path]()
    for path in paths:
        if not seems_foreign(str(path)):
            found.append(path)
            continue
        report = import_sae(str(path), RUNS / _name_of(path))
        (say or _log)(report)
        found.append(RUNS / report.out.name)
    return found


def runs_of(
    paths: Sequence[Path],
    *,
    say: Callable[[ImportReport], None] | None = None,
    note: Callable[[str], None] = log.warning,
) -> tuple[Path, ...]:
    """As `brought_in`, and a sweep's folder being its runs: see `runs_at`."""
    for path in paths:
        named(path)
    return runs_at(brought_in(runs_at(paths, note=note), say=say), note=note)


def ends_brought_in(
    points: Sequence[Point], *, say: Callable[[ImportReport], None] | None = None
) -> tuple[Point, ...]:
    """Trainings, those of connectors between runs: an end that is a source is imported first.

    Raises:
        CheckpointError: a source cannot be had.
        ConfigError: a source does not say what it is, or its folder holds something else.
    """

    def ready(point: Point) -> Point:
        config = point.config
        if not isinstance(config, ConnectConfig):
            return point
        first, second = brought_in(config.ends, say=say)
        return replace(point, config=replace(config, ends=(first, second)))

    return tuple(map(ready, points))


def _log(report: ImportReport) -> None:
    if not report.reused:
        log.warning("imported %s into %s: %s", report.source, report.out, stays(report))


def stays(report: ImportReport) -> str:
    """What becomes of a run that a command made of a source, even if it then refuses the rest."""
    out = RUNS / report.out.name
    return f"{out} stays for whatever takes {report.source} next; remove it with rm -r {out}"


_COMMON = (
    "ae.pt",
    "sae_weights.safetensors",
    "sae.safetensors",
    "params.npz",
    "params.safetensors",
)
_PARTS = 3


def _name_of(source: Path) -> str:
    """A name for the run of a source, by the last folders that lead to it."""
    parts = [part for part in source.parts if part not in ("/", "..", ".", *_COMMON)]
    if parts and Path(parts[-1]).suffix in TENSORS:
        parts[-1] = Path(parts[-1]).stem
    kept = parts[-_PARTS:] if not source.is_absolute() else parts[-2:]
    return re.sub(r"[^\w.=+-]+", "-", "-".join(kept)).strip("-.") or "imported"
