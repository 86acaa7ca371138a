"""The other side of sae_peers.py: SAEs of other libraries read here, and ours written for them.

python tests/interop/saes.py read LIBRARY FOLDER
python tests/interop/saes.py write LIBRARY FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.config.architectures import (
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    InputNorm,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TiedConfig,
    TopKConfig,
)
from pipeline.exchange.exporting import export
from pipeline.exchange.importing import import_sae
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from tests.helpers.tiny import save_sae

D, F, K, N = 24, 40, 5, 64
TOLERANCE = 1e-5
KINDS = (
    ReluConfig(), ReluAprilConfig(), TiedConfig(), GatedConfig(), TopKConfig(k=K),
    BatchTopKConfig(k=K), MatryoshkaConfig(k=K, prefixes=3), JumpReluConfig(),
)  # fmt: skip
NORMS: dict[str, tuple[InputNorm, ...]] = {"saelens": ("none", "layer_norm", "constant_norm")}
LIBRARIES = {
    "saelens": "saelens",
    "dictionary_learning": "dictionary-learning",
    "sparsify": "sparsify",
}


def off(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


def made(arch: ArchConfig, *, input_norm: InputNorm, seed: int) -> SAE:
    """One whose every number matters."""
    sae = SAE(arch, d_in=D, d_sae=F, seed=seed, input_norm=input_norm)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
            if "threshold" in name:
                p.abs_()
        if isinstance(arch, GatedConfig):
            sae.b_enc.zero_()
    return sae


@torch.no_grad()
def read(library: str, folder: Path) -> None:
    names = sorted(path for path in folder.iterdir() if path.is_dir())
    for one in names:
        truth = {name: torch.from_numpy(t) for name, t in np.load(one / "truth.npz").items()}
        x = truth["x"]
        run = SAERun.open(import_sae(str(one), folder.parent / "runs" / library / one.name).out)
        for sae in (run.sae, SAE.from_pretrained(one)):
            for name, found in (("z", sae.encode(x)), ("x_hat", sae(x))):
                by = off(found, truth[name])
                assert by < TOLERANCE, f"{library} {one.name}: {name} is off by {by:.2g}"
            assert bool(((sae.encode(x) > 0) == (truth["z"] > 0)).all()), one.name
    print(f"{library}: {len(names)} of theirs are read, latents and reconstructions to {TOLERANCE}")


@torch.no_grad()
def write(library: str, folder: Path) -> None:
    x = 1.5 * torch.randn(N, D, generator=torch.Generator().manual_seed(7)) + 0.3
    for i, arch in enumerate(KINDS):
        if library == "sparsify" and not isinstance(arch, TopKConfig):
            continue
        for norm in NORMS.get(library, ("none",)):
            one = folder / f"{arch.kind}_{norm}"
            sae = made(arch, input_norm=norm, seed=50 + i)
            run = save_sae(one / "run", sae, model="builtin", arch=arch, site="mlp_out.3")
            told = export(run, LIBRARIES[library], one / "exported")
            truth = {"x": x, "z": sae.encode(x), "x_hat": sae(x)}
            np.savez(one / "truth.npz", **{name: t.numpy() for name, t in truth.items()})
            again = SAERun.open(import_sae(str(one / "exported"), one / "again").out)
            assert off(again.sae(x), truth["x_hat"]) < TOLERANCE, (one.name, told)
            assert again.provenance.site == "mlp_out.3", one.name


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
