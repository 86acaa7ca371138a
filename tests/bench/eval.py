"""What an evaluation costs, against a plain script and SAELens, and whether the numbers are equal.

    python tests/bench/eval.py                                # about 4 minutes on two cores
    python tests/bench/eval.py --saelens ENV/bin/python       # about 7; ENV has sae-lens

Cost: the model has Pythia-70m's shape and random weights; ReLU SAEs of expansion 8, made of the
site's activations, are evaluated on the embedded held-out text, 128 tokens a context, 8 contexts a
pass, in float32. Every round runs every cell once, in turn; ratios are taken round by round, and
their median printed with the lowest and highest. Seconds are of whole calls:

    cold N    `evaluate` of N SAEs of one site, nothing kept of earlier ones; model loading included
    warm N    the same with the site's ablated losses kept from before
    plain     eval_plain.py, one SAE: hooks, whole forwards; the model is loaded before
    saelens N `run_evals`, once per SAE, all metrics; model and SAEs are loaded before
    clean     the untouched model's losses, what the goals count in
    below     the model up to the site
    sae       an SAE's encoder and decoder on the site's activations

The goal for N SAEs is (1 + N * share) * clean + N * sae, the share being of what is above the site,
1 - below / clean. Where nothing is kept, zero and mean ablation are two passes more above it, and
the mean needs a pass below it.

Equality: the embedded model, one SAE, the same tokens. Metrics whose definitions coincide have one
line; SAELens' KL counts the last position of each context too, and its relative bias is a mean
over batches of ratios, so that these stand against the plain script's numbers of those definitions.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from eval_plain import evaluate_plain
from harvest import CTX_LEN, make_model
from safetensors.torch import load_file

from pipeline.config.architectures import ReluConfig
from pipeline.config.stages import EvalConfig
from pipeline.config.training import TrainConfig
from pipeline.evaluate.evaluate import evaluate
from pipeline.evaluate.report import QUANTILES, EvalReport
from pipeline.lm.cross_entropy import cross_entropy_sum
from pipeline.lm.hooks import reading
from pipeline.lm.hub import builtin_model_path
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.runs.folder import Provenance
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from pipeline.text.heldout import load_contexts
from tests.bench.common import Cell, in_turn, spread

TEXT, BATCH, CPU = "builtin@heldout", 8, torch.device("cpu")
EXPANSION, ACTIVE, EQUAL_LAYER = 8, 0.02, 2

THEIRS = {
    "ce_clean": "ce_loss_without_sae",
    "ce_patched": "ce_loss_with_sae",
    "ce_zero": "ce_loss_with_ablation",
    "loss_recovered": "ce_loss_score",
    "saelens_kl": "kl_div_with_sae",
    "saelens_kl_zero": "kl_div_with_ablation",
    "saelens_kl_recovered": "kl_div_score",
    "cosine": "cossim",
    "saelens_relative_bias": "relative_reconstruction_bias",
}
"""SAELens' names of those of the plain script's numbers that it calls otherwise."""


def clean_losses(lm: LanguageModel, batches: Sequence[torch.Tensor]) -> None:
    """The untouched model's loss."""
    with torch.no_grad():
        for batch in batches:
            cross_entropy_sum(lm, lm.hidden(batch), batch)


def activations(lm: LanguageModel, batches: Sequence[torch.Tensor], site: Site) -> torch.Tensor:
    """Rows of the site; nothing above it runs."""
    with reading(lm, [site]) as read, torch.no_grad():
        return torch.cat([read(batch)[site].flatten(0, 1) for batch in batches])


def make_sae(x: torch.Tensor, *, seed: int) -> SAE:
    """A ReLU coder whose latents look for some of these rows, each on one token in fifty."""
    d_in = x.shape[1]
    d_sae = EXPANSION * d_in
    generator = torch.Generator().manual_seed(seed)
    coder = SAE(ReluConfig(), d_in=d_in, d_sae=d_sae)
    some = x[torch.randperm(len(x), generator=generator)[: min(d_sae, 2048)]]
    mean = x.mean(0)
    noise = torch.randn(d_sae, d_in, generator=generator) * x.std(0)
    rows = some[torch.randint(len(some), (d_sae,), generator=generator)] - mean + 0.5 * noise
    with torch.no_grad():
        coder.W_dec.copy_(torch.nn.functional.normalize(rows, dim=-1))
        pre = (some - mean) @ coder.W_dec.T
        threshold = pre.quantile(1 - ACTIVE, dim=0)
        made = (pre - threshold).relu() @ coder.W_dec
        scale = ((some - mean) * made).sum() / made.square().sum()  # of least squares
        coder.W_enc.copy_(
            scale * coder.W_dec.T + 0.01 * torch.randn(d_in, d_sae, generator=generator)
        )
        coder.b_enc.copy_(-scale * threshold)
        coder.b_enc[::50] = -1e4  # these are dead
        coder.b_dec.copy_(mean)
    return coder


def save_run(path: Path, coder: SAE, *, model: str, site: Site) -> Path:
    """A finished run, beside an empty store: that is where ablated losses are kept."""
    store = path.with_name("a.actstore")
    for folder in (path, store):
        folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(store=store, out=path, arch=ReluConfig(l1=1e-3), expansion=EXPANSION)
    provenance = Provenance(
        path=store, fingerprint="f" * 64, model=model, revision="main", model_fingerprint="",
        text="builtin", site=str(site), d_in=coder.d_in, ctx_len=CTX_LEN, n_rows=1, dtype="float32",
    )  # fmt: skip
    SAERun(path=path, config=config, provenance=provenance).finish(coder)
    return path


def ours(runs: Sequence[Path], n_tokens: int) -> tuple[EvalReport, ...]:
    """`saepipe eval`, but for its figures."""
    config = EvalConfig(
        runs=tuple(runs), text=TEXT, tokens=n_tokens, batch_size=BATCH, device="cpu",
        precision="fp32",
    )  # fmt: skip
    return evaluate(config)


def timed(cell: Callable[[], object]) -> Cell:
    """How many seconds a call takes."""

    def run() -> float:
        start = time.perf_counter()
        cell()
        return time.perf_counter() - start

    return run


class SaeLens:
    """A process that evaluates the first N of some SAEs when it is told to."""

    def __init__(
        self, python: str, model: str, tokens: Path, runs: Sequence[Path], *, layer: int, kind: str
    ) -> None:
        script = Path(__file__).with_name("peer_eval_saelens.py")
        saes = [run / "sae.safetensors" for run in runs]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        self._process = subprocess.Popen(
            list(map(str, [python, script, model, tokens, layer, BATCH, kind, *saes])),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads,
        )  # fmt: skip

    def evaluate(self, n: int) -> dict[str, Any]:
        """Seconds, and metrics of each SAE."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(n, file=stdin, flush=True)
        for line in stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"SAELens gave up: exit {self._process.wait()}")

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def make_runs(
    folder: Path, model: str, *, layer: int, n: int, n_tokens: int
) -> tuple[LanguageModel, list[torch.Tensor], list[Path]]:
    """The model, batches of tokens, also as tokens.npy, and so many runs."""
    lm = load_model(model, device=CPU, dtype=torch.float32)
    site = Site.parse(f"mlp_out.{layer}")
    n_contexts = n_tokens // (CTX_LEN * BATCH) * BATCH
    tokens = load_contexts(TEXT, load_tokenizer(model), ctx_len=CTX_LEN, n=n_contexts).long()
    np.save(folder / "tokens.npy", tokens.numpy())
    x = activations(lm, tokens[:32].split(BATCH), site)
    runs = [
        save_run(folder / f"run{i}", make_sae(x, seed=i), model=model, site=site) for i in range(n)
    ]
    return lm, list(tokens.split(BATCH)), runs


def hugging_face(model: str) -> Any:
    """As transformers loads it."""
    path = builtin_model_path() if model == "builtin" else model
    return transformers.GPTNeoXForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def cells_of(
    lm: LanguageModel, batches: list[torch.Tensor], runs: list[Path], *, layer: int
) -> dict[str, Cell]:
    """What is timed in this process."""
    n, site, folder = len(runs), Site.parse(f"mlp_out.{layer}"), runs[0].parent
    n_tokens = sum(batch.numel() for batch in batches)
    coder = SAERun.open(runs[0]).load_sae(CPU)
    x = activations(lm, batches, site)
    model, weights = hugging_face(lm.name), load_file(runs[0] / "sae.safetensors")

    def cold(n: int) -> Cell:
        def run() -> float:
            shutil.rmtree(folder / "a.losses", ignore_errors=True)
            return timed(lambda: ours(runs[:n], n_tokens))()

        return run

    @torch.no_grad()
    def sae() -> None:
        for rows in x.split(batches[0].numel()):
            coder(rows)

    def plain() -> None:
        evaluate_plain(model, torch.cat(batches), weights, layer=layer, batch_size=BATCH)

    return {
        "cold 1": cold(1),
        "warm 1": timed(lambda: ours(runs[:1], n_tokens)),
        f"cold {n}": cold(n),
        f"warm {n}": timed(lambda: ours(runs, n_tokens)),
        "plain": timed(plain),
        "clean": timed(lambda: clean_losses(lm, batches)),
        "below": timed(lambda: activations(lm, batches, site)),
        "sae": timed(sae),
    }


def show(name: str, values: np.ndarray, unit: str) -> None:
    print(f"{name:44} {spread(values.tolist())} {unit}")


def report_cost(s: Mapping[str, np.ndarray], n: int) -> None:
    """Seconds, and how they compare with the goals."""
    for name, values in s.items():
        show(name, values, "s")
    share = 1 - s["below"] / s["clean"]
    print()
    show("share of the model above the site", share, "")
    for m in (1, n):
        goal = (1 + m * share) * s["clean"] + m * s["sae"]
        ablating = 2 * share * s["clean"] + s["below"]
        show(f"warm {m} / goal", s[f"warm {m}"] / goal, "")
        show(f"cold {m} / (goal + ablations)", s[f"cold {m}"] / (goal + ablating), "")
    further = {how: (s[f"{how} {n}"] - s[f"{how} 1"]) / (n - 1) for how in ("cold", "warm")}
    for how, values in further.items():
        show(f"each further SAE, {how}", values, "s")
    show("plain / cold 1", s["plain"] / s["cold 1"], "x")
    show("plain / each further SAE", s["plain"] / further["warm"], "x")
    if "saelens 1" not in s:
        return
    theirs = (s[f"saelens {n}"] - s["saelens 1"]) / (n - 1)
    show("saelens: each further SAE", theirs, "s")
    show("saelens / cold, the first SAE (goal 1.3)", s["saelens 1"] / s["cold 1"], "x")
    show("saelens / warm, the first SAE", s["saelens 1"] / s["warm 1"], "x")
    show("saelens / ours, each further SAE (goal 3.5)", theirs / further["warm"], "x")


def cost(args: argparse.Namespace, folder: Path) -> None:
    """Time everything on a model of Pythia-70m's shape."""
    model = folder / "model"
    make_model(model)
    lm, batches, runs = make_runs(
        folder, str(model), layer=args.layer, n=args.saes, n_tokens=args.tokens
    )
    cells = cells_of(lm, batches, runs, layer=args.layer)
    with ExitStack() as stack:
        if args.saelens:
            peer = SaeLens(
                args.saelens, str(model), folder / "tokens.npy", runs, layer=args.layer,
                kind=args.saelens_model,
            )  # fmt: skip
            stack.callback(peer.close)
            for n in (1, args.saes):
                cells[f"saelens {n}"] = lambda n=n: peer.evaluate(n)["seconds"]
        warm_up = [name for name in ("cold 1", "saelens 1") if name in cells]
        seconds = in_turn(cells, args.rounds, warm_up=warm_up)
        report_cost({name: np.array(values) for name, values in seconds.items()}, args.saes)


def equality(args: argparse.Namespace, folder: Path) -> None:
    """Every metric of one SAE in the embedded model, from each."""
    lm, batches, runs = make_runs(
        folder, "builtin", layer=EQUAL_LAYER, n=1, n_tokens=args.equal_tokens
    )
    tokens = torch.cat(batches)
    (report,) = ours(runs, tokens.numel())
    weights = load_file(runs[0] / "sae.safetensors")
    plain = evaluate_plain(
        hugging_face(lm.name), tokens, weights, layer=EQUAL_LAYER, batch_size=BATCH
    )
    theirs: dict[str, float] = {}
    if args.saelens:
        peer = SaeLens(
            args.saelens, str(builtin_model_path()), folder / "tokens.npy", runs,
            layer=EQUAL_LAYER, kind=args.saelens_model,
        )  # fmt: skip
        (theirs,) = peer.evaluate(1)["metrics"]
        peer.close()
    print(
        f"\n{'':32}{'ours':>13}{'plain':>13}{'SAELens':>13}{'ours-plain':>12}{'SAELens-plain':>15}"
    )
    found = {**vars(report), **report.metrics} | {
        f"l0_q{round(100 * q):02}": value
        for q, value in zip(QUANTILES, report.l0_quantiles, strict=True)
    }
    for name, expected in plain.items():
        our, their = found.get(name), theirs.get(THEIRS.get(name, name))
        cells = ["-" if value is None else f"{value:.7g}" for value in (our, expected, their)]
        errors = ["-" if v is None else f"{relative(v, expected):.1e}" for v in (our, their)]
        print(f"{name:32}" + "".join(f"{c:>13}" for c in cells) + f"{errors[0]:>12}{errors[1]:>15}")


def relative(value: float, expected: float) -> float:
    """A difference as a part of what was expected."""
    return abs(value - expected) / abs(expected) if expected else abs(value)


def main() -> None:
    """Print the figures that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--equal-tokens", type=int, default=16_384)
    parser.add_argument("--layer", type=int, default=3, help="of six: mlp_out there is the site")
    parser.add_argument("--saes", type=int, default=4)
    parser.add_argument("--saelens", help="Python of an environment that has sae-lens")
    parser.add_argument(
        "--saelens-model",
        default="HookedTransformer",
        choices=("HookedTransformer", "AutoModelForCausalLM"),
        help="the class of its language model",
    )
    args = parser.parse_args()
    print(
        json.dumps({**vars(args), "torch": torch.__version__, "threads": torch.get_num_threads()})
    )
    with tempfile.TemporaryDirectory() as folder:
        equality(args, Path(folder))
    print()
    with tempfile.TemporaryDirectory() as folder:
        cost(args, Path(folder))


if __name__ == "__main__":
    main()
