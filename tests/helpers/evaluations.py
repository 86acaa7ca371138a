"""Evaluations of coders in the tiny model, on a short text that they share."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.stages import EvalConfig
from pipeline.evaluate.evaluate import evaluate
from pipeline.evaluate.report import EvalReport
from pipeline.sae.sae import SAE
from tests.helpers.tiny import CTX_LEN, make_sae, save_sae

N_CONTEXTS = 14


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Runs of one folder, the model they are of, and the text they are evaluated on."""

    folder: Path
    model: Path
    text: str

    def save(self, name: str = "run", coder: SAE | None = None, **saved: object) -> Path:
        """A run of this coder."""
        return save_sae(self.folder / name, coder or make_sae(), **{"model": self.model} | saved)

    def reports(self, *runs: Path, **options: object) -> tuple[EvalReport, ...]:
        """What an evaluation of some runs says, with settings of its own."""
        usual = {"text": self.text, "tokens": N_CONTEXTS * CTX_LEN, "device": "cpu"}
        return evaluate(EvalConfig(runs=runs, **usual | {"n_bootstrap": 30} | options))
