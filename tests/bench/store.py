"""How fast the store is, against what memory and disk can do and against its peers.

    pip install -e '.[bench]'                                  # zarrs and tensorstore
    python tests/bench/store.py                                # 5 rounds, about 6 minutes
    python tests/bench/store.py --saelens ENV/bin/python       # SAELens' mixing buffer, too

Every cell runs in a process of its own; every round runs every cell once, so that what disturbs the
machine disturbs all alike. Ratios are taken round by round: median [lowest..highest]. Rows are
1,048,576 of 512 bfloat16 (1 GiB), normal, each coordinate with its own spread; 2 threads decode.
The cells themselves are in `store_cells.py`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import store_cells

CELLS = (
    "memcpy", "memmap_rows", "decode", "batches", "batches_small_window", "batches_8_lanes",
    "zarr_default", "zarr_one_worker", "zarr_four_chunks", "zarr_whole_shards",
    "zarrs_one_caller", "zarrs_two_callers", "tensorstore_futures",
    "writer", "zarr_writer", "launch_bound_loop",
    "lookup_rows", "lookup_contexts", "lookup_one_context", "verify_warm",
    "sequential_read_cold", "batches_cold", "verify_cold",
)  # fmt: skip
ZARR = ("zarr_default", "zarr_one_worker", "zarr_four_chunks", "zarr_whole_shards")
READ = "sequential_read_cold"
ZARRS = ("zarrs_one_caller", "zarrs_two_callers")

# What is printed: words, cell, what it is divided by (the fastest of these), the goal.
RATIOS = (
    ("decode into the window, checksums on / memcpy", "decode", ("memcpy",), 0.25),
    ("batches of 4096 / memcpy", "batches", ("memcpy",), 0.20),
    ("batches, window of 65,536 / memcpy", "batches_small_window", ("memcpy",), None),
    ("batches, 8 lanes / memcpy", "batches_8_lanes", ("memcpy",), None),
    ("batches / np.memmap[random rows], uncompressed", "batches", ("memmap_rows",), 1.3),
    ("cold: batches, decoded bytes / sequential read", "batches_cold", (READ,), 1.1),
    ("decode / zarr-python, best of 4 settings", "decode", ZARR, 4.0),
    ("decode / zarrs, best of 2 settings", "decode", ZARRS, 2.0),
    ("decode / tensorstore", "decode", ("tensorstore_futures",), 1.2),
    ("batches / SAELens' buffer, both 65,536", "batches_small_window", ("mixing_buffer",), 8.0),
    ("writer, synced / zarr-python, whole shards", "writer", ("zarr_writer",), 2.0),
    ("a launch-bound loop beside the writer / alone", "launch_bound_loop", (), 0.88),
    ("verify, cold / sequential read", "verify_cold", (READ,), None),
)  # fmt: skip


def measure(cell: str, folder: Path, python: str) -> float:
    """What one cell prints."""
    command = [python, str(Path(__file__).with_name("store_cells.py")), cell, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def spread(values: Sequence[float], pattern: str) -> str:
    middle, *ends = (
        pattern.format(v) for v in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} [{'..'.join(ends)}]"


def print_rates(rounds: Sequence[dict[str, float]]) -> None:
    for cell in rounds[0]:
        print(f"{cell:24s} {spread([r[cell] for r in rounds], '{:,.3g}')}")


def print_ratios(rounds: Sequence[dict[str, float]]) -> None:
    print("\n| what | measured | goal |\n|---|---|---|")
    for words, cell, others, goal in RATIOS:
        if not set(others) <= rounds[0].keys():
            continue
        best = max(others, key=lambda o: statistics.median(r[o] for r in rounds), default=None)
        ratios = [r[cell] / (r[best] if best else 1.0) for r in rounds]
        print(f"| {words} | {spread(ratios, '{:.2f}')} | {f'≥ {goal}' if goal else ''} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="On the disk to measure; default: a temporary.")
    parser.add_argument("--saelens", help="A Python that has sae_lens.")
    parser.add_argument("--cells", nargs="*", default=CELLS, help="Only these.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        store_cells.make_data(folder)
        rounds: list[dict[str, float]] = []
        for _ in range(args.rounds):
            told = {cell: measure(cell, folder, sys.executable) for cell in args.cells}
            if args.saelens:
                told["mixing_buffer"] = measure("mixing_buffer", folder, args.saelens)
            rounds.append(told)
            print(f"round {len(rounds)} of {args.rounds}", file=sys.stderr)
        print_rates(rounds)
        print_ratios(rounds)


if __name__ == "__main__":
    main()
