"""The same steps on the same rows by other means: what learning through features costs.

The rows to measure on are halved: the learning rate of each way is the one of `compare_lrs` that
comes to the lowest loss on the one half, and what is shown was measured on the other.

Kept in `compare.json` beside the run, way by way, so that a comparison that was stopped goes on.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from actstore.files import write_json
from pipeline.config.serialization import from_json, to_json
from pipeline.device import seeded
from pipeline.disk import writing
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.finetune.learn import Learner, learn, trained_of
from pipeline.finetune.measure import Edits, Measured
from pipeline.finetune.run import FinetunedRun
from pipeline.finetune.setting import Setting, open_setting
from pipeline.lm.hooks import in_float, reading
from pipeline.lm.model import LanguageModel
from pipeline.lm.quantized import plain_weights
from pipeline.lm.sites import Site
from pipeline.progress import OnProgress, counter
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE, Coder, TunedSAE

COMPARED = "compare.json"
SAMPLE_ROWS = 8192
"""Tokens by which random features are made as frequent as those they stand for."""
HALVINGS = 30
"""Of the range in which the shift lies that does so."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """What came of one way to learn."""

    name: str
    words: str
    n_numbers: int
    """That are trained."""
    lr: float | None
    """The best of those tried; None where nothing is learned."""
    ce: float
    """Cross-entropy of held-out rows (nats a prediction that counts)."""
    exact: float | None
    """Share of held-out questions that are answered exactly."""
    ce_general: float | None
    """Cross-entropy of another text."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ways that were compared; of `compare.json`."""

    format: int = 1
    sha256: str
    """Of the scales and biases of the run."""
    lrs: tuple[float, ...]
    ways: tuple[Way, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        told = list[str]()
        names = {way.name for way in self.ways}
        if "mlp" not in names:
            told.append("not all ways were gone yet: the same command goes on")
        elif "lora" not in names:
            told.append("LoRA is left out: it takes peft: pip install 'saepipe[lora]'")
        ends = {min(self.lrs), max(self.lrs)} if len(self.lrs) > 1 else set[float]()
        if any(way.lr in ends for way in self.ways):
            told.append(
                "some did best at the lowest or highest learning rate that was tried, and may do "
                "better beyond: set compare_lrs"
            )
        return tuple(told)


Started = AbstractContextManager[tuple[Mapping[str, Tensor], Edits]]
"""Within it, what is trained, by name, and what is edited; at its end the model is as it was."""


@dataclass(frozen=True, kw_only=True)
class _Means:
    """A way, before it is gone."""

    name: str
    words: str
    start: Callable[[], Started]


@torch.inference_mode(mode=False)
@torch.enable_grad()
def compare(
    path: Path, lrs: tuple[float, ...], *, on_progress: OnProgress | None = None
) -> Comparison:
    """Go every way that was not gone yet; gives what came of each.

    Args:
        path: Of a fine-tuning.
        lrs: Learning rates that each way is tried at.
        on_progress: Told how many ways were gone.

    Raises:
        CheckpointError: the run cannot be used, or the disk fails.
        ModelError: its language model cannot be used.
        TextError: its text cannot be read.
        DataError: a loss is not finite at every learning rate.
    """
    run = FinetunedRun.open(path)
    there = read_comparison(path)
    if there is None or there.lrs != lrs:
        there = Comparison(sha256=run.sha256, lrs=lrs)
    setting = open_setting(run.config, [run.run])
    setting = replace(setting, task=setting.task.halved())
    means = list(_all_means(setting, run))
    done = {way.name for way in there.ways}
    tell = counter(on_progress, stage="compare", total=len(means), unit="ways")
    for i, one in enumerate(means):
        if one.name not in done:
            way = _gone(one, setting, lrs if one.name not in _AS_IT_IS else ())
            there = replace(there, ways=(*there.ways, way))
            with writing(path):
                write_json(path / COMPARED, to_json(there))
        tell(i + 1)
    return there


def read_comparison(path: Path) -> Comparison | None:
    """What was compared with the run in a folder; None where nothing was, or with another run.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = path / COMPARED
    try:
        told = from_json(Comparison, json.loads(file.read_bytes()), where=COMPARED)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): delete it to compare again") from error
    return told if told.sha256 == FinetunedRun.open(path).sha256 else None


_AS_IT_IS = ("base", "spliced", "run")


def _all_means(setting: Setting, run: FinetunedRun) -> Iterator[_Means]:
    lm, (site,), frozen = setting.lm, setting.sites, run.run
    tuned, error = run.load_sae(lm.device), run.config.keep_error
    kept = " with the error kept" if error else ""
    plain = TunedSAE(frozen.load_sae(lm.device))

    def spliced(coder: TunedSAE, *, keep: bool) -> Edits:
        return {site: in_float(coder.with_error if keep else coder)}

    def scaled(sae: Callable[[], SAE], *, keep: bool) -> Callable[[], Started]:
        def start() -> Started:
            made = TunedSAE(sae())
            return nullcontext((trained_of(made, run.config), spliced(made, keep=keep)))

        return start

    def own() -> SAE:
        return frozen.load_sae(lm.device)

    yield _Means(name="base", words="the model alone", start=lambda: nullcontext(({}, {})))
    yield _Means(
        name="spliced", words=f"the SAE spliced in{kept}, untouched",
        start=lambda: nullcontext(({}, spliced(plain, keep=error))),
    )  # fmt: skip
    yield _Means(
        name="run", words=f"this run, lr {run.config.lr:g}",
        start=lambda: nullcontext(({}, spliced(tuned, keep=error))),
    )  # fmt: skip
    yield _Means(name="features", words=f"its features{kept}", start=scaled(own, keep=error))
    if not error:
        words = "its features with the error kept"
        yield _Means(name="features_error", words=words, start=scaled(own, keep=True))
    yield _Means(
        name="random", words="random features with the error kept",
        start=scaled(lambda: random_features(setting, frozen), keep=True),
    )  # fmt: skip
    yield _Means(name="bias", words="a bias vector at the site", start=lambda: _bias(lm, site))
    words = f"all weights of the MLP of layer {site.of_layer('--compare').layer}"
    yield _Means(name="mlp", words=words, start=lambda: _weights(lm, site))
    if find_spec("peft"):
        n = sum(x.numel() for x in trained_of(plain, run.config).values())
        yield _Means(
            name="lora", words="LoRA of that MLP",
            start=lambda: _lora(lm, site, n_numbers=n, seed=run.config.seed),
        )  # fmt: skip


def _gone(means: _Means, setting: Setting, lrs: tuple[float, ...]) -> Way:
    """Learn at each learning rate, and measure at the best."""
    if not lrs:
        with means.start() as (_, edits):
            return _way(means, setting.measure(edits), n=0, lr=None)
    tried, failed = list[tuple[float, Way]](), list[DataError]()
    for lr in lrs:
        config = replace(setting.config, lr=lr, patience=None)
        with means.start() as (numbers, edits):
            learner = Learner(
                numbers, lr=lr, weight_decay=config.weight_decay,
                towards_start=config.decay_to == "start",
            )  # fmt: skip
            n = sum(x.numel() for x in numbers.values())
            try:
                with setting.learning(edits):
                    chosen_by = learn(setting.lm, learner, setting.task, config).by_epoch[-1]
                tried.append((chosen_by, _way(means, setting.measure(edits), n=n, lr=lr)))
            except DataError as error:  # at this learning rate
                failed.append(error)
    if not tried:
        raise failed[0]
    return min(tried, key=lambda one: one[0])[1]


def _way(means: _Means, found: Measured, *, n: int, lr: float | None) -> Way:
    return Way(
        name=means.name, words=means.words, n_numbers=n, lr=lr,
        ce=found.ce, exact=found.exact, ce_general=found.ce_general,
    )  # fmt: skip


def _bias(lm: LanguageModel, site: Site) -> Started:
    added = nn.Parameter(torch.zeros(lm.width(site), device=lm.device))

    def shifted(x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return x + added

    return nullcontext(({"bias": added}, {site: in_float(shifted)}))


def _mlp(lm: LanguageModel, site: Site) -> nn.Module:
    """The MLP of the site's layer."""
    layer = site.of_layer("--compare").layer
    return lm.body.get_submodule(lm.shape.mlp_path(layer, name=lm.name))


@contextmanager
def _weights(lm: LanguageModel, site: Site) -> Generator[tuple[Mapping[str, Tensor], Edits]]:
    module = _mlp(lm, site)
    with plain_weights(module):
        numbers = dict(module.named_parameters())
        before = {name: x.detach().clone() for name, x in numbers.items()}
        try:
            module.requires_grad_(True)
            yield numbers, {}
        finally:
            module.requires_grad_(False)
            for name, x in numbers.items():
                x.data.copy_(before[name])
                x.grad = None


@contextmanager
def _lora(
    lm: LanguageModel, site: Site, *, n_numbers: int, seed: int
) -> Generator[tuple[Mapping[str, Tensor], Edits]]:
    """LoRA (Hu et al. 2021) of the MLP's matrices, at the rank that is nearest to `n_numbers`."""
    from peft import LoraConfig, inject_adapter_in_model

    module = _mlp(lm, site)
    with plain_weights(module):
        matrices = {
            name.removesuffix(".weight"): x for name, x in module.named_parameters() if x.ndim == 2
        }
        before = {name: module.get_submodule(name) for name in matrices}
        rank = max(1, round(n_numbers / sum(sum(x.shape) for x in matrices.values())))
        config = LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(before),
            fan_in_fan_out=lm.shape.family.transposed,
        )  # fmt: skip
        try:
            with seeded(lm.device, seed=seed, part=0):
                inject_adapter_in_model(config, module)
            yield {name: x for name, x in module.named_parameters() if x.requires_grad}, {}
        finally:
            for name, part in before.items():
                module.set_submodule(name, part)
            del module.peft_config  # else the next one would seem to be a second


@torch.no_grad()
def random_features(setting: Setting, run: SAERun) -> SAE:
    """An SAE of the same kind whose features are directions drawn at random.

    Each is as often active as the latent it stands for: its pre-activations are shifted so that the
    same share of them lies above zero, or the threshold. Of those that compete for a place (`topk`)
    the same number is active a row.
    """
    sae = run.load_sae(setting.lm.device)
    # Not by torch: from the same seed the SAE itself may have started there.
    normal = np.random.default_rng(setting.config.seed).standard_normal(sae.W_dec.shape)
    rows = torch.from_numpy(normal).to(sae.W_dec)
    drawn = deepcopy(sae)
    drawn.W_enc.copy_(_of_norms(rows, sae.W_enc.T).T)
    drawn.W_dec.copy_(_of_norms(rows, sae.W_dec))
    x = _sample(setting)
    if (sae.encode(x) != 0).sum(-1).unique().numel() == 1:
        return drawn  # as many of each row, wherever they lie
    shifted, wanted = TunedSAE(drawn), _frequency(sae, x)
    low = -(drawn.pre(x).abs().amax() + sae.pre(x).abs().amax()).expand(sae.d_sae)
    high = -low
    for _ in range(HALVINGS):
        shifted.d.copy_((low + high) / 2)
        often = _frequency(shifted, x) > wanted
        low, high = low.where(often, shifted.d), shifted.d.where(often, high)
    shifted.d.copy_(low)  # which is not too often
    return shifted.fold()


def _frequency(coder: Coder, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, " d_sae"]:
    """Share of the rows in which each latent is active."""
    return (coder.encode(x) != 0).float().mean(0)


def _of_norms(rows: Float[Tensor, "n d"], like: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norm * torch.linalg.vector_norm(like, dim=1, keepdim=True)


def _sample(setting: Setting) -> Float[Tensor, "rows d_in"]:
    """Activations of the site on the first tokens that are learned from."""
    some, rows = list[Tensor](), setting.task.train
    (site,) = setting.sites
    with reading(setting.lm, [site]) as read:
        for part in rows.split(setting.config.batch_size):
            x = read(part.tokens.to(setting.lm.device))[site]
            some.append(x[part.present].float())
            if sum(map(len, some)) >= SAMPLE_ROWS:
                break
    return torch.cat(some)
