"""Where the time of a training step goes: its parts, as shares of one whole product.

    python tests/bench/step_parts.py [--arch topk] [--width 512] [--f 640 2048 8192 32768]
        [--batch 1024] [--rounds 60] [--threads 2]

Every part is timed inside real steps of `saepipe train`, the median over rounds. `product` is that
of all rows with all latents in float32, between steps: on a CPU with tiles for bfloat16, a step of
topk has a narrow one instead. What is left over between parts is `other`. A table a number of
latents, in milliseconds and as shares of `product`.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from train_cells import K, make_group, write_store

from actstore.reader import ActStore
from pipeline.config.architectures import ARCHS
from pipeline.sae import active_pairs, narrow, select
from pipeline.sae.dead import SilentRows
from pipeline.sae.stack import Stack
from pipeline.training.optimizer import Adam

PARTS = {
    "pre": (Stack, "_pre"),
    "pick": (select, "largest_of_rows"),
    "narrow product": (narrow, "product"),
    "narrow pick": (Stack, "_largest"),
    "order": (select, "_in_order"),
    "counts": (active_pairs.Pairs, "counts"),
    "sums": (active_pairs.Pairs, "by_latent"),
    "decode": (active_pairs.Pairs, "decode"),
    "pull": (active_pairs.Pairs, "pull"),
    "outer": (active_pairs.Pairs, "outer"),
    "clip": (Stack, "clip"),
    "project": (Stack, "project"),
    "Adam": (Adam, "step"),
    "unit norm": (Stack, "renormalise"),
    "silent": (SilentRows, "update"),
}
"""Name of a part -> where its function is."""


class Clock:
    """Seconds of each part of a step, without those of parts inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def timed(self, name: str, function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **settings: Any) -> Any:
            began = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **settings)
            finally:
                seconds = time.perf_counter() - began
                self.spent[name] += seconds - self._inside.pop()
                self._inside[-1] += seconds

        return call


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="topk")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--f", type=int, nargs="+", default=[640, 2048, 8192, 32768])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = Clock()
    for name, (where, function) in PARTS.items():
        setattr(where, function, clock.timed(name, getattr(where, function)))
    narrow.largest_of_rows = select.largest_of_rows  # imported by its name
    told = {f: parts_of(clock, f, args) for f in args.f}
    print(f"\n{args.arch}, width {args.width}, {args.batch} rows a step, ms (share of `product`)\n")
    print(f"| part | {' | '.join(f'F {f:,}' for f in told)} |\n|---|{'---|' * len(told)}")
    for name in ["product", *PARTS, "other", "step"]:
        cells = [f"{1e3 * t[name]:.2f} ({t[name] / t['product']:.2f})" for t in told.values()]
        print(f"| {name} | {' | '.join(cells)} |")


def parts_of(clock: Clock, n_latents: int, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each part."""
    width = args.width if n_latents % args.width == 0 else 160
    with tempfile.TemporaryDirectory() as name, ExitStack() as files:
        folder = Path(name)
        store = ActStore.open(write_store(folder / "s.actstore", n_rows=2**14, width=width))
        arch = ARCHS[args.arch](**({"k": K} if args.arch in {"topk", "batchtopk"} else {}))
        group = make_group(
            store, folder / "run", files, expansion=n_latents // width, batch_size=args.batch,
            arch=arch, sparse="on",
        )  # fmt: skip
        rows = torch.randn(4, args.batch, width, generator=torch.Generator().manual_seed(0))
        W, pre = torch.randn(width, n_latents), torch.empty(args.batch, n_latents)
        rounds: list[dict[str, float]] = []
        for i in range(args.rounds + 5):
            clock.spent.clear()
            began = time.perf_counter()
            group.advance(rows[i % 4])
            seconds = time.perf_counter() - began
            spent = {part: clock.spent[part] for part in PARTS}
            began = time.perf_counter()
            torch.mm(rows[i % 4], W, out=pre)
            whole = {"product": time.perf_counter() - began, "step": seconds}
            rounds.append(spent | whole | {"other": seconds - sum(spent.values())})
    return {part: statistics.median(r[part] for r in rounds[5:]) for part in rounds[0]}


if __name__ == "__main__":
    main()
