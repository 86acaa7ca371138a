"""Harvest layer 1 of a model of Pythia-6.9B's shape, and see what of its checkpoint was touched.

    python tests/bench/big_model.py [--tokens 1024] [--precision bf16]

The checkpoint is 13.7 GB in two shards, as on the hub, in float16; only what mlp_out.1 needs holds
random numbers, all else is a hole in a sparse file. Its pages are dropped from the page cache
first; `fincore` (util-linux) tells which were read.
"""

import argparse
import json
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from store_cells import forget

from pipeline.config.stages import HarvestConfig
from pipeline.harvest.harvest import harvest
from pipeline.lm.families import Shape
from pipeline.lm.hub import builtin_model_path
from pipeline.lm.sites import Site

SITE = "mlp_out.1"
CONFIG = {
    "model_type": "gpt_neox", "vocab_size": 50432, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "intermediate_size": 16384, "max_position_embeddings": 2048,
    "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True,
    "tie_word_embeddings": False, "hidden_act": "gelu",
}  # fmt: skip


def make_checkpoint(folder: Path) -> int:
    """Write the sparse checkpoint; the bytes of it that the site needs."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin_model_path() / name, folder / name)
    with torch.device("meta"):
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig.from_dict(CONFIG))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    shapes["embed_out.weight"] = shapes.pop("lm_head.weight")
    needed = Shape.of(CONFIG, name="6.9b").modules_for([Site.parse(SITE)])
    roots = tuple(f"gpt_neox.{path}." for path in needed)
    names, half = list(shapes), len(shapes) // 2
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[:half], names[half:])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        write_sparse(folder / file, {name: shapes[name] for name in part}, real=roots)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(2 * int(np.prod(s)) for name, s in shapes.items() if name.startswith(roots))


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], *, real: tuple[str, ...]) -> None:
    """A safetensors file in float16; tensors that are not `real` are holes, which read as zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, shape in shapes.items():
            if name.startswith(real):
                file.seek(start + header[name]["data_offsets"][0])
                file.write((0.02 * rng.standard_normal(shape, np.float32)).astype(np.float16))
        file.truncate(start + end)


def main() -> None:
    """Make, harvest, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--precision", default="bf16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        folder.mkdir()
        needed = make_checkpoint(folder)
        files = sorted(folder.glob("*.safetensors"))
        for path in files:
            forget(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        config = HarvestConfig(
            out=Path(work) / "big.actstore", model=str(folder), sites=(SITE,), tokens=args.tokens,
            precision=args.precision, device="cpu",
        )  # fmt: skip
        start = time.perf_counter()
        summary = harvest(config)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        total = sum(path.stat().st_size for path in files)
        print(f"checkpoint {total / 1e9:.2f} GB in {len(files)} files")
        print(f"needed by {SITE}: {needed / 1e9:.3f} GB")
        print(subprocess.run(["fincore", "-b", *files], capture_output=True, text=True).stdout)
        print(f"peak memory {peak:,.0f} MiB ({before:,.0f} before the harvest)")
        print(f"{seconds:.1f} s, the harvest {summary.seconds:.1f} s for {summary.n_rows} rows")


if __name__ == "__main__":
    main()
