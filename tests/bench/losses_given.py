"""Weights and rows on which `losses_agree.py` compares: random ones, and the awkward cases."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

D_IN, D_SAE, ROWS = 16, 64, 128
WIDTHS = (16, 32, 64)
L1, AUX, L0 = 0.3, 0.5, 4.0
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Weights and rows to compare on."""

    name: str
    seed: int
    k: int = 8
    bandwidth: float = 0.5
    unit: bool = True
    """Rows of `W_dec` have unit norm; otherwise norms of all sizes, and one of zero."""
    silent: bool = False
    """Nothing is active."""
    gap: bool = False
    """No pre-activation is a little below its threshold, some are a little above."""


SETTINGS = (
    Setting(name="seed 0", seed=0),
    Setting(name="seed 1, gaps", seed=1, bandwidth=0.125, gap=True),
    Setting(name="all silent", seed=2, silent=True),
    Setting(name="free norms, large k", seed=3, unit=False, k=48),
)


def make(setting: Setting) -> dict[str, np.ndarray]:
    """What `peer_losses.py` is given."""
    rng = np.random.default_rng(setting.seed)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return scale * rng.standard_normal(shape)

    W_dec = normal(D_SAE, D_IN, scale=1)
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    given = {
        "x": normal(ROWS, D_IN, scale=1), "b_dec": normal(D_IN, scale=0.3),
        "W_enc": normal(D_IN, D_SAE, scale=0.25), "b_enc": normal(D_SAE, scale=0.1),
        "W_dec": W_dec, "threshold": rng.uniform(0.2, 1, D_SAE),
    }  # fmt: skip
    given |= {name: normal(D_SAE, scale=0.2) for name in ("b_gate", "r_mag", "b_mag")}
    if not setting.unit:
        W_dec *= np.geomspace(0.1, 3, D_SAE)[:, None]
        W_dec[20] = 0
    quiet = rng.permutation(D_SAE)[:15]  # below the k largest; nine above zero, six below
    given["W_enc"][:, quiet] *= 0.02
    given["b_enc"][quiet] = np.where(np.arange(15) < 9, 0.3, -0.3)
    if setting.silent:
        given["b_enc"] -= 100
        given["b_gate"] -= 100
    if setting.gap:
        given["threshold"] = thresholds_above_gaps(pre_of(given), setting.bandwidth, rng)
    masks = {"few": quiet[:3], "quiet": quiet[:9], "below": quiet[7:11], "all": np.arange(D_SAE)}
    masks["most"] = rng.permutation(D_SAE)[:40]
    given |= {f"dead {name}": np.isin(np.arange(D_SAE), at) for name, at in masks.items()}
    given |= {"l1": L1, "k": setting.k, "aux_coefficient": AUX, "l0": L0, "coefficient": 0.25}
    given |= {"bandwidth": setting.bandwidth, "widths": np.array(WIDTHS)}
    return {name: np.asarray(value) for name, value in given.items()}


def pre_of(given: Arrays) -> np.ndarray:
    return (given["x"] - given["b_dec"]) @ given["W_enc"] + given["b_enc"]


def thresholds_above_gaps(
    pre: np.ndarray, bandwidth: float, rng: np.random.Generator
) -> np.ndarray:
    """Of each latent, a little below a value that has no other within half a bandwidth below."""
    found: list[float] = []
    for values in np.sort(pre.T, axis=1):
        lonely = (np.diff(values) > 0.7 * bandwidth) & (values[1:] > bandwidth)
        choice = values[1:][lonely]
        found.append(rng.choice(choice) - 0.1 * bandwidth if len(choice) else values[-1] + 1)
    return np.array(found)
