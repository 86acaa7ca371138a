"""An SAE in a tiny model, and a text to fine-tune it on."""

import shutil
from functools import partial

import pytest
import torch

from pipeline.config.stages import FinetuneConfig
from pipeline.finetune.run import FinetunedRun
from pipeline.lm.model import load_model
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.text.heldout import load_contexts
from tests.helpers.tiny import CTX_LEN, make_sae, make_text, save_sae
from tests.helpers.tunings import finetune

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="package")
def run(tmp_path_factory, tiny_model):
    return save_sae(tmp_path_factory.mktemp("runs") / "sae", make_sae(), model=tiny_model)


@pytest.fixture(scope="package")
def text(tmp_path_factory):
    """Something a scale and a bias can learn: only some of the letters occur."""
    return make_text(tmp_path_factory.mktemp("text") / "a.txt", n_contexts=40)


def make_config(**options) -> FinetuneConfig:
    defaults = {
        "batch_size": 4, "epochs": 3, "steps_per_epoch": 5, "ctx_len": CTX_LEN,
        "heldout_contexts": 6, "lr": 0.05, "device": "cpu", "general_text": options.get("text"),
    }  # fmt: skip
    return FinetuneConfig(**(defaults | options))


@pytest.fixture
def config(tmp_path, run, text):
    return partial(make_config, run=run, out=tmp_path / "tuned", text=text)


@pytest.fixture(scope="package")
def done(tmp_path_factory, run, text) -> FinetunedRun:
    """A whole fine-tuning, which nobody changes."""
    out = tmp_path_factory.mktemp("done") / "tuned"
    finetune(make_config(run=run, out=out, text=text))
    return FinetunedRun.open(str(out))


@pytest.fixture
def copied(done, tmp_path):
    """The folder of another one like it."""
    return shutil.copytree(done.path, tmp_path / "tuned")


@pytest.fixture(scope="package")
def lm(tiny_model):
    return load_model(str(tiny_model), device=CPU, dtype=FP32)


@pytest.fixture(scope="package")
def tokenizer(lm):
    return load_tokenizer(lm.name)


@pytest.fixture(scope="package")
def contexts(tokenizer, text):
    return load_contexts(text, tokenizer, ctx_len=CTX_LEN, n=40)
