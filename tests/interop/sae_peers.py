"""SAEs of SAELens, dictionary_learning or sparsify: made with what they compute, or opened.

Run in the library's own environment, by tests/interop/saes.sh; it knows nothing of saepipe.

    python sae_peers.py LIBRARY make FOLDER     FOLDER/NAME/... and FOLDER/NAME/truth.npz
    python sae_peers.py LIBRARY check FOLDER    FOLDER/NAME/... against FOLDER/NAME/truth.npz
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

warnings.filterwarnings("ignore")
D, F, K, N = 24, 40, 5, 64
SEED = 0
TOLERANCE = 1e-5


def rows(seed=SEED):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(N, D, generator=generator) + 0.3


@torch.no_grad()
def filled(module, seed):
    """Every number of a module drawn, thresholds above zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        p.copy_(0.4 * torch.randn(p.shape, generator=generator))
        if "threshold" in name:
            p.abs_()
    return module


def keep(folder, x, z, x_hat):
    told = {"x": x, "z": z, "x_hat": x_hat}
    np.savez(folder / "truth.npz", **{name: t.detach().numpy() for name, t in told.items()})


# --- SAELens ---------------------------------------------------------------------------------


def make_saelens(out):
    from sae_lens.saes import sae as base
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    def told():
        return base.SAEMetadata(
            model_name="pythia-70m", hook_name="blocks.3.hook_mlp_out", context_size=64,
            prepend_bos=False,
        )  # fmt: skip

    kinds = {
        "standard": (StandardSAE, StandardSAEConfig, {}),
        "gated": (GatedSAE, GatedSAEConfig, {}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": K}),
        "topk-by-norm": (TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    }
    seed = 0
    for kind, (made, config, more) in kinds.items():
        for centred in (True, False):
            for norm in ("none", "layer_norm", "constant_norm_rescale"):
                seed += 1
                cfg = config(
                    d_in=D, d_sae=F, apply_b_dec_to_input=centred, normalize_activations=norm,
                    metadata=told(), **more,
                )  # fmt: skip
                name = f"{kind}_{norm}_{'centred' if centred else 'uncentred'}"
                filled(made(cfg), seed).save_model(out / name)
    trained = {
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig,
            {"matryoshka_widths": [10, 20, F]},
        ),
    }  # fmt: skip
    for kind, (made, config, more) in trained.items():
        for by_norm in (True, False):
            cfg = config(
                d_in=D, d_sae=F, k=K, rescale_acts_by_decoder_norm=by_norm, metadata=told(), **more
            )
            sae = filled(made(cfg), seed := seed + 1)
            sae.topk_threshold = torch.tensor(0.7, dtype=torch.float64)
            name = f"{kind}-checkpoint_{'by-norm' if by_norm else 'plain'}"
            sae.save_model(out / name)
            sae.save_inference_model(out / f"{kind}_{'by-norm' if by_norm else 'plain'}")
            truth = base.SAE.load_from_disk(out / f"{kind}_{'by-norm' if by_norm else 'plain'}")
            keep(out / name, rows(), truth.encode(rows()), truth(rows()))
    old_saelens(out)
    for folder in out.iterdir():
        if not (folder / "truth.npz").exists():
            sae = base.SAE.load_from_disk(folder)
            keep(folder, rows(), sae.encode(rows()), sae(rows()))


def old_saelens(out):
    """Settings as versions before 6 wrote them."""
    from safetensors.torch import save_file

    cfg = {
        "d_in": D, "d_sae": F, "dtype": "torch.float32", "device": "cpu",
        "model_name": "gpt2-small", "hook_point": "blocks.1.hook_resid_pre", "context_size": 32,
        "normalize_activations": False, "finetuning_scaling_factor": False,
    }  # fmt: skip
    others = {
        "old-standard": {"activation_fn_str": "relu", "apply_b_dec_to_input": False},
        "old-topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
    }
    for i, (name, more) in enumerate(others.items()):
        generator = torch.Generator().manual_seed(100 + i)
        shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
        tensors = {n: 0.4 * torch.randn(s, generator=generator) for n, s in shapes.items()}
        (out / name).mkdir()
        save_file(
            {**tensors, "scaling_factor": torch.ones(F)}, out / name / "sae_weights.safetensors"
        )
        (out / name / "cfg.json").write_text(json.dumps({**cfg, **more}))


def open_saelens(folder):
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    return sae.encode, sae


# --- dictionary_learning ---------------------------------------------------------------------


def make_dictionary_learning(out):
    from dictionary_learning.dictionary import (
        AutoEncoder,
        AutoEncoderNew,
        GatedAutoEncoder,
        JumpReluAutoEncoder,
    )
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = {
        "AutoEncoder": AutoEncoder(D, F),
        "AutoEncoderNew": AutoEncoderNew(D, F),
        "GatedAutoEncoder": GatedAutoEncoder(D, F),
        "JumpReluAutoEncoder": JumpReluAutoEncoder(D, F),
        "AutoEncoderTopK": AutoEncoderTopK(D, F, K),
        "BatchTopKSAE": BatchTopKSAE(D, F, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D, F, K, [10, 10, 20]),
    }
    made["BatchTopKSAE-unset"] = BatchTopKSAE(D, F, K)
    for i, (name, sae) in enumerate(made.items()):
        filled(sae, 10 + i)
        if hasattr(sae, "k") and name not in ("AutoEncoderTopK", "BatchTopKSAE-unset"):
            sae.threshold.fill_(0.6)
        folder = out / name
        folder.mkdir()
        torch.save(sae.state_dict(), folder / "ae.pt")
        trainer = {
            "dict_class": name.partition("-")[0], "activation_dim": D, "dict_size": F,
            "lm_name": "EleutherAI/pythia-70m-deduped", "layer": 3,
            "submodule_name": "resid_post_layer_3", **({"k": K} if hasattr(sae, "k") else {}),
        }  # fmt: skip
        told = {"trainer": trainer, "buffer": {"ctx_len": 64}}
        (folder / "config.json").write_text(json.dumps(told))
        encode, run = open_dictionary_learning(folder)
        keep(folder, rows(), encode(rows()), run(rows()))


def open_dictionary_learning(folder):
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(folder), "cpu")
    return sae.encode, sae


# --- sparsify --------------------------------------------------------------------------------


def make_sparsify(out):
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    for i, (name, latents) in enumerate({"layers.3.mlp": F, "layers.3": 0}.items()):
        cfg = SparseCoderConfig(k=K, num_latents=latents, expansion_factor=2)
        filled(SparseCoder(D, cfg), 30 + i).save_to_disk(out / name)
        encode, run = open_sparsify(out / name)
        keep(out / name, rows(), encode(rows()), run(rows()))


def open_sparsify(folder):
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder)

    def encode(x):
        acts, indices, _ = sae.encode(x)
        return torch.zeros(len(x), sae.num_latents).scatter(-1, indices, acts)

    def run(x):
        acts, indices, _ = sae.encode(x)
        return sae.decode(acts, indices)

    return encode, run


# --- both ------------------------------------------------------------------------------------


@torch.no_grad()
def check(library, folder):
    n = 0
    for one in sorted(folder.iterdir()):
        truth = {name: torch.from_numpy(t) for name, t in np.load(one / "truth.npz").items()}
        encode, run = globals()[f"open_{library}"](one / "exported")
        for name, found in (("z", encode(truth["x"])), ("x_hat", run(truth["x"]))):
            off = float((found - truth[name]).abs().max() / truth[name].abs().max())
            assert off < TOLERANCE, f"{library} {one.name}: {name} is off by {off:.2g}"
        assert bool(((encode(truth["x"]) > 0) == (truth["z"] > 0)).all()), one.name
        n += 1
    print(f"{library}: opens {n} of ours, latents and reconstructions to {TOLERANCE}")


if __name__ == "__main__":
    library, task, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if task == "make":
            globals()[f"make_{library}"](folder)
        else:
            check(library, folder)
