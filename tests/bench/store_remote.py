"""A shuffled epoch of a store that lies on a hub: chunk by chunk over the network, or pulled first.

    python tests/bench/store_remote.py [--rounds 3] [--mib 64] [--bandwidth 100]

A local server stands in for the hub; each of its answers waits for as long as the network would,
and gives so many megabytes a second on each connection. The reader is huggingface_hub's file
system for fsspec: it reads the chunks of an epoch in the store's own random order, so many at once
as a reader here decodes, and of each shard its index once. That is the least that any reader asks
for: what saepipe checks beside, and decodes, is left out. `pull` is all of `saepipe pull`, its
checks and its verification too.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", NO_PROXY="127.0.0.1")

import numpy as np

from actstore.layout import chunk_order
from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from actstore.writer import ActWriter
from tests.bench.common import Cell, in_turn, ratios, spread
from tests.helpers.hub_server import Hub, Repository, serving_hub

WIDTH, CTX, THREADS = 512, 256, 8
NAME = "datasets/org/acts"


def make_store(path: Path, *, mib: int) -> Path:
    """Random rows of one site, as of bf16."""
    n_rows = mib * 2**20 // (2 * WIDTH) // CTX * CTX
    spec = StoreSpec.of(widths={"mlp_out.0": WIDTH}, ctx_len=CTX, dtype="float16")
    rng = np.random.default_rng(0)
    with ActWriter.create_or_resume(path, spec, n_rows=n_rows) as writer:
        for _ in range(0, n_rows, 16 * CTX):
            rows = rng.standard_normal((16, CTX, WIDTH), np.float32).astype(np.float16)
            writer.append({"mlp_out.0": rows}, tokens=np.zeros((16, CTX), np.int32))
        writer.finish()
    return path


def chunks(store: Path) -> list[tuple[str, int, int]]:
    """File, offset and size of every chunk, in the order of the first epoch."""
    opened = ActStore.open(store)
    layout = opened.spec.layout(opened.n_rows)
    found: list[tuple[str, int, int]] = []
    for shard in range(layout.n_shards):
        name = f"data.zarr/mlp_out.0/c/{shard}/0"
        tail = (store / name).read_bytes()[-4 - 16 * layout.chunks_per_shard : -4]
        index = np.frombuffer(tail, "<u8").reshape(-1, 2)
        found += [(name, int(a), int(n)) for a, n in index if a != 2**64 - 1]
    return [found[i] for i in chunk_order(len(found), seed=0, epoch=0)]


def read_remotely(hub: Hub, wanted: list[tuple[str, int, int]]) -> float:
    """Seconds of an epoch by fsspec."""
    from huggingface_hub import HfFileSystem

    files = HfFileSystem(endpoint=hub.url, skip_instance_cache=True)
    start = time.perf_counter()
    for name in {name for name, _, _ in wanted}:  # of each shard its index
        files.cat_file(f"{NAME}/{name}", start=-1028, end=None)

    def read(chunk: tuple[str, int, int]) -> int:
        name, offset, size = chunk
        data = files.cat_file(f"{NAME}/{name}", start=offset, end=offset + size)
        assert len(data) == size
        return size

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, wanted))
    return time.perf_counter() - start


def pulled(out: Path) -> float:
    """Seconds of a pull."""
    from pipeline.share.pull import pull

    start = time.perf_counter()
    pull("datasets/org/acts", out)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def _counted(hub: Hub, name: str, cell: Cell, asked: dict[str, int]) -> float:
    hub.asked.clear()
    seconds = cell()
    asked[name] = len(hub.asked)
    return seconds


def main() -> None:
    """Print a row a latency."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--bandwidth", type=float, default=100.0, help="MB a second, each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, serving_hub() as hub:
        os.environ["HF_ENDPOINT"] = hub.url  # huggingface_hub reads it when it is imported
        folder = Path(scratch)
        store = make_store(folder / "acts.actstore", mib=args.mib)
        files = {
            path.relative_to(store).as_posix(): path.read_bytes()
            for path in (store / "data.zarr").rglob("*")
            if path.is_file()
        }
        hub.repositories[NAME] = Repository()
        hub.put(NAME, files)
        wanted = chunks(store)
        hub.bytes_per_s = args.bandwidth * 1e6
        print(
            f"{len(wanted)} chunks, {sum(map(len, files.values())) / 1e6:.0f} MB", file=sys.stderr
        )
        for latency in (0.02, 0.1):
            hub.latency = latency
            asked: dict[str, int] = {}
            cells: dict[str, Cell] = {
                "remote": lambda: read_remotely(hub, wanted),
                "pull": lambda: pulled(folder / "back.actstore"),
            }
            counted = {
                name: partial(_counted, hub, name, cell, asked) for name, cell in cells.items()
            }
            told = in_turn(counted, args.rounds)
            seconds = {name: spread(values) for name, values in told.items()}
            print(
                f"{1000 * latency:.0f} ms: remote {seconds['remote']} s ({asked['remote']} "
                f"requests), pull {seconds['pull']} s ({asked['pull']} requests), remote / pull "
                f"{spread(ratios(told['remote'], told['pull']))}"
            )


if __name__ == "__main__":
    main()
