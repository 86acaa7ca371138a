"""Are the defaults good? Every architecture by `saepipe train` alone, and TopK against a search.

    python tests/bench/defaults.py [table] [search] [rate] [tell]
        [--models builtin stories characters] [--sites mlp_out attn_out resid_post] [--archs ...]
        [--rows 250k 2M] [--tokens 50k] [--jsonl FILE]

Models, texts and rows are those of `scenes.py`, at layer 2. Every figure is measured on held-out
text, of so many tokens, with the run's SAE spliced into its model.

table   each architecture told nothing but `--arch`: L0 at the end of training and on held-out text
        (32 is the default), dead latents, explained variance, loss added in nats and KL
search  24 TopK coders of other batch sizes, learning rates and decays: the loss added by defaults
        over that of the best of them, and the same of the KL divergence
rate    does the learning rate go by width as it should? TopK with 1,280 latents on rows of one
        layer of the embedded model, 160 wide, and of four layers side by side, 640 wide, by
        multiples of the default rate: explained variance and dead latents at the end
tell    what FILE has, as Markdown
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import saepipe as sp
import torch
from scenes import MAKERS, Scene, scenes

from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from pipeline.config.architectures import ARCHS
from pipeline.config.settings import parse_count
from tests.helpers.stores import column, write_rows

SEARCHED = {"lr": [1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2], "lr_decay": ["20%", "100%"]}
BATCH_SIZES = (256, 1024)
KINDS = ("mlp_out", "attn_out", "resid_post")


def told(
    scene: Scene, runs: Iterable[sp.SAERun], args: argparse.Namespace, *, rows: int, part: str
) -> list[dict[str, object]]:
    """A line a run, the best of its site and kind first."""
    runs = list(runs)
    reports = sp.evaluate(
        runs, text=scene.heldout, tokens=args.tokens, n_bootstrap=0, n_worst=0, device="cpu"
    )
    lines = []
    for run, report in zip(runs, reports, strict=True):
        config = run.config
        line = {
            "part": part, "model": scene.name, "site": report.site, "rows": rows,
            "arch": config.arch.kind, "batch": config.batch_size, "lr": config.lr,
            "decay": config.lr_decay, "l0_trained": run.metrics["l0"], "l0": report.l0,
            "dead": report.n_dead / report.d_sae, "ev": report.explained_variance,
            "ce_added": report.ce_added, "kl": report.kl,
        }  # fmt: skip
        lines.append(line)
        if args.jsonl:
            with args.jsonl.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return lines


def sweep(store: Path, out: Path, **settings: object) -> list[sp.SAERun]:
    return sp.sweep(store, out=out, device="cpu", **settings)


def table(scene: Scene, store: Path, out: Path, rows: int, args: argparse.Namespace) -> None:
    sites = [scene.site(kind) for kind in args.sites]
    runs = sweep(store, out, arch=args.archs, site=sites, tokens=rows)
    lines = told(scene, runs, args, rows=rows, part="table")
    for line in sorted(lines, key=lambda line: (line["site"], list(ARCHS).index(line["arch"]))):
        print(
            "{model:11s}{site:13s}{rows:9,d}  {arch:11s}{batch:5d} {lr:7g}{l0_trained:8.2f}"
            "{l0:8.2f}{dead:8.1%}{ev:8.4f}{ce_added:9.4f}{kl:9.4f}".format(**line),
            flush=True,
        )


def search(scene: Scene, store: Path, out: Path, rows: int, args: argparse.Namespace) -> None:
    for kind in args.sites:
        site = scene.site(kind)
        ours = sweep(store, out / kind / "ours", arch=["topk"], site=site, tokens=rows)
        found = [
            run
            for size in BATCH_SIZES
            for run in sweep(
                store, out / kind / str(size), site=site, tokens=rows, batch_size=size, **SEARCHED
            )
        ]
        mine, *others = told(scene, [*ours, *found], args, rows=rows, part="search")
        print(f"{scene.name:11s}{site:13s}{rows:9,d}  ", end="")
        for name in ("ce_added", "kl"):
            best = min(others, key=lambda line, name=name: line[name])
            print(
                f"{name} {mine[name]:.4f}, best of {len(others)} {best[name]:.4f} (batch "
                f"{best['batch']}, lr {best['lr']:g}, decay {best['decay']}): "
                f"{mine[name] / best[name]:.3f}  ",
                end="",
            )
        print(flush=True)


def rate(folder: Path, rows: int) -> None:
    (scene,) = scenes(["builtin"], folder)
    sites = [f"resid_post.{layer}" for layer in range(4)]
    acts = folder / "layers.actstore"
    sp.harvest(
        model=scene.model, text=scene.text, sites=sites, out=acts, tokens=rows, dtype="fp32",
        ctx_len=scene.ctx_len, device="cpu",
    )  # fmt: skip
    whole = ActStore.open(acts)
    layers = [column(whole, site) for site in sites]
    layers = [(layer - layer.mean(0)) / layer.std() for layer in layers]
    order = np.random.default_rng(0).permutation(whole.n_rows)
    for picked in ([2], [0, 1, 2, 3]):
        wide = np.concatenate([layers[i] for i in picked], 1)[order]
        spec = StoreSpec.of(
            widths={scene.site("resid_post"): wide.shape[1]}, ctx_len=16, dtype="float32",
            source={"model": "builtin", "revision": "main", "text": "builtin"},
        )  # fmt: skip
        store = write_rows(folder / f"{wide.shape[1]}.actstore", spec, [wide], n_rows=whole.n_rows)
        settings = {"arch": "topk", "expansion": 1280 // wide.shape[1], "tokens": rows}
        first = sp.train(store, out=folder / f"{wide.shape[1]}-default", device="cpu", **settings)
        assert first.config.lr is not None
        rates = [first.config.lr * 2**power for power in (-2, -1, 1, 2)]
        others = sweep(store, folder / f"{wide.shape[1]}-others", lr=rates, **settings)
        for run in [first, *others]:
            print(
                f"width {wide.shape[1]:4d}  lr {run.config.lr:.5f}  explained variance "
                f"{run.metrics['explained_variance']:.4f}  dead {run.metrics['n_dead']} of 1280",
                flush=True,
            )


def tell(path: Path) -> None:
    """A table a model and length, with a column a site; then the searches."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    tables: dict[tuple[str, int], dict[str, dict[str, str]]] = {}
    for line in lines:
        if line["part"] == "table":
            rows = tables.setdefault((line["model"], line["rows"]), {})
            rows.setdefault(line["arch"], {})[line["site"]] = (
                "{l0:.1f}; {dead:.1%}; {ev:.3f}; {ce_added:.4f}, {kl:.4f}".format(**line)
            )
    for (model, n_rows), rows in tables.items():
        sites = sorted(next(iter(rows.values())))
        print(
            f"\n{model}, {n_rows:,} rows\n\n| | {' | '.join(sites)} |\n|---|" + "---|" * len(sites)
        )
        for arch, cells in rows.items():
            print(f"| {arch} | {' | '.join(cells[site] for site in sites)} |")
    print("\n| | loss added: defaults / best of 24 | KL |\n|---|---|---|")
    searches: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    for line in lines:
        if line["part"] == "search":
            searches.setdefault((line["model"], line["rows"], line["site"]), []).append(line)
    for (model, n_rows, site), (mine, *others) in searches.items():
        cells = []
        for name in ("ce_added", "kl"):
            best = min(line[name] for line in others)
            cells.append(f"{mine[name]:.4f} / {best:.4f} = {mine[name] / best:.2f}")
        print(f"| {model}, {site}, {n_rows:,} rows | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["table", "search"])
    parser.add_argument("--models", nargs="+", default=[*MAKERS])
    parser.add_argument("--sites", nargs="+", default=[*KINDS])
    parser.add_argument("--archs", nargs="+", default=[*ARCHS], help="Of the table: only these.")
    parser.add_argument("--rows", nargs="+", type=parse_count, default=[250_000, 2_000_000])
    parser.add_argument("--tokens", default="50k", help="Of held-out text.")
    parser.add_argument("--jsonl", type=Path, help="Add every line to this file.")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "tell" in args.parts:
        tell(args.jsonl)
        return
    if {"table", "search"} & {*args.parts}:
        print(f"{'':46s}batch      lr L0 train    L0     dead      EV CE added       KL")
    with tempfile.TemporaryDirectory() as name:
        if "rate" in args.parts:
            rate(Path(name), args.rows[0])
            return
        for scene in scenes(args.models, Path(name)):
            for rows in args.rows:
                store = Path(name) / f"{scene.name}-{rows}.actstore"
                scene.harvest([*args.sites], tokens=rows, out=store)
                for part in args.parts:
                    out = Path(name) / f"{scene.name}-{rows}-{part}"
                    {"table": table, "search": search}[part](scene, store, out, rows, args)


if __name__ == "__main__":
    main()
