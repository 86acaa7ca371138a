"""How fast a harvest is, against the same model run bare.

    python tests/bench/harvest.py

The model has the shape of Pythia-70m and random weights; the site is mlp_out.1. Every round runs
every cell once, in turn, so that what disturbs the machine disturbs all alike; ratios are taken
round by round, and their median printed with the lowest and highest.

    full    the whole model with its head, in fp32, a hook on the site (as transformers users do)
    bare    embedding, layer 0, MLP of layer 1, by hand: nothing is kept
    harvest `pipeline.harvest.harvest`, the store included: encoded, checksummed, synced to disk
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
import transformers

from pipeline.config.stages import HarvestConfig, Precision
from pipeline.device import DTYPES
from pipeline.harvest.harvest import harvest
from pipeline.lm.hub import builtin_model_path
from tests.bench.common import Cell, in_turn, ratios, spread

CTX_LEN, SITE = 128, "mlp_out.1"


def make_model(folder: Path) -> None:
    """Pythia-70m's shape with random weights, and the embedded tokenizer (ids fit)."""
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
        intermediate_size=2048, max_position_embeddings=2048, rotary_pct=0.25,
        tie_word_embeddings=False,
    )  # fmt: skip
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin_model_path() / name, folder / name)


def batches(n_tokens: int, batch_size: int) -> list[torch.Tensor]:
    """Random tokens: what a forward costs does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_tokens // CTX_LEN, CTX_LEN)
    return list(torch.randint(3072, shape, generator=generator).split(batch_size))


def full(model: torch.nn.Module, tokens: list[torch.Tensor]) -> Cell:
    """Tokens a second of the whole model with a hook that keeps the site."""
    kept: list[torch.Tensor] = []
    model.gpt_neox.layers[1].mlp.register_forward_hook(lambda _m, _a, out: kept.append(out))

    @torch.inference_mode()
    def run() -> float:
        start = time.perf_counter()
        for batch in tokens:
            model(batch, use_cache=False)
            kept.clear()
        return sum(b.numel() for b in tokens) / (time.perf_counter() - start)

    return run


def bare(model: torch.nn.Module, tokens: list[torch.Tensor]) -> Cell:
    """Tokens a second of what mlp_out.1 needs, nothing kept."""
    body = model.gpt_neox

    @torch.inference_mode()
    def run() -> float:
        start = time.perf_counter()
        for batch in tokens:
            x = body.embed_in(batch)
            position = torch.arange(batch.shape[1])[None]
            rotary = body.rotary_emb(x, position_ids=position)
            x = body.layers[0](x, position_ids=position, position_embeddings=rotary)
            layer = body.layers[1]
            layer.mlp(layer.post_attention_layernorm(x))
        return sum(b.numel() for b in tokens) / (time.perf_counter() - start)

    return run


def stored(model: Path, work: Path, n_tokens: int, precision: Precision, device: str) -> Cell:
    """Tokens a second of a harvest, from its first token to its last byte."""

    def run() -> float:
        out = work / f"{precision}.actstore"
        shutil.rmtree(out, ignore_errors=True)
        config = HarvestConfig(
            out=out, model=str(model), sites=(SITE,), tokens=n_tokens, ctx_len=CTX_LEN,
            precision=precision, device=device,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        return harvest(config).tokens_per_s

    return run


def measure(args: argparse.Namespace, work: Path, model: Path) -> None:
    """Full, bare and harvest, in float32 and with bfloat16 weights."""
    device = torch.device(args.device)
    whole = {
        name: transformers.GPTNeoXForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)
        for name, dtype in (("fp32", DTYPES["fp32"]), ("bf16", DTYPES["bf16"]))
    }
    few = [b.to(device) for b in batches(args.tokens // 8, 8)]
    many = [b.to(device) for b in batches(args.tokens, 8)]
    cells = {"full fp32": full(whole["fp32"], few)}
    for name in whole:
        cells[f"bare {name}"] = bare(whole[name], many)
        cells[f"harvest {name}"] = stored(model, work, args.tokens, name, args.device)  # pyright: ignore[reportArgumentType]
    pairs = [
        ("harvest fp32", "bare fp32"),
        ("harvest bf16", "bare bf16"),
        ("bare fp32", "full fp32"),
        ("harvest fp32", "full fp32"),
        ("harvest bf16", "full fp32"),
    ]
    rates = in_turn(cells, args.rounds, warm_up=cells)
    for name, values in rates.items():
        print(f"{name:16} {spread(values, '{:,.0f}')} tokens/s")
    for a, b in pairs:
        print(f"{a} / {b}: {spread(ratios(rates[a], rates[b]))}")


def main() -> None:
    """Print the table that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=65_536 * 3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(json.dumps({**vars(args), "torch": torch.__version__}))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model)
        measure(args, Path(folder), model)


if __name__ == "__main__":
    main()
