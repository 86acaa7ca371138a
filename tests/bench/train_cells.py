"""What `train.py` times, each call in a process of its own; the last line printed is the result.

steps D F BATCH ROUNDS        seconds a step of every way to train one coder, round by round
store FOLDER ARCH F STEPS     rows/s of steps fed from a store, and from the same rows in memory
export FOLDER ROWS.npy        the rows of the store as float32, for the peers
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from minimal_loop import minimal_relu, minimal_topk, step_seconds, ticks
from torch import Tensor

from actstore.batches import Batches
from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from pipeline.config.architectures import BatchTopKConfig, ReluConfig, TopKConfig
from pipeline.config.training import TrainConfig
from pipeline.runs.folder import Provenance, enter
from pipeline.runs.sae_run import SAERun
from pipeline.sae import narrow
from pipeline.training.assemble import Entry, assemble
from pipeline.training.batches import device_batches
from pipeline.training.feed import Feeder
from pipeline.training.group import Group
from tests.helpers.stores import as_numbers, write_rows
from tests.helpers.training import PLAIN

SITE, CTX_LEN, K = "mlp_out.1", 128, 32
WARM, STEPS = 2, 3
"""Steps before the clock starts, and steps that are timed, of a cell in a round."""

# Every cell: the config's changes, and the share of latents that the biases let through.
CELLS: dict[str, tuple[dict[str, Any], float | None]] = {
    "relu": ({"arch": ReluConfig(l1=1e-3), "sparse": "off"}, None),
    "relu_bf16": ({"arch": ReluConfig(l1=1e-3), "sparse": "off", "precision": "bf16"}, None),
    "relu_5%": ({"arch": ReluConfig(l1=1e-3), "sparse": "on"}, 0.05),
    "relu_2%": ({"arch": ReluConfig(l1=1e-3), "sparse": "on"}, 0.02),
    "relu_1%": ({"arch": ReluConfig(l1=1e-3), "sparse": "on"}, 0.01),
    "topk": ({"arch": TopKConfig(k=K)}, None),
    "topk_whole": ({"arch": TopKConfig(k=K)}, None),
    "topk_dense": ({"arch": TopKConfig(k=K), "sparse": "off"}, None),
    "topk_bf16": ({"arch": TopKConfig(k=K), "precision": "bf16"}, None),
    "batchtopk": ({"arch": BatchTopKConfig(k=K)}, None),
}
WHOLE = {"topk_whole"}
"""Cells that use no tiles for bfloat16, where a CPU has such."""


def write_store(path: Path, *, n_rows: int, width: int, seed: int = 0) -> Path:
    """Normal rows, each coordinate with its own spread, as bfloat16."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.5, 2, width).astype(np.float32)
    spec = StoreSpec.of(
        widths={SITE: width}, ctx_len=CTX_LEN, dtype="bfloat16", source={"model": "none"}
    )

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, n_rows, 2**14):
            x = rng.standard_normal((min(2**14, n_rows - start), width), np.float32) * spread
            yield (x.view(np.uint32) >> 16).astype(np.uint16)

    return write_rows(path, spec, blocks(), n_rows=n_rows)


def make_group(store: ActStore, out: Path, files: ExitStack, **changes: Any) -> Group:
    """What `saepipe train` would train with these settings."""
    settings = PLAIN | {"lr": 1e-4, "dead_window": "1M", "revive_after": "1M"} | changes
    config = TrainConfig(
        store=store.path, out=out, site=SITE, device="cpu", tokens=10**12, **settings
    )
    run = SAERun(path=config.out, config=config, provenance=Provenance.of(store, site=SITE))
    enter(run, locks=files)
    entry = Entry(run=run, n_steps=10**6)
    feeder = Feeder(store, [entry.feed], device=torch.device("cpu"))
    (group,) = assemble(feeder, [entry], files=files)
    return group


def let_through(group: Group, share: float, x: Tensor) -> None:
    """Lower the biases until this share of latents is active, and learn next to nothing."""
    params = group.members[0].adam.params
    pre = (x[:64] - params["b_dec"]) @ params["E"].T
    params["b_enc"].sub_(np.quantile(pre.numpy(), 1 - share).item())


def steps(d: int, d_sae: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Every cell once a round."""
    told: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as files:
        folder = Path(name)
        store = ActStore.open(write_store(folder / "s.actstore", n_rows=2**14, width=d))
        rows = torch.randn((WARM + STEPS) * batch, d, generator=torch.Generator().manual_seed(0))

        def ours(cell: str) -> Callable[[Iterator[Tensor]], object]:
            changes, share = CELLS[cell]
            lr = 1e-12 if share else 1e-4
            with patch.object(narrow, "fast", lambda: False) if cell in WHOLE else nullcontext():
                group = make_group(
                    store, folder / cell, files, expansion=d_sae // d, batch_size=batch, lr=lr,
                    **changes,
                )  # fmt: skip
            if share:
                let_through(group, share, rows)

            def loop(batches: Iterator[Tensor]) -> None:
                for x in batches:
                    group.advance(x)

            return loop

        cells = {
            "minimal_relu": lambda batches: minimal_relu(batches, d, d_sae, l1=1e-3),
            "minimal_topk": lambda batches: minimal_topk(batches, d, d_sae, k=K),
        } | {cell: ours(cell) for cell in CELLS}
        for _ in range(rounds):
            for cell, loop in cells.items():
                seconds = step_seconds(loop, rows.split(batch), warm=WARM)
                told.setdefault(cell, []).append(seconds)
    return told


def store(folder: Path, arch: str, d_sae: int, n_steps: int) -> dict[str, list[float]]:
    """Rows/s from a store, and on batches that were read before, in turns."""
    told: dict[str, list[float]] = {"store": [], "memory": []}
    opened, batch = ActStore.open(folder), 4096
    d = opened.width(SITE)
    config = {"relu": ReluConfig(l1=1e-3), "topk": TopKConfig(k=K)}[arch]
    with tempfile.TemporaryDirectory() as name, ExitStack() as files:
        for i in range(5):
            for where in told:
                group = make_group(
                    opened, Path(name) / f"{where}{i}", files, expansion=d_sae // d,
                    batch_size=batch, arch=config,
                )  # fmt: skip
                source = Batches(store=opened, sites=(SITE,), batch_size=batch, seed=i)
                stream = device_batches(source.start_at(0), device=torch.device("cpu"))
                with closing(stream):
                    batches: Any = islice(stream, WARM + n_steps)
                    if where == "memory":
                        batches = iter(list(batches))
                    times: list[float] = []
                    for x in ticks((b[SITE] for b in batches), times):
                        group.advance(x)
                told[where].append(n_steps * batch / (times[-1] - times[WARM]))
    return told


def export(folder: Path, out: Path) -> str:
    """The rows of a store in the order of its first epoch."""
    opened = ActStore.open(folder)
    batch = 2**12
    stream = Batches(store=opened, sites=(SITE,), batch_size=batch, seed=0).start_at(0)
    rows = np.lib.format.open_memmap(
        out, mode="w+", dtype=np.float32, shape=(opened.n_rows, opened.width(SITE))
    )
    with closing(stream):
        for i, block in enumerate(islice(stream, opened.n_rows // batch)):
            rows[i * batch : (i + 1) * batch] = as_numbers(block[SITE])
    rows.flush()
    return str(out)


if __name__ == "__main__":
    what, *args = sys.argv[1:]
    torch.set_num_threads(2)
    match what:
        case "steps":
            result: Any = steps(*map(int, args))
        case "store":
            result = store(Path(args[0]), args[1], int(args[2]), int(args[3]))
        case _:
            result = export(Path(args[0]), Path(args[1]))
    print(json.dumps(result))
