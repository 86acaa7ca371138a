"""One kind of run: sparse connectors between SAEs."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import final

from actstore.reader import ActStore
from pipeline.config.training import ConnectConfig
from pipeline.connect.run import ConnectorRun, blank_connector_run
from pipeline.connect.train import PairFeeder, assemble_connectors
from pipeline.device import pick_device
from pipeline.runs.curves import ConnectStep
from pipeline.runs.kinds import AnyGroup, Lazy, RunKind, Source


@final
class Connectors(RunKind):
    """Connectors."""

    noun = "connector"
    curves = ConnectStep
    evaluate = Lazy("pipeline.connect.evaluate:evaluate_connectors")
    evaluation = Lazy("pipeline.connect.report:load_connector_report")
    eval_table = "connectors.csv"
    eval_tables = Lazy("pipeline.connect.tables:connector_tables")
    eval_figures = Lazy("pipeline.connect.figures:save_figures")
    comparison = Lazy("pipeline.connect.figures:save_comparison")
    features = Lazy("pipeline.connect.reading.read:read_features")
    has_features = Lazy("pipeline.connect.reading.read:is_read")
    n_features = Lazy("pipeline.connect.run:n_outputs")
    shown = Lazy("pipeline.connect.tables:shown")
    exhibit = Lazy("pipeline.connect.page.part:ConnectorExhibit")

    def prepare(self, store: ActStore, config: ConnectConfig) -> ConnectorRun:
        """A connector between two SAEs of the store's sites."""
        return blank_connector_run(store, config)

    def assemble(
        self,
        store: ActStore,
        runs: Sequence[ConnectorRun],
        n_steps: Sequence[int],
        *,
        files: ExitStack,
    ) -> tuple[Source, Sequence[AnyGroup]]:
        """One group a connector; they are fed the latents of their SAEs."""
        feeder = PairFeeder(store, runs, device=pick_device(runs[0].config.device))
        return feeder, assemble_connectors(feeder, runs, n_steps, files=files)


CONNECTORS = Connectors()
