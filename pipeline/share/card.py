"""The README.md of a run on the hub, made from what the run says of itself."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.serialization import to_json
from pipeline.config.training import TrainConfig
from pipeline.evaluate.metrics import METRICS
from pipeline.evaluate.report import EvalReport, load_report
from pipeline.finetune.run import FinetuneReport
from pipeline.report.tables import metric_groups, number
from pipeline.runs.folder import Provenance, flat
from pipeline.runs.names import public
from pipeline.sae.card import head, loading, plain, table
from pipeline.share.shown import shown_name

_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+|gpt2(?:-\w+)?", re.ASCII)
_FIGURES = {
    "density.png": "On which share of the tokens each feature is active.",
    "encoder_decoder.png": "The cosine of what each feature reads with what it writes.",
    "dead_cosine.png": "The cosine of each feature's direction with the mean of the dead.",
    "frontier.png": "What is lost against how many features are active.",
    "curves.png": "Training, step by step.",
    "loss.png": "Fine-tuning, step by step.",
    "scales_biases.png": "What fine-tuning made of scales and biases.",
    "effects.png": "What the features that moved most do to the predictions.",
}
_SETTINGS = (
    "site", "expansion", "tokens", "batch_size", "lr", "lr_warmup", "lr_decay", "normalize",
    "precision", "seed", "order_seed",
)  # fmt: skip


def on_hub(name: str, at: Path | None = None) -> str:
    """The id on the hub that a model or text has; empty where it lies in files, or is embedded."""
    alone = name.partition("@")[0].partition(":")[0]
    return alone if at is None and _ON_HUB.fullmatch(alone) else ""


def run_card(
    name: str,
    run: Any,  # noqa: ANN401 - SAERun, or FinetunedRun
    files: Collection[str],
    *,
    license: str,
) -> str:
    """The card of a trained, fine-tuned or folded SAE.

    Args:
        name: Where it goes: `org/name`.
        run: As it is pushed.
        files: What is pushed beside.
        license: As the hub names it.
    """
    tuned: FinetuneReport | None = getattr(run, "report", None)
    sae = run if tuned is None else run.run
    source: Provenance = sae.provenance
    model = source.model if tuned is None else tuned.model
    site = source.site if tuned is None else tuned.site
    texts = [on_hub(source.text, source.text_at)] + ([on_hub(tuned.text)] if tuned else [])
    report = load_report(run.path)
    facts = {
        "architecture": sae.config.arch.kind,
        "model": _named(model, source.model_at),
        "site": f"{site}, {source.d_in:,} wide",
        "features": f"{sae.d_sae:,}",
        "trained on": f"{_rows(sae.config, source)} tokens of {shown_name(source.text) or '?'}",
        "contexts": f"{source.ctx_len:,} tokens",
    }
    parts = [
        head(
            license=license,
            base_model=on_hub(model, source.model_at),
            datasets=[*dict.fromkeys(filter(None, texts))],
        ),
        f"# {name.rpartition('/')[2].partition('@')[0]}",
        "",
        f"A sparse autoencoder of {site} of {_named(model, source.model_at)}, by saepipe.",
        "",
        table(("", ""), [*facts.items()]),
        "",
        _loading(name, tuned=tuned is not None, files=files),
    ]
    if tuned is not None:
        parts += _tuned(tuned)
    parts += ["## How it was trained", "", table(("setting", ""), _settings(sae.config)), ""]
    if report is not None:
        parts += _evaluation(report)
    parts += _figures(files)
    return "\n".join(parts).rstrip() + "\n"


def sweep_card(name: str, runs: Mapping[str, Any], *, license: str) -> str:
    """The card of a sweep: its runs, a line each.

    Args:
        name: Where it goes.
        runs: By their folders.
        license: As the hub names it.
    """
    source: Provenance = next(iter(runs.values())).provenance
    texts = filter(None, [on_hub(source.text, source.text_at)])
    reports = {folder: load_report(run.path) for folder, run in runs.items()}
    main = [metric for metric in METRICS.values() if metric.main]
    heads = ["folder", "features", *(metric.words for metric in main)]
    rows: list[list[str]] = []
    for folder, run in runs.items():
        told = reports[folder]
        values = [number(told.metrics.get(metric.name)) if told else "" for metric in main]
        rows.append([f"[{folder}]({folder}/README.md)", f"{run.d_sae:,}", *values])
    model = _named(source.model, source.model_at)
    return "\n".join((
        head(
            license=license, base_model=on_hub(source.model, source.model_at), datasets=[*texts],
        ),
        f"# {name.rpartition('/')[2].partition('@')[0]}",
        "",
        f"Sparse autoencoders of {source.site} of {model}, by saepipe, of one training each.",
        "",
        table(heads, rows),
        "",
        _definitions(main),
        "",
        _loading(f"{_with_folder(name, next(iter(runs)))}", tuned=False, files=()),
    ))  # fmt: skip


def _with_folder(name: str, folder: str) -> str:
    alone, at, revision = name.partition("@")
    return f"{alone}/{folder}{at}{revision}"


def _named(name: str, at: Path | None) -> str:
    told = shown_name(name) if at is None else Path(name).name
    return told or "a model that is not said"


def _rows(config: TrainConfig, source: Provenance) -> str:
    return f"{config.tokens or source.n_rows:,}"


def _settings(config: TrainConfig) -> list[tuple[str, str]]:
    told: dict[str, Any] = flat(to_json(config))
    of_arch = {k.removeprefix("arch."): v for k, v in told.items() if k.startswith("arch.")}
    shown: dict[str, Any] = {"arch": of_arch.pop("kind"), **of_arch}
    shown |= {name: told[name] for name in _SETTINGS}
    return [
        (name, "one pass" if name == "tokens" and value is None else str(value))
        for name, value in shown.items()
        if value is not None or name == "tokens"
    ]


def _loading(name: str, *, tuned: bool, files: Collection[str]) -> str:
    pulled = f"saepipe pull {name} --out RUN"
    if tuned:
        told = f"""\
## Load it

```sh
{pulled}
```

```python
import saepipe as sp

sae = sp.FinetunedRun.open("RUN").sae  # the SAE with its scales and biases
```

`saepipe fold RUN --out PLAIN` makes a plain SAE of it.
"""
    else:
        told = f"{loading(name)}\nAs a run, with all that is known of it: `{pulled}`\n"
    if any(file.startswith("saelens/") for file in files):
        told += f"""\

In SAELens:

```python
from huggingface_hub import snapshot_download
from sae_lens import SAE

folder = snapshot_download("{name.partition("@")[0]}", allow_patterns="saelens/*")
sae = SAE.load_from_disk(f"{{folder}}/saelens")
```
"""
    return told


def _tuned(report: FinetuneReport) -> list[str]:
    losses = {
        "the model alone": report.ce_base,
        "with the SAE in it": report.ce_spliced,
        "with the SAE, fine-tuned": report.ce_finetuned,
    }
    notes = [public(note) for note in (*report.origin, *report.notes)]
    return [
        "## Fine-tuning",
        "",
        *(f"- {note}" for note in notes),
        "",
        table(
            (f"loss on {report.n_heldout_tokens:,} held-out tokens (nats)", ""),
            [(words, number(loss)) for words, loss in losses.items()],
        ),
        "",
    ]


def _evaluation(report: EvalReport) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for group in metric_groups([report]):
        for row in group.rows:
            (cell,) = row.cells
            rows.append((row.name, cell.value, cell.interval, row.note))
    where = f"{report.n_tokens:,} tokens of {shown_name(report.text)}"
    if report.model != report.trained_on_model:
        where += f", in {shown_name(report.model)}"
    notes = [f"- {plain(public(note))}" for note in report.notes]
    return [
        "## Evaluation",
        "",
        f"In the model, on {where}; losses in nats, intervals over resampled contexts. "
        "x is an activation, x̂ its reconstruction.",
        "",
        table(("metric", "value", "95 % interval", "what it is"), rows),
        "",
        *notes,
        "",
    ]


def _definitions(metrics: Sequence[Any]) -> str:
    return "\n".join(f"- {metric.words}: {metric.note}" for metric in metrics if metric.note)


def _figures(files: Collection[str]) -> Iterator[str]:
    drawn = [name for name in files if name.endswith(".png") and "/" not in name]
    if drawn:
        yield from ("## Figures", "")
    for name in sorted(drawn, key=lambda name: (name not in _FIGURES, name)):
        words = _FIGURES.get(name, name.removesuffix(".png").replace("_", " "))
        yield f"![{words}]({name})"
        yield f"\n{words}\n"
