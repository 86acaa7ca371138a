"""How fast training is, against a minimal loop and against the peers.

    python tests/bench/train.py                       # steps, store and sweep, about 15 minutes
    python tests/bench/train.py --parts steps         # one of steps, wide, store, sweep, peers
    python tests/bench/train.py --parts peers --saelens PY --dictionary-learning PY --sparsify PY

Every shape and every whole run is a process of its own; what is compared is interleaved, ratios are
taken round by round: median [lowest..highest]. Rows are normal, each coordinate with its own
spread, and 2 threads compute. The cells are in `train_cells.py`; how the peers' environments are
made stands in `peer_train_common.py`. A step of ours is all that `saepipe train` does in it: norm
constraint, clipping, dead counts, curves every 50 steps. `relu_1%` and the like
start with biases that let so many latents through, and stay there.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.bench.common import printed_by, ratios, spread, wall

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SHAPES = [(512, F, B) for F in (2048, 8192, 16384) for B in (1024, 4096)]
WIDE = [(4096, F, 1024) for F in (8192, 16384)]
BASE = {
    "topk_whole": "minimal_relu",
    "topk": "minimal_relu",
    "topk_bf16": "minimal_relu",
    "batchtopk": "minimal_relu",
}
GOALS = {  # of d 512, by cell and F
    ("relu", 0): 1.2, ("topk", 2048): 3.2, ("topk", 8192): 4.2, ("relu_1%", 0): 3.0,
    ("relu_2%", 0): 3.0,
}  # fmt: skip
D, F, BATCH, STEPS = 512, 2048, 4096, 50
L1S, KS = "0.5,1,2,4", "16,32,64,128"
CELLS = HERE / "train_cells.py"

CASES: dict[str, tuple[str, str, list[object]]] = {
    "relu, dense": ("relu", "relu-april", ["--l1", "1"]),
    "topk": ("topk", "topk", ["--k", "32"]),
    "4 L1 values": ("relu", "relu-april", ["--l1", L1S]),
    "4 k values": ("topk", "topk", ["--k", KS]),
}
"""Whole runs to compare with peers: kind, architecture, what it is told."""


def print_steps(shapes: Sequence[tuple[int, int, int]], rounds: int) -> None:
    print("\n| d, F, batch | cell | rows/s | / minimal_relu | goal |\n|---|---|---|---|---|")
    for d, d_sae, batch in shapes:
        told = printed_by(sys.executable, CELLS, "steps", d, d_sae, batch, rounds)
        for cell, seconds in told.items():
            faster = ratios(told[BASE.get(cell, "minimal_relu")], seconds)
            goal = GOALS.get((cell, d_sae), GOALS.get((cell, 0), "")) if d == D else ""
            rate = batch / statistics.median(seconds)
            where = f"{d}, {d_sae}, {batch}"
            print(f"| {where} | {cell} | {rate:,.0f} | {spread(faster)} | {goal} |", flush=True)


def print_store(folder: Path) -> None:
    print("\n| from the store / the same rows in memory | goal 0.95 |\n|---|---|")
    for arch in ("relu", "topk"):
        told = printed_by(sys.executable, CELLS, "store", folder, arch, F, 40)
        share = spread(ratios(told["store"], told["memory"]), "{:.3f}")
        print(f"| {arch}, F {F}, batch 4096 | {share} |", flush=True)


def train(store: Path, out: Path, *options: object) -> list[object]:
    """The command of a run of ours."""
    return [
        sys.executable, "-c", "import cli; cli.main()", "train", store, "--out", out,
        "--batch-size", BATCH, "--tokens", STEPS * BATCH, "--lr", "3e-4", *options,
    ]  # fmt: skip


def print_sweep(store: Path, folder: Path, rounds: int) -> None:
    """Eight members at once against eight runs, whole processes and start-up included."""
    print(f"\n| 8 runs / a sweep of 8 (F 2048, {STEPS * BATCH:,} rows each) | goal 1 |\n|---|---|")
    for arch, option, values in (
        ("topk", "--seed", [str(i) for i in range(8)]),
        ("relu", "--l1", [f"{0.1 * 2**i:g}" for i in range(8)]),
    ):
        faster = list[float]()
        for i in range(rounds):
            at_once = train(store, folder / f"{arch}{i}", "--arch", arch, option, ",".join(values))
            together = wall(at_once, cwd=ROOT)
            apart = sum(
                wall(train(store, folder / f"{arch}{i}-{v}", "--arch", arch, option, v), cwd=ROOT)
                for v in values
            )
            faster.append(apart / together)
        print(f"| {arch}, {option} | {spread(faster)} |", flush=True)


def peer(python: str, script: str, rows: Path, arch: str, *options: object) -> list[object]:
    """The command of a peer's run."""
    return [
        python, HERE / f"peer_train_{script}.py", rows, arch, F, BATCH, STEPS, *options,
        "--lr", "3e-4",
    ]  # fmt: skip


FLOOR = """
import sys, numpy, torch
rows, n_products, n_latents, batch = sys.argv[1], *map(int, sys.argv[2:])
x = torch.from_numpy(numpy.load(rows, mmap_mode="c"))[: {steps} * batch]
torch.set_num_threads(2)
W, b = torch.randn(x.shape[1], n_latents), torch.zeros(n_latents)
pre = torch.empty(batch, n_latents)
for part in x.split(batch):
    for _ in range(n_products):
        torch.addmm(b, part, W, out=pre)
"""
"""What no exact way to train leaves out: torch's import, and products of all rows and latents."""
PRODUCTS = {"topk": 1, "relu": 5}
"""Of a step: pre-activations; if dense, reconstruction, both weights' gradients, latents' too."""


def print_peers(
    store: Path,
    folder: Path,
    rounds: int,
    pythons: Mapping[str, str | None],
    cases: Sequence[str],
) -> None:
    """Whole runs: start-up, training, what is written at the end.

    Beside each the least that any takes which computes these products in float32.
    """
    rows = Path(printed_by(sys.executable, CELLS, "export", store, folder / "rows.npy"))
    print(
        f"\nWhole processes, F {F}, batch {BATCH}, {STEPS * BATCH:,} rows a member: "
        "seconds of the peer / ours."
    )
    print("| peer | what | ours, s | peer / ours | peer / least |\n|---|---|---|---|---|")
    for words in cases:
        kind, arch, options = CASES[words]
        dense = ["--config", folder / "dense.toml"] if kind == "relu" else []
        (folder / "dense.toml").write_text('sparse = "off"\n')
        n_products = PRODUCTS[kind] * max(len(str(option).split(",")) for option in options)
        least_code = FLOOR.format(steps=STEPS)
        ours, least = list[float](), list[float]()
        theirs: dict[str, list[float]] = {}
        for i in range(rounds):
            out = folder / f"{words.replace(' ', '-')}{i}"
            ours.append(wall(train(store, out, "--arch", arch, *options, *dense), cwd=ROOT))
            least.append(wall([sys.executable, "-c", least_code, rows, n_products, F, BATCH]))
            for name, python in pythons.items():
                if python and not (name == "sparsify" and kind == "relu"):
                    seconds = wall(peer(python, name, rows, arch, *options))
                    theirs.setdefault(name, []).append(seconds)
        for name, seconds in theirs.items():
            middle, slower = f"{statistics.median(ours):.1f}", spread(ratios(seconds, ours))
            most = spread(ratios(seconds, least))
            print(f"| {name} | {words} | {middle} | {slower} | {most} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="*", default=["steps", "store", "sweep"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=[*CASES], help="Of the peers: only these.")
    for name in ("saelens", "dictionary-learning", "sparsify"):
        parser.add_argument(f"--{name}", help="A Python that has it.")
    args = parser.parse_args()
    from train_cells import write_store  # it brings torch

    pythons = {name: getattr(args, name) for name in ("saelens", "dictionary_learning", "sparsify")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = write_store(folder / "rows.actstore", n_rows=2**18, width=D)
        parts: dict[str, Callable[[], None]] = {
            "steps": lambda: print_steps(SHAPES, args.rounds),
            "wide": lambda: print_steps(WIDE, args.rounds),
            "store": lambda: print_store(store),
            "sweep": lambda: print_sweep(store, folder, args.rounds),
            "peers": lambda: print_peers(store, folder, args.rounds, pythons, args.cases),
        }
        for part in args.parts:
            parts[part]()


if __name__ == "__main__":
    main()
