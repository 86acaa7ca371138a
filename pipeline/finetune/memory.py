"""How much memory a fine-tuning takes, part by part, worked out before any of it is allocated.

    weights         of the model, in its precision or quantised
    sae             frozen, in float32
    learned         c and d with their gradients, moments and start
    kept            what the forward pass leaves for the backward pass: nothing below the site
    passing         the most that is held for a moment on top: a slice of logits with its gradient,
                    what a checkpointed layer computes again, a quantised matrix made whole
    compared        with --compare, the weights of an MLP that is learned as a whole
    process         on a CPU: the interpreter, its libraries and the text, which share the memory

Nothing is guessed of the model: its modules, without memory, are run through a step
(`pipeline.finetune.rehearsal`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.stages import FinetuneConfig
from pipeline.device import bytes_free, bytes_resident, pick_device, pick_dtype, pick_precision
from pipeline.errors import ConfigError
from pipeline.finetune.rehearsal import rehearse
from pipeline.finetune.sources import model_needed
from pipeline.lm.model import LanguageModel, outline_model
from pipeline.lm.quantized import QuantizedLinear
from pipeline.lm.sites import LayerSite, Site
from pipeline.progress import size
from pipeline.runs.imported import site_named
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE

HEADROOM = 1.05
"""Of what is free: freed blocks are not always of the size that is asked for next."""
WHILE_READ = 4
"""Times its size that an SAE takes on the CPU while its file is read and checked."""
LATER = 64 * 2**20
"""What a process on a CPU comes to hold beside all that: tokenizer, texts, buffers of libraries.
As measured (docs/measurements/finetune.md)."""
FLOAT32 = 4
_WORTH = 0.03
"""A setting helps that saves this share of all that is needed."""


_NOTHING_HELPS = "no other setting takes much less"


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """One line of a plan."""

    name: str
    """As the text of this module has it."""
    words: str
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a fine-tuning takes of the memory of its device."""

    config: FinetuneConfig = field(repr=False)
    model: str
    site: str
    """Of several SAEs all, with commas."""
    device: str
    precision: str
    parts: tuple[MemoryPart, ...]
    bytes_needed: int
    """All parts together, at the moment that takes most."""
    bytes_free: int | None
    """On the device, with what the process holds of it already; None where nobody says."""

    @property
    def fits(self) -> bool:
        """Whether there is room for it, as far as one knows."""
        return self.bytes_free is None or HEADROOM * self.bytes_needed <= self.bytes_free

    def of(self, name: str) -> int:
        """The bytes of a part; 0 where the plan has no such."""
        return sum(part.n_bytes for part in self.parts if part.name == name)

    def fitting(self, runs: Sequence[SAERun]) -> "MemoryPlan":
        """The plan of a fine-tuning through these SAEs, if it fits.

        Raises:
            ConfigError: it does not; which settings would help, and how much.
        """
        if self.fits:
            return self
        own = self.bytes_needed - self.of("process")
        others = [(flag, plan_memory(config, runs)) for flag, config in _lighter(self.config)]
        helpful = [
            f"{size(plan.bytes_needed)} with {flag}"
            for flag, plan in others
            if own - (plan.bytes_needed - plan.of("process")) > _WORTH * self.bytes_needed
        ]
        if not find_spec("bitsandbytes") and self.config.quantize is None:
            helpful.append("less with --quantize 4bit (pip install 'saepipe[quantize]')")
        told = f"it would take {', '.join(helpful)}" if helpful else _NOTHING_HELPS
        raise ConfigError(
            f"fine-tuning at {self.site} of {self.model} takes about {size(self.bytes_needed)} of "
            f"memory, and {self.device} has {size(self.bytes_free or 0)}: {told}"
        )


def plan_memory(config: FinetuneConfig, runs: Sequence[SAERun]) -> MemoryPlan:
    """Work it out; of the model only config.json is read, of the SAEs their run.json.

    Raises:
        ConfigError: the site, the width or the context does not fit, the device is not there, or
            what quantises is not installed.
        ModelError: the model cannot be found, reached or read.
    """
    name, revision = model_needed(config, runs)
    device = pick_device(config.device)
    by_site = {site_named(config.site or run.provenance.site, run.path): run for run in runs}
    where, first = ", ".join(map(str, by_site)), min(by_site)
    dtype = pick_dtype(config.precision, device)
    lm = outline_model(
        name, revision=revision, dtype=dtype, quantize=config.quantize,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    if lm.shape.family.experts:
        raise ConfigError(
            f"{lm.name} is a {lm.shape.family.model_class}: what a step takes depends on which "
            "experts tokens are given to, and cannot be planned; choose a model without"
        )
    for site, run in by_site.items():
        lm.require_fits(site, d_in=run.provenance.d_in, ctx_len=config.ctx_len, run=run.path)
    weights, largest = _bytes(lm.module), _largest(lm.module)
    made: dict[Site, TunedSAE] = {}

    def make() -> Mapping[Site, TunedSAE]:
        made.update((site, TunedSAE(run.blank_sae())) for site, run in by_site.items())
        return made

    step = rehearse(
        lm, make, device=device, batch_size=config.batch_size, ctx_len=config.ctx_len,
        keep_error=config.keep_error, checkpointing=config.checkpointing,
    )  # fmt: skip
    sae = sum(_bytes(coder.sae) for coder in made.values())
    learned = sum(_learned(coder, config) for coder in made.values())
    kept, passing = step.kept, step.peak - step.kept
    if device.type == "cpu":  # elsewhere files are read beside the device
        reading = max(FLOAT32 * largest - sae, (WHILE_READ - 1) * sae)
        passing = max(passing, reading - learned - kept)
    n_features = sum(run.d_sae for run in runs)
    precision = pick_precision(config.precision, device=device)
    layers = "" if config.quantize is None else f", layers in {config.quantize}"
    again = ", layers computed twice" if config.checkpointing else ""
    parts = [
        MemoryPart(name="weights", words=f"{lm.name} in {precision}{layers}", n_bytes=weights),
        MemoryPart(name="sae", words=f"{n_features:,} features in fp32", n_bytes=sae),
        MemoryPart(name="learned", words="c and d, their gradients and moments", n_bytes=learned),
        MemoryPart(
            name="kept", n_bytes=kept,
            words=f"above {first} for {config.batch_size} x {config.ctx_len} tokens{again}",
        ),
        MemoryPart(name="passing", words="at most at once on top of that", n_bytes=passing),
    ]  # fmt: skip
    if config.compare:
        site = first.of_layer("--compare")
        mlp = _numbers_of_mlp(lm, site)
        n_bytes = 6 * dtype.itemsize * mlp  # itself, before, start, gradient and two moments
        words = f"the MLP of layer {site.layer}, learned as a whole"
        parts.append(MemoryPart(name="compared", words=words, n_bytes=n_bytes))
    free, held = bytes_free(device), 0
    if device.type == "cpu":
        held = bytes_resident()
        words = "Python, its libraries, tokenizer and texts"
        parts.append(MemoryPart(name="process", words=words, n_bytes=held + LATER))
    return MemoryPlan(
        config=config, model=lm.name, site=where, device=str(device), precision=precision,
        parts=tuple(parts), bytes_needed=sum(part.n_bytes for part in parts),
        bytes_free=None if free is None else free + held,
    )  # fmt: skip


def _bytes(module: nn.Module) -> int:
    """Of all parameters and buffers, those that are shared once."""
    its: dict[int, Tensor] = {id(x): x for x in (*module.parameters(), *module.buffers())}
    return sum(x.nbytes for x in its.values())


def _largest(module: nn.Module) -> int:
    return max(p.numel() for p in module.parameters())


def _numbers_of_mlp(lm: LanguageModel, site: LayerSite) -> int:
    mlp = lm.body.get_submodule(lm.shape.mlp_path(site.layer, name=lm.name))
    quantized = (part.shape for part in mlp.modules() if isinstance(part, QuantizedLinear))
    return sum(shape.numel() for shape in (*(p.shape for p in mlp.parameters()), *quantized))


def _learned(tuned: TunedSAE, config: FinetuneConfig) -> int:
    """C and d; of those that are trained also a gradient, two moments, a start and perhaps a goal.

    And of which latents something was learned.
    """
    numbers = {"both": (tuned.c, tuned.d), "scale": (tuned.c,), "bias": (tuned.d,)}[config.train]
    copies = 4 if config.decay_to == "start" else 5
    trained = copies * sum(x.nbytes for x in numbers)
    return tuned.c.nbytes + tuned.d.nbytes + tuned.learned.nbytes + trained


def _lighter(config: FinetuneConfig) -> Iterator[tuple[str, FinetuneConfig]]:
    """Settings that may take less, each alone and then all of them."""
    changes: list[tuple[str, dict[str, Any]]] = []
    if pick_dtype(config.precision, pick_device(config.device)) is torch.float32:
        changes.append(("--precision bf16", {"precision": "bf16"}))
    if config.quantize != "4bit" and find_spec("bitsandbytes"):
        bits = ("4bit",) if config.quantize else ("8bit", "4bit")
        changes += [(f"--quantize {one}", {"quantize": one}) for one in bits]
    if not config.checkpointing:
        changes.append(("--checkpointing", {"checkpointing": True}))
    if config.batch_size > 1:
        half = config.batch_size // 2
        changes.append((f"--batch-size {half}", {"batch_size": half}))
    if config.ctx_len > 1:
        half = config.ctx_len // 2
        changes.append((f"--ctx-len {half}", {"ctx_len": half}))
    every: dict[str, Any] = {}
    for flag, change in changes:
        every |= change
        yield flag, replace(config, **change)
    if len(changes) > 1:
        yield "all of these", replace(config, **every)
