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

from actstore.layout import row_permutation
from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from actstore.writer import ActWriter, Shard
from pipeline.config.architectures import ReluConfig, TopKConfig
from pipeline.config.stages import FeaturesConfig
from pipeline.features.collect import BLOCK, sample_store
from pipeline.sae.sae import SAE

SITE, D, F, CTX_LEN = "mlp_out.1", 512, 4096, 128
BIAS = -1.295  # a normal number is above 1.295 in 9.77 % of all cases: 400 of 4096


def make_store(path: Path, *, n_rows: int) -> ActStore:
    """A store of normal rows in bfloat16."""
    spec = StoreSpec.of(widths={SITE: D}, ctx_len=CTX_LEN, dtype="bfloat16")
    rng = np.random.default_rng(0)
    with ActWriter.create_or_resume(path, spec, n_rows=n_rows, threads=2) as writer:
        for k in range(writer.n_shards):
            n = writer.rows_in(k)
            order = row_permutation(n, seed=spec.seed, shard=k)
            x = rng.standard_normal((n, D), np.float32)
            shard = Shard(
                index=k,
                acts={SITE: (x.view(np.uint32) >> 16).astype(np.uint16)[order]},
                tokens=rng.integers(0, 50_000, (n // CTX_LEN, CTX_LEN), dtype=np.int32),
                document_id=np.zeros((n // CTX_LEN, CTX_LEN), np.int64),
                cursor={},
            )
            writer.write_shard(shard)
        writer.finish()
    return ActStore.open(path)


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


def spread(values: list[float], pattern: str = "{:.2f}") -> str:
    middle, *ends = map(pattern.format, (statistics.median(values), min(values), max(values)))
    return f"{middle} [{'..'.join(ends)}]"


def print_cell(kind: str, store: ActStore, *, rounds: int) -> None:
    """One line of the table."""
    coder, x, config = make_sae(kind), torch.randn(2**16, D), FeaturesConfig(run=Path("run"))
    found = sample_store(config, store, SITE, coder)  # the first one warms up
    alone, whole = list[tuple[float, float]](), list[tuple[float, float]]()
    for _ in range(rounds):
        alone.append(seconds(lambda: encode_only(coder, x, n_rows=store.n_rows)))
        whole.append(seconds(lambda: sample_store(config, store, SITE, coder)))
    rates = [
        f"{store.n_rows / statistics.median(clock for clock, _ in took):,.0f}"
        for took in (alone, whole)
    ]
    ratios = [
        spread([one[i] / other[i] for one, other in zip(alone, whole, strict=True)])
        for i in range(2)
    ]
    l0 = found.n_active.sum() / found.n_tokens
    print(f"| {kind} | {l0:.0f} | {' | '.join(rates)} | {' | '.join(ratios)} | 0.6 |", flush=True)


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
