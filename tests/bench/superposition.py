"""Features that are known, in superposition: does the dictionary find them?

    python tests/bench/superposition.py [--rows 500000] [--tokens 1000000] [--archs topk relu]
        [--seeds 0 1] [--figure FILE.png]

The setting of Sharkey, Braun and Millidge (2022), "Taking features out of superposition with
sparse autoencoders": 512 features in 256 dimensions, 5 of them active in a row on average. Feature
`i` is active with a probability that falls as `0.99^i` (the rarest 170 times as rarely as the
commonest), whether it is depends on which others are, and its size is uniform on [0, 1].

The rows are written into a store and learned from by one sweep, by defaults but for `--l0`. Of each
member: the mean over true
features of the largest cosine with a row of `W_dec` (mean max cosine similarity, MMCS), which
shares of the features have one above 0.9, L0 where the truth has 5, and dead latents.
"""

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actstore.manifest import StoreSpec
from pipeline.config.grid import Point, expand
from pipeline.plots.style import BLUE, GRAY, INK, LEGEND, RED, axes_in, few_ticks, make_figure, save
from pipeline.runs.curves import TrainReport
from pipeline.runs.sae_run import SAERun
from pipeline.training.sweep import train_sweep
from tests.helpers import stores

SITE, CTX_LEN, BLOCK = "mlp_out.0", 16, 2**14
N_FACTORS = 32  # hidden causes through which features are active together
D, F, ACTIVE = 256, 1024, 5
COLORS = (BLUE, RED, INK, GRAY)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What rows are made of."""

    features: Tensor
    """[n, d], unit rows."""
    probability: Tensor
    """[n]: of each to be active."""
    factors: Tensor
    """[n, N_FACTORS]: how each depends on the hidden causes; unit rows."""

    @staticmethod
    def make(*, n_features: int, d: int, active: float, decay: float = 0.99, seed: int) -> "Truth":
        """Random directions, `active` of them in a row on average."""
        rng = np.random.default_rng(seed)  # not torch's: a coder of this seed starts with its draws
        falling = decay ** torch.arange(n_features)

        def directions(width: int) -> Tensor:
            x = torch.from_numpy(rng.standard_normal((n_features, width), np.float32))
            return x / x.norm(dim=-1, keepdim=True)

        return Truth(
            features=directions(d),
            probability=falling * (active / falling.sum()),
            factors=directions(N_FACTORS),
        )

    def rows(self, n_rows: int, *, seed: int) -> Tensor:
        """[n_rows, d]. A feature is active where its standard normal variable is among the largest
        of its probability; these variables share causes, which explain half of their variance."""
        generator = torch.Generator().manual_seed(seed)
        causes = torch.randn(n_rows, N_FACTORS, generator=generator)
        own = torch.randn(n_rows, len(self.features), generator=generator)
        normal = (causes @ self.factors.T + own) / math.sqrt(2)
        bound = torch.special.ndtri(1 - self.probability.double()).float()
        size = torch.rand(own.shape, generator=generator)
        return torch.where(normal > bound, size, 0.0) @ self.features


def write_rows(path: Path, truth: Truth, *, n_rows: int, seed: int = 1) -> Path:
    """A store of rows made of these features, in float16."""
    spec = StoreSpec.of(
        widths={SITE: truth.features.shape[1]},
        ctx_len=CTX_LEN,
        dtype="float16",
        source={"model": "superposition", "revision": "main", "text": "superposition"},
    )
    blocks = (
        truth.rows(min(BLOCK, n_rows - start), seed=seed + start).numpy().astype(np.float16)
        for start in range(0, n_rows, BLOCK)
    )
    return stores.write_rows(path, spec, blocks, n_rows=n_rows)


def best_cosines(truth: Tensor, dictionary: Tensor) -> Tensor:
    """Of each true feature, the largest cosine with a row of the dictionary."""
    directions = dictionary / dictionary.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return (truth / truth.norm(dim=-1, keepdim=True) @ directions.T).amax(-1)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a member of the sweep came to."""

    point: Point
    cosines: Tensor
    report: TrainReport

    @property
    def mmcs(self) -> float:
        return float(self.cosines.mean())


def sweep(store: Path, truth: Truth, settings: dict[str, object], *, out: Path) -> list[Found]:
    """Train the members of a grid and compare each dictionary with the truth."""
    points = expand({"store": str(store), "device": "cpu"} | settings, out=out)
    reports = train_sweep(points, out=out)
    found = []
    for point, report in zip(points, reports, strict=True):
        coder = SAERun.open(point.config.out).load_sae(torch.device("cpu"))
        cosines = best_cosines(truth.features, coder.W_dec.detach())
        found.append(Found(point=point, cosines=cosines, report=report))
    return found


def draw(found: list[Found], out: Path) -> None:
    """What was found, and what stayed dead, by kind over L0."""
    figure = make_figure(width=9.4, height=3.6)
    left = axes_in(figure, (1, 2, 1), title="Known features that are found", y="mean max cosine")
    right = axes_in(figure, (1, 2, 2), title="Latents that stayed dead", y="share of latents")
    kinds = dict.fromkeys(f.point.config.arch.kind for f in found)
    for kind, color in zip(kinds, COLORS, strict=False):
        group = [f for f in found if f.point.config.arch.kind == kind]
        l0 = [f.report.l0 for f in group]
        left.plot(l0, [f.mmcs for f in group], "o", color=color, ms=4, label=kind)
        right.plot(l0, [f.report.n_dead / F for f in group], "o", color=color, ms=4, label=kind)
    for axes in (left, right):
        axes.axvline(ACTIVE, color=GRAY, lw=0.8, ls="--", label="of the truth")
        axes.set_xscale("log")
        few_ticks(axes.xaxis)
        axes.set_xlabel("L0: latents active per row")
    left.set_ylim(top=1.01)
    right.set_ylim(bottom=0)
    right.legend(**LEGEND)
    save(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000, help="Of the store.")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="Rows to train on.")
    parser.add_argument("--archs", nargs="+", default=["topk", "batchtopk", "jumprelu", "relu"])
    parser.add_argument("--l0", nargs="+", type=int, default=[3, ACTIVE, 8, 12])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    truth = Truth.make(n_features=512, d=D, active=ACTIVE, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        store = write_rows(Path(folder) / "known.actstore", truth, n_rows=args.rows)
        settings: dict[str, object] = {
            "tokens": args.tokens, "expansion": F // D, "seed": args.seeds,
            "arch": {"kind": args.archs, "l0": args.l0},
        }  # fmt: skip
        start = time.perf_counter()
        found = sweep(store, truth, settings, out=Path(folder) / "sweep")
        print(f"{len(found)} members in {time.perf_counter() - start:.0f} s")
    print(f"{'':28s}{'MMCS':>8s}{'> 0.9':>8s}{'L0':>8s}{'dead':>6s}")
    for f in found:
        near = float((f.cosines > 0.9).float().mean())
        told = f"{f.mmcs:8.4f}{near:8.3f}{f.report.l0:8.2f}{f.report.n_dead:6d}"
        print(f"{f.point.name:28s}{told}")
    if args.figure:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
