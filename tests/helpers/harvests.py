"""Harvests of a tiny model, one shard ten contexts long."""

from pathlib import Path

from pipeline.config.stages import HarvestConfig
from pipeline.harvest.harvest import harvest
from pipeline.harvest.plan import make_plan
from tests.helpers.tiny import CTX_LEN, make_model, make_text


def harvest_config(folder: Path, *, model: Path | None = None, **settings) -> HarvestConfig:
    """Of 33 contexts, in four shards, of a text of 40."""
    given = {
        "out": folder / "acts.actstore",
        "model": str(model or make_model(folder / "model")),
        "text": make_text(folder / "text.txt", n_contexts=40),
        "sites": ("mlp_out.1", "resid_pre.0"),
        "tokens": 33 * CTX_LEN,
        "ctx_len": CTX_LEN,
        "batch_size": 4,
        "device": "cpu",
        "shard_rows": 10 * CTX_LEN,
    }
    return HarvestConfig(**(given | settings))


def states_until_complete(config: HarvestConfig) -> list[str]:
    """Harvest until nothing is missing; gives the states that it took."""
    states: list[str] = []
    harvest(config, on_plan=lambda plan, _: states.append(plan.state))
    assert make_plan(config).state == "complete"
    return states
