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
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import store_cells

from tests.bench.common import in_turn, printed_by, ratios, spread

CELLS = (
    "memcpy", "memmap_rows", "decode", "batches", "batches_small_window", "batches_8_lanes",
    "zarr_default", "zarr_one_worker", "zarr_four_chunks", "zarr_whole_shards",
    "zarrs_one_caller", "zarrs_two_callers", "tensorstore_futures",
    "writer", "zarr_writer", "launch_bound_loop", "launch_bound_loop_apart",
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
    ("a launch-bound loop beside the writer's threads / alone", "launch_bound_loop", (), None),
    ("the same beside a process of the writer's", "launch_bound_loop_apart", (), 0.9),
    ("verify, cold / sequential read", "verify_cold", (READ,), None),
)  # fmt: skip


def print_ratios(told: Mapping[str, Sequence[float]]) -> None:
    print("\n| what | measured | goal |\n|---|---|---|")
    for words, cell, others, goal in RATIOS:
        if not {cell, *others} <= told.keys():
            continue
        best = max((told[other] for other in others), key=statistics.median, default=None)
        found = told[cell] if best is None else ratios(told[cell], best)
        print(f"| {words} | {spread(found)} | {f'≥ {goal}' if goal else ''} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="On the disk to measure; default: a temporary.")
    parser.add_argument("--saelens", help="A Python that has sae_lens.")
    parser.add_argument("--cells", nargs="*", default=CELLS, help="Only these.")
    args = parser.parse_args()
    script = Path(store_cells.__file__)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store_cells.make_data(Path(folder))
        pythons = dict.fromkeys(args.cells, sys.executable)
        if args.saelens:
            pythons["mixing_buffer"] = args.saelens
        cells = {c: partial(printed_by, python, script, c, folder) for c, python in pythons.items()}
        told = in_turn(cells, args.rounds)
    for cell, rates in told.items():
        print(f"{cell:24s} {spread(rates, '{:,.3g}')}")
    print_ratios(told)


if __name__ == "__main__":
    main()
