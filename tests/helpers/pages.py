"""Runs to make pages of, with features and evaluations that nobody had to compute."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.architectures import TopKConfig
from pipeline.evaluate.report import EvalReport, Inserted, Interval, Overlap, WorstContext
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


def make_report(run: Path, *, d_sae: int = D_SAE, dead: int = 5, **changes: Any) -> EvalReport:
    """An evaluation with an interval, layers, and contexts to show."""
    rng = np.random.default_rng(1)
    density = 10 ** rng.uniform(-5, -0.5, d_sae)
    density[:dead] = 0
    cosine = rng.uniform(-0.1, 1, d_sae)
    values: dict[str, Any] = dict.fromkeys(
        ("ce_patched", "ce_zero", "ce_mean", "kl", "kl_zero", "mse", "cosine", "l1"), 2.5
    )
    values |= {
        "run": run, "site": "mlp_out.1", "arch": "topk", "d_in": 16, "d_sae": d_sae,
        "model": "builtin", "trained_on_model": "builtin", "text": "builtin:heldout",
        "precision": "float32", "ctx_len": 128, "n_tokens": 100_096, "n_predictions": 99_314,
        "excluded": (), "ce_clean": 2.4321, "loss_recovered": 0.98765, "loss_recovered_mean": 0.9,
        "kl_recovered": 0.95, "perplexity_clean": 11.4, "perplexity_patched": 12.1,
        "perplexity_difference": 0.7, "explained_variance": 0.8123, "relative_bias": None,
        "l2_ratio": 0.93, "l0": 31.5, "l0_quantiles": (20.0, 28.0, 32.0, 34.0, 40.0),
        "density": tuple(density.tolist()), "n_dead": dead, "frac_dead": dead / d_sae,
        "n_rare": 7, "n_frequent": 3, "dead_cosine_mean": 0.9, "alive_cosine_mean": 0.1,
        "dead_cosine": tuple(cosine.tolist()) if dead else None,
        "encoder_decoder_cosine": tuple(cosine.tolist()), "encoder_decoder_cosine_median": 0.5,
        "max_cosine": tuple(cosine.tolist()), "max_cosine_mean": 0.4,
        "overlaps": (Overlap(run=Path("other"), mmcs=0.77),),
        "intervals": (Interval(metric="loss_recovered", low=0.98111, high=0.99222),),
        "inserted": tuple(
            Inserted(site=f"mlp_out.{i}", ce_patched=2.5 + i, added=0.1 + i) for i in range(3)
        ),
        "worst": (WorstContext(
            context=1234, ce_clean=2.0, ce_patched=3.0, perplexity_difference=12.7,
            text="worst: " + "".join(HOSTILE),
        ),),
        "notes": ("Numbers of <b>another</b> text are not comparable.",),
    }  # fmt: skip
    return EvalReport(**(values | changes))


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
