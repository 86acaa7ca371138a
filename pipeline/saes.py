"""One kind of run: sparse autoencoders, plain or fine-tuned."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import final

from actstore.reader import ActStore
from pipeline.config.defaults import settled
from pipeline.config.training import TrainConfig
from pipeline.device import pick_device
from pipeline.errors import ConfigError
from pipeline.runs.curves import TrainReport
from pipeline.runs.folder import Provenance
from pipeline.runs.kinds import AnyGroup, Lazy, RunKind, Source
from pipeline.runs.sae_run import SAERun
from pipeline.sae.architecture import architecture_of
from pipeline.training.assemble import Entry, assemble
from pipeline.training.feed import Feeder


@final
class SAEs(RunKind):
    """Sparse autoencoders."""

    noun = "run"
    curves = TrainReport
    evaluate = Lazy("pipeline.evaluate.evaluate:evaluate_saes")
    evaluation = Lazy("pipeline.evaluate.report:load_report")
    eval_table = "eval.csv"
    eval_tables = Lazy("pipeline.terminal.evaluations:eval_tables")
    eval_figures = Lazy("pipeline.plots.evaluation:save_figures")
    comparison = Lazy("pipeline.plots.evaluation:save_frontier")
    features = Lazy("pipeline.features.collect:collect_features")
    has_features = Lazy("pipeline.features.files:has_features")
    n_features = Lazy("pipeline.features.collect:n_features")
    shown = Lazy("pipeline.terminal.features:shown")
    exhibit = Lazy("pipeline.report.saes:SAEExhibit")

    def prepare(self, store: ActStore, config: TrainConfig) -> SAERun:
        """An SAE of one site."""
        site = only_site(store, config.site)
        d_in = store.width(site)
        d_sae = config.d_sae(d_in)
        config = replace(config, site=site)
        config = settled(config, d_in=d_in, d_sae=d_sae, n_rows=store.n_rows)
        architecture_of(config.arch, d_in=d_in, d_sae=d_sae)  # or it cannot be
        return SAERun(path=config.out, config=config, provenance=Provenance.of(store, site=site))

    def assemble(
        self, store: ActStore, runs: Sequence[SAERun], n_steps: Sequence[int], *, files: ExitStack
    ) -> tuple[Source, Sequence[AnyGroup]]:
        """Stacks of equal shape that are fed the rows of a site."""
        entries = [Entry(run=run, n_steps=n) for run, n in zip(runs, n_steps, strict=True)]
        feeds = [entry.feed for entry in entries]
        feeder = Feeder(store, feeds, device=pick_device(runs[0].config.device))
        return feeder, assemble(feeder, entries, files=files)


SAES = SAEs()


def only_site(store: ActStore, site: str | None) -> str:
    """The site asked for, or the only one there is."""
    names = store.sites
    if site is None and len(names) == 1:
        return names[0]
    if site is None or site not in names:
        wanted = f"no site {site!r}" if site else "several sites"
        raise ConfigError(f"{store.path} has {wanted}: choose --site from {', '.join(names)}")
    return site
