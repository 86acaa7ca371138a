"""Ours, as others open them, read again here; by their own packages in tests/interop."""

import json
from pathlib import Path

import pytest
import saepipe as sp
import torch
from safetensors.torch import load_file

from pipeline.config.architectures import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TiedConfig,
    TopKConfig,
)
from pipeline.errors import CheckpointError, ConfigError
from pipeline.exchange.exporting import TARGETS, export
from pipeline.runs.sae_run import SAERun
from pipeline.sae.gated import Gated
from pipeline.sae.jumprelu import Threshold
from pipeline.sae.sae import SAE
from tests.helpers.refusals import refused
from tests.helpers.tiny import WIDTH, make_sae, save_sae
from tests.helpers.tunings import make_tuned

KINDS = (
    ReluConfig(), ReluAprilConfig(), TiedConfig(), GatedConfig(), TopKConfig(k=6),
    BatchTopKConfig(k=6), MatryoshkaConfig(k=6, prefixes=3), JumpReluConfig(),
)  # fmt: skip


MODEL = "EleutherAI/pythia-70m"  # out of reach here, so that nothing is held to its width


def made(arch) -> SAE:
    sae, generator = make_sae(arch=arch), torch.Generator().manual_seed(7)
    with torch.no_grad():
        sae.W_enc.mul_(0.7)
        for p in sae.activation.parameters():
            p.uniform_(0.1, 0.9, generator=generator)
        if isinstance(sae.activation, Gated):
            sae.b_enc.zero_()
    return sae


def x() -> torch.Tensor:
    return 1.5 * torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(3)) + 0.3


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("arch", KINDS, ids=lambda arch: arch.kind)
def test_what_was_exported_reads_as_it_was(tmp_path, arch, to):
    sae = made(arch)
    run = save_sae(tmp_path / "run", sae, model=MODEL, arch=arch, site="mlp_out.1")
    if to == "sparsify" and arch.kind != "topk":
        with refused(ConfigError, f"sparsify has topk alone, and this SAE is a {arch.kind} one"):
            export(run, to, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    report = export(run, to, tmp_path / "out")
    assert {path.name for path in report.out.iterdir()} == {*report.files}
    again = SAE.from_pretrained(report.out)
    with torch.no_grad():
        torch.testing.assert_close(again.encode(x()), sae.encode(x()), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again(x()), sae(x()), rtol=1e-5, atol=1e-5)
    assert again.site == "mlp_out.1"
    if to in ("saelens", "safetensors"):
        weights = next(report.out.glob("*.safetensors"))
        assert all(t.dtype == torch.float32 for t in load_file(weights).values())
    says = to == "saelens" and arch.kind in ("batchtopk", "matryoshka")
    assert any("it is a jumprelu one there" in note for note in report.notes) == says
    imported = sp.import_sae(report.out, out=tmp_path / "back")
    assert (imported.provenance.site, imported.provenance.model) == (
        "mlp_out.1", "" if to == "safetensors" else MODEL,
    )  # fmt: skip


def test_settings_of_saelens_are_those_of_its_own(tmp_path):
    run = save_sae(tmp_path / "run", made(TopKConfig(k=6)), model="builtin", arch=TopKConfig(k=6))
    export(run, "saelens", tmp_path / "out")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    metadata = cfg.pop("metadata")
    assert cfg == {
        "d_in": WIDTH, "d_sae": 4 * WIDTH, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none", "k": 6, "rescale_acts_by_decoder_norm": False,
        "architecture": "topk",
    }  # fmt: skip
    assert metadata["hook_name"] == "blocks.1.hook_mlp_out"


def test_what_was_fine_tuned_is_folded_first(tmp_path):
    run = save_sae(tmp_path / "run", made(ReluConfig()), model="builtin")
    tuned = make_tuned(run, tmp_path / "tuned")
    report = export(tuned.path, "saelens", tmp_path / "out")
    assert report.site == "mlp_out.3"
    with torch.no_grad():
        again = SAE.from_pretrained(report.out)
        torch.testing.assert_close(again(x()), tuned.sae(x()), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(again(x()), tuned.sae.sae(x()), atol=1e-2)


@pytest.mark.parametrize("to", TARGETS)
def test_the_same_is_reused_and_other_files_stay(tmp_path, to):
    run = save_sae(tmp_path / "run", made(TopKConfig(k=6)), model="builtin", arch=TopKConfig(k=6))
    out = tmp_path / "out"
    assert not export(run, to, out).reused
    assert export(run, to, out).reused
    other = save_sae(
        tmp_path / "b",
        make_sae(arch=TopKConfig(k=6), seed=5),
        model="builtin",
        arch=TopKConfig(k=6),
    )
    with refused(ConfigError, "holds something else: choose another --out"):
        export(other, to, out)
    (out / "mine").touch()
    with refused(ConfigError, "holds something else"):
        export(run, to, out)
    (tmp_path / "file").touch()
    with refused(ConfigError, "holds something else"):
        export(run, to, tmp_path / "file")


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    run = save_sae(tmp_path / "run", made(ReluConfig()), model="builtin")

    def fails(path: Path, parts):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pipeline.exchange.exporting.write_file", fails)
    with refused(CheckpointError, "No space left"):
        export(run, "saelens", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_rows_that_are_normalised_are_lost_on_most(tmp_path):
    sae = make_sae(arch=TopKConfig(k=6))
    sae.input_norm = "layer_norm"
    run = save_sae(tmp_path / "run", sae, model="builtin", arch=TopKConfig(k=6))
    for to in ("dictionary-learning", "sparsify"):
        with refused(ConfigError, "has none that does: type --to saelens"):
            export(run, to, tmp_path / to)
    for to in ("saelens", "safetensors"):
        again = SAE.from_pretrained(export(run, to, tmp_path / to).out)
        assert again.input_norm == "layer_norm"
        torch.testing.assert_close(again(x()), sae(x()))
    assert SAERun.open(run).sae.input_norm == "layer_norm"


def test_what_cannot_be_exported_is_one_line(tmp_path):
    run = save_sae(tmp_path / "run", made(ReluConfig()), model="builtin")
    with refused(ConfigError, "to must be one of saelens"):
        export(run, "keras", tmp_path / "out")
    with refused(CheckpointError, "is not a run"):
        export(tmp_path / "absent", "saelens", tmp_path / "out")
    sae = made(BatchTopKConfig(k=2.5))
    assert isinstance(sae.activation, Threshold)
    half = save_sae(tmp_path / "half", sae, model="builtin", arch=BatchTopKConfig(k=2.5))
    assert "its k of 2.5 is 2 there" in export(half, "dictionary-learning", tmp_path / "o").notes[0]
