"""What is measured, made quickly and where it is needed: stores, groups in training, models.

Weights are random and are drawn on the device: large ones would take longer to be drawn on a CPU
than all that is measured with them.
"""

import json
import random
import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from pipeline.config.architectures import ArchConfig
from pipeline.config.defaults import settled
from pipeline.config.training import TrainConfig
from pipeline.device import pick_dtype
from pipeline.lm.hub import builtin_model_path
from pipeline.runs.curves import METRICS, Curves
from pipeline.runs.folder import Provenance, enter
from pipeline.runs.sae_run import SAERun
from pipeline.sae.architecture import Architecture, architecture_of
from pipeline.sae.stack import LOG, Stack
from pipeline.training.feed import Feed, Feeder
from pipeline.training.group import Group, SAEMember
from tests.helpers.stores import write_rows

SITE, CTX_LEN, K, NEVER = "mlp_out.1", 128, 32, 10**9
FEW_ROWS = 256
"""To which the biases of ReLU are fitted."""
DOCUMENT = 512
"""Words of a document."""
STD = 0.02
"""Of a language model's matrices."""


def write_store(path: Path, *, n_rows: int, width: int) -> Path:
    """Normal rows as bfloat16, lz4; a few thousand of them over and over."""
    spec = StoreSpec.of(widths={SITE: width}, ctx_len=CTX_LEN, dtype="bfloat16", source={})
    x = np.random.default_rng(0).standard_normal((2**13, width), np.float32)
    x = (x.view(np.uint32) >> 16).astype(np.uint16)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, n_rows, len(x)):
            yield np.roll(x, start // len(x), axis=1)[: n_rows - start]

    return write_rows(path, spec, blocks(), n_rows=n_rows)


def make_group(
    store: Path,
    out: Path,
    files: ExitStack,
    *,
    d_sae: int,
    batch_size: int,
    arch: ArchConfig,
    device: torch.device,
    **changes: Any,
) -> Group:
    """What `saepipe train` trains with these settings, in the middle of a long run.

    Nothing is reported after its first step, and nothing is saved.
    """
    opened = ActStore.open(store)
    d = opened.width(SITE)
    asked = TrainConfig(
        store=store, out=out, site=SITE, device=device.type, tokens=NEVER * batch_size, arch=arch,
        expansion=d_sae // d, batch_size=batch_size, lr=1e-5, lr_warmup="0", lr_decay="0",
        checkpoint_every=NEVER, log_every=NEVER, **changes,
    )  # fmt: skip
    config = settled(asked, d_in=d, d_sae=d_sae, n_rows=opened.n_rows)
    run = SAERun(path=out, config=config, provenance=Provenance.of(opened, site=SITE))
    enter(run, locks=files)
    feed = Feed.of(config, site=SITE)
    feeder = Feeder(opened, [feed], device=device)
    made = architecture_of(config.arch, d_in=d, d_sae=d_sae, rms=feeder.rms(feed))
    params = params_of(made, d=d, F=d_sae, device=device)
    stack = Stack(params, made, dtype=pick_dtype(config.precision, device))
    curves = files.enter_context(Curves(out / METRICS, keep=0))
    member = SAEMember(run, curves=curves, n_steps=NEVER, architecture=made)
    return Group([member], stack, feeder=feeder, feed=feed)


@torch.no_grad()
def params_of(arch: Architecture, *, d: int, F: int, device: torch.device) -> dict[str, Tensor]:
    """Of one SAE at a start like that of a training, drawn on the device."""
    W_dec = torch.nn.functional.normalize(torch.randn(1, F, d, device=device), dim=-1)
    params = {"W_dec": W_dec, "E": W_dec * arch.encoder_norm}
    params |= {"b_enc": torch.zeros(1, F, device=device), "b_dec": torch.zeros(1, d, device=device)}
    for name, p in arch.activation().named_parameters():
        params[name] = p.detach().to(device).expand(1, *p.shape).clone()
    for name in arch.trained:
        if name.startswith(LOG):
            params[name] = params.pop(name.removeprefix(LOG)).log()
    if arch.begins_fitted and arch.fitted_l0 is not None:
        pre = torch.randn(FEW_ROWS, d, device=device) @ params["E"][0].T
        n = min(pre.numel(), round(arch.fitted_l0 * FEW_ROWS))
        params["b_enc"] -= pre.flatten().topk(n).values[-1]
    return params


def pythia(name: str) -> dict[str, Any]:
    """The shape of a Pythia model; `toy` is one that nobody trained."""
    layers, d, heads = {
        "toy": (2, 32, 2), "70m": (6, 512, 8), "160m": (12, 768, 12), "410m": (24, 1024, 16),
        "1.4b": (24, 2048, 16), "6.9b": (32, 4096, 32),
    }[name]  # fmt: skip
    return {
        "model_type": "gpt_neox", "vocab_size": 50432 if d > 32 else 3200, "hidden_size": d,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * d,
        "max_position_embeddings": 2048, "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "use_parallel_residual": True, "tie_word_embeddings": False, "hidden_act": "gelu",
    }  # fmt: skip


def write_model(folder: Path, name: str) -> Path:
    """A checkpoint of which there are names, shapes and a tokenizer: the rest is a hole."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    config = pythia(name)
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin_model_path() / file, folder / file)
    with torch.device("meta"):
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig.from_dict(config))
    header, end = dict[str, Any](), 0
    for key, p in model.named_parameters():
        stored = "embed_out.weight" if key == "lm_head.weight" else key
        offsets = [end, end := end + 2 * p.numel()]
        header[stored] = {"dtype": "F16", "shape": [*p.shape], "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


class _Drawn:
    """A parameter of this shape that is drawn where it is asked for."""

    def __init__(self, shape: list[int]) -> None:
        self._shape = shape

    def to(self, device: torch.device, dtype: torch.dtype, *, copy: bool) -> Tensor:
        p = torch.empty(self._shape, device=device, dtype=dtype)
        return p.normal_(std=STD) if p.ndim > 1 else p.fill_(1.0)


class _Drawing:
    """A checkpoint whose tensors are drawn instead of read."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self._shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    def keys(self) -> list[str]:
        return [*self._shapes]

    def get_tensor(self, key: str) -> _Drawn:
        return _Drawn(self._shapes[key])


@contextmanager
def weights_drawn() -> Generator[None, None, None]:
    """Within the block, language models have the shapes of their files and random weights."""

    @contextmanager
    def opened(path: Path) -> Generator[_Drawing, None, None]:
        yield _Drawing(path)

    with patch("pipeline.lm.weights._opened", opened):
        yield


def write_text(path: Path, *, n_tokens: int) -> str:
    """Documents of words without a sense, with at least so many tokens."""
    draw = random.Random(0)
    letters = "etaoinshrdlu"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 8))) for _ in range(2000)]
    with path.open("w") as file:
        for _ in range(-(-n_tokens // DOCUMENT)):
            text = " ".join(draw.choices(words, k=DOCUMENT))
            file.write(json.dumps({"text": text}) + "\n")
    return str(path)
