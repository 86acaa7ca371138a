"""What the training scripts of the peers share: same rows, same order, one clock, one judge.

Each peer has an environment of its own (torch first, and held: they would replace it):

    for peer in sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0; do
        python3.11 -m venv ENVS/${peer%%==*}
        ENVS/${peer%%==*}/bin/pip install torch==2.13.0
        echo torch==2.13.0 > torch.txt
        ENVS/${peer%%==*}/bin/pip install -c torch.txt $peer
    done
    ENVS/dictionary-learning/bin/pip uninstall -y torchvision    # or its import dies

Transformers is 5.23.0 and numpy 2.4.6 in all, transformer-lens 3.9.0, nnsight 0.3.7. Of this file,
a peer's environment runs what needs numpy and torch. A script prints one JSON line per trained SAE:

    rows_per_s          from the 4th step to the end of training; several at once: all of theirs
    seconds             since the process began: imports, start-up and members before it included
    explained_variance  1 - sum ||x - x_hat||^2 / sum ||x - mean||^2 over the held-out rows
    l0, dead            active latents per held-out row; latents active in none of them

BatchTopK is judged twice: with the largest of each held-out batch (as it was trained), and, as
`explained_variance_by_threshold` and `l0_by_threshold`, with the threshold it has learned.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WARM = 3  # steps before the clock starts
Weights = Mapping[str, Tensor]
"""W_enc [d, F], b_enc [F], W_dec [F, d], b_dec [d]; the threshold [] of BatchTopK, [F] of JumpReLU;
b_gate, r_mag and b_mag [F] of gated, whose b_enc is zero."""


def seconds() -> float:
    """Since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def arguments(description: str | None, archs: tuple[str, ...]) -> argparse.ArgumentParser:
    """What every script can be told; lists are trained one after another in the one process."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, help="A .npy file of float32 [n, d].")
    parser.add_argument("arch", choices=archs)
    parser.add_argument("d_sae", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--l1", type=numbers, default=[1.0], help="One or more: 0.5,1,2,4.")
    parser.add_argument("--k", type=numbers, default=[32], help="One or more: 16,32,64,128.")
    parser.add_argument("--lr", type=numbers, default=[3e-4], help="One or more.")
    parser.add_argument("--warmup", type=int, default=0, help="Steps the learning rate rises.")
    parser.add_argument("--decay", type=int, default=0, help="Last steps, in which it falls to 0.")
    parser.add_argument("--l1-warmup", type=int, default=0, help="Steps the penalty rises.")
    parser.add_argument("--seed", type=numbers, default=[0], help="One or more.")
    parser.add_argument("--held-out", type=int, default=8192, help="Last rows, not trained on.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path, help="Write the weights here: name.npz, by member.")
    return parser


def each(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """With one learning rate and one seed, of all that were given."""
    many = len(args.lr) * len(args.seed) > 1
    for lr, seed in product(args.lr, map(int, args.seed)):
        one = argparse.Namespace(**vars(args) | {"lr": lr, "seed": seed})
        if args.save and many:
            one.save = args.save.with_name(f"{args.save.stem}-{lr:g}-{seed}{args.save.suffix}")
        yield one


def swept(args: argparse.Namespace) -> list[float]:
    """The values that the members differ in."""
    return args.l1 if penalised(args.arch) else [int(k) for k in args.k]


def penalised(arch: str) -> bool:
    """Whether it is told a penalty, and not how many latents are to be active."""
    return "topk" not in arch


class Feed:
    """Batches of a file in its own order, again from its start when it ends.

    The held-out rows and what is left of the last batch are left out. Each batch is copied from the
    mapped file, so that reading costs every peer the same.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.rows = np.load(args.rows, mmap_mode="r")
        self.batch = args.batch
        self.n_batches = (len(self.rows) - args.held_out) // args.batch
        self.asked: list[float] = []
        if self.n_batches < 1:
            raise SystemExit(f"{args.rows} has {len(self.rows)} rows: too few for one batch")

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def __iter__(self) -> Iterator[Tensor]:
        self.asked = []
        for i in count():
            self.asked.append(time.perf_counter())
            start = i % self.n_batches * self.batch
            yield torch.from_numpy(self.rows[start : start + self.batch].copy())

    def rate(self, steps: int) -> float:
        """Rows a second from the first step that counts until now."""
        if steps <= WARM:
            return float("nan")
        return (steps - WARM) * self.batch / (time.perf_counter() - self.asked[WARM])

    def held_out(self, n_rows: int) -> Tensor:
        return torch.from_numpy(self.rows[len(self.rows) - n_rows :].copy())


def reconstruct(weights: Weights, x: Tensor, arch: str, k: int | None) -> tuple[Tensor, Tensor]:
    """`x_hat` and `z`; without `k`, a BatchTopK coder uses its threshold."""
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    z = pre.relu()
    if arch == "gated":
        z = (weights["r_mag"].exp() * pre + weights["b_mag"]).relu_()
        z *= pre + weights["b_gate"] > 0
    elif arch == "jumprelu":
        z *= pre > weights["threshold"]
    elif arch == "topk":
        values, places = z.topk(k, dim=-1)
        z = torch.zeros_like(z).scatter_(-1, places, values)
    elif arch == "batchtopk":
        least = weights["threshold"] if k is None else z.flatten().topk(k * len(z)).values[-1]
        z = z * (z >= least if k is not None else z > least)
    return z @ weights["W_dec"] + weights["b_dec"], z


@torch.no_grad()
def judge(
    weights: Weights, held: Tensor, args: argparse.Namespace, k: int | None
) -> dict[str, float]:
    """Explained variance, L0 and dead latents over held-out rows, a batch at a time.

    Of BatchTopK the first two by its threshold, too.
    """
    error, active, fired = 0.0, 0.0, torch.zeros(args.d_sae, dtype=torch.bool)
    for x in held.split(args.batch):
        x_hat, z = reconstruct(weights, x, args.arch, k)
        error += float((x - x_hat).double().square().sum())
        active += float((z > 0).sum())
        fired |= (z > 0).any(0)
    spread = float((held.double() - held.double().mean(0)).square().sum())
    told = {
        "explained_variance": 1 - error / spread,
        "l0": active / len(held),
        "dead": int((~fired).sum()),
    }
    if args.arch == "batchtopk" and k is not None:
        by_threshold = judge(weights, held, args, None)
        told |= {
            f"{name}_by_threshold": by_threshold[name] for name in ("explained_variance", "l0")
        }
    return told


@torch.no_grad()
def report(
    feed: Feed,
    args: argparse.Namespace,
    value: float,
    weights: Weights,
    rate: float,
    theirs: Callable[[Tensor], Tensor],
    *,
    batchless: bool = False,
) -> None:
    """Print what came of one member, and write its weights where that is asked for.

    Stop if these weights do not reconstruct a batch as the peer itself does (`theirs`), which for
    `batchless` takes BatchTopK's threshold.
    """
    told: dict[str, object] = {"arch": args.arch, "seconds": round(seconds(), 3)}
    weights = {name: tensor.detach().float() for name, tensor in weights.items()}
    free = penalised(args.arch)
    k = None if free else int(value)
    told |= {"l1" if free else "k": value, "rows_per_s": round(rate, 1)}
    if args.held_out:
        held = feed.held_out(args.held_out)
        told |= judge(weights, held, args, k)
    print(json.dumps(told), flush=True)
    if args.save:
        many = f"-{value:g}" if len(swept(args)) > 1 else ""
        arrays = {name: tensor.contiguous().numpy() for name, tensor in weights.items()}
        np.savez(args.save.with_name(f"{args.save.stem}{many}.npz"), **arrays)
    x = next(iter(feed))
    wanted, (ours, _) = theirs(x), reconstruct(weights, x, args.arch, None if batchless else k)
    moved = (ours - wanted).norm(dim=1) > 1e-3 * wanted.norm(dim=1)
    share = float(moved.float().mean())
    if share > 0.1:  # a tie at the k-th place moves a row; a wrong weight moves them all
        raise SystemExit(f"exported weights reconstruct {share:.0%} of rows unlike the peer")
