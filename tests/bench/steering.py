"""What steering along a feature does that steering along others does not.

    saepipe harvest --site resid_post.3 --tokens 500k --out acts.actstore
    saepipe train acts.actstore --out runs/sae
    saepipe features runs/sae
    python tests/bench/steering.py runs/sae --feature 198,118,279    # about 5 minutes

A feature's words are the ten tokens whose logits its decoder row raises most by the direct path,
read from the weights alone. At each strength, in shares of its largest activation, all positions
of the prompts are steered, and the likeliest tokens taken. Told are the perplexity of the new
tokens in the model alone, the feature's mean activation on them there, and the share of them that
are among its words. The control adds as much along `N_OTHERS` other features, drawn at random:
median [lowest..highest] of the same feature's activation, and of the share of its words.
"""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import saepipe as sp

from pipeline.features.files import FeatureSet
from tests.bench.common import spread

PROMPTS = ("def add(a, b):", "The value of", "# This module", "import", "for i in", "    return")
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)
TOKENS, N_OTHERS = 16, 10


def steered(run: Path, feature: int, amounts: Sequence[float]) -> sp.SteerReport:
    return sp.steer(
        run, feature=feature, scale=[str(amount) for amount in amounts], prompt=list(PROMPTS),
        tokens=TOKENS,
    )  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--feature", required=True)
    asked = options.parse_args()
    found, model = FeatureSet.open(asked.run), sp.LanguageModel.from_pretrained("builtin")
    sae = sp.SAERun.open(asked.run).sae
    site = str(found.facts.site)

    def share(texts: Sequence[str], words: Collection[str]) -> float:
        """Of the new tokens."""
        tokens = [model.tokenizer.decode([i]) for text in texts for i in model.to_tokens(text)[0]]
        return float(np.mean([token.strip() in words for token in tokens]))

    def activation(texts: Sequence[str], feature: int) -> float:
        values = list[float]()
        for prompt, text in zip(PROMPTS, texts, strict=True):
            _, acts = model.run_with_acts(prompt + text, sites=[site])
            n = model.to_tokens(text).shape[1]
            values += sae.encode(acts[site].to(sae.W_enc.device))[0, -n:, feature].tolist()
        return float(np.mean(values))

    heads = "feature", "strength", "perplexity", "activation", "others", "its words", "others"
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for feature in map(int, asked.feature.split(",")):
        told = found.feature(feature)
        words, largest = {effect.text.strip() for effect in told.promoted[:10]}, told.max
        amounts = [strength * largest for strength in STRENGTHS]
        alive = np.flatnonzero(found.n_active)
        rng = np.random.default_rng(feature)
        others = rng.choice(alive[alive != feature], N_OTHERS, replace=False).tolist()
        own = steered(asked.run, feature, amounts)
        controls = [steered(asked.run, other, amounts) for other in others]
        for i, strength in enumerate(STRENGTHS):

            def texts(report: sp.SteerReport, i: int = i) -> list[str]:
                return [text.steered[i].text for text in report.texts]

            cells = [
                str(feature), f"{strength:g} max", f"{own.effects[i].perplexity:.3g}",
                f"{activation(texts(own), feature):.3g}",
                spread([activation(texts(one), feature) for one in controls], "{:.2g}"),
                f"{share(texts(own), words):.0%}",
                spread([share(texts(one), words) for one in controls], "{:.0%}"),
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
        print(f"words of {feature}: {', '.join(sorted(words))}", flush=True)


if __name__ == "__main__":
    main()
