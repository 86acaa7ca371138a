"""The SAEs that a fine-tuning learns through: one, or several that learn together.

Several have a site each, of one model, and what is learned of each becomes a run of its own:
`OUT/SITE`, in a folder that is read as a sweep is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actstore.files import sync_folder
from pipeline.config.stages import FinetuneConfig
from pipeline.errors import ConfigError
from pipeline.finetune.meaning import Meaning
from pipeline.finetune.run import FinetuneReport, finished_report, is_finetuned, write_run
from pipeline.finetune.sources import Sources
from pipeline.finetune.unfinished import leave_whole
from pipeline.lm.sites import Site
from pipeline.runs.imported import site_named
from pipeline.runs.sae_run import SAERun
from pipeline.runs.sweep import SWEEP, SweepDocument, members_of
from pipeline.sae.sae import TunedSAE


@dataclass(frozen=True, kw_only=True)
class Part:
    """One SAE, and the run that is made of it."""

    config: FinetuneConfig
    """Its own: `out` is its folder, and `beside` are the others."""
    run: SAERun
    sources: Sources
    site: Site


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A part with what was learned of it."""

    part: Part
    tuned: TunedSAE
    report: FinetuneReport
    meaning: Meaning


def parts_of(config: FinetuneConfig) -> tuple[Part, ...]:
    """The parts of a fine-tuning, paths absolute, in the order that the model computes their sites.

    Raises:
        ConfigError: two of them are of one site.
        CheckpointError: a run cannot be used.
    """
    runs = dict[Site, SAERun]()
    for path in (config.run, *config.beside):
        run = SAERun.open(path.resolve())
        site = site_named(config.site or run.provenance.site, run.path)
        if site in runs:
            raise ConfigError(
                f"{run.path} is of {site}, as another of these runs is: one SAE goes to a site"
            )
        runs[site] = run
    out, parts = config.out.resolve(), list[Part]()
    for site, run in sorted(runs.items()):
        others = tuple(runs[other].path for other in sorted(runs) if other != site)
        place = out / str(site) if others else out
        own = replace(config, run=run.path, beside=others, out=place)
        parts.append(Part(config=own, run=run, sources=Sources.of(own, run), site=site))
    return tuple(parts)


def finished(config: FinetuneConfig, parts: tuple[Part, ...]) -> tuple[FinetuneReport, ...] | None:
    """The reports of the same fine-tuning if its folder holds it; None if nothing is there.

    Raises:
        ConfigError: it holds something else.
        CheckpointError: what it holds is damaged.
    """
    out = config.out.resolve()
    if len(parts) > 1 and out.exists() and (not out.is_dir() or any(out.iterdir())):
        made = (out / SWEEP).exists() and all(is_finetuned(part.config.out) for part in parts)
        if not made or {*members_of(out)} != {part.config.out.name for part in parts}:
            raise ConfigError(
                f"{out} exists and is not a fine-tuning of "
                f"{', '.join(str(part.site) for part in parts)}: choose another --out"
            )
    reports = [finished_report(part.config, part.run, part.sources) for part in parts]
    there = tuple(report for report in reports if report is not None)
    return there if len(there) == len(parts) else None


def save(folder: Path, out: Path, made: Sequence[Made], *, losses: Sequence[float]) -> None:
    """Write the runs of all parts into `folder`, then rename it to `out`."""
    for one in made:
        config = one.part.config
        own = folder / config.out.relative_to(out)
        own.mkdir(exist_ok=True)
        write_run(
            own, config, one.part.run, one.part.sources, one.tuned, one.report,
            losses=losses, meaning=one.meaning,
        )  # fmt: skip
    if len(made) > 1:
        names = tuple(one.part.config.out.name for one in made)
        SweepDocument(members=names, varies=("site",)).write(folder)
    folder.rename(out)
    sync_folder(out.parent)
    leave_whole(out)
