"""One measurement of the store or of a peer, in a process of its own: `store.py` runs these.

    python tests/bench/store_cells.py CELL FOLDER

FOLDER holds what `make_data` wrote: `acts.actstore`, and the same rows uncompressed in `rows.bin`.
A cell prints one number: rows a second, unless it says otherwise. `cold` cells drop the files from
the page cache first. Where a peer allocates its result it is not made to copy it into a window.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # cells of peers run where the store is not installed
    from actstore.manifest import StoreSpec
    from actstore.reader import ActStore
    from actstore.writer import Shard

WIDTH, CTX_LEN, N_ROWS = 512, 256, 2**20
CHUNK, SHARD = 1024, 65_536
SITE, BATCH = "mlp_out.1", 4096
WINDOW = 2**16  # rows that block reads and decodes go round in; batches use the default window
THREADS = 2
N_READ = 2**19  # rows that one measurement reads


def activations(n_rows: int, *, seed: int) -> np.ndarray:
    """bfloat16 bits of normal rows; each coordinate has its own spread, 0.27 to 0.79."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, WIDTH), np.float32)
    x *= rng.uniform(0.27, 0.79, WIDTH).astype(np.float32)
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def spec_of_rows() -> "StoreSpec":
    from actstore.manifest import StoreSpec

    spec = StoreSpec.of(widths={SITE: WIDTH}, ctx_len=CTX_LEN, dtype="bfloat16")
    assert (spec.chunk_rows, spec.shard_rows) == (CHUNK, SHARD)
    return spec


def shard(index: int, rows: np.ndarray) -> "Shard":
    """Rows of a site, with tokens and documents."""
    from actstore.writer import Shard

    tokens = np.random.default_rng(0).integers(0, 50_000, (SHARD // CTX_LEN, CTX_LEN), np.int32)
    documents = np.repeat(np.arange(len(tokens)), CTX_LEN).reshape(tokens.shape)
    return Shard(index=index, acts={SITE: rows}, tokens=tokens, document_id=documents, cursor={})


def write(path: Path, blocks: Sequence[np.ndarray], *, threads: int) -> None:
    """A store whose shards hold these rows, every file synced."""
    from actstore.writer import ActWriter

    n_rows = sum(map(len, blocks))
    with ActWriter.create_or_resume(path, spec_of_rows(), n_rows=n_rows, threads=threads) as writer:
        for k, rows in enumerate(blocks):
            writer.write_shard(shard(k, rows))
        writer.finish()


def make_data(folder: Path) -> None:
    """The store, and its rows uncompressed."""
    blocks = [activations(SHARD, seed=k) for k in range(N_ROWS // SHARD)]
    write(folder / "acts.actstore", blocks, threads=THREADS)
    with (folder / "rows.bin").open("wb") as file:
        for rows in blocks:
            file.write(rows.data)


def chunks() -> list[int]:
    """Chunks in random order, each once."""
    return np.random.default_rng(7).permutation(N_ROWS // CHUNK)[: N_READ // CHUNK].tolist()


def window(n_rows: int = WINDOW) -> np.ndarray:
    """Memory that was touched."""
    return np.ones((n_rows, WIDTH), np.uint16)


def rate(work: Callable[[], object], n_rows: int = N_READ) -> float:
    """Rows a second."""
    start = time.perf_counter()
    work()
    return n_rows / (time.perf_counter() - start)


def opened(folder: Path) -> "ActStore":
    from actstore.reader import ActStore

    return ActStore.open(folder / "acts.actstore")


def shard_files(folder: Path) -> list[Path]:
    return sorted((folder / "acts.actstore" / "data.zarr" / SITE).glob("c/*/0"))


def drop_from_cache(folder: Path) -> None:
    for file in (folder / "acts.actstore" / "data.zarr").rglob("*"):
        if file.is_file():
            forget(file)


def forget(file: Path) -> None:
    """Drop a file from the page cache."""
    with file.open("rb") as there:
        os.fsync(there)
        os.posix_fadvise(there.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    for file in [*shard_files(folder), folder / "rows.bin"]:
        for _ in pieces(file):
            pass


def pieces(file: Path) -> Iterator[int]:
    """A file read from start to end through one buffer of 4 MiB."""
    buffer = bytearray(2**22)
    with file.open("rb", buffering=0) as opened:
        while size := opened.readinto(buffer):
            yield size


# --- baselines -----------------------------------------------------------------------------------


def memcpy(folder: Path) -> float:
    """Blocks of 65,536 rows, one thread, from memory to memory."""
    source, target = window(4 * WINDOW), window()
    blocks = np.split(source, 4)
    return rate(lambda: [np.copyto(target, blocks[i % 4]) for i in range(N_READ // WINDOW)])


def memmap_rows(folder: Path) -> float:
    """`np.memmap[random rows]`, 4096 at a time, uncompressed."""
    rows = np.memmap(folder / "rows.bin", np.uint16, "r", shape=(N_ROWS, WIDTH))
    order = np.random.default_rng(7).permutation(N_ROWS)[:N_READ].reshape(-1, BATCH)
    return rate(lambda: [rows[index] for index in order])


def sequential_read_cold(folder: Path) -> float:
    """Bytes a second of the site's files, one after another."""
    drop_from_cache(folder)
    files = shard_files(folder)
    return rate(lambda: [list(pieces(f)) for f in files], sum(f.stat().st_size for f in files))


# --- the store -----------------------------------------------------------------------------------


def decode(folder: Path) -> float:
    """Random chunks into a window, 2 threads, checksums on."""
    store, work, turn = opened(folder), chunks(), count()
    target = window().reshape(-1, CHUNK, WIDTH)

    def fill() -> None:
        for i in turn:
            if i >= len(work):
                return
            store.read_chunk_into(SITE, work[i], target[i % len(target)])

    with ThreadPoolExecutor(THREADS) as pool:
        return rate(lambda: [job.result() for job in [pool.submit(fill) for _ in range(THREADS)]])


def stream_of(folder: Path, **settings: int) -> Iterator[object]:
    from actstore.batches import Batches

    given = {"batch_size": BATCH, "seed": 0, "threads": THREADS, **settings}
    return Batches(store=opened(folder), sites=(SITE,), **given).start_at(0)


def batches(folder: Path, **settings: int) -> float:
    """Shuffled batches of 4096 rows, 2 decoding threads, the default window, in steady state."""
    stream = stream_of(folder, **settings)
    for _ in islice(stream, 2 * settings.get("window_rows", 2**18) // BATCH):  # memory is touched
        pass
    return rate(lambda: [None for _ in islice(stream, N_ROWS // BATCH)], N_ROWS)


batches_small_window = partial(batches, window_rows=WINDOW)
batches_8_lanes = partial(batches, lanes=8)


def batches_cold(folder: Path) -> float:
    """Decoded bytes a second of a first epoch, the first window's wait included."""
    drop_from_cache(folder)
    stream = stream_of(folder, window_rows=WINDOW)
    n_bytes = N_ROWS * WIDTH * 2
    return rate(lambda: [None for _ in islice(stream, N_ROWS // BATCH)], n_bytes)


def lookup_rows(folder: Path) -> float:
    """`rows(site, indices)`, 4096 random rows at a time."""
    store = opened(folder)
    indices = np.random.default_rng(0).integers(0, N_ROWS, (2, BATCH))
    return rate(lambda: [store.rows(SITE, index) for index in indices], indices.size)


def lookup_contexts(folder: Path) -> float:
    """Contexts a second of `contexts(ids)`, 256 random ones at once."""
    store = opened(folder)
    ids = np.random.default_rng(0).integers(0, N_ROWS // CTX_LEN, 256)
    return rate(lambda: store.contexts(ids), len(ids))


def lookup_one_context(folder: Path) -> float:
    """Contexts a second of `context(i)`, one at a time."""
    store = opened(folder)
    ids = np.random.default_rng(0).integers(0, N_ROWS // CTX_LEN, 8).tolist()
    return rate(lambda: [store.context(i) for i in ids], len(ids))


def verify_cold(folder: Path) -> float:
    """Bytes a second of `verify`."""
    drop_from_cache(folder)
    return verify_warm(folder)


def verify_warm(folder: Path) -> float:
    from actstore.verify import verify

    store = opened(folder)
    return rate(lambda: verify(store.path), store.n_bytes)


# --- peers ---------------------------------------------------------------------------------------


ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}


def _zarr_array(folder: Path, **config: object):
    import zarr

    zarr.config.set(config)
    return zarr.open_group(folder / "acts.actstore" / "data.zarr", mode="r")[SITE]


def _zarr_blocks(folder: Path, block: int, **config: object) -> float:
    array = _zarr_array(folder, **config)
    starts = (np.random.default_rng(7).permutation(N_ROWS // block) * block).tolist()
    return rate(lambda: [array[i : i + block] for i in starts[: N_READ // block]])


zarr_default = partial(_zarr_blocks, block=CHUNK)
zarr_one_worker = partial(
    _zarr_blocks, block=CHUNK, **{"async.concurrency": 1, "threading.max_workers": 1}
)
zarr_four_chunks = partial(_zarr_blocks, block=4 * CHUNK, **{"threading.max_workers": THREADS})
zarr_whole_shards = partial(_zarr_blocks, block=SHARD)
zarrs_one_caller = partial(_zarr_blocks, block=CHUNK, **ZARRS)


def zarrs_two_callers(folder: Path) -> float:
    array = _zarr_array(folder, **ZARRS)
    with ThreadPoolExecutor(THREADS) as pool:
        starts = [i * CHUNK for i in chunks()]
        return rate(lambda: list(pool.map(lambda i: len(array[i : i + CHUNK]), starts)))


def tensorstore_futures(folder: Path) -> float:
    """32 reads under way, no cache, 2 threads that decode."""
    import tensorstore as ts

    path = os.fspath(folder / "acts.actstore" / "data.zarr" / SITE)
    limits = {"data_copy_concurrency": {"limit": THREADS}, "file_io_concurrency": {"limit": 16}}
    array = ts.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}, context=ts.Context(limits)
    ).result()

    def read() -> None:
        waiting = []
        for i in chunks():
            waiting.append(array[i * CHUNK : (i + 1) * CHUNK].read())
            if len(waiting) == 32:
                waiting.pop(0).result()
        for future in waiting:
            future.result()

    return rate(read)


def mixing_buffer(folder: Path) -> float:
    """SAELens' shuffle, rows in memory, bfloat16, a buffer of 65,536 rows; needs sae_lens."""
    import torch
    from sae_lens.training.mixing_buffer import mixing_buffer as mixed

    torch.set_num_threads(THREADS)
    source = torch.zeros(WINDOW, WIDTH, dtype=torch.bfloat16)
    loader = (source[:BATCH].clone() for _ in count())
    stream = mixed(WINDOW, BATCH, loader)
    for _ in islice(stream, 16):
        pass
    n = 32
    return rate(lambda: [None for _ in islice(stream, n)], n * BATCH)


# --- writing -------------------------------------------------------------------------------------


def _shards(folder: Path, n: int) -> list[np.ndarray]:
    rows = np.fromfile(folder / "rows.bin", np.uint16, n * SHARD * WIDTH)
    return np.split(rows.reshape(-1, WIDTH), n)


def writer(folder: Path) -> float:
    """Eight shards, each file synced; tokens, statistics, journal and finish included."""
    blocks, path = _shards(folder, 8), folder / "written.actstore"
    shutil.rmtree(path, ignore_errors=True)
    os.sync()
    return rate(lambda: write(path, blocks, threads=THREADS), 8 * SHARD)


def zarr_writer(folder: Path) -> float:
    """zarr-python, the same eight shards of the one site, whole, with crc32c, not synced."""
    import zarr

    blocks, path = _shards(folder, 8), folder / "written.zarr"
    shutil.rmtree(path, ignore_errors=True)
    blosc = zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2)
    array = zarr.create_array(
        path, shape=(8 * SHARD, WIDTH), dtype="u2", chunks=(CHUNK, WIDTH), shards=(SHARD, WIDTH),
        compressors=[blosc, zarr.codecs.Crc32cCodec()],
    )  # fmt: skip
    os.sync()

    def run() -> None:
        for k, rows in enumerate(blocks):
            array[k * SHARD : (k + 1) * SHARD] = rows

    return rate(run, 8 * SHARD)


def launch_bound_loop(folder: Path) -> float:
    """Share of its speed that a loop of tiny torch operations keeps beside the writer's threads."""
    return _beside_writer(folder, own_process=False)


def launch_bound_loop_apart(folder: Path) -> float:
    """The same where the writer encodes in a process of its own."""
    return _beside_writer(folder, own_process=True)


def _beside_writer(folder: Path, *, own_process: bool) -> float:
    import torch

    from actstore.writer import ActWriter

    torch.set_num_threads(1)
    x = torch.randn(32, 32)

    def speed(seconds: float) -> float:
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(200):
                _ = x @ x + x
            done += 400
        return done / (time.perf_counter() - start)

    blocks, stop, path = _shards(folder, 4), threading.Event(), folder / "beside.actstore"
    shutil.rmtree(path, ignore_errors=True)

    def write_on() -> None:
        with ActWriter.create_or_resume(
            path, spec_of_rows(), n_rows=1000 * SHARD, threads=1, own_process=own_process
        ) as writer:
            while not stop.is_set():
                writer.write_shard(shard(writer.next_shard, blocks[writer.next_shard % 4]))

    alone = speed(1.5)
    thread = threading.Thread(target=write_on)
    thread.start()
    time.sleep(0.5)
    beside = speed(3)
    stop.set()
    thread.join()
    return beside / ((alone + speed(1.5)) / 2)


if __name__ == "__main__":
    cell, folder = globals()[sys.argv[1]], Path(sys.argv[2])
    if "cold" not in sys.argv[1]:
        warm(folder)
    print(cell(folder))
