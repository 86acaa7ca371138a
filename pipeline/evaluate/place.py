"""The rows of a site that an evaluation edits and counts: all of them, or those of training."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.families import Site
from pipeline.train_config import TrainConfig

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Rows that training left out: see `pipeline.training.feed`."""

    positions: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    norms: float | None = None
    """Rows whose norm is above so many times the median."""

    @staticmethod
    def of(config: TrainConfig) -> "Exclusion":
        """What a training of this config left out."""
        return Exclusion(
            positions=tuple(sorted({*config.exclude_positions})),
            tokens=tuple(sorted({*config.exclude_tokens})),
            norms=config.exclude_norms,
        )

    @property
    def words(self) -> tuple[str, ...]:
        """As a reader of a report is told; empty for nothing."""
        named = [
            f"{what}{'s' * (len(values) > 1)} {_listed(values)}"
            for what, values in (("position", self.positions), ("token", self.tokens))
            if values
        ]
        if self.norms is not None:
            named.append(f"rows whose norm is above {self.norms:g} times the median")
        return tuple(named)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A site, and the rows of it that are left as they are and not counted."""

    site: Site
    excluded: Exclusion

    def kept(
        self,
        tokens: Int[Tensor, "contexts ctx_len"],
        acts: Float[Tensor, "contexts ctx_len width"],
        *,
        limit: float | None,
    ) -> Bool[Tensor, "contexts ctx_len"]:
        """Which rows are edited and counted.

        Args:
            tokens: at these rows.
            acts: at the site.
            limit: the largest norm that is kept, if rows are excluded by their norm.
        """
        kept = torch.ones_like(tokens, dtype=torch.bool)
        kept[:, list(self.excluded.positions)] = False
        if self.excluded.tokens:
            banned = torch.tensor(self.excluded.tokens, device=tokens.device)
            kept &= torch.isin(tokens, banned, invert=True)
        if limit is not None:
            kept &= torch.linalg.vector_norm(acts.float(), dim=-1) <= limit
        return kept


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
