"""An evaluation against the plain script that it is timed against: hooks, whole forwards."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pipeline.config.stages import EvalConfig
from pipeline.evaluate.evaluate import evaluate
from pipeline.evaluate.report import QUANTILES, EvalReport
from pipeline.lm.hub import builtin_model_path
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.text.heldout import load_contexts
from tests.bench.eval_plain import evaluate_plain
from tests.helpers.plain_eval import assert_numbers_agree
from tests.helpers.slow import slow
from tests.helpers.tiny import CTX_LEN, make_sae, save_sae

TEXT, N_CONTEXTS = "builtin@heldout", 61


@pytest.fixture
def run_at(tmp_path):
    """A coder of the embedded model, whose losses an ablation changes: ratios are not of noise."""

    def make(layer: int) -> Path:
        d_in = json.loads((builtin_model_path() / "config.json").read_text())["hidden_size"]
        coder = make_sae(d_in=d_in, expansion=2)
        return save_sae(tmp_path / "run", coder, model="builtin", site=f"mlp_out.{layer}")

    return make


def plain(run: Path, *, layer: int, dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """The plain script's numbers for a run."""
    lm = transformers.GPTNeoXForCausalLM.from_pretrained(builtin_model_path(), dtype=dtype).eval()
    tokenizer = load_tokenizer("builtin")
    tokens = load_contexts(TEXT, tokenizer, ctx_len=CTX_LEN, n=N_CONTEXTS).long()
    weights = load_file(run / "sae.safetensors")
    return evaluate_plain(lm, tokens, weights, layer=layer, batch_size=16)


def told(report: EvalReport) -> dict[str, float]:
    """A report's numbers by the plain script's names."""
    names = [f"l0_q{round(100 * q):02}" for q in QUANTILES]
    numbers = {**vars(report), **dict(zip(names, report.l0_quantiles, strict=True))}
    return {name: value for name, value in numbers.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("layer", [slow(0), 2])
def test_every_number_agrees_with_the_plain_script(run_at, layer):
    run, n_tokens = run_at(layer), N_CONTEXTS * CTX_LEN
    config = EvalConfig(runs=(run,), text=TEXT, tokens=n_tokens, batch_size=8, device="cpu")
    (report,) = evaluate(config)
    found, expected = told(report), plain(run, layer=layer)
    of_others = {name for name in expected if name.startswith("saelens_")}
    assert expected.keys() - of_others <= found.keys()
    assert_numbers_agree(found, {name: expected[name] for name in expected.keys() - of_others})
    assert 0 < report.n_dead < report.d_sae
    assert report.n_frequent > 0


def test_the_plain_script_gives_the_same_in_float32(run_at):
    run = run_at(1)
    assert_numbers_agree(plain(run, layer=1, dtype=torch.float32), plain(run, layer=1))
