"""Runs and a store that are pushed, and a hub to push them to."""

from pathlib import Path

import pytest

from pipeline.config.architectures import TopKConfig
from pipeline.config.stages import EvalConfig
from pipeline.evaluate.evaluate import evaluate
from tests.helpers.hub_server import Hub, point_here, serving_hub
from tests.helpers.tiny import CTX_LEN, make_sae, save_sae


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty one, which this process takes for the hub."""
    with serving_hub() as served:
        point_here(monkeypatch, served, tmp_path / "home")
        yield served


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, tiny_model, tiny_text) -> Path:
    """A run that was evaluated, whose model and text lie in files of this machine."""
    run = tmp_path_factory.mktemp("runs") / "topk"
    save_sae(run, make_sae(arch=TopKConfig(k=4)), model=tiny_model, text=tiny_text,
             arch=TopKConfig(k=4))  # fmt: skip
    (run / "density.png").write_bytes(b"\x89PNG\0")
    evaluate(
        EvalConfig(
            runs=(run,), text=tiny_text, tokens=10 * CTX_LEN, batch_size=4, device="cpu",
            n_worst=1,
        )
    )  # fmt: skip
    return run


@pytest.fixture
def failing(hub: Hub):
    """Have the hub answer what contains these words with a status."""

    def fails(words: str, status: int) -> None:
        hub.fails = lambda asked: status if words in asked else None

    return fails
