"""saepipe for notebooks and scripts: the whole pipeline under one name.

    import saepipe as sp

    sp.harvest(sites=["mlp_out.2"], tokens="500k", out="acts.actstore")
    run = sp.train("acts.actstore", arch="topk", k=32, out="runs/topk")
    report = sp.evaluate(run, tokens="100k")

Every public name is in the table below. None is imported before it is used, so that this import
takes no time and brings no torch. Installed, this file is `saepipe.py` beside `pipeline`, a copy
even where the rest is editable: it holds names alone, and what `saepipe` on the command line runs.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actstore.errors import StoreError as StoreError
    from actstore.reader import ActStore as ActStore
    from pipeline.connect.run import ConnectorRun as ConnectorRun
    from pipeline.errors import PipelineError as PipelineError
    from pipeline.evaluate.report import EvalReport as EvalReport
    from pipeline.exchange.delphi import export_delphi as export_delphi
    from pipeline.exchange.exporting import ExportReport as ExportReport
    from pipeline.exchange.neuronpedia import export_neuronpedia as export_neuronpedia
    from pipeline.exchange.saebench import saebench as saebench
    from pipeline.exchange.verbs import (
        export as export,
        export_store as export_store,
        import_sae as import_sae,
        import_store as import_store,
    )
    from pipeline.features.files import FeatureSet as FeatureSet
    from pipeline.finetune.run import (
        FinetunedRun as FinetunedRun,
        FinetuneReport as FinetuneReport,
    )
    from pipeline.harvest.harvest import HarvestSummary as HarvestSummary
    from pipeline.hub.publish import PushReport as PushReport
    from pipeline.lm.listing import ListedSite as ListedSite, sites as sites
    from pipeline.lm.model import LanguageModel as LanguageModel
    from pipeline.progress import Progress as Progress
    from pipeline.report.page import ReportSummary as ReportSummary
    from pipeline.runs.sae_run import SAERun as SAERun
    from pipeline.sae.sae import SAE as SAE
    from pipeline.share.pull import PullReport as PullReport
    from pipeline.share.verbs import pull as pull, push as push
    from pipeline.steer.report import SteerReport as SteerReport
    from pipeline.steer.steering import Steering as Steering
    from pipeline.verbs import (
        connect as connect,
        evaluate as evaluate,
        features as features,
        finetune as finetune,
        fold as fold,
        harvest as harvest,
        plot as plot,
        report as report,
        runs as runs,
        steer as steer,
        sweep as sweep,
        train as train,
    )

NAMES = {
    "harvest": "pipeline.verbs",
    "train": "pipeline.verbs",
    "sweep": "pipeline.verbs",
    "connect": "pipeline.verbs",
    "evaluate": "pipeline.verbs",
    "features": "pipeline.verbs",
    "finetune": "pipeline.verbs",
    "fold": "pipeline.verbs",
    "steer": "pipeline.verbs",
    "plot": "pipeline.verbs",
    "report": "pipeline.verbs",
    "runs": "pipeline.verbs",
    "import_store": "pipeline.exchange.verbs",
    "export_store": "pipeline.exchange.verbs",
    "export_neuronpedia": "pipeline.exchange.neuronpedia",
    "export_delphi": "pipeline.exchange.delphi",
    "saebench": "pipeline.exchange.saebench",
    "push": "pipeline.share.verbs",
    "pull": "pipeline.share.verbs",
    "import_sae": "pipeline.exchange.verbs",
    "export": "pipeline.exchange.verbs",
    "ActStore": "actstore.reader",
    "SAE": "pipeline.sae.sae",
    "SAERun": "pipeline.runs.sae_run",
    "ConnectorRun": "pipeline.connect.run",
    "FinetunedRun": "pipeline.finetune.run",
    "sites": "pipeline.lm.listing",
    "ListedSite": "pipeline.lm.listing",
    "LanguageModel": "pipeline.lm.model",
    "Steering": "pipeline.steer.steering",
    "HarvestSummary": "pipeline.harvest.harvest",
    "EvalReport": "pipeline.evaluate.report",
    "FeatureSet": "pipeline.features.files",
    "FinetuneReport": "pipeline.finetune.run",
    "ExportReport": "pipeline.exchange.exporting",
    "SteerReport": "pipeline.steer.report",
    "ReportSummary": "pipeline.report.page",
    "PushReport": "pipeline.hub.publish",
    "PullReport": "pipeline.share.pull",
    "Progress": "pipeline.progress",
    "PipelineError": "pipeline.errors",
    "StoreError": "actstore.errors",
}
"""Every public name, and where it lives."""

__all__ = list(NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("saepipe")
    if name not in NAMES:
        raise AttributeError(f"module 'saepipe' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(NAMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted([*NAMES, "__version__", *(name for name in globals() if name[:2] == "__")])


def main() -> None:
    """Run the command line, whatever lies in the working folder.

    PYTHONPATH, where a part of it is empty, and `python -m` have Python look there first: a
    pipeline.py or json.py of the user's would be taken for ours, or for Python's own.
    """
    try:
        here = os.path.realpath(os.curdir)
    except FileNotFoundError:
        sys.exit("error: the working directory is gone: cd to one that is there")
    sys.path.sort(key=lambda folder: os.path.realpath(folder) == here)  # to the end; others stay
    import_module("cli").main()


if __name__ == "__main__":
    main()
