"""A cache for delphi, made here and read by delphi in an environment of its own.

    python tests/interop/delphi_cache.py CHECKOUT --python ENV/bin/python

CHECKOUT is a repository of github.com/EleutherAI/delphi, bare will do; ENV has what its
`delphi.latents` imports (see `delphi_reads.py`).
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import saepipe as sp

from pipeline.lm.hub import builtin_model_path

HERE = Path(__file__).parent


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("checkout")
    options.add_argument("--python", required=True)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        tree = work / "tree"
        tree.mkdir()
        archive = subprocess.run(
            ["git", "-C", given.checkout, "archive", "HEAD", "delphi"],
            check=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
        sp.harvest(sites=["mlp_out.2"], tokens="50k", out=work / "a.actstore")
        sp.train(work / "a.actstore", arch="topk", k=16, expansion=2, out=work / "topk")
        told = sp.export_delphi(work / "topk", out=work / "latents")
        print(told.n_active, "activations,", told.n_files, "files,", told.n_bytes, "bytes")
        store, sae = sp.ActStore.open(work / "a.actstore"), sp.SAE.from_pretrained(work / "topk")
        contexts = store.contexts(np.arange(store.n_contexts))
        x = np.stack([context.acts["mlp_out.2"] for context in contexts])
        z = sae.encode(x).detach().numpy().astype(np.float16)
        np.savez(work / "expected.npz", z=z, tokens=store.tokens(np.arange(store.n_contexts)))
        command = [
            given.python, HERE / "delphi_reads.py", tree, work / "latents", told.module,
            work / "expected.npz", builtin_model_path(),
        ]  # fmt: skip
        subprocess.run([*map(str, command)], check=True)


if __name__ == "__main__":
    main()
