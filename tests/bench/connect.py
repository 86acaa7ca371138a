"""How fast connectors train, against a dense minimal loop, and what they take in memory.

    python tests/bench/connect.py                     # steps, members and memory, about 6 minutes
    python tests/bench/connect.py --parts steps       # one of steps, members, memory

Rows have `L0` active latents of each SAE, at random places. A step is timed from latents that are
there already: encoding costs both sides the same. Ours finds the active pairs, and does all that
`saepipe train --connect` does in a step: proximal L1, clipping, Adam. The minimal loop is autograd
of the same loss with dense products, and fused Adam; members of a sweep are so many of its loops.
What is compared is interleaved in one process, ratios are taken round by round: median
[lowest..highest]. 2 threads compute.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from minimal_loop import LR, loop, step_seconds
from torch import Tensor

from pipeline.config.training import ConnectConfig
from pipeline.connect.connector import Connector, End, PairLatents
from pipeline.connect.group import ConnectorGroup, ConnectorMember
from pipeline.connect.run import ConnectorRun
from pipeline.connect.train import connector_bytes
from pipeline.runs.curves import METRICS, Curves
from pipeline.runs.folder import Provenance
from pipeline.sae.active_pairs import Scratch
from pipeline.training.optimizer import Schedule
from tests.bench.common import printed_by, spread

L0, BATCH, L1 = 32, 1024, 1e-3
WARM, STEPS = 2, 3
"""Steps before the clock starts, and steps that are timed, of a way in a round."""
SIZES = (2048, 8192)
MEMBERS = (1, 2, 4)
LARGEST = 16384
Rows = list[tuple[Tensor, Tensor]]


def make_rows(n_batches: int, d_sae: int, *, l0: int = L0) -> Rows:
    """Latents of both SAEs, batch by batch."""
    generator = torch.Generator().manual_seed(0)

    def latents() -> Tensor:
        values = torch.rand(BATCH, l0, generator=generator) + 0.1
        places = torch.rand(BATCH, d_sae, generator=generator).topk(l0, dim=1).indices
        return torch.zeros(BATCH, d_sae).scatter_(1, places, values)

    return [(latents(), latents()) for _ in range(n_batches)]


def make_groups(
    n: int, d_sae: int, folder: Path, files: ExitStack, **changes: object
) -> list[ConnectorGroup]:
    """What `saepipe train --connect` would train between two SAEs of this size."""
    ends = [End(run=folder / name, site=name, sha256="0", d_sae=d_sae) for name in ("in", "out")]
    provenance = Provenance(
        path=folder, fingerprint="0", model="none", revision="main", model_fingerprint="0",
        text="none", site="out", d_in=1, ctx_len=1, n_rows=1, dtype="float32",
    )  # fmt: skip
    groups, scratch = list[ConnectorGroup](), Scratch()
    for i in range(n):
        out = Path(tempfile.mkdtemp(dir=folder))
        settings = {
            "store": folder, "out": out, "ends": (ends[0].run, ends[1].run), "device": "cpu",
            "l1": L1 * 2**i, "lr": LR, "batch_size": BATCH, "checkpoint_every": 10**6,
            "start": "random",
        }  # fmt: skip
        config = ConnectConfig(**settings | changes)  # pyright: ignore[reportArgumentType]
        run = ConnectorRun(
            path=out, config=config, provenance=provenance, source=ends[0], target=ends[1]
        )
        curves = files.enter_context(Curves(out / METRICS, keep=0))
        member = ConnectorMember(
            run, curves=curves, schedule=Schedule.of(run.config, n_steps=10**6)
        )
        start = Connector(*make_start(d_sae))
        everything = torch.ones(d_sae, dtype=torch.bool)
        groups.append(ConnectorGroup(member, start, predicted=everything, scratch=scratch))
    return groups


def make_start(d_sae: int) -> tuple[Tensor, Tensor]:
    """Weights and biases."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(d_sae, d_sae, generator=generator) / d_sae**0.5, torch.zeros(d_sae)


def minimal(batches: Iterator[tuple[Tensor, Tensor]], d_sae: int) -> None:
    """The minimal loop."""
    params = make_start(d_sae)
    for param in params:
        param.requires_grad_()

    def loss(batch: tuple[Tensor, Tensor], W: Tensor, b: Tensor) -> Tensor:
        z1, z2 = batch
        error = torch.relu(z1 @ W + b) - z2
        return error.square().sum(1).mean() + L1 * W.abs().sum()

    loop(batches, params, loss)  # pyright: ignore[reportArgumentType]


def steps(d_sae: int, members: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """Seconds a step of every way, round by round."""
    told: dict[str, list[float]] = {}
    rows = make_rows(WARM + STEPS, d_sae)
    for _ in range(rounds):
        alone = step_seconds(lambda batches: minimal(batches, d_sae), rows, warm=WARM)
        told.setdefault("minimal", []).append(alone)
        cells = {f"{n} sparse": (n, "on") for n in members} | {"1 dense": (1, "off")}
        for name, (n, sparse) in cells.items():
            with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
                groups = make_groups(n, d_sae, Path(folder), files, sparse=sparse)

                def ours(
                    batches: Iterator[tuple[Tensor, Tensor]],
                    groups: list[ConnectorGroup] = groups,
                ) -> None:
                    for z1, z2 in batches:
                        latents = PairLatents(z1=z1, z2=z2)
                        for group in groups:
                            group.advance(latents)

                told.setdefault(name, []).append(step_seconds(ours, rows, warm=WARM))
    return told


def memory(d_sae: int) -> dict[str, float]:
    """GB at the most that a few steps of one connector take, and what is planned for it."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        (group,) = make_groups(1, d_sae, Path(folder), files)
        for z1, z2 in make_rows(3, d_sae):
            group.advance(PairLatents(z1=z1, z2=z2))
        planned = connector_bytes([group.members[0].run]) / 1e9
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "planned": planned}


def print_steps(sizes: Sequence[int], members: Sequence[int], rounds: int) -> None:
    print(f"\nbatch {BATCH}, L0 {L0}\n| F | members | rows/s | / minimal | goal |\n{'|---' * 5}|")
    for d_sae in sizes:
        told = printed_by(sys.executable, __file__, "--cell", "steps", d_sae, rounds, *members)
        base = told.pop("minimal")
        print(f"| {d_sae} | minimal | {BATCH / statistics.median(base):,.0f} | 1 | |")
        for name, seconds in told.items():
            n = int(name.split()[0])
            ratio = spread([n * a / b for a, b in zip(base, seconds, strict=True)])
            rate = n * BATCH / statistics.median(seconds)
            goal = 2 if (d_sae, name) == (8192, "1 sparse") else ""
            print(f"| {d_sae} | {name} | {rate:,.0f} | {ratio} | {goal} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="*", default=["steps", "members", "memory"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cell", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.cell:
        what, d_sae, *numbers = args.cell
        if what == "memory":
            print(json.dumps(memory(int(d_sae))))
        else:
            rounds, *members = map(int, numbers)
            print(json.dumps(steps(int(d_sae), members, rounds)))
        return
    if "steps" in args.parts:
        print_steps(SIZES, [1], args.rounds)
    if "members" in args.parts:
        print_steps(SIZES[:1], MEMBERS, args.rounds)
    if "memory" in args.parts:
        told = printed_by(sys.executable, __file__, "--cell", "memory", LARGEST)
        words = ", ".join(f"{name} {gigabytes:.1f} GB" for name, gigabytes in told.items())
        print(f"\n{LARGEST} x {LARGEST}: {words}")


if __name__ == "__main__":
    main()
