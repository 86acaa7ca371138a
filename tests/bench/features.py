"""How fast the features of a run are found, against encoding alone.

    python tests/bench/features.py                    # about 5 minutes

Rows are normal, `d` 512, in contexts of 128; 4096 features, of which TopK lets 32 through, and
ReLU, with one bias for all, 400. `encode` is the coder alone, over float32 rows in memory, in the
blocks that the pass over the store makes; `sample_store` is that pass: decode, reorder, widen,
encode, and keep. Both are taken in turn; ratios are round by round: median [lowest..highest], of
time by the clock and, for where others compute beside it, of CPU time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from pipeline.config.architectures import ReluConfig, TopKConfig
from pipeline.config.stages import FeaturesConfig
from pipeline.features.collect import BLOCK, sample_store
from pipeline.sae.sae import SAE
from tests.bench.common import ratios, spread
from tests.helpers.stores import write_rows

SITE, D, F, CTX_LEN = "mlp_out.1", 512, 4096, 128
BIAS = -1.295  # a normal number is above 1.295 in 9.77 % of all cases: 400 of 4096


def make_store(path: Path, *, n_rows: int) -> ActStore:
    """A store of normal rows in bfloat16."""
    spec = StoreSpec.of(widths={SITE: D}, ctx_len=CTX_LEN, dtype="bfloat16")
    rng = np.random.default_rng(0)
    sizes = (min(2**14, n_rows - start) for start in range(0, n_rows, 2**14))
    blocks = (rng.standard_normal((n, D), np.float32).view(np.uint32) >> 16 for n in sizes)
    blocks = (bits.astype(np.uint16) for bits in blocks)
    return ActStore.open(write_rows(path, spec, blocks, n_rows=n_rows))


def make_sae(kind: str) -> SAE:
    config = TopKConfig(k=32) if kind == "topk" else ReluConfig()
    coder = SAE(config, d_in=D, d_sae=F)
    if kind == "relu":
        torch.nn.init.constant_(coder.b_enc, BIAS)
    return coder


@torch.inference_mode()
def encode_only(coder: SAE, x: torch.Tensor, *, n_rows: int) -> None:
    """As many blocks as the store has, from rows in memory."""
    rows = BLOCK["cpu"] // (CTX_LEN * F) * CTX_LEN
    for start in range(0, n_rows, rows):
        coder.encode(x[start % len(x) :][:rows])


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of CPU time."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def print_cell(kind: str, store: ActStore, *, rounds: int) -> None:
    """One line of the table."""
    coder, x, config = make_sae(kind), torch.randn(2**16, D), FeaturesConfig(run=Path("run"))
    found = sample_store(config, store, SITE, coder)  # the first one warms up
    alone, whole = list[tuple[float, float]](), list[tuple[float, float]]()
    for _ in range(rounds):
        alone.append(seconds(lambda: encode_only(coder, x, n_rows=store.n_rows)))
        whole.append(seconds(lambda: sample_store(config, store, SITE, coder)))
    took = [*zip(*alone, strict=True)], [*zip(*whole, strict=True)]  # by the clock, of CPU
    rates = [f"{store.n_rows / statistics.median(clock):,.0f}" for clock, _ in took]
    shares = [spread(ratios(*both)) for both in zip(*took, strict=True)]
    l0 = found.n_active.sum() / found.n_tokens
    print(f"| {kind} | {l0:.0f} | {' | '.join(rates)} | {' | '.join(shares)} | 0.6 |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2**18)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "s.actstore", n_rows=options.rows)
        print("| coder | L0 | encode, rows/s | scan, rows/s | encode / scan | of CPU | goal |")
        print("|---|---|---|---|---|---|---|")
        for kind in ("topk", "relu"):
            print_cell(kind, store, rounds=options.rounds)


if __name__ == "__main__":
    main()
