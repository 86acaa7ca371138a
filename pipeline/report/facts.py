"""What a run is, for people: a few facts in front, every setting folded away."""

from collections.abc import Mapping
from typing import cast

from pipeline.codec import to_json
from pipeline.report.gather import Material
from pipeline.report.words import number

_KNOBS = ("k", "l1", "l0", "target")
"""What tells runs of one architecture apart."""


def headline(material: Material) -> str:
    """Architecture and place: `topk SAE (k = 32) at mlp_out.2`."""
    arch = material.run.config.arch
    settings = [(name, getattr(arch, name, None)) for name in _KNOBS]
    knobs = ", ".join(f"{name} = {value:g}" for name, value in settings if value is not None)
    tuned = ", fine-tuned" if material.tuned else ""
    site = material.tuned.report.site if material.tuned else material.run.provenance.site
    return f"{arch.kind} SAE{f' ({knobs})' if knobs else ''} at {site}{tuned}"


def facts(material: Material) -> dict[str, str]:
    """The few that say what one is looking at."""
    run, tuned = material.run, material.tuned
    config, source = run.config, run.provenance
    tokens = source.n_rows if config.tokens is None else config.tokens
    epochs = tokens / source.n_rows if source.n_rows else 0
    found = {
        "language model": named(source.model, source.revision),
        "site": source.site,
        "text": source.text or "unknown",
        "features": f"{run.d_sae:,}, {config.expansion} x the width {source.d_in:,}",
        "trained on": f"{tokens:,} tokens, {epochs:.3g} x the store",
        "step": f"{config.batch_size:,} tokens, learning rate {config.lr:g}",
        "contexts": f"{source.ctx_len} tokens each",
    }
    if tuned:
        report = tuned.report
        found |= {
            "fine-tuned in": report.model,
            "fine-tuned at": report.site,
            "fine-tuned on": f"{report.text}, {report.n_steps:,} steps",
            "held-out loss, model alone": number(report.ce_base),
            "held-out loss, SAE spliced in": number(report.ce_spliced),
            "held-out loss, fine-tuned": number(report.ce_finetuned),
        }
    return found


def settings(material: Material) -> dict[str, str]:
    """Every setting and everything known of the store."""
    tuned = material.tuned
    return {
        **flat(to_json(material.run.config)),
        **flat(to_json(material.run.provenance), prefix="store."),
        **(flat(to_json(tuned.config), prefix="finetune.") if tuned else {}),
    }


def named(model: str, revision: str) -> str:
    """A language model, and its revision if that is not the main one."""
    name = model or "unknown"
    return name if revision in ("", "main") else f"{name} at {revision}"


def flat(value: object, *, prefix: str = "") -> dict[str, str]:
    """Nested settings as `arch.k` -> its value."""
    found: dict[str, str] = {}
    for name, item in cast("Mapping[str, object]", value).items():
        if isinstance(item, Mapping):
            found |= flat(cast("object", item), prefix=f"{prefix}{name}.")
        else:
            found[prefix + name] = _setting(item)
    return found


def _setting(value: object) -> str:
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[object]", value)))
    return f"{value:,}" if isinstance(value, int) else str(value)
