"""A cache of `export_delphi`, read back by delphi's own loader and made into examples by it.

    PYTHON tests/interop/delphi_reads.py CHECKOUT OUT MODULE EXPECTED.npz MODEL

PYTHON's environment has what `delphi.latents` imports (eai-sparsify, asyncer, orjson, blobfile);
CHECKOUT is a working tree of github.com/EleutherAI/delphi. EXPECTED holds `z` [contexts, ctx_len,
latents] and `tokens`. faiss and sentence_transformers, which only its search for hard negatives by
embedding uses, may be absent.
"""

import importlib
import sys
import types

import numpy as np


def main() -> None:
    checkout, out, module, expected_at, model = sys.argv[1:]
    sys.path.insert(0, checkout)
    for name in ("faiss", "sentence_transformers"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].SentenceTransformer = object
    import torch
    from delphi.config import ConstructorConfig, SamplerConfig
    from delphi.latents import LatentDataset
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{model}/tokenizer.json")
    constructor = ConstructorConfig(
        example_ctx_len=32, min_examples=10, n_non_activating=5, center_examples=False
    )
    data = LatentDataset(
        raw_dir=out,
        sampler_cfg=SamplerConfig(n_examples_train=4, n_examples_test=4, n_quantiles=2),
        constructor_cfg=constructor,
        tokenizer=tokenizer,
        modules=[module],
    )
    expected = np.load(expected_at)
    z, tokens = expected["z"], torch.from_numpy(expected["tokens"]).long()
    assert torch.equal(data.tokens, tokens)
    assert data.cache_config["model_name"]
    seen = 0
    for buffer in data.buffers:
        for latent in buffer:
            index = latent.latent.latent_index
            own = np.zeros(z.shape[:2], np.float16)
            at = latent.activation_data.locations.numpy()
            own[at[:, 0], at[:, 1]] = latent.activation_data.activations.numpy()
            np.testing.assert_array_equal(own, np.where(z[..., index] > 1e-5, z[..., index], 0))
            seen += 1
    assert seen == (z.reshape(-1, z.shape[-1]).max(0) > 1e-5).sum()
    records = [record for record in data if record.examples]
    assert records and all(record.train and record.test for record in records)
    best = max(records, key=lambda record: record.max_activation)
    assert abs(best.max_activation - float(z[..., best.latent.latent_index].max())) < 1e-3
    print(seen, "latents equal,", len(records), "with examples to explain")


if __name__ == "__main__":
    main()
