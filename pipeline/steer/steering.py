"""What is done to some latents of an SAE, as a value: from activations to steered ones.

    add s:     x + s W_dec[i]
    clamp to V: x + (V - z_i) W_dec[i]
    ablate:    x - z_i W_dec[i], that is, clamp to 0

What the SAE does not explain of x stays in it. Several latents add up; `z` is of x as it comes. A
latent that is read again behind it is V where the dictionary is orthogonal and the latent was at
its threshold or above: below that, its pre-activation has further to go.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.sae.sae import Coder


@final
@dataclass(frozen=True)
class Steering:
    """Latents of an SAE that are raised, held at a value, or turned off.

        steering = sp.Steering(sae, add={123: 8.0}, clamp={7: 0.5}, ablate=[9])
        with model.steered({"mlp_out.2": steering}):
            print(model.generate("def f(x):", max_new_tokens=20))

    Args:
        sae: An `SAE`, or the tuned one of a fine-tuning.
        add: By the number of a latent, what is added to its activation, in the units of the site:
            `x + s W_dec[i]`, wherever the latent is active or not. 0 leaves x as it is, bit for
            bit.
        clamp: By the number of a latent, what its activation is set to: `x + (V - z_i) W_dec[i]`.
        ablate: Latents whose activation is set to 0.

    Raises:
        ConfigError: the SAE is none, a latent is none of its, stands in two of the three or in
            none, or a value is not finite.
    """

    sae: Coder
    add: Mapping[int, float] = field(default_factory=dict[int, float], hash=False)
    clamp: Mapping[int, float] = field(default_factory=dict[int, float], hash=False)
    ablate: Iterable[int] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.sae, Coder):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"Steering takes an SAE, got {type(self.sae).__name__}: of a run, give run.sae"
            )
        told = {"add": self.add, "clamp": self.clamp}
        for name, values in told.items():
            if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(f"{name} takes values by latent, as {{123: 8.0}}, got {values!r}")
            object.__setattr__(self, name, {_index(i): _value(v) for i, v in values.items()})
        object.__setattr__(self, "ablate", tuple(map(_index, self.ablate)))
        latents = self.latents
        if not latents:
            raise ConfigError("nothing is steered: give add, clamp or ablate a latent")
        for i in latents:
            if not 0 <= i < self.sae.d_sae:
                raise ConfigError(f"the SAE has features 0 to {self.sae.d_sae - 1}, got {i}")
        if len(set(latents)) < len(latents):
            twice = next(i for i in latents if latents.count(i) > 1)
            raise ConfigError(f"feature {twice} is steered twice: add, clamp or ablate it once")

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.sae.d_in

    @property
    def latents(self) -> tuple[int, ...]:
        """Those that are steered, in the order of `add`, `clamp` and `ablate`."""
        return (*self.add, *self.clamp, *self.ablate)

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The steered activations: x itself where there is nothing to add.

        Raises:
            ConfigError: rows are not `d_in` wide.
        """
        if x.shape[-1:] != (self.d_in,):
            raise ConfigError(f"Steering takes [..., {self.d_in}] of its SAE, got {list(x.shape)}")
        W_dec, steered = self.sae.W_dec, x
        if any(self.add.values()):
            amounts = torch.tensor(list(self.add.values()), device=W_dec.device)
            written = amounts @ W_dec[list(self.add)] * self.sae.written_scale(x.to(W_dec))
            steered = steered + written.to(x)
        held = {**self.clamp, **dict.fromkeys(self.ablate, 0.0)}
        if held:
            wanted = torch.tensor(list(held.values()), device=W_dec.device)
            z = self.sae.encode(x.to(W_dec))[..., list(held)]
            written = (wanted - z) @ W_dec[list(held)] * self.sae.written_scale(x.to(W_dec))
            steered = steered + written.to(x)
        return steered

    def __repr__(self) -> str:
        did = {"add": self.add, "clamp": self.clamp, "ablate": self.ablate}
        words = ", ".join(f"{name}={what}" for name, what in did.items() if what)
        return f"Steering({words}; of {self.sae!r})" if words else f"Steering({self.sae!r})"


def _index(i: object) -> int:
    try:
        return i.__index__()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
    except (AttributeError, TypeError):
        raise ConfigError(f"features are whole numbers, got {i!r}") from None


def _value(value: object) -> float:
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"a feature is steered by a number, got {value!r}")
    return number
