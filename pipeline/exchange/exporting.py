"""export(run, to, out): a run as another library opens it.

What was fine-tuned is folded first; what activations are scaled by is part of the weights already.
The folder is written under a temporary name and renamed: it is whole or absent.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from actstore.files import write_file
from pipeline.errors import CheckpointError, ConfigError
from pipeline.exchange.whole import whole_folder
from pipeline.finetune.run import FinetunedRun, is_finetuned
from pipeline.formats.table import FORMATS, PLAIN
from pipeline.formats.writing import Exported, Leaving
from pipeline.runs.kinds import says_kind
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE

TARGETS = (*(each.name for each in FORMATS.values() if each.writes), PLAIN.name)
"""What an SAE can be exported to."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written."""

    run: Path
    out: Path
    to: str
    files: tuple[str, ...]
    arch: str
    site: str
    notes: tuple[str, ...]
    reused: bool = False
    """It was there already, byte for byte."""


def export(run: Path, to: str, out: Path) -> ExportReport:
    """Write the SAE of a run as another library has them, in float32.

    Args:
        run: Of `saepipe train`, `import`, `fold` or `finetune`.
        to: `saelens`, `dictionary-learning`, `sparsify`, or `safetensors`: a plain file of
            matrices, with settings beside.
        out: The folder to make. What is there already is reused where it is the same.

    Raises:
        ConfigError: the other side has nothing like this SAE, or `out` holds something else.
        CheckpointError: the run cannot be used; or the disk fails.
    """
    if to not in TARGETS:
        raise ConfigError(f"to must be one of {', '.join(TARGETS)}, got {to!r}")
    run, out = run.resolve(), out.resolve()
    sae, where = _plain(run)
    written = _written(sae, where, to)
    report = ExportReport(
        run=run,
        out=out,
        to=to,
        files=tuple(sorted(written.files)),
        arch=sae.arch.kind,
        site=where.provenance.site,
        notes=written.notes,
    )

    with whole_folder(out, option="--out") as folder:
        for name, data in written.files.items():
            write_file(folder.partial / name, [data])
    return replace(report, reused=folder.reused)


def _plain(path: Path) -> tuple[SAE, SAERun]:
    """The SAE of a run, without scales and biases of its own, and where it belongs."""
    if is_finetuned(path):
        tuned = FinetunedRun.open(path)
        source = replace(tuned.run.provenance, site=tuned.report.site, model=tuned.report.model)
        return tuned.sae.fold(), replace(tuned.run, provenance=source)
    if (kind := says_kind(path)) not in ("", SAERun.KIND):
        raise CheckpointError(f"{path} is a {kind} run, and SAEs alone can be exported")
    run = SAERun.open(path)
    return run.load_sae(torch.device("cpu")), run


def _written(sae: SAE, run: SAERun, to: str) -> Exported:
    source = run.provenance
    if to == PLAIN.name:
        return Exported(files=sae.as_files())
    leaving = Leaving.of(
        sae.arch,
        sae.state_dict(),
        site=source.site,
        model=source.model,
        text=source.text,
        ctx_len=source.ctx_len,
        input_norm=sae.input_norm,
    )
    return FORMATS[to].write(leaving)
