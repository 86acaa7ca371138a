"""Peak memory of fine-tunings on a CPU against their plans; how fast one at the shape of 70m is.

    python tests/bench/finetune_memory.py [--shapes 160m 410m] [--ways fp32 bf16-checkpointing ...]
        [--data ../shared/data] [--speed]

Models have the shapes of Pythia and random weights; an SAE of 8 features a dimension lies in the
middle, 8 contexts of 128 tokens make a step. Each cell is a process of its own, told what malloc is
to give back at once; its peak is what Linux says that it held resident at most (VmHWM), the whole
`saepipe.finetune` included: planning, reading, measuring, learning, drawing. The plan is asked for
first. Text and tokenizer are those of DATA where it is there, embedded ones where it is not.

--speed makes 200 steps at the shape of 70m in place of the table: tokens a second, and the peak.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp32-checkpointing": {"precision": "fp32", "checkpointing": True},
    "bf16": {"precision": "bf16"},
    "bf16-checkpointing": {"precision": "bf16", "checkpointing": True},
    "fp32-8bit": {"precision": "fp32", "quantize": "8bit"},
    "fp32-4bit": {"precision": "fp32", "quantize": "4bit"},
    "bf16-4bit-checkpointing": {"precision": "bf16", "quantize": "4bit", "checkpointing": True},
}
GIVING_BACK = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
}  # fmt: skip
"""What glibc's malloc keeps of what was freed is not of the fine-tuning."""
BATCH, CTX_LEN, EXPANSION, K = 8, 128, 8, 32
TEXT, TOKENIZER = "arithmetic/two_digit_addition.jsonl", "tokenizer/20B_tokenizer.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["160m", "410m"])
    parser.add_argument("--ways", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(cell(Path(args.cell[0]), args.cell[1], json.loads(args.cell[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.speed:
            made = make_run(Path(folder) / "70m", "70m", args.data)
            told = measured(made, args.data, {"steps_per_epoch": 20, "epochs": 10})
            print(
                f"70m, {told['steps']} steps of {BATCH} x {CTX_LEN} tokens: "
                f"{told['tokens_per_s']:,.0f} tokens/s (median step), peak "
                f"{told['peak'] / 1e6:,.0f} MB, planned {told['planned'] / 1e6:,.0f} MB"
            )
            return
        print("| shape | way | planned MB | peak MB | peak / plan |\n|---|---|---|---|---|")
        for shape in args.shapes:
            made = make_run(Path(folder) / shape, shape, args.data)
            for way in args.ways:
                told = measured(made, args.data, {**SETTINGS[way], "epochs": 1})
                planned, peak = told["planned"], told["peak"]
                print(
                    f"| {shape} | {way} | {planned / 1e6:,.0f} | {peak / 1e6:,.0f} | "
                    f"{peak / planned:.3f} |",
                    flush=True,
                )
            shutil.rmtree(Path(folder) / shape)


def make_run(folder: Path, shape: str, data: Path) -> Path:
    """A checkpoint of this shape, random in float16, and the run of an SAE in its middle."""
    import torch
    from safetensors.torch import save_file

    from pipeline.config.architectures import TopKConfig
    from tests.gpu.made import STD, pythia, write_model
    from tests.helpers.tiny import make_sae, save_sae

    model = write_model(folder / "model", shape)
    config = {**pythia(shape), "vocab_size": 50304}
    (model / "config.json").write_text(json.dumps(config))
    if (data / TOKENIZER).exists():
        shutil.copy(data / TOKENIZER, model / "tokenizer.json")
    import transformers

    with torch.device("meta"):
        empty = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig.from_dict(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (STD * torch.randn(p.shape, generator=generator)).half()
        if p.ndim > 1
        else torch.full(p.shape, float(name.endswith("norm.weight")), dtype=torch.float16)
        for name, p in empty.named_parameters()
    }
    save_file(tensors, model / "model.safetensors")
    arch, width = TopKConfig(k=K), config["hidden_size"]
    site = f"mlp_out.{config['num_hidden_layers'] // 2}"
    sae = make_sae(d_in=width, expansion=EXPANSION, arch=arch)
    return save_sae(folder / "sae", sae, model=model, site=site, arch=arch)


def measured(run: Path, data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the cell says, in a process of its own."""
    text = data / TEXT if (data / TEXT).exists() else "builtin:arithmetic"
    command = [sys.executable, __file__, "--cell", run, text, json.dumps(settings)]
    done = subprocess.run(
        [*map(str, command)], check=True, stdout=subprocess.PIPE, text=True,
        env=os.environ | GIVING_BACK,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def cell(run: Path, text: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Plan, then fine-tune; what each says."""
    import saepipe as sp

    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {
            "out": Path(folder) / "tuned", "text": text, "text_column": "context",
            "general_text": "builtin", "batch_size": BATCH, "ctx_len": CTX_LEN, "device": "cpu",
            "steps_per_epoch": 1, "heldout_contexts": BATCH, "heldout_questions": BATCH,
        } | settings  # fmt: skip
        plan = sp.finetune(run, plan=True, **given)
        before = peak()
        report = sp.finetune(
            run, **given,
            on_progress=lambda told: ends.append(time.perf_counter()) if told.done else None,
        )  # fmt: skip
    seconds = [b - a for a, b in pairwise(ends[1:])]
    return {
        "planned": plan.bytes_needed, "parts": {part.name: part.n_bytes for part in plan.parts},
        "peak": peak(), "peak_before": before, "steps": report.n_steps,
        "tokens_per_s": BATCH * CTX_LEN / statistics.median(seconds) if seconds else None,
    }  # fmt: skip


def peak() -> int:
    """Bytes that this process was resident with at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(kilobytes)


if __name__ == "__main__":
    main()
