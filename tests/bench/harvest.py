"""How fast a harvest is, against the same model run bare.

    python tests/bench/harvest.py                             # in one process, interleaved
    python tests/bench/harvest.py --saelens ENV/bin/python    # whole processes, against SAELens
    python tests/bench/harvest.py --family qwen3 --module model.layers.1.mlp

The model has the shape of Pythia-70m and random weights; the site is mlp_out.1. With --family it is
of another family and about that shape, and the site is a module by its path. Every round runs
every cell once, in turn, so that what disturbs the machine disturbs all alike; ratios are taken
round by round, and their median printed with the lowest and highest.

    full    the whole model with its head, in fp32, a hook on the site (as transformers users do)
    bare    embedding, layer 0, MLP of layer 1, by hand: nothing is kept
    stopped the whole model, in fp32, whose hook on the module ends the pass: nothing is kept
    harvest `pipeline.harvest.harvest`, the store included: encoded, checksummed, synced to disk
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import transformers

from pipeline.config.stages import HarvestConfig, Precision
from pipeline.device import DTYPES
from pipeline.harvest.harvest import harvest
from pipeline.lm.hub import builtin_model_path
from tests.bench.common import Cell, in_turn, ratios, spread, wall

CTX_LEN, SITE = 128, "mlp_out.1"


# In the words of all families: each takes those that it knows.
SHAPE = {
    "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048,
    "num_key_value_heads": 8, "head_dim": 64, "d_model": 512, "num_layers": 6, "ffn_dim": 2048,
    "attention_heads": 8, "rotary_pct": 0.25,
}  # fmt: skip


def make_model(folder: Path, family: str) -> None:
    """Pythia-70m's shape with random weights, and the embedded tokenizer (ids fit)."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family, vocab_size=50304, max_position_embeddings=2048, tie_word_embeddings=False, **SHAPE
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin_model_path() / name, folder / name)


def batches(n_tokens: int, batch_size: int) -> list[torch.Tensor]:
    """Random tokens: what a forward costs does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_tokens // CTX_LEN, CTX_LEN)
    return list(torch.randint(3072, shape, generator=generator).split(batch_size))


def rate(forward: Callable[[torch.Tensor], object], tokens: list[torch.Tensor]) -> Cell:
    """Tokens a second of a forward pass."""

    @torch.inference_mode()
    def run() -> float:
        start = time.perf_counter()
        for batch in tokens:
            forward(batch)
        return sum(b.numel() for b in tokens) / (time.perf_counter() - start)

    return run


def full(model: torch.nn.Module, path: str, batch: torch.Tensor) -> None:
    """The whole model with a hook on the site."""
    kept = list[object]()
    handle = model.get_submodule(path).register_forward_hook(lambda _m, _a, out: kept.append(out))
    model(batch, use_cache=False)
    handle.remove()


class _Stopped(Exception):  # noqa: N818 - it is no error
    pass


def stopped(model: torch.nn.Module, path: str, batch: torch.Tensor) -> None:
    """The whole model, until a module of it has run."""

    def stop(*_: object) -> None:
        raise _Stopped

    handle = model.get_submodule(path).register_forward_hook(stop)
    with suppress(_Stopped):
        model(batch, use_cache=False)
    handle.remove()


def bare(model: torch.nn.Module, batch: torch.Tensor) -> None:
    """What mlp_out.1 needs, nothing kept."""
    body, layer = model.gpt_neox, model.gpt_neox.layers[1]
    x = body.embed_in(batch)
    position = torch.arange(batch.shape[1])[None]
    rotary = body.rotary_emb(x, position_ids=position)
    x = body.layers[0](x, position_ids=position, position_embeddings=rotary)
    layer.mlp(layer.post_attention_layernorm(x))


def stored(
    model: Path, work: Path, n_tokens: int, precision: Precision, device: str, site: str = SITE
) -> Cell:
    """Tokens a second of a harvest, from its first token to its last byte."""

    def run() -> float:
        out = work / f"{precision}.actstore"
        shutil.rmtree(out, ignore_errors=True)
        config = HarvestConfig(
            out=out, model=str(model), sites=(site,), tokens=n_tokens, ctx_len=CTX_LEN,
            precision=precision, device=device,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        return harvest(config).tokens_per_s

    return run


def report(cells: Mapping[str, Cell], rounds: int, pairs: list[tuple[str, str]]) -> None:
    """Rates of each cell, after one as a warm-up, and the ratios of these pairs."""
    rates = in_turn(cells, rounds, warm_up=cells)
    for name, values in rates.items():
        print(f"{name:16} {spread(values, '{:,.0f}')} tokens/s")
    for a, b in pairs:
        print(f"{a} / {b}: {spread(ratios(rates[a], rates[b]))}")


def in_one_process(args: argparse.Namespace, work: Path, model: Path) -> None:
    """Full, bare and harvest, in float32 and with bfloat16 weights."""
    device = torch.device(args.device)
    whole = {
        name: transformers.GPTNeoXForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)
        for name, dtype in (("fp32", DTYPES["fp32"]), ("bf16", DTYPES["bf16"]))
    }
    few = [b.to(device) for b in batches(args.tokens // 8, 8)]
    many = [b.to(device) for b in batches(args.tokens, 8)]
    cells = {"full fp32": rate(partial(full, whole["fp32"], "gpt_neox.layers.1.mlp"), few)}
    for name in whole:
        cells[f"bare {name}"] = rate(partial(bare, whole[name]), many)
        cells[f"harvest {name}"] = stored(model, work, args.tokens, name, args.device)  # pyright: ignore[reportArgumentType]
    pairs = [(f"harvest {name}", f"bare {name}") for name in whole]
    pairs += [(name, "full fp32") for name in ("bare fp32", "harvest fp32", "harvest bf16")]
    report(cells, args.rounds, pairs)


def at_module(args: argparse.Namespace, work: Path, model: Path) -> None:
    """Full, stopped and harvest of a family at a module, in float32."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    whole, device = loaded.eval().to(args.device), torch.device(args.device)
    few = [b.to(device) for b in batches(args.tokens // 8, 8)]
    many = [b.to(device) for b in batches(args.tokens, 8)]
    cells = {
        "full fp32": rate(partial(full, whole, args.module), few),
        "stopped fp32": rate(partial(stopped, whole, args.module), many),
        "harvest fp32": stored(model, work, args.tokens, "fp32", args.device, args.module),
    }
    pairs = [("stopped fp32", "full fp32"), ("harvest fp32", "full fp32")]
    report(cells, args.rounds, [*pairs, ("stopped fp32", "harvest fp32")])


def as_processes(args: argparse.Namespace, work: Path, model: Path) -> None:
    """Whole processes, start-up included: `saepipe harvest` against CacheActivationsRunner.

    SAELens is handed tokens; saepipe tokenises its text.
    """
    here = Path(__file__).parent
    data = work / "tokens"
    prepare = [args.saelens, here / "peer_saelens.py", "prepare", data, str(args.tokens)]
    subprocess.run(list(map(str, prepare)), check=True)

    def process(command: list[object], out: Path) -> Cell:
        def run() -> float:
            shutil.rmtree(out, ignore_errors=True)
            return args.tokens / wall(command)

        return run

    ours, theirs = work / "ours.actstore", work / "theirs"
    saepipe: list[object] = [
        Path(sys.executable).with_name("saepipe"), "harvest", "--model", model, "--site", SITE,
        "--tokens", args.tokens, "--device", args.device, "--out", ours,
    ]  # fmt: skip
    peer: list[object] = [
        args.saelens, here / "peer_saelens.py", "harvest", data, model, args.tokens, theirs
    ]  # fmt: skip
    cells = {
        "saelens fp32": process(peer, theirs),
        "saepipe fp32": process([*saepipe, "--precision", "fp32"], ours),
        "saepipe bf16": process([*saepipe, "--precision", "bf16"], ours),
    }
    pairs = [("saepipe fp32", "saelens fp32"), ("saepipe bf16", "saelens fp32")]
    report(cells, args.rounds, pairs)


def main() -> None:
    """Print the table that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=65_536 * 3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--saelens", help="Python of an environment that has sae-lens.")
    parser.add_argument("--family", default="gpt_neox", help="A model type of transformers.")
    parser.add_argument("--module", help="The site, by its path in the model.")
    args = parser.parse_args()
    print(json.dumps({**vars(args), "torch": torch.__version__}))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model, args.family)
        own = at_module if args.module else in_one_process
        (as_processes if args.saelens else own)(args, Path(folder), model)


if __name__ == "__main__":
    main()
