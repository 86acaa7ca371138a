"""Runs to make pages of, with features and evaluations that nobody had to compute."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.architectures import TopKConfig
from pipeline.evaluate.report import EvalReport
from pipeline.features.feature import (
    AFTER,
    BEFORE,
    Examples,
    Feature,
    Neighbour,
    TokenEffect,
    TokenValues,
)
from pipeline.report.feature_data import ShownFeatures
from pipeline.report.saes import SAEExhibit
from pipeline.runs.sae_run import SAERun
from pipeline.text.token_text import TokenTexts
from tests.helpers.eval_reports import changed, with_everything
from tests.helpers.tiny import make_sae, save_sae

WIDTH = BEFORE + 1 + AFTER
D_SAE, N_TOKENS = 64, 10_000

HOSTILE = (
    "<script>window.pwned = 1</script>", "</script><script>window.pwned = 2</script>",
    '<img src=x onerror="window.pwned = 3">', "'\" onmouseover=pwned=4 x='", "<!--", "]]>",
    "&lt;b&gt;", "{{ 7 * 7 }}", "${7 * 7}", "</style>", "__proto__", "\u2028", "\x00", "\x1b[31m",
    "\u202egnp.exe", "\u2066", "\u200f", "שלום", "مرحبا", "👩\u200d🔬", "e\u0301\u0301",
)  # fmt: skip
BYTES = (b"\xe2\x82", b"\xac", b"\xed\xa0\x80", b"\xff")
"""Half characters, a lone surrogate, and what is never text."""

SENTENCE = "the of and to in a is that for it as was with be by on not he his but"
PLAIN = tuple(f" {word}".encode() for word in SENTENCE.split())
ORDINARY = range(len(PLAIN))
VOCABULARY = (*PLAIN, *(text.encode() for text in HOSTILE), *BYTES)


def make_examples(rng: np.random.Generator, *, n: int, largest: float, tokens: Any) -> Examples:
    """Contexts in descending order, some of which begin or end within the window."""
    value = np.sort(rng.uniform(0.1, largest or 1.0, n).astype(np.float32))[::-1].copy()
    position = rng.integers(0, 40, n).astype(np.int32)
    ids = rng.choice(tokens, (n, WIDTH)).astype(np.int32)
    values = (rng.random((n, WIDTH)) < 0.15) * rng.uniform(0, 1, (n, WIDTH)) * value[:, None]
    values[:, BEFORE] = value
    place = np.arange(WIDTH)
    beyond = place < BEFORE - position[:, None]
    beyond |= (place > BEFORE + 2) & (position[:, None] % 7 == 0)
    ids[beyond], values[beyond] = -1, 0
    context = rng.integers(0, 9000, n)
    return Examples(
        context=context, position=position, value=value, tokens=ids,
        values=values.astype(np.float32),
    )  # fmt: skip


def make_feature(index: int, *, n_active: int = 100, tokens: Sequence[int] = ORDINARY) -> Feature:
    """A feature that fires on random tokens, of these; a dead one with `n_active=0`."""
    rng = np.random.default_rng(index)
    n = min(n_active, 12)
    largest = float(rng.uniform(2, 9)) if n else 0.0
    top = make_examples(rng, n=n, largest=largest, tokens=list(tokens))
    n_values = min(n_active, 128)
    effects = [
        TokenEffect(token=t, text=VOCABULARY[t].decode(errors="replace"), effect=1.5 - i / 10)
        for i, t in enumerate(rng.permutation(list(tokens))[:8].tolist())
    ]
    return Feature(
        index=index,
        n_active=n_active,
        frequency=n_active / N_TOKENS,
        mean=largest / 3,
        max=float(top.value[0]) if n else 0.0,
        top=top,
        spread=make_examples(rng, n=min(n_active, 16), largest=largest * 0.8, tokens=list(tokens)),
        sample=TokenValues(
            token=rng.choice(list(tokens), n_values).astype(np.int32),
            value=rng.gamma(2, largest / 8 + 1e-3, n_values).astype(np.float32),
        ),
        promoted=tuple(effects[:4]),
        suppressed=tuple(replace(effect, effect=-effect.effect) for effect in effects[4:]),
        neighbours=(Neighbour(index=(index + 1) % D_SAE, cosine=0.61),),
        dead_cosine=float(rng.uniform(-0.2, 1)),
        encoder_decoder_cosine=float(rng.uniform(0, 1)),
    )


def shown(*features: Feature, **changes: Any) -> ShownFeatures:
    """These on a page."""
    texts = TokenTexts(dict(enumerate(VOCABULARY)).get)
    return ShownFeatures(**{
        "features": features, "n_tokens": N_TOKENS, "texts": texts, "notes": (),
    } | changes)  # fmt: skip


def make_report(run: Path, *, dead: bool = True, **changes: Any) -> EvalReport:
    """An evaluation with everything, some of it in hostile words."""
    report = with_everything(run)
    worst = replace(report.worst[0], context=1234, text="worst: " + "".join(HOSTILE))
    notes = ("Numbers of <b>another</b> text are not comparable.",)
    dead_cosine = report.dead_cosine if dead else None
    told = {"worst": (worst,), "notes": notes, "relative_bias": None, "dead_cosine": dead_cosine}
    return changed(report, **told | changes)


def make_run(path: Path, *, seed: int = 0) -> Path:
    """The folder of a trained run, with its curves."""
    coder = make_sae(arch=TopKConfig(k=4), seed=seed)
    save_sae(path, coder, model="EleutherAI/pythia-70m", arch=TopKConfig(k=4))
    lines = (
        {"step": i, "rows": i * 1024, "recon": 4 / i, "l0": 4.0, "n_dead": 3, "lr": 1e-3}
        for i in range(1, 80)
    )  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_exhibit(path: Path, *features: Feature, **changes: Any) -> SAEExhibit:
    """A run of `make_run` with everything there is to show."""
    exhibit = SAEExhibit(
        name=path.name, path=path, run=SAERun.open(path), tuned=None, curves=path / "metrics.jsonl",
        evaluation=make_report(path), features=shown(*features),
    )  # fmt: skip
    return replace(exhibit, **changes)
