"""Each format against its own library's formula, in float64, with nothing of ours in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.architectures import JumpReluConfig, MatryoshkaConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.foreign_sae import Asked
from pipeline.formats.table import FORMATS, read_foreign, seems
from pipeline.sae.sae import SAE
from tests.helpers.foreign import (
    D,
    F,
    K,
    above,
    computes,
    dictionary,
    drawn,
    matrices,
    relu,
    rows,
    saelens,
    sparsify,
    top_k,
    write_json,
    write_pickle,
    write_safetensors,
)
from tests.helpers.refusals import refused

W = matrices()
NORMS = np.linalg.norm(W["W_dec"].astype(np.float64), axis=-1)
GATES = drawn(3, b_gate=(F,), r_mag=(F,), b_mag=(F,))
THRESHOLD = np.abs(drawn(4, threshold=(F,))["threshold"])


def close(source: Path | str, truth: tuple[np.ndarray, np.ndarray], **asked: Any) -> SAE:
    """The SAE of a source, sure to compute this."""
    found, _, _ = read_foreign(str(source), Asked(**asked))
    sae = SAE.of(found)
    x = torch.from_numpy(rows()).float()
    with torch.no_grad():
        z, x_hat = sae.encode(x), sae(x)
    for got, wanted in ((z, truth[0]), (x_hat, truth[1])):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(z.numpy() > 1e-5, truth[0] > 1e-5)
    return sae


def gated(x: np.ndarray, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    w = {name: t.astype(np.float64) for name, t in {**W, **GATES}.items()}
    a = (x - centred * w["b_dec"]) @ w["W_enc"]
    z = relu(np.exp(w["r_mag"]) * a + w["b_mag"]) * (a + w["b_gate"] > 0)
    return z, z @ w["W_dec"] + w["b_dec"]


def plain(*names: str) -> dict[str, np.ndarray]:
    return {name: W[name] for name in names}


# --- SAELens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated"])
def test_saelens(tmp_path, kind, centred):
    tensors, act, more = dict(W), relu, {}
    if kind == "topk":
        act, more = top_k, {"k": K}
    elif kind == "jumprelu":
        tensors, act = tensors | {"threshold": THRESHOLD}, above(THRESHOLD)
    elif kind == "gated":
        tensors = plain("W_enc", "W_dec", "b_dec") | GATES
    truth = gated(rows(), centred=centred) if kind == "gated" else computes(W, act, centred=centred)
    folder = saelens(tmp_path, tensors, kind=kind, apply_b_dec_to_input=centred, **more)
    sae = close(folder, truth)
    assert sae.site == "mlp_out.1"
    found, fmt, _ = read_foreign(str(folder))
    assert (found.model, fmt.words) == ("gpt2", "SAELens")


def test_saelens_ranks_by_the_lengths_of_rows_where_it_says_so(tmp_path):
    by_norm = {**W, "W_enc": W["W_enc"] * NORMS, "b_enc": W["b_enc"] * NORMS}
    truth = computes({**by_norm, "W_dec": W["W_dec"] / NORMS[:, None]}, top_k)
    folder = saelens(tmp_path, kind="topk", k=K, rescale_acts_by_decoder_norm=True)
    close(folder, truth)
    assert not np.array_equal(truth[0] > 0, computes(W, top_k)[0] > 0)


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_saelens_checkpoints_use_the_threshold_that_stands_for_the_batch(tmp_path, kind, by_norm):
    scale = NORMS if by_norm else np.ones(F)
    w = {**W, "W_enc": W["W_enc"] * scale, "b_enc": W["b_enc"] * scale}
    truth = computes({**w, "W_dec": W["W_dec"] / scale[:, None]}, above(0.8))
    tensors = {**W, "topk_threshold": np.asarray(0.8)}
    more = {"k": 3.5, "rescale_acts_by_decoder_norm": by_norm, "matryoshka_widths": [4, 9, F]}
    sae = close(saelens(tmp_path, tensors, kind=kind, **more), truth)
    assert sae.arch.kind == kind.removesuffix("_batchtopk")
    assert sae.arch.k == 3.5  # pyright: ignore[reportAttributeAccessIssue]
    notes = " ".join(read_foreign(str(tmp_path))[0].notes)
    assert ("nested dictionaries have 4, 9, 20 latents" in notes) == kind.startswith("matryoshka")


def layer_norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, std = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
    return (x - mean) / (std + 1e-5), std, mean


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_saelens_normalises_rows_and_puts_back_what_it_took(tmp_path, norm):
    x = rows()
    if norm == "layer_norm":
        given, scale, mean = layer_norm(x)
    else:
        scale, mean = np.linalg.norm(x, axis=-1, keepdims=True) / D**0.5, 0.0
        given = x / scale
    z, x_hat = computes(W, top_k, x=given)
    sae = close(
        saelens(tmp_path, kind="topk", k=K, normalize_activations=norm), (z, x_hat * scale + mean)
    )
    with refused(ConfigError, r"give decode the rows"):
        sae.decode(torch.zeros(2, F))


def test_a_scale_of_activations_is_folded_and_one_that_is_not_said_is_noted(tmp_path):
    folder = saelens(tmp_path, normalize_activations="expected_average_only_in")
    close(folder, computes(W, relu))
    assert "no activation_scaler.json says by how much" in read_foreign(str(folder))[0].notes[0]
    write_json(folder / "activation_scaler.json", {"scaling_factor": 2.5})
    z, x_hat = computes(W, relu, x=2.5 * rows())
    close(folder, (z, x_hat / 2.5))
    assert not read_foreign(str(folder))[0].notes


@pytest.mark.parametrize("named", [True, False], ids=["hook_name", "hook_point"])
def test_saelens_before_version_6(tmp_path, named):
    old = {
        "d_in": D, "d_sae": F, "model_name": "pythia-70m", "context_size": 32,
        "hook_name" if named else "hook_point": "blocks.2.hook_resid_pre", "prepend_bos": False,
    }  # fmt: skip
    write_safetensors(tmp_path / "sae_weights.safetensors", {**W, "scaling_factor": np.ones(F)})
    write_json(tmp_path / "cfg.json", old | {"activation_fn_str": "relu"})
    assert close(tmp_path, computes(W, relu)).site == "resid_pre.2"
    told = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    write_json(tmp_path / "cfg.json", old | told | {"apply_b_dec_to_input": False})
    close(tmp_path, computes(W, top_k, centred=False))
    found, _, _ = read_foreign(str(tmp_path))
    assert (found.model, found.ctx_len) == ("EleutherAI/pythia-70m", 32)


# --- dictionary_learning ---------------------------------------------------------------------


def linear(*biases: tuple[str, str]) -> dict[str, Any]:
    named = {"encoder.weight": W["W_enc"].T, "decoder.weight": W["W_dec"].T}
    return named | {theirs: W[ours] for theirs, ours in biases}


@pytest.mark.parametrize("with_settings", [True, False])
@pytest.mark.parametrize(
    "kind", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder",
             "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"],
)  # fmt: skip
def test_dictionary_learning(tmp_path, kind, with_settings):
    encoder = ("encoder.bias", "b_enc")
    counted = {"k": np.asarray(K, np.int32), "threshold": np.asarray(0.7, np.float32)}
    cases: dict[str, tuple[dict[str, Any], Any]] = {
        "AutoEncoderNew": (
            linear(encoder, ("decoder.bias", "b_dec")), computes(W, relu, centred=False),
        ),
        "GatedAutoEncoder": (
            linear(("decoder_bias", "b_dec")) | {
                "gate_bias": GATES["b_gate"], "r_mag": GATES["r_mag"], "mag_bias": GATES["b_mag"],
            }, gated(rows(), centred=True),
        ),
        "JumpReluAutoEncoder": (
            {**W, "threshold": THRESHOLD}, computes(W, above(THRESHOLD), centred=False),
        ),
        "AutoEncoderTopK": (
            linear(encoder, ("b_dec", "b_dec")) | counted | {"threshold": np.asarray(-1.0)},
            computes(W, top_k),
        ),
        "BatchTopKSAE": (linear(encoder, ("b_dec", "b_dec")) | counted, computes(W, above(0.7))),
        "MatryoshkaBatchTopKSAE": (
            {**W, **counted, "group_sizes": np.asarray([5, 5, 10])}, computes(W, above(0.7)),
        ),
    }  # fmt: skip
    unit = {**W, "W_dec": W["W_dec"] / NORMS[:, None]}
    scaled = {**unit, "W_enc": W["W_enc"] * NORMS, "b_enc": W["b_enc"] * NORMS}
    cases["AutoEncoder"] = (linear(encoder, ("bias", "b_dec")), computes(scaled, relu))
    tensors, truth = cases[kind]
    trainer = {"submodule_name": "mlp_out_layer_3", "lm_name": "org/lm"}
    source = dictionary(
        tmp_path / "a", kind, tensors, **(trainer | ({"k": K} if "k" in tensors else {}))
    )
    if not with_settings:
        (source / "config.json").unlink()
        (source / "ae.pt").rename(source / "some.pt")
        source /= "some.pt"
    sae = close(source, truth)
    if with_settings:
        found, _, _ = read_foreign(str(source))
        assert (sae.site, found.model, found.ctx_len) == ("mlp_out.3", "org/lm", 64)
    if kind == "MatryoshkaBatchTopKSAE":
        assert sae.arch == MatryoshkaConfig(k=K, prefixes=3)


def test_a_dictionary_is_told_by_its_folder_and_a_mean_becomes_part_of_the_bias(tmp_path):
    mean = drawn(8, mean=(D,))["mean"]
    tensors = linear(("encoder.bias", "b_enc"), ("b_dec", "b_dec"))
    inner = tensors | {"k": np.asarray(K), "threshold": np.asarray(0.5)}
    made = {n: torch.from_numpy(t.copy()) for n, t in inner.items()}
    told = {"state_dict": made, "cfg": {"k": K}, "act_mean": mean}
    path = tmp_path / "attn_out_layer2" / "10_32768" / "sae.pt"
    write_pickle(path, told)
    z, x_hat = computes(W, above(0.5), x=rows() - mean)
    assert close(path, (z, x_hat + mean)).site == "attn_out.2"
    z, x_hat = computes(W, top_k, x=rows() - mean)
    close(path, (z, x_hat + mean), arch="topk")


def test_a_checkpoint_is_told_by_the_settings_of_its_trainer(tmp_path):
    tensors = linear(("encoder.bias", "b_enc"), ("b_dec", "b_dec"))
    tensors |= {"k": np.asarray(K), "threshold": np.asarray(0.7)}
    dictionary(tmp_path, "AutoEncoderTopK", tensors, k=K)
    (tmp_path / "checkpoints").mkdir()
    kept = (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_100.pt")
    assert close(kept, computes(W, top_k)).arch.kind == "topk"


def test_files_of_torch_from_before_archives_are_read(tmp_path):
    tensors = {name: torch.from_numpy(t) for name, t in W.items()}
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    close(tmp_path / "a.pt", computes(W, relu), arch="relu")


def test_a_dictionary_of_two_minds_is_refused(tmp_path):
    tensors = linear(("encoder.bias", "b_enc"), ("b_dec", "b_dec"))
    tensors |= {"k": np.asarray(K), "threshold": np.asarray(-1.0)}
    with refused(CheckpointError, "has k = 4, and its config.json says 9"):
        read_foreign(str(dictionary(tmp_path, "AutoEncoderTopK", tensors, k=9)))


# --- sparsify, Gemma Scope, OpenAI, Llama Scope ----------------------------------------------


def test_sparsify(tmp_path):
    sparsify(tmp_path / "run" / "layers.5.mlp")
    write_json(tmp_path / "run" / "config.json", {"model": "org/lm", "ctx_len": 99, "sae": {}})
    sae = close(tmp_path / "run" / "layers.5.mlp", computes(W, top_k))
    found, fmt, _ = read_foreign(str(tmp_path / "run" / "layers.5.mlp"))
    assert (sae.site, found.model, found.ctx_len) == ("mlp_out.5", "org/lm", 99)
    assert fmt.name == "sparsify"


@pytest.mark.parametrize("file", ["params.npz", "params.safetensors"])
@pytest.mark.parametrize("embedding", [False, True])
def test_gemma_scope(tmp_path, file, embedding):
    folder = tmp_path / "gemma-scope-2b-pt-res" / ("embedding" if embedding else "layer_20") / "w"
    folder.mkdir(parents=True)
    tensors = {**W, "threshold": THRESHOLD}
    if file == "params.npz":
        np.savez(folder / file, **tensors)  # pyright: ignore[reportArgumentType]
    else:
        write_safetensors(folder / file, {n.replace("W_", "w_"): t for n, t in tensors.items()})
    scale = D**-0.5 if embedding else 1.0
    z, x_hat = computes(W, above(THRESHOLD), centred=False, x=scale * rows())
    sae = close(
        folder, (z, x_hat if not embedding else (z @ W["W_dec"]) / scale + W["b_dec"] / scale)
    )
    assert sae.arch == JumpReluConfig()
    found, _, _ = read_foreign(str(folder))
    assert (sae.site, found.model) == ("" if embedding else "resid_post.20", "google/gemma-2-2b")


@pytest.mark.parametrize("kind", ["ReLU", "TopK"])
def test_openai(tmp_path, kind):
    told = linear(("latent_bias", "b_enc"), ("pre_bias", "b_dec"))
    told |= {"activation": kind, "stats_last_nonzero": np.zeros(F, np.int64)}
    if kind == "TopK":
        told["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
        x, std, mean = layer_norm(rows())
        z, x_hat = computes(W, top_k, x=x)
        truth = z, x_hat * std + mean
    else:
        truth = computes(W, relu)
    path = tmp_path / "resid_post_attn_v5_32k" / "autoencoders" / "8.pt"
    write_pickle(path, told)
    assert close(path, truth).site == "resid_mid.8"
    assert read_foreign(str(path))[0].model == "gpt2"


@pytest.mark.parametrize("published", [True, False])
def test_llama_scope(tmp_path, published):
    scale = D**0.5 / 7.0
    if published:
        cfg = {
            "d_model": D, "d_sae": F, "jump_relu_threshold": 0.3,
            "hook_point_in": "blocks.4.hook_resid_post",
            "dataset_average_activation_norm": {"in": 7.0, "out": 7.0},
        }  # fmt: skip
        write_json(tmp_path / "hyperparams.json", cfg)
        tensors = linear(("encoder.bias", "b_enc"), ("decoder.bias", "b_dec"))
        write_safetensors(tmp_path / "checkpoints" / "final.safetensors", tensors)
        act = above(0.3 * scale)
    else:
        hook = "blocks.4.hook_resid_post"
        cfg = {
            "sae_type": "sae", "act_fn": "jumprelu", "d_model": D, "expansion_factor": F / D,
            "hook_point_in": hook, "hook_point_out": hook, "norm_activation": "dataset-wise",
            "sparsity_include_decoder_norm": True,
        }  # fmt: skip
        write_json(tmp_path / "config.json", cfg)
        names = {"W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec"}
        tensors = {theirs: W[ours] for theirs, ours in names.items()} | {
            "activation_function.log_jumprelu_threshold": np.log(THRESHOLD),
            f"dataset_average_activation_norm.{hook}": np.asarray(7.0, np.float32),
        }
        write_safetensors(tmp_path / "sae_weights.safetensors", tensors)
        act = above(THRESHOLD / NORMS)
    z, x_hat = computes(W, act, centred=False, x=scale * rows())
    assert close(tmp_path, (z, x_hat / scale)).site == "resid_post.4"


# --- of no library ---------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["a.safetensors", "a.npz", "a.pt"])
@pytest.mark.parametrize("turned", [True, False])
def test_a_file_of_matrices(tmp_path, file, turned):
    tensors = {**W, "W_enc": W["W_enc"].T, "W_dec": W["W_dec"].T} if turned else W
    path = tmp_path / file
    if file == "a.npz":
        np.savez(path, **tensors)  # pyright: ignore[reportArgumentType]
    else:
        (write_pickle if file == "a.pt" else write_safetensors)(path, tensors)
    close(path, computes(W, top_k), arch="topk", k=K)
    close(path, computes(W, relu, centred=False), arch="relu", centred=False)
    close(tmp_path, computes(W, relu), arch="relu-april")  # the only file of a folder
    for asked, why in ((Asked(), "name it with --arch"), (Asked(arch="topk"), "name --k")):
        with refused(ConfigError, why):
            read_foreign(str(path), asked)


def test_fewer_latents_than_inputs_are_told_by_biases(tmp_path):
    narrow = drawn(5, enc=(D, 7), dec=(7, D), b_enc=(7,), b_dec=(D,))
    write_safetensors(tmp_path / "a.safetensors", narrow)
    w = {"W_enc": narrow["enc"], "W_dec": narrow["dec"], **narrow}
    close(tmp_path / "a.safetensors", computes(w, relu), arch="relu")


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if name not in ("openai", "safetensors")]
)
def test_a_folder_is_told_by_the_names_of_its_files(tmp_path, name):
    for i, names in enumerate(FORMATS[name].files):
        for file in names:
            path = tmp_path / str(i) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        wanted = "save_pretrained, or sparsify" if name == "sparsify" else FORMATS[name].words
        assert wanted in seems(tmp_path / str(i))
    assert not seems(tmp_path / "nothing")
