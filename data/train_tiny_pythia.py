"""Makes `tiny-pythia`, the embedded model: corpus -> tokenizer -> token arrays -> weights.

`prepare` needs saepipe and writes a small folder; `train` needs only that folder, torch,
transformers and safetensors, so it can run on another machine. See README.md beside this file.
"""

import argparse
import json
import logging
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger("tiny-pythia")

HERE = Path(__file__).resolve().parent
SEPARATOR = "<|endoftext|>"
PUBLISHED_NAMES = {"lm_head.weight": "embed_out.weight"}
"""Of a tensor that newer versions of transformers call otherwise than Pythia's checkpoints do."""
FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` leaves for `train`."""

    train: Tensor
    heldout: Tensor
    corpus: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Held-out measurements of one model, in nats per token."""

    loss: float
    tokens: int
    ablation: list[float]


# --- prepare: corpus -> tokenizer and token arrays -------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    """Train the tokenizer on the training part and write both parts as uint16 arrays."""
    sys.path.insert(0, str(HERE.parent))
    from pipeline.text.builtin import BuiltinText

    args.work.mkdir(parents=True, exist_ok=True)
    parts = {"train": BuiltinText("train"), "heldout": BuiltinText("heldout")}
    tokenizer = train_tokenizer(list(parts["train"].documents()), n_vocab=args.vocab)
    tokenizer.save(str(args.work / "tokenizer.json"), pretty=False)
    write_json(args.work / "tokenizer_config.json", tokenizer_config(args.ctx_len))
    corpus: dict[str, Any] = {"python": platform.python_version(), "n_vocab": args.vocab}
    for name, source in parts.items():
        texts = list(source.documents())
        encoded = tokenizer.encode_batch(texts)
        separator = tokenizer.token_to_id(SEPARATOR)
        ids = [token for one in encoded for token in (*one.ids, separator)]
        np.save(args.work / f"{name}.npy", np.array(ids, dtype=np.uint16))
        corpus[name] = {
            "documents": len(texts),
            "characters": sum(map(len, texts)),
            "tokens": len(ids),
            "fingerprint": source.fingerprint(),
        }
    write_json(args.work / "corpus.json", corpus)
    log.info("%s", json.dumps(corpus))


def train_tokenizer(texts: list[str], *, n_vocab: int) -> "Tokenizer":
    """GPT-NeoX's kind of tokenizer, byte-level BPE, with every digit a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(SEPARATOR) == 0
    return tokenizer


def tokenizer_config(ctx_len: int) -> dict[str, Any]:
    """What `AutoTokenizer` reads beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "unk_token": SEPARATOR,
        "clean_up_tokenization_spaces": False,
        "model_max_length": ctx_len,
    }


# --- train: token arrays -> weights ----------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Train, keep the weights of the lowest held-out loss, measure them, write `args.out`."""
    torch.manual_seed(args.seed)
    device = torch.device(pick_device(args.device))
    data = load_prepared(args.work, device)
    model = make_model(args, n_vocab=data.corpus["n_vocab"])
    nn.Module.to(model, device)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    log.info("%s parameters, %s training tokens on %s", n_params, len(data.train), device)
    started = time.perf_counter()
    kept, history = fit(model, data, args)
    seconds = time.perf_counter() - started
    model.load_state_dict(kept)
    exact = evaluate(model, data.heldout, args).loss
    half = {name: value.half() for name, value in kept.items()}
    assert all(torch.isfinite(value).all() for value in half.values()), "too large for fp16"
    model.load_state_dict({name: value.float() for name, value in half.items()})
    held = evaluate(model, data.heldout, args, ablate=True)
    report = {
        **settings(args, device),
        "parameters": n_params,
        "seconds": round(seconds, 1),
        **history,
        **baselines(data),
        "heldout_loss": held.loss,
        "heldout_loss_before_fp16": exact,
        "heldout_tokens_scored": held.tokens,
        "mlp_out_zero_ablation_delta": held.ablation,
        "corpus": data.corpus,
    }
    save(args, half, report)
    log.info("%s", json.dumps({k: v for k, v in report.items() if k != "curve"}))


def make_model(args: argparse.Namespace, *, n_vocab: int) -> GPTNeoXForCausalLM:
    """A GPT-NeoX of Pythia's conventions; dropout only while it is trained."""
    fields = model_config(args, n_vocab=n_vocab)
    fields |= {"hidden_dropout": args.dropout, "attention_dropout": args.dropout}
    config = GPTNeoXConfig(**fields)
    return GPTNeoXForCausalLM(config)


def model_config(args: argparse.Namespace, *, n_vocab: int) -> dict[str, Any]:
    """The saved `config.json`, in the words of the published Pythia configs."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": n_vocab,
        "hidden_size": args.d_model,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "intermediate_size": 4 * args.d_model,
        "max_position_embeddings": args.ctx_len,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "use_cache": True,
        "torch_dtype": "float16",
    }


def fit(
    model: GPTNeoXForCausalLM, data: Prepared, args: argparse.Namespace
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """AdamW with warm-up and cosine decay; returns the best weights and how it went."""
    steps = args.steps or math.ceil(args.epochs * len(data.train) / (args.batch * args.ctx_len))
    optimizer = make_optimizer(model, args)
    best, kept, best_step = math.inf, {}, 0
    curve: list[dict[str, float]] = []
    losses: list[Tensor] = []
    blocks = windows(data.train, args)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * schedule(step / steps, warmup=args.warmup)
        loss = train_step(model, next(blocks), optimizer, args)
        losses.append(loss.detach())
        if step % args.eval_every and step != steps:
            continue
        heldout = evaluate(model, data.heldout, args).loss
        mean = torch.stack(losses).mean().item()
        curve.append({"step": step, "train_loss": mean, "heldout_loss": heldout})
        log.info("step %d/%d train %.4f held-out %.4f", step, steps, mean, heldout)
        losses.clear()
        if heldout < best:
            best, best_step = heldout, step
            kept = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    tokens = steps * args.batch * args.ctx_len
    return kept, {
        "steps": steps,
        "best_step": best_step,
        "tokens": tokens,
        "epochs": tokens / len(data.train),
        "final_train_loss": curve[-1]["train_loss"],
        "curve": curve,
    }


def train_step(
    model: nn.Module, block: Tensor, optimizer: torch.optim.Optimizer, args: argparse.Namespace
) -> Tensor:
    """One update; returns the loss of the block before it."""
    model.train()
    loss = token_losses(model, block).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), args.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = parameters[0].is_cuda
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=fused)


def schedule(progress: float, *, warmup: float) -> float:
    """Share of the peak rate: linear to 1 over `warmup`, then a cosine to 1 %."""
    if progress < warmup:
        return progress / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def windows(tokens: Tensor, args: argparse.Namespace) -> Iterator[Tensor]:
    """Endless blocks [batch ctx_len + 1]: every epoch cuts the text at another offset."""
    generator = torch.Generator().manual_seed(args.seed)
    reach = torch.arange(args.ctx_len + 1, device=tokens.device)
    starts = torch.empty(0, dtype=torch.long)
    while True:
        while len(starts) < args.batch:
            offset = int(torch.randint(args.ctx_len, (1,), generator=generator))
            cuts = torch.arange(offset, len(tokens) - args.ctx_len, args.ctx_len)
            order = torch.randperm(len(cuts), generator=generator)
            starts = torch.cat([starts, cuts[order]])
        chosen, starts = starts[: args.batch], starts[args.batch :]
        yield tokens[chosen.to(tokens.device)[:, None] + reach].long()


def token_losses(model: nn.Module, block: Tensor) -> Tensor:
    """Next-token cross-entropies [batch * ctx_len] of blocks [batch ctx_len + 1], in nats.

    In bfloat16 while training (autocast: the weights stay float32), in float32 otherwise.
    """
    lowered = model.training
    with torch.autocast(block.device.type, torch.bfloat16, enabled=lowered):
        logits = model(input_ids=block[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), block[:, 1:].flatten(), reduction="none")


# --- measure ---------------------------------------------------------------------------------


def evaluate(
    model: GPTNeoXForCausalLM, tokens: Tensor, args: argparse.Namespace, *, ablate: bool = False
) -> Held:
    """Held-out loss over adjacent contexts, and what zeroing each layer's MLP output costs."""
    model.eval()
    n = (len(tokens) - 1) // args.ctx_len
    n = min(n, args.eval_contexts) if args.eval_contexts else n
    starts = torch.arange(n, device=tokens.device)[:, None] * args.ctx_len
    blocks = tokens[starts + torch.arange(args.ctx_len + 1, device=tokens.device)].long()

    @torch.no_grad()
    def loss() -> float:
        parts = [token_losses(model, block).double().sum() for block in blocks.split(32)]
        return (torch.stack(parts).sum() / (n * args.ctx_len)).item()

    clean = loss()
    ablation: list[float] = []
    layers = len(model.gpt_neox.layers) if ablate else 0
    for layer in range(layers):
        with zeroed(model.get_submodule(f"gpt_neox.layers.{layer}.mlp")):
            ablation.append(loss() - clean)
    return Held(loss=clean, tokens=n * args.ctx_len, ablation=ablation)


@contextmanager
def zeroed(module: nn.Module) -> Generator[None]:
    """The module gives zeros inside the block."""

    def zeros(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    handle = module.register_forward_hook(zeros)
    try:
        yield
    finally:
        handle.remove()


def baselines(data: Prepared) -> dict[str, float]:
    """Held-out cross-entropies of guessing by training frequency, and of guessing evenly."""
    n_vocab = data.corpus["n_vocab"]
    counts = torch.bincount(data.train.long(), minlength=n_vocab).double() + 1
    unigram = -(counts / counts.sum()).log()[data.heldout.long()].mean().item()
    return {"unigram_loss": unigram, "uniform_loss": math.log(n_vocab)}


def settings(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The arguments of the run and the versions it ran with."""
    skipped = {"command", "work", "out", "device", "eval_contexts", "steps"}
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "arguments": {k: v for k, v in vars(args).items() if k not in skipped},
        "seed": args.seed,
        "device": named,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }


# --- files -----------------------------------------------------------------------------------


def load_prepared(work: Path, device: torch.device) -> Prepared:
    """Read what `prepare` wrote; tokens as int32 on the device."""
    arrays = {name: np.load(work / f"{name}.npy").astype(np.int32) for name in ("train", "heldout")}
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return Prepared(**tensors, corpus=json.loads((work / "corpus.json").read_text()))


def save(args: argparse.Namespace, weights: dict[str, Tensor], report: dict[str, Any]) -> None:
    """Write the folder beside its place, then rename it there."""
    partial = args.out.with_name(args.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    cpu = {PUBLISHED_NAMES.get(name, name): value.cpu() for name, value in weights.items()}
    save_file(cpu, partial / "model.safetensors", metadata={"format": "pt"})
    write_json(partial / "config.json", model_config(args, n_vocab=report["corpus"]["n_vocab"]))
    for name in FILES:
        shutil.copy(args.work / name, partial / name)
    write_json(partial / "training.json", report)
    for path in partial.iterdir():
        path.chmod(0o644)
    shutil.rmtree(args.out, ignore_errors=True)
    partial.rename(args.out)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    log.info("%s: %.2f MB", args.out, size / 1e6)


def write_json(path: Path, value: object) -> None:
    """Indented, keys in the order given, one newline at the end."""
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def parse_args() -> argparse.Namespace:
    """Defaults are those of the model in the repository."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare")
    second = commands.add_parser("train")
    for command in (first, second):
        command.add_argument("--work", type=Path, default=HERE.parent / ".tiny")
        command.add_argument("--ctx-len", type=int, default=256)
    first.add_argument("--vocab", type=int, default=3072)
    second.add_argument("--out", type=Path, default=HERE / "tiny-pythia")
    second.add_argument("--device", default="auto")
    numbers: dict[str, int | float] = {
        "d-model": 160, "layers": 4, "heads": 5, "seed": 0, "epochs": 8.0, "steps": 0,
        "batch": 32, "lr": 2e-3, "warmup": 0.03, "weight-decay": 0.1, "dropout": 0.0,
        "clip": 1.0, "eval-every": 200, "eval-contexts": 0,
    }  # fmt: skip
    for name, default in numbers.items():
        second.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def main() -> None:
    """Run the stage named on the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    args = parse_args()
    {"prepare": prepare, "train": train}[args.command](args)


if __name__ == "__main__":
    main()
