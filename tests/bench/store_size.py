"""What the store takes on disk and in memory, how well it mixes, how fast it opens.

python tests/bench/store_size.py [PART ...]

disk     bytes of a site's chunks / the order-0 entropy of its 16-bit values: what no coder that
         treats each value by itself can beat; on the embedded model's sites and on normal rows
frontier the same by compressor, level and shuffle, with what it costs: MiB/s of encoding, and
         decoding / memcpy of the same chunks, one thread, `ROUNDS` rounds in turn
mixing   other rows of a row's own context in a batch of 4096, contexts of 256, against rows
         drawn at random from the whole store
memory   peak of a process that reads an epoch, less that of one that only opened the store
opening  a store of 10,000 shards
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import store_cells
from store_cells import CTX_LEN, SITE, WIDTH

from actstore.batches import Batches, Epochs, LaneWindow
from actstore.codec import encode, kept_bits, rounded
from actstore.layout import Layout, row_permutation
from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from tests.bench.common import spread
from tests.helpers.stores import as_numbers, column, multiplied, write_rows

CODECS = ("lz4", "zstd", "bitround:4", "bitround:3")
COMPRESSORS = (
    ("lz4", 5, "bit"), ("lz4", 5, "byte"), ("lz4hc", 9, "bit"), ("lz4hc", 9, "byte"),
    ("zstd", 1, "bit"), ("zstd", 5, "bit"), ("zstd", 9, "bit"), ("zstd", 1, "byte"),
    ("zstd", 3, "byte"), ("zstd", 5, "byte"), ("zlib", 5, "byte"),
)  # fmt: skip
"""Of blosc: name, level, shuffle."""
SITES = ("resid_pre.2", "resid_post.3", "mlp_out.2")
ROUNDS = 5


def entropy_bits(values: np.ndarray) -> float:
    """Order-0 entropy of 16-bit values, in bits."""
    counts = np.bincount(values.reshape(-1), minlength=2**16)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def chunk_bytes(rows: np.ndarray, codec: str, chunk: int) -> int:
    keep = kept_bits(codec)
    stored = rows if keep is None else rounded(rows, keep=keep)
    parts = (encode(stored[i : i + chunk], codec) for i in range(0, len(rows), chunk))
    return sum(len(payload) + len(crc) for payload, crc in parts)


def print_disk(name: str, rows: np.ndarray, chunk: int) -> None:
    bits, told = entropy_bits(rows), []
    for codec in CODECS:
        size = chunk_bytes(rows, codec, chunk)
        bound = (
            "" if codec.startswith("bitround") else f" ({size * 8 / rows.size / bits:.3f} of bound)"
        )
        told.append(f"{codec} {rows.nbytes / size:.3f}x{bound}")
    spread = as_numbers(rows).std()
    print(f"{name:14s} std {spread:6.3f}  entropy {bits:.2f} bits  " + "  ".join(told))


def harvested(folder: Path, sites: tuple[str, ...]) -> ActStore:
    """Of the embedded model, uncompressed."""
    from pipeline.config.stages import HarvestConfig
    from pipeline.harvest.harvest import harvest

    config = HarvestConfig(out=folder / "tiny.actstore", sites=sites, tokens=131_072, codec="raw")
    harvest(config)
    return ActStore.open(config.out)


def disk(folder: Path) -> None:
    sites = ("mlp_out.0", "mlp_out.1", "mlp_out.2", "mlp_out.3", "attn_out.2", "resid_pre.2")
    store = harvested(folder, sites)
    for site in sites:
        print_disk(site, column(store, site), store.spec.chunk_rows)
    rows = store_cells.activations(65_536, seed=0)
    numbers = as_numbers(rows).astype(np.float32)
    for scale in (0.25, 0.5, 1, 2, 4, 16):
        scaled = ((numbers * np.float32(scale)).view("u4") >> 16).astype("u2")
        print_disk(f"normal x {scale}", scaled, 1024)


def frontier(folder: Path) -> None:
    from numcodecs.blosc import BITSHUFFLE, SHUFFLE, Blosc

    shuffles = {"bit": BITSHUFFLE, "byte": SHUFFLE}
    coders = {
        f"{name} {level} {shuffle}": Blosc(cname=name, clevel=level, shuffle=shuffles[shuffle])
        for name, level, shuffle in COMPRESSORS
    }
    store = harvested(folder, SITES)
    for site in SITES:
        rows, n = column(store, site), store.spec.chunk_rows
        chunks = [np.ascontiguousarray(rows[i : i + n]) for i in range(0, len(rows) - n + 1, n)]
        bound, out = entropy_bits(rows) * rows.size / 8, np.empty_like(chunks[0])
        parts = {name: [coder.encode(chunk) for chunk in chunks] for name, coder in coders.items()}
        writes: dict[str, list[float]] = {name: [] for name in coders}
        reads: dict[str, list[float]] = {name: [] for name in coders}
        for _ in range(ROUNDS):
            copying = _seconds(partial(np.copyto, out), chunks)
            for name, coder in coders.items():
                writes[name].append(rows.nbytes / 2**20 / _seconds(coder.encode, chunks))
                reads[name].append(copying / _seconds(partial(coder.decode, out=out), parts[name]))
        for name in coders:
            size = sum(map(len, parts[name])) / bound
            speed, share = statistics.median(writes[name]), spread(reads[name])
            print(f"| {site} | {name} | {size:.3f} | {speed:,.0f} | {share} |")


def _seconds(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    start = time.perf_counter()
    for item in items:
        work(item)
    return time.perf_counter() - start


def linked(folder: Path, *, n_shards: int, width: int, shard_rows: int | None) -> Path:
    """A store that holds its one shard over and over, as hard links."""
    path = folder / f"linked-{n_shards}-{width}.actstore"
    spec = StoreSpec.of(
        widths={SITE: width}, ctx_len=CTX_LEN, dtype="bfloat16", shard_rows=shard_rows
    )
    rows = store_cells.activations(spec.shard_rows, seed=0)[:, :width]
    write_rows(path, spec, [rows], n_rows=spec.shard_rows)
    return multiplied(path, spec, n_shards)


def mixing(folder: Path) -> None:
    """Of a store of 64 Mi rows, by the reader's own order: its rows need not exist for that."""
    n_rows, shard_rows, chunk_rows = 2**26, store_cells.SHARD, store_cells.CHUNK
    layout = Layout(n_rows=n_rows, shard_rows=shard_rows, chunk_rows=chunk_rows)
    print(f"drawn at random: {4095 * (CTX_LEN - 1) / (n_rows - 1):.4f} others of a row's context")
    for window_rows in (2**14, 2**16, 2**18, 2**20):
        chunks = window_rows // chunk_rows
        epochs = Epochs(layout=layout, seed=0, n_lanes=1, window_chunks=chunks)
        others = [
            _others(batch)
            for (window,) in islice(epochs.windows(0, range(1)), 2**20 // window_rows)
            for batch in _contexts(window, layout).reshape(-1, store_cells.BATCH)
        ]
        print(f"window of {window_rows:9,}: {np.mean(others):.4f}")


def _contexts(window: LaneWindow, layout: Layout) -> np.ndarray:
    """The context of each row, in the order in which a window hands them out."""
    context = np.empty(window.n_rows, np.int64)
    for piece in window.pieces:
        shard, chunk = layout.locate(piece.chunk)
        start = chunk * layout.chunk_rows + piece.skip
        order = row_permutation(layout.rows_in(shard), seed=0, shard=shard)
        here = order[start : start + piece.stop - piece.start]
        context[piece.start : piece.stop] = (here + shard * layout.shard_rows) // CTX_LEN
    run = 8  # of `Batches` for rows of 1 KiB
    return context.reshape(-1, run)[window.order(run)].reshape(-1)


def _others(context: np.ndarray) -> float:
    counts = np.unique(context, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / len(context))


def memory(folder: Path) -> None:
    """The window is 65,536 rows, 64 MiB, and two are held."""
    for n_shards in (4, 16, 64):
        path = linked(folder, n_shards=n_shards, width=WIDTH, shard_rows=None)
        command = [sys.executable, __file__, str(path)]
        peaks = [int(subprocess.check_output([*command, read])) for read in ("0", "1")]
        size = ActStore.open(path).n_rows * WIDTH * 2 / 2**20
        print(f"store of {size:7,.0f} MiB: {(peaks[1] - peaks[0]) / 1024:.0f} MiB more than opened")


def peak(path: Path, *, read: bool) -> int:
    """KiB of anonymous memory at most: mapped files are the system's to take back."""
    store = ActStore.open(path)
    if not read:
        return _anonymous()
    stream = Batches(
        store=store, sites=(SITE,), batch_size=4096, seed=0, threads=2, window_rows=2**16
    ).start_at(0)
    return max(_anonymous() for _ in islice(stream, 0, store.n_rows // 4096, 16))


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def opening(folder: Path) -> None:
    path = linked(folder, n_shards=10_000, width=8, shard_rows=CTX_LEN)
    for _ in range(3):
        start, cpu = time.perf_counter(), time.process_time()
        ActStore.open(path)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(f"opened in {wall:.2f} s, {cpu:.2f} s of CPU")


def main() -> None:
    parts = {part.__name__: part for part in (disk, frontier, mixing, memory, opening)}
    for part in map(parts.__getitem__, sys.argv[1:] or parts):
        with tempfile.TemporaryDirectory() as name:
            print(f"--- {part.__name__}")
            part(Path(name))
    print(
        f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2] in ("0", "1"):
        print(peak(Path(sys.argv[1]), read=sys.argv[2] == "1"))
    else:
        main()
