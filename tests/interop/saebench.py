"""SAEBench's core evaluation beside `saepipe eval`: one run, one model, the same tokens.

    python tests/interop/saebench.py [--python ENV/bin/python] [--env FOLDER]

ENV has sae-bench 0.6.0 and saepipe with what it needs; without it one is made in FOLDER (some
minutes, 6 GB). sae-bench asks for numpy below 2 and datasets below 4, which saepipe does not take:
it is installed without its dependencies, beside sae-lens, whose newer ones it runs with.

Metrics whose definitions coincide must agree to 1e-4 of their size; the others are computed here
as SAEBench defines them, in float64, and must agree with that.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import saepipe as sp
import torch

from pipeline.lm.hub import builtin_model_path
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.text.heldout import load_contexts

ROOT, CTX_LEN, N_CONTEXTS, BATCH = Path(__file__).parents[2], 128, 64, 8
ALIKE = {
    "l0": "l0", "l1": "l1", "ce_clean": "ce_loss_without_sae", "ce_patched": "ce_loss_with_sae",
    "ce_zero": "ce_loss_with_ablation", "loss_recovered": "ce_loss_score", "cosine": "cossim",
    "l2_ratio": "l2_ratio",
}  # fmt: skip
"""Names of ours and of SAEBench's for the same definition."""


def make_environment(folder: Path) -> str:
    if not (folder / "bin" / "python").exists():
        python = folder / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "-q"]
        extra = ["collectibles", "openai", "plotly", "scikit-learn", "seaborn", "tabulate"]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, str(ROOT), "sae-lens>=6.28", *extra],
            [*pip, "--no-deps", "sae-bench==0.6.0"],
        ):
            subprocess.run(command, check=True)
    return str(folder / "bin" / "python")


def theirs(python: str, run: Path, tokens: Path) -> dict[str, float]:
    command = [python, ROOT / "tests/interop/saebench_core.py", run, tokens, builtin_model_path()]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*map(str, command)], env=env, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def as_they_define(run: Path, tokens: torch.Tensor) -> dict[str, float]:
    """What SAEBench calls by names of ours and computes otherwise, from rows in float64."""
    lm, sae = sp.LanguageModel.from_pretrained("builtin"), sp.SAE.from_pretrained(run)
    sums, resid, squares, bias, legacy = 0.0, 0.0, 0.0, 0.0, 0.0
    n_batches = len(tokens) // BATCH
    for batch in tokens.split(BATCH):
        _, acts = lm.run_with_acts(batch, sites=["mlp_out.2"])
        x = acts["mlp_out.2"].flatten(0, 1)
        x_hat = sae(x).detach().double()
        x = x.double()
        error = (x - x_hat).square().sum(1)
        resid += float(error.mean()) / n_batches
        sums += float((error / len(x)).mean()) / n_batches
        squares += float(x.square().sum(1).mean()) / n_batches
        bias += float(x_hat.square().sum() / (x * x_hat).sum()) / n_batches
        about = (x - x.mean(0)).square().sum(1)
        legacy += float((1 - error / about).mean()) / n_batches
    d_in = sae.d_in
    return {
        "explained_variance": 1 - resid / (squares - (squares / d_in) ** 2),
        "explained_variance_legacy": legacy,
        "mse": sums,
        "relative_reconstruction_bias": bias,
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--python")
    options.add_argument("--env", type=Path, default=Path("/tmp/saepipe-interop-saebench"))
    given = options.parse_args()
    python = given.python or make_environment(given.env)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sp.harvest(sites=["mlp_out.2"], tokens="200k", out=folder / "a.actstore")
        failed = False
        for arch, settings in (
            ("topk", {"k": 16}),
            ("gated", {"l0": 16}),
            ("jumprelu", {"l0": 16}),
        ):
            run = folder / arch
            sp.train(folder / "a.actstore", arch=arch, expansion=4, out=run, **settings)
            tokens = load_contexts(
                "builtin@heldout", load_tokenizer("builtin"), ctx_len=CTX_LEN, n=N_CONTEXTS
            )
            np.save(folder / "tokens.npy", tokens.numpy())
            report = sp.evaluate(
                run, text="builtin@heldout", tokens=N_CONTEXTS * CTX_LEN, device="cpu"
            )
            ours, found = report.metrics, theirs(python, run, folder / "tokens.npy")
            print(f"\n{arch:32} {'saepipe':>12} {'SAEBench':>12}")
            rows = [(a, ours[a], b, found[b]) for a, b in ALIKE.items()]
            defined = as_they_define(run, tokens.long())
            rows += [(f"as defined there: {a}", value, a, found[a]) for a, value in defined.items()]
            rows.append(("1 - frac_dead", 1 - ours["frac_dead"], "frac_alive", found["frac_alive"]))
            for name, own, _, other in rows:
                alike = math.isclose(own, other, rel_tol=1e-4, abs_tol=1e-6)
                failed |= not alike
                print(f"{name:32} {own:12.6g} {other:12.6g}{'' if alike else '  DIFFERS'}")
            for name, other in (
                ("explained_variance", "explained_variance"),
                ("kl", "kl_div_with_sae"),
                ("mse", "mse"),
            ):
                print(f"{name:32} {ours[name]:12.6g} {found[other]:12.6g}  another definition")
    sys.exit(failed)


if __name__ == "__main__":
    main()
