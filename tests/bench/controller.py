"""Does `--target` find its l1 from anywhere? A grid of learning rates and starts, and its figure.

    python tests/bench/controller.py [--figure docs/img/controller.png]        # about 5 minutes

One sweep of relu on rows of the embedded model (mlp_out.2, F = 2 d, batch 512, seed 0): every
learning rate with l1 from a thousandth of the right one to a thousand times it, target 2 % after
500 steps of hold. Prints, for each, how many steps after the hold the L0 (mean of 5 lines) stays
within 15 % of the target, the lowest L0 after the target was first reached, and its mean over the
last fifth, both over the target.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from pipeline.config.grid import expand
from pipeline.config.stages import HarvestConfig
from pipeline.harvest.harvest import harvest
from pipeline.plots.style import BLUE, GRAY, RED, axes_in, make_figure, save
from pipeline.runs.curves import METRICS, read_curves
from pipeline.training.sweep import train_sweep
from tests.helpers.training import PLAIN

SITE, TARGET, HOLD, RIGHT = "mlp_out.2", 0.02, 500, 0.5
LRS = (1e-4, 1e-3, 1e-2)
STARTS = (1e-3, 0.1, 1.0, 10.0, 1e3)
LINES = 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--tokens", type=int, default=5_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        harvest(HarvestConfig(out=folder / "s.actstore", sites=(SITE,), tokens=300_000))
        settings = PLAIN | {
            "store": str(folder / "s.actstore"), "lr": list(LRS), "expansion": 2,
            "arch": {"kind": "relu", "l1": [RIGHT * s for s in STARTS], "target": TARGET},
            "hold": f"{HOLD} steps", "batch_size": 512, "tokens": args.tokens, "log_every": 10,
        }  # fmt: skip
        points = expand(settings, out=folder / "sweep")
        train_sweep(points, out=folder / "sweep")
        curves = [list(read_curves(point.config.out / METRICS)) for point in points]
    print("| lr | start of l1 / right one | settled after, steps | lowest | end |")
    print("|---|---|---|---|---|")
    for (lr, start), lines in zip(((a, b) for a in LRS for b in STARTS), curves, strict=True):
        print(f"| {lr:g} | {start:g} | {described(lines)} |")
    if args.figure:
        draw(curves, args.figure)


def described(lines: list[dict[str, float]]) -> str:
    steps = np.array([line["step"] for line in lines])
    ratio = np.array([line["l0"] for line in lines]) / (TARGET * 320)
    smooth = np.convolve(ratio, np.ones(LINES) / LINES, mode="same")[: -LINES // 2]
    outside = np.flatnonzero(abs(smooth - 1) > 0.15)
    settled = max(0, int(steps[outside[-1] + 1]) - HOLD) if outside[-1] + 1 < len(smooth) else None
    reached = np.flatnonzero(smooth <= 1)
    low = f"{smooth[reached[0] :].min():.2f}" if len(reached) else "not reached"
    end = ratio[-len(ratio) // 5 :].mean()
    return f"{settled if settled is not None else 'not settled'} | {low} | {end:.3f}"


def draw(curves: list[list[dict[str, float]]], out: Path) -> None:
    colors = (BLUE, "#2f855a", GRAY, "#b7791f", RED)
    figure = make_figure(width=11, height=5)
    for i, lr in enumerate(LRS):
        for row, (key, label) in enumerate((("l0", "L0"), ("beta", "l1"))):
            axes = axes_in(
                figure, (2, len(LRS), row * len(LRS) + i + 1), title=f"lr {lr:g}", y=label
            )
            for j, start in enumerate(STARTS):
                lines = curves[i * len(STARTS) + j]
                x, y = [line["rows"] for line in lines], [line[key] for line in lines]
                axes.plot(x, y, color=colors[j], lw=1.1, label=f"l1 started {start:g}x")
            axes.set_yscale("log")
            axes.set_xlabel("tokens seen")
            if key == "l0":
                axes.axhline(TARGET * 320, color="black", lw=0.8, ls="--")
            if not i and not row:
                axes.legend(fontsize=7, frameon=False)
    save(figure, out)


if __name__ == "__main__":
    main()
