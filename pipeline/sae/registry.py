"""From an architecture's config to what it minimises: a new one is a leaf and a `case` here."""

from math import log
from typing import assert_never

from pipeline.config.architectures import (
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TiedConfig,
    TopKConfig,
)
from pipeline.sae.gated import GatedObjective
from pipeline.sae.jumprelu import JumpReluObjective
from pipeline.sae.matryoshka import MatryoshkaObjective
from pipeline.sae.objective import Objective
from pipeline.sae.relu import ReluObjective
from pipeline.sae.topk import AuxK, TopKObjective


def make_objective(config: ArchConfig, *, d_sae: int, rms: float = 1.0) -> Objective:
    """What this architecture minimises.

    Args:
        config: The architecture.
        d_sae: Number of latents.
        rms: Root mean square of the activations, the unit of JumpReLU's bandwidth.
    """
    match config:
        case ReluConfig():
            return ReluObjective()
        case ReluAprilConfig():
            return ReluObjective(weighted=True)
        case TiedConfig():
            return ReluObjective(tied=True)
        case GatedConfig():
            return GatedObjective()
        case TopKConfig():
            return TopKObjective(config.k, d_sae=d_sae)
        case BatchTopKConfig():
            return TopKObjective(config.k, d_sae=d_sae, over_batch=True)
        case MatryoshkaConfig():
            return MatryoshkaObjective(config.k, prefixes=config.prefixes, d_sae=d_sae)
        case JumpReluConfig():
            return JumpReluObjective(l0=config.l0, bandwidth=config.bandwidth * rms)
        case _:
            assert_never(config)


def make_aux(config: ArchConfig, *, d_in: int) -> AuxK | None:
    """How dead latents are revived, for the kinds that have a way of their own."""
    if not isinstance(config, TopKConfig | BatchTopKConfig | MatryoshkaConfig):
        return None
    k = d_in // 2 if config.k_aux is None else config.k_aux
    return AuxK(k=k, coefficient=config.aux_coefficient) if k * config.aux_coefficient else None


def starts_of(config: ArchConfig, *, rms: float = 1.0) -> dict[str, float]:
    """Where the parameters with one value a latent start."""
    match config:
        case GatedConfig():
            return dict.fromkeys(("b_enc", "b_gate", "r_mag", "b_mag"), 0.0)
        case JumpReluConfig():
            return {"b_enc": 0.0, "log_threshold": log(config.threshold * rms)}
        case _:
            return {"b_enc": 0.0}


def coefficient_of(config: ArchConfig, *, d_in: int, rms: float = 1.0) -> float:
    """The penalty's coefficient, before warm-up and control; 0 for the kinds without a penalty."""
    match config:
        case ReluConfig() | ReluAprilConfig() | TiedConfig() | GatedConfig():
            return config.l1
        case JumpReluConfig():
            return config.coefficient * rms * rms * d_in
        case TopKConfig() | BatchTopKConfig() | MatryoshkaConfig():
            return 0.0
        case _:
            assert_never(config)
