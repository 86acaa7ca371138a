"""A tiny model, a store of it, and runs whose features can be found."""

from dataclasses import dataclass
from pathlib import Path

from actstore.reader import ActStore
from pipeline.config.architectures import ReluConfig
from pipeline.config.stages import FeaturesConfig, HarvestConfig
from pipeline.config.training import TrainConfig
from pipeline.harvest.harvest import harvest
from pipeline.runs.folder import Provenance
from pipeline.runs.sae_run import SAERun
from tests.helpers.tiny import CTX_LEN, make_model, make_sae, make_text

SITES = ("mlp_out.1", "mlp_pre.1", "mlp_act.1", "resid_post.2")


@dataclass(frozen=True, kw_only=True)
class World:
    """A model and a store of it, in a folder."""

    folder: Path
    model: Path
    store: ActStore

    def run(self, name: str = "run", *, site: str = SITES[0], coder=None) -> Path:
        """A finished run, trained, as it says, from the store."""
        path = self.folder / name
        path.mkdir()
        coder = coder or make_sae(d_in=self.store.width(site))
        config = TrainConfig(
            store=self.store.path,
            out=path,
            arch=ReluConfig(l1=1e-3),
            batch_size=1024,
            lr=1e-4,
            expansion=coder.d_sae // coder.d_in,
        )
        provenance = Provenance.of(self.store, site=site)
        SAERun(path=path, config=config, provenance=provenance).finish(coder)
        return path


def make_store_of(
    model: Path, out: Path, *, n_contexts: int = 40, sites: tuple[str, ...] = SITES, text: str = ""
) -> ActStore:
    """A store of a text, over and over, or else of random letters."""
    file, n_tokens = out.with_suffix(".txt"), n_contexts * CTX_LEN
    if text:
        file.write_text(text * (1 + n_tokens // len(text.encode())))
    else:
        make_text(file, n_contexts=n_contexts)
    config = HarvestConfig(
        out=out, model=str(model), text=str(file), sites=sites, tokens=n_tokens,
        ctx_len=CTX_LEN, batch_size=8, device="cpu", dtype="fp32", shard_rows=10 * CTX_LEN,
    )  # fmt: skip
    harvest(config)
    return ActStore.open(out)


def make_world(folder: Path) -> World:
    model = make_model(folder / "model")
    return World(folder=folder, model=model, store=make_store_of(model, folder / "acts.actstore"))


def config_of(run: Path, **changes) -> FeaturesConfig:
    defaults = {"n_top": 3, "n_spread": 4, "n_values": 6, "device": "cpu"}
    return FeaturesConfig(run=run, **{**defaults, **changes})
