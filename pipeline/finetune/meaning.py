"""What a fine-tuning changed: which features matter to its gain, what they fire on and promote.

Kept in `features.json` of the run. What earlier versions wrote there has the four lists by size
alone, with fewer facts of each feature.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config.serialization import from_json
from pipeline.config.stages import FinetuneConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.finetune.effects import Changes, Effects, find_effects, n_passes
from pipeline.finetune.firing import Example, FiredOn, n_batches, read_firing
from pipeline.finetune.task import Task
from pipeline.lm.logits import attribute, has_path, load_path
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import Tokenizer
from pipeline.progress import OnProgress, counter
from pipeline.sae.sae import TunedSAE
from pipeline.text.token_text import TokenTexts

FEATURES = "features.json"
N_LATENTS = 10
"""Features of each list."""


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """A token of the vocabulary, and what a feature adds to its logit by the direct path."""

    token: str
    logit: float
    """For an activation of 1, but for the division of the final norm."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One feature that learning moved."""

    latent: int
    c: float
    d: float
    examples: tuple[Example, ...]
    """Where it is most active, before or after, the strongest first."""
    tokens: tuple[FiredOn, ...] = ()
    """What it is active on: tokens of the vocabulary, those of largest activation in all first."""
    n_before: int | None = None
    """Tokens of the text that was read on which it is active, in the SAE as it was."""
    n_after: int | None = None
    estimate: float | None = None
    """Of what its change gains, by the gradient (nats a prediction)."""
    effect: float | None = None
    """By how much the loss rises where its change alone is taken back; None where this was not
    measured."""
    promoted: tuple[Promoted, ...] = ()
    """Most first; empty where the site has no linear way to the logits."""
    suppressed: tuple[Promoted, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The features that learning moved most: features.json."""

    scaled_up: tuple[Moved, ...]
    """Of the largest `c`, the largest first."""
    inhibited: tuple[Moved, ...]
    """Of the smallest `c`."""
    raised: tuple[Moved, ...]
    """Of the largest `d`."""
    lowered: tuple[Moved, ...]
    """Of the smallest `d`."""
    by_effect: tuple[Moved, ...] = ()
    """Whose change taken back alone costs most."""
    effects: Effects | None = None
    """None in what earlier versions wrote."""
    n_tokens: int = 0
    """That the features were looked for on: of the text that was learned from."""
    sha256: str = ""
    """Of the scales and biases that it is about; empty in what earlier versions wrote."""

    @property
    def lists(self) -> dict[str, tuple[Moved, ...]]:
        """All of them, by what they are."""
        found = {
            "by effect": self.by_effect,
            "most scaled up": self.scaled_up,
            "most inhibited": self.inhibited,
            "bias raised most": self.raised,
            "bias lowered most": self.lowered,
        }
        return {name: features for name, features in found.items() if features}

    @property
    def features(self) -> dict[int, Moved]:
        """Those of all lists, each once, as they come."""
        return {one.latent: one for features in self.lists.values() for one in features}


def find_meaning(
    lm: LanguageModel,
    site: Site,
    tuned: TunedSAE,
    task: Task,
    tokenizer: Tokenizer,
    config: FinetuneConfig,
    *,
    on_progress: OnProgress | None = None,
) -> Meaning:
    """What changed, and what it does.

    Lists are of the features that were ever active in learning: others moved by weight decay alone.

    Args:
        lm: The model, nothing spliced.
        site: Where the SAE goes.
        tuned: With what was learned.
        task: Effects are measured on its held-out rows; what features fire on is looked for in
            those that were learned from.
        tokenizer: The model's.
        config: Of the fine-tuning.
        on_progress: Told of passes of the model over a batch.

    Raises:
        DataError: a loss is not finite.
    """
    changes = Changes(
        lm, site, tuned, task.heldout, keep_error=config.keep_error, batch_size=config.batch_size
    )
    n_changed, size = int(changes.changed.sum()), config.batch_size
    of_effects = n_passes(n_changed, task.heldout, batch_size=size)
    of_firing = n_batches(task.train, batch_size=size)
    total, done = of_effects + of_firing, 0
    tell = counter(on_progress, stage="meaning", total=total, unit="passes")

    def passed() -> None:
        nonlocal done
        done += 1
        tell(done)

    effects, estimates = find_effects(changes, on_pass=passed)
    if done < of_effects:  # as many as there were at most
        done = of_effects
        tell(done)
    measured = {one.latent: one for one in effects.measured}
    ends = {
        "scaled_up": _extremes(tuned.c, tuned.learned),
        "inhibited": _extremes(-tuned.c, tuned.learned),
        "raised": _extremes(tuned.d, tuned.learned),
        "lowered": _extremes(-tuned.d, tuned.learned),
        "by_effect": [*measured][:N_LATENTS],
    }
    chosen = sorted({latent for latents in ends.values() for latent in latents})
    read = read_firing(
        lm, site, tuned, task.train, chosen, tokenizer, batch_size=config.batch_size,
        on_pass=passed,
    )  # fmt: skip
    logits = _promoted(lm, site, tuned, chosen, tokenizer)
    moved = {
        latent: Moved(
            latent=latent,
            c=tuned.c[latent].item(),
            d=tuned.d[latent].item(),
            examples=firing.examples,
            tokens=firing.tokens,
            n_before=firing.n_before,
            n_after=firing.n_after,
            estimate=estimates[latent].item(),
            effect=measured[latent].effect if latent in measured else None,
            promoted=logits["promoted"].get(latent, ()),
            suppressed=logits["suppressed"].get(latent, ()),
        )
        for latent, firing in read.firing.items()
    }
    return Meaning(
        effects=effects,
        n_tokens=read.n_tokens,
        **{end: tuple(moved[latent] for latent in latents) for end, latents in ends.items()},  # pyright: ignore[reportArgumentType]
    )


def _extremes(values: Float[Tensor, " d_sae"], among: Bool[Tensor, " d_sae"]) -> list[int]:
    """Indices of the largest values among some, the largest first; equals by index."""
    some = among.cpu().nonzero()[:, 0]
    order = values.detach().cpu()[some].sort(descending=True, stable=True).indices
    return some[order[:N_LATENTS]].tolist()


def _promoted(
    lm: LanguageModel, site: Site, tuned: TunedSAE, chosen: list[int], tokenizer: Tokenizer
) -> dict[str, dict[int, tuple[Promoted, ...]]]:
    """Direct logit attribution of some features, by both ends; empty where there is no path."""
    found: dict[str, dict[int, tuple[Promoted, ...]]] = {"promoted": {}, "suppressed": {}}
    if not has_path(lm.name, site, revision=lm.files.revision) or not chosen:
        return found
    path = load_path(
        lm.name, site, revision=lm.files.revision, n_vocab=tokenizer.n_vocab, device=lm.device
    )
    texts = TokenTexts(tokenizer.token_bytes)
    for end, ranked in attribute(path, tuned.W_dec[chosen].float()).items():
        rows = zip(chosen, *(part.tolist() for part in ranked), strict=True)
        for latent, tokens, logits in rows:
            found[end][latent] = tuple(
                Promoted(token=texts.alone(token), logit=logit)
                for token, logit in zip(tokens, logits, strict=True)
            )
    return found


def read_meaning(run: Path, *, sha256: str) -> Meaning | None:
    """What is known of the features of a fine-tuning; None where the file is gone, or another's.

    Args:
        run: Its folder.
        sha256: Of its scales and biases.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = run / FEATURES
    try:
        told = from_json(Meaning, json.loads(file.read_bytes()), where=FEATURES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}): put a copy back, or delete it to do without"
        ) from error
    return told if told.sha256 in ("", sha256) else None
