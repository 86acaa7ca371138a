"""What pages call by a name of the hub, made of what is embedded, without a network.

The clients of the hub are replaced where saepipe calls them; that it calls them well is held by
tests/lm/test_hub.py, tests/text/test_sources.py and tests/mnist/test_images.py.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import errors
from PIL import Image

import pipeline.harvest.harvest
from pipeline.config.stages import HarvestConfig
from pipeline.lm.hub import builtin_model_path
from pipeline.text.open import open_text

MODEL = "EleutherAI/pythia-70m-deduped"
IMAGES = "ylecun/mnist"
COMMIT = "c0ffee" + "0" * 34
SMALLER = 1000
"""A harvest from such a model asks for so many times fewer tokens than its page says."""
_PAGE = 4_000
"""The most characters of a document."""
_ANSWER = "\nAnswer: "

Records = list[dict[str, str]]


def make_model(folder: Path) -> Path:
    """Six layers as Pythia-70m has, narrow and random, with the embedded model's tokenizer."""
    embedded = builtin_model_path()
    small = {
        "num_hidden_layers": 6, "hidden_size": 32, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 2048,
    }  # fmt: skip
    config = transformers.GPTNeoXConfig.from_pretrained(embedded, **small)
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(config)
    for p in model.parameters():
        p.data.normal_(std=0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, folder)
    return folder


def _texts(source: str, *, characters: int) -> Records:
    """The beginnings of documents of an embedded text, of so many characters in all."""
    pages = (text[:_PAGE] for text in open_text(source).documents())
    return [{"text": text} for text in islice(pages, characters // _PAGE)]


def _questions(n: int) -> Records:
    """As the embedded ones, in two columns."""
    asked = (text.partition(_ANSWER) for text in open_text("builtin:arithmetic").documents())
    return [
        {"context": before + _ANSWER.rstrip(), "completion": f" {after}"}
        for before, _, after in islice(asked, n)
    ]


def _images() -> Mapping[str, datasets.Dataset]:
    """Ten random patterns, each under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.random((10, 28, 28))
    sets = dict[str, datasets.Dataset]()
    for split, n in {"train": 500, "test": 100}.items():
        labels = rng.integers(0, 10, n)
        pixels = (patterns[labels] + 0.1 * rng.standard_normal((n, 28, 28))).clip(0, 1)
        drawn = [Image.fromarray(image) for image in np.rint(255 * pixels).astype(np.uint8)]
        kinds = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        sets[split] = datasets.Dataset.from_dict({"image": drawn, "label": labels}, features=kinds)
    return sets


TEXTS: Mapping[tuple[str, str | None, str], Callable[[], Records]] = {
    ("Skylion007/openwebtext", None, "train"): (lambda: _texts("builtin", characters=2_000_000)),
    ("Salesforce/wikitext", "wikitext-103-raw-v1", "test"): (
        lambda: _texts("builtin@heldout", characters=80_000)
    ),
    ("EleutherAI/arithmetic", "arithmetic_1dc", "validation"): lambda: _questions(400),
}
"""By dataset, configuration and split; what is evaluated or learned to the end is short."""


@cache
def _stored(dataset: str, config: str | None, split: str) -> datasets.Dataset:
    return datasets.Dataset.from_list(TEXTS[dataset, config, split]())


def load_dataset(
    name: str, config: str | None = None, *, split: str = "", revision: str, streaming: bool = False
) -> Any:
    """As that of `datasets`."""
    assert revision == COMMIT
    if name == IMAGES:
        return _images()
    if (name, config, split) not in TEXTS:
        pytest.fail(f"no stand-in for the text {name}:{config}@{split}")
    assert streaming
    return _stored(name, config, split).to_iterable_dataset()


def put_in_place(monkeypatch: pytest.MonkeyPatch, *, model: Path) -> None:
    """Have saepipe find them instead of the hub.

    Args:
        monkeypatch: Takes them away again.
        model: The folder of `make_model`.
    """
    snapshot = model.parent / "snapshots" / COMMIT
    if not snapshot.exists():
        shutil.copytree(model, snapshot)

    def download(name: str, filename: str, **_: object) -> str:
        if name != MODEL:
            pytest.fail(f"no stand-in for the model {name}")
        if not (snapshot / filename).exists():
            raise errors.EntryNotFoundError(filename)
        return str(snapshot / filename)

    harvest = pipeline.harvest.harvest.harvest

    def smaller(config: HarvestConfig, **told: Any) -> object:
        n = config.tokens // SMALLER if config.model == MODEL else config.tokens
        return harvest(replace(config, tokens=max(n, 1)), **told)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha=COMMIT)
    )
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("pipeline.harvest.harvest.harvest", smaller)
