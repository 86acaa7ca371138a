"""A coder trained on scaled activations, made into one for activations as they are."""

from collections.abc import Mapping

from torch import Tensor


def fold(state: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """A coder that was trained on `x / scale`, as the one that takes `x` to the same latents.

        ((x / s) - b_dec) @ W_enc + b_enc = (x - s b_dec) @ (W_enc / s) + b_enc
        s (z @ W_dec + b_dec)             = z @ (s W_dec) + s b_dec

    Latents do not change, so that thresholds do not either.
    """
    folded = dict(state)
    folded["W_enc"] = state["W_enc"] / scale
    folded["W_dec"] = state["W_dec"] * scale
    folded["b_dec"] = state["b_dec"] * scale
    return folded
