"""The best dictionary at equal tokens: ours against the peers', by what is lost in the model.

    python tests/bench/frontier.py [train] [tell] --jsonl FILE [--saelens PYTHON]
        [--dictionary-learning PYTHON] [--sparsify PYTHON] [--models builtin stories characters]
        [--sites mlp_out resid_post] [--seeds 0 1 2] [--rows 200k] [--batch 256]

Models, texts and sites are those of `scenes.py`. Of each site, rows are shuffled, their mean is
taken out and they are scaled to a mean square of 1 a dimension: what some do by themselves is done
for all. Everyone trains on the same rows, once, with the same batch, four latents a dimension, a
learning rate that warms up over 5 % and decays over the last 20 %, and gradients clipped to norm 1.

train   of each coder, each learning rate of LRS is tried with seed 0 at the middle L0 and the one
        of least KL divergence is kept, which is less noisy than the loss added; that trains every
        L0 and seed. Whoever is told a penalty and not an L0 is given those that lead to these L0,
        found with seed 0 before. Lines are added to FILE, one a coder, and what is there already is
        not trained again
tell    KL divergence of each coder at L0 16, 32 and 64, and at 32 the loss added, the explained
        variance and the share of dead latents: mean and standard deviation over seeds; between two
        L0, the logarithms of divergence and loss are linear in that of L0, and so are the others

Every coder, whoever trained it, is made an SAE of saepipe's, its mean and scale folded in, and
spliced into the model over the same held-out text: L0, loss added, KL, dead latents and explained
variance are of there. How the peers' environments are made, `peer_train_common.py` says.
"""

import argparse
import json
import math
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import saepipe as sp
import torch
from scenes import MAKERS, Scene, scenes

from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from pipeline.config.architectures import ARCHS
from pipeline.config.settings import parse_count
from pipeline.sae.sae import SAE, fold
from tests.helpers.stores import column, write_rows
from tests.helpers.tiny import save_sae

Weights = dict[str, torch.Tensor]
Line = dict[str, Any]
"""Of FILE."""
EXPANSION = 4
OWN = ("W_enc", "b_enc", "W_dec", "b_dec")
"""Parameters that are not the activation's."""
WARMUP, DECAY = 0.05, 0.2
"""Of a training."""
LRS = (4e-3, 8e-3, 16e-3, 32e-3)
L0S = (16.0, 32.0, 64.0)
DRIVERS = Path(__file__).parent
PENALTIES = {
    ("saelens", "relu-april"): (0.03, 0.1, 0.3, 1.0),
    ("saelens", "gated"): (0.03, 0.1, 0.3, 1.0),
    ("saelens", "jumprelu"): (0.01, 0.03, 0.1, 0.3, 1.0),
    ("dictionary_learning", "relu-april"): (0.03, 0.1, 0.3, 1.0),
    ("dictionary_learning", "gated"): (0.03, 0.1, 0.3, 1.0),
}
"""Where a peer is told a penalty, those to look for its L0 with, each with FIRST_LR."""
FIRST_LR = LRS[2]
NAMES = {"ce_added": "loss", "kl": "KL", "ev": "EV", "dead": "dead"}
SHOWN = [*product(("kl",), L0S), *product(("ce_added", "ev", "dead"), L0S[1:2])]
PEERS = {
    "saelens": ("relu-april", "gated", "jumprelu", "topk", "batchtopk"),
    "dictionary_learning": ("relu-april", "gated", "jumprelu", "topk", "batchtopk"),
    "sparsify": ("topk",),
}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A site, its rows, and how they were made."""

    scene: Scene
    site: str
    rows: Path
    """A .npy of standardised rows."""
    store: Path
    """The same."""
    mean: torch.Tensor
    scale: float

    @property
    def width(self) -> int:
        return len(self.mean)

    def in_model(self, weights: Weights, arch: str, l0: float) -> SAE:
        """A coder of standardised rows as one of the model's."""
        kind = ARCHS[arch]
        config = kind(k=round(l0)) if kind.l0_as == "k" else kind()
        sae = SAE(config, d_in=self.width, d_sae=weights["W_dec"].shape[0], site=self.site)
        state = fold(weights, scale=self.scale)
        state["b_dec"] = state["b_dec"] + self.mean
        sae.load_state_dict(state)
        return sae


@dataclass(frozen=True, kw_only=True)
class Coder:
    """What was trained."""

    who: str
    arch: str
    value: float
    """L0, or the penalty."""
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.who}-{self.arch}-{self.value:g}-{self.lr:g}-{self.seed}"


def make_ground(scene: Scene, kind: str, folder: Path, *, n_rows: int) -> Ground:
    """Harvest, shuffle, standardise."""
    site = scene.site(kind)
    acts = scene.harvest([kind], tokens=n_rows, out=folder / f"{scene.name}-{kind}.actstore")
    rows = column(ActStore.open(acts), site)
    rows = rows[np.random.default_rng(0).permutation(len(rows))][:n_rows]
    mean = rows.mean(0)
    scale = float(np.sqrt(np.square(rows - mean).mean()))
    rows = (rows - mean) / scale
    path = folder / f"{scene.name}-{kind}.npy"
    np.save(path, rows)
    spec = StoreSpec.of(
        widths={site: rows.shape[1]}, ctx_len=16, dtype="float32",
        source={"model": "builtin", "revision": "main", "text": "builtin"},
    )  # fmt: skip
    n_rows = len(rows) // 16 * 16
    store = write_rows(path.with_suffix(".rows.actstore"), spec, [rows[:n_rows]], n_rows=n_rows)
    return Ground(
        scene=scene, site=site, rows=path, store=store, mean=torch.from_numpy(mean), scale=scale
    )


def ours(
    args, ground: Ground, *, arch: str, values: Iterable[float], lrs: Iterable[float],
    seeds: Iterable[int], folder: Path,
) -> Iterator[tuple[Coder, Weights]]:  # fmt: skip
    """One sweep of ours: what is not an option here is the default."""
    steps = n_steps(args, ground)
    settings = {
        "tokens": steps * args.batch, "batch_size": args.batch, "expansion": EXPANSION,
        "lr_warmup": f"{round(WARMUP * steps)} steps", "lr_decay": f"{round(DECAY * steps)} steps",
    }  # fmt: skip
    runs = sp.sweep(
        ground.store, arch=arch, l0=[*values], lr=[*lrs], seed=[*seeds], device="cpu", out=folder,
        **settings | args.set,
    )  # fmt: skip
    for run in runs:
        config = run.config
        value = float(getattr(config.arch, config.arch.l0_as))
        yield (
            Coder(who="saepipe", arch=arch, value=value, lr=config.lr, seed=config.seed),
            run.sae.state_dict(),
        )


def theirs(
    args, ground: Ground, *, who: str, arch: str, values: Iterable[float], lrs: Iterable[float],
    seeds: Iterable[int], folder: Path,
) -> Iterator[tuple[Coder, Weights]]:  # fmt: skip
    """One process for all."""
    values, lrs, seeds = [*values], [*lrs], [*seeds]
    steps = n_steps(args, ground)
    name = "--k" if "topk" in arch else "--l1"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        getattr(args, who), DRIVERS / f"peer_train_{who}.py", ground.rows, arch,
        EXPANSION * ground.width, args.batch, steps, name, listed(values), "--lr", listed(lrs),
        "--warmup", round(WARMUP * steps), "--decay", round(DECAY * steps),
        "--l1-warmup", round(WARMUP * steps), "--held-out", 0, "--seed", listed(seeds),
        "--threads", args.threads, "--save", folder / "coder.npz",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    for lr, seed, value in product(lrs, seeds, values):
        many = f"-{lr:g}-{seed}" if len(lrs) * len(seeds) > 1 else ""
        many += f"-{value:g}" if len(values) > 1 else ""
        arrays = np.load(folder / f"coder{many}.npz")
        weights = {
            name if name in OWN else f"activation.{name}": torch.from_numpy(arrays[name])
            for name in arrays.files
        }
        yield Coder(who=who, arch=arch, value=value, lr=lr, seed=seed), weights


def n_steps(args, ground: Ground) -> int:
    """One pass, as long for all."""
    return len(np.load(ground.rows, mmap_mode="r")) // args.batch


def listed(values: Iterable[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def judged(
    args, ground: Ground, found: Iterable[tuple[Coder, Weights]], folder: Path
) -> list[Line]:
    """Each, spliced into the model over held-out text."""
    coders, runs = [], []
    for coder, weights in found:
        sae = ground.in_model(weights, coder.arch, coder.value)
        runs.append(
            save_sae(
                folder / coder.name, sae, model=ground.scene.model, text=ground.scene.text,
                site=ground.site, arch=sae.arch,
            )
        )  # fmt: skip
        coders.append(coder)
    reports = sp.evaluate(
        runs, text=ground.scene.heldout, tokens=args.tokens, n_bootstrap=0, n_worst=0, device="cpu"
    )
    lines = []
    for coder, report in zip(coders, reports, strict=True):
        line = vars(coder) | {
            "model": ground.scene.name, "site": ground.site, "rows": args.rows,
            "batch": args.batch, "l0": report.l0, "ce_added": report.ce_added, "kl": report.kl,
            "dead": report.n_dead / report.d_sae, "ev": report.explained_variance,
        }  # fmt: skip
        lines.append(line)
    return lines


def train(args, ground: Ground, who: str, arch: str) -> None:
    """The penalties, the learning rate, then everything with them."""
    done = {
        line["seed"] for line in read(args.jsonl)
        if (line["model"], line["site"], line["who"], line["arch"])
        == (ground.scene.name, ground.site, who, arch)
    }  # fmt: skip
    if done.issuperset(args.seeds):
        return
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def make(values: Iterable[float], lrs: Iterable[float], seeds: list[int]) -> list[Line]:
            out = folder / str(len(lines))
            by = ours if who == "saepipe" else partial(theirs, who=who)
            found = by(args, ground, arch=arch, values=values, lrs=lrs, seeds=seeds, folder=out)
            made = judged(args, ground, found, folder / f"{len(lines)}-judged")
            lines.extend(made)
            return made

        first, values = args.seeds[:1], [*L0S]
        if (who, arch) in PENALTIES:
            pilot = make(PENALTIES[who, arch], [FIRST_LR], first)
            values = [penalty_for(l0, pilot) for l0 in L0S]
        middle = len(L0S) // 2
        tried = make([values[middle]], LRS, first)
        best = min(tried, key=lambda line: kl_at_equal_l0(line, tried))
        if (who, arch) in PENALTIES:  # L0 moves with lr
            off = L0S[middle] / max(best["l0"], 1e-3)
            values = [penalty_for(l0 * off, pilot) for l0 in L0S]
        found = make(values, [best["lr"]], args.seeds)
    with args.jsonl.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    told = [line for line in found if line["value"] == values[middle]]
    print(
        f"{ground.scene.name:11s}{ground.site:13s}{who:20s}{arch:11s} lr {best['lr']:g}  "
        f"L0 {told[0]['l0']:.1f}, added "
        + " ".join(f"{line['ce_added']:.4f}" for line in told), flush=True,
    )  # fmt: skip


def penalty_for(l0: float, pilot: list[Line]) -> float:
    """That would lead to this L0: of the two nearest, the logarithms are taken to be linear."""
    pilot = sorted((line for line in pilot if line["l0"] > 0), key=lambda line: line["l0"])
    x = [math.log(line["l0"]) for line in pilot]
    y = [math.log(line["value"]) for line in pilot]
    i = min(max(int(np.searchsorted(x, math.log(l0))), 1), len(x) - 1)
    slope = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
    return float(f"{math.exp(y[i] + slope * (math.log(l0) - x[i])):.6g}")


def kl_at_equal_l0(line: Line, tried: list[Line]) -> float:
    """As if half the L0 made it twice as large: without a `k`, L0 moves with lr."""
    middle = statistics.median(other["l0"] for other in tried)
    return line["kl"] * max(line["l0"], 1e-3) / middle


def read(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def value_at(lines: list[Line], name: str, l0: float) -> float | None:
    """Of coders of one seed at this L0; None beyond theirs by more than a quarter."""
    lines = sorted((line for line in kept_of(lines) if line["l0"] > 0), key=lambda x: x["l0"])
    x, at = [math.log(line["l0"]) for line in lines], math.log(l0)
    if not x or not x[0] - 0.25 <= at <= x[-1] + 0.25:
        return None
    if name in {"ev", "dead"}:
        return float(np.interp(at, x, [line[name] for line in lines]))
    return math.exp(np.interp(at, x, [math.log(max(line[name], 1e-6)) for line in lines]))


def over_seeds(seeds: dict[int, list[Line]], name: str, l0: float) -> list[float]:
    found = [value_at(lines, name, l0) for lines in seeds.values()]
    return [value for value in found if value is not None]


def tell(args) -> None:
    """A table a site, in Markdown, the least divergence at the middle L0 first."""
    sites: dict[tuple[str, str], dict[tuple[str, str], dict[int, list[Line]]]] = {}
    for line in read(args.jsonl):
        coders = sites.setdefault((line["model"], line["site"]), {})
        seeds = coders.setdefault((line["who"], line["arch"]), defaultdict(list))
        seeds[line["seed"]].append(line)
    for (model, site), coders in sites.items():
        columns = [f"{NAMES[name]} {l0:g}" for name, l0 in SHOWN]
        print(f"\n{model}, {site}\n\n| | lr | {' | '.join(columns)} |")
        print("|---" * (len(columns) + 2) + "|")

        def divergence(seeds: dict[int, list[Line]]) -> float:
            return statistics.mean(over_seeds(seeds, "kl", L0S[1]) or [math.inf])

        for (who, arch), seeds in sorted(coders.items(), key=lambda item: divergence(item[1])):
            cells = []
            for name, l0 in SHOWN:
                found = over_seeds(seeds, name, l0)
                spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
                cells.append(f"{statistics.mean(found):.4f}{spread}" if found else "")
            lr = kept_of(seeds[min(seeds)])[0]["lr"]
            print(f"| {who} {arch} | {lr:g} | {' | '.join(cells)} |")


def kept_of(lines: list[Line]) -> list[Line]:
    """Those of the learning rate that was kept: the last ones are."""
    return [line for line in lines if line["lr"] == lines[-1]["lr"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["train", "tell"])
    parser.add_argument("--jsonl", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=[*MAKERS])
    parser.add_argument("--sites", nargs="+", default=["mlp_out", "resid_post"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--archs", nargs="+", help="Only these.")
    parser.add_argument("--rows", type=parse_count, default=200_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", default="30k", help="Of held-out text.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", type=json.loads, default={}, help="Settings of ours, as JSON.")
    parser.add_argument("--no-ours", action="store_true")
    for who in PEERS:
        parser.add_argument(f"--{who.replace('_', '-')}", help="Python of an environment with it.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "train" in args.parts:
        with tempfile.TemporaryDirectory() as name:
            for scene in scenes(args.models, Path(name)):
                for kind in args.sites:
                    ground = make_ground(scene, kind, Path(name), n_rows=args.rows)
                    asked = {} if args.no_ours else {"saepipe": tuple(ARCHS)}
                    for who, archs in (asked | PEERS).items():
                        if who == "saepipe" or getattr(args, who):
                            for arch in archs:
                                if not args.archs or arch in args.archs:
                                    train(args, ground, who, arch)
    if "tell" in args.parts:
        tell(args)


if __name__ == "__main__":
    main()
