"""What was steered, without a model that wrote it."""

from pathlib import Path
from typing import Any

from pipeline.config.stages import SteerConfig
from pipeline.runs.belongs import told_by
from pipeline.steer.report import (
    Continuation,
    Effect,
    SteeredFeature,
    SteeredText,
    SteerReport,
)

STRENGTHS = ("-2x", "0", "3x", "1max")


def make_steering(
    run: Path, *, texts: tuple[str, ...] = ("a text",), prompt: str = "def f(x):", **changes: Any
) -> SteerReport:
    """A sweep of one feature over these texts, the clean and the steered one of each alike."""
    features = changes.pop("feature", ((7,),))
    n = sum(map(len, features))
    config = SteerConfig(
        runs=(run,), feature=features, scale=STRENGTHS, prompt=(prompt,), samples=len(texts)
    )

    def numbers(i: int) -> dict[str, Any]:
        active = tuple(0.5 * i + j for j in range(n))
        return {"perplexity": 2.0 + i**2, "activations": active, "changed": i / 8}

    its = len(STRENGTHS)
    settings = {
        "config": config, "sha256": str(told_by(run).get("sha256", "")),
        "features": tuple(
            SteeredFeature(run=run, site="mlp_out.1", feature=i) for some in features for i in some
        ),
        "edit": "add", "model": "some/model", "revision": "main", "precision": "fp32",
        "temperature": 1.0, "clean": Effect(strength="", amounts=(), **numbers(0)),
        "effects": tuple(
            Effect(strength=strength, amounts=(float(i),) * n, **numbers(i))
            for i, strength in enumerate(STRENGTHS, start=1)
        ),
        "texts": tuple(
            SteeredText(
                prompt=prompt,
                sample=sample,
                clean=Continuation(text=text, n_tokens=9, **numbers(0)),
                steered=tuple(
                    Continuation(text=text, n_tokens=9, **numbers(i)) for i in range(1, its + 1)
                ),
            )
            for sample, text in enumerate(texts)
        ),
        "notes": ("A <b>note</b>.",),
    }  # fmt: skip
    return SteerReport(**settings | changes)
