"""Connectors and their baselines in the place of a part of the model.

The first site is read and left as it is. In the place of the second stands, one pass each, what
the second SAE decodes from the latents that a map predicts; what it decodes from its own latents,
the best that any map can do; and zero, the worst.
"""

from collections.abc import Hashable, Mapping
from typing import final

from jaxtyping import Bool, Float64
from torch import Tensor

from pipeline.connect.connector import Connector
from pipeline.connect.evaluation.ends import Ends
from pipeline.connect.evaluation.outputs import OutputStats
from pipeline.connect.evaluation.predict import predict
from pipeline.connect.evaluation.scores import Errors
from pipeline.connect.latents import Latents
from pipeline.cross_entropy import slices
from pipeline.evaluate.fidelity import CLEAN, Losses
from pipeline.evaluate.sums import Columns, ContextSums, exact, sum_kept, zeros
from pipeline.replay import Replay

ZERO, SAE = "zero", "sae"
"""Passes beside those of the maps, which have their numbers for names."""


@final
class Splices:
    """Edited passes of batches, and what they cost.

    Args:
        ends: Both sites, and their SAEs.
        maps: From latents to latents.
        outputs: Statistics of the rows that count.
    """

    def __init__(self, ends: Ends, maps: tuple[Connector, ...], outputs: OutputStats) -> None:
        self.sites = tuple(dict.fromkeys(ends.sites))
        self.diverging = tuple(range(len(maps)))
        self.errors = [Errors(outputs, device=connector.W.device) for connector in maps]
        self.n_active = 0
        """Inputs that were active, in all rows together."""
        self._ends, self._maps, self._outputs = ends, maps, outputs
        self._sums = ContextSums()

    def edited(
        self, replay: Replay, kept: Bool[Tensor, "contexts ctx_len"]
    ) -> dict[Hashable, Tensor]:
        """Last hidden states of the edited passes of a batch, by name."""
        source, target = self._ends.sites
        x1, x2 = replay.acts(source).flatten(0, 1), replay.acts(target).flatten(0, 1)
        values: dict[Hashable, Tensor] = {name: x2.clone() for name in (ZERO, SAE, *self.diverging)}
        rows = kept.flatten().nonzero()[:, 0]
        values[ZERO][rows] = 0
        table = zeros(len(self._maps) + 1, kept.numel(), device=kept.device)
        for part in slices(rows):
            self._edit(x1, x2, rows[part], values, table)
        for name, per_row in zip(self._of_rows, table.view(-1, *kept.shape), strict=True):
            self._sums.add(name, per_row.sum(-1))
        shape = (*kept.shape, -1)
        return {name: replay.edited(target, value.view(shape)) for name, value in values.items()}

    def _edit(
        self,
        x1: Tensor,
        x2: Tensor,
        rows: Tensor,
        values: Mapping[Hashable, Tensor],
        table: Float64[Tensor, "sums all_rows"],
    ) -> None:
        """Write what stands in some rows, and what these rows add to the sums."""
        pair, at = self._ends.pair, rows.to(table.device)
        latents = Latents(
            z1=pair.source.encode(x1[rows].float()), z2=pair.target.encode(x2[rows].float())
        )
        self.n_active += int((latents.z1 > 0).sum())
        mean = self._outputs.mean.to(table.device)
        table[-1, at] = (exact(latents.z2) - mean).square().sum(-1)
        values[SAE][rows] = pair.target.decode(latents.z2).to(x2.dtype)
        for i, connector in enumerate(self._maps):
            z2_hat = predict(connector, latents)
            table[i, at] = self.errors[i].add(latents.z2, z2_hat)
            values[i][rows] = pair.target.decode(z2_hat).to(x2.dtype)

    def sum_up(self, found: Losses, kept: Bool[Tensor, "contexts ctx_len"]) -> None:
        """Sum what a batch's passes lost where it counts."""
        counted = kept[:, :-1]
        self._sums.add("n_predictions", exact(counted.float()).sum(-1))
        for name in (CLEAN, ZERO, SAE, *self.diverging):
            self._sums.add(f"nll_{name}", sum_kept(found.nll[name], counted))
        for name in self.diverging:
            self._sums.add(f"kl_{name}", sum_kept(found.kl[name], counted))

    @property
    def _of_rows(self) -> tuple[str, ...]:
        return (*(f"error_{name}" for name in self.diverging), "spread")

    @property
    def sums(self) -> Columns:
        """Of each context: `nll_PASS`, and of each map `kl_MAP` and `error_MAP`; `spread`."""
        return self._sums.all()
