"""A tiny language model, texts and runs on disk, to evaluate and to fine-tune."""

from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

from pipeline.config.architectures import ArchConfig, ReluConfig
from pipeline.config.training import TrainConfig
from pipeline.runs.folder import Provenance
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE

WIDTH, CTX_LEN, N_LAYERS = 16, 12, 3
EOS = "<|endoftext|>"


def make_tokenizer() -> tokenizers.Tokenizer:
    """One token per byte, and an end of text."""
    vocab = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def make_model(folder: Path, *, seed: int = 0, width: int = WIDTH) -> Path:
    """A random model of Pythia's kind with its tokenizer, whose predictions its MLPs move."""
    torch.manual_seed(seed)
    config = transformers.GPTNeoXConfig(
        vocab_size=260, hidden_size=width, num_hidden_layers=N_LAYERS, num_attention_heads=2,
        intermediate_size=3 * width, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.GPTNeoXForCausalLM(config)
    for p in model.parameters():
        p.data.normal_(std=0.4)
    model.save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(f'{{"eos_token": "{EOS}"}}')
    return folder


def make_text(path: Path, *, n_contexts: int, seed: int = 0) -> str:
    """A text file of at least so many contexts, of one document."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(97, 123, (n_contexts * CTX_LEN,), generator=generator).tolist()
    path.write_text("".join(map(chr, letters)))
    return str(path)


def make_sae(
    *, d_in: int = WIDTH, expansion: int = 4, arch: ArchConfig | None = None, seed: int = 0
) -> SAE:
    """A random coder whose biases are not zero and some of whose latents never fire."""
    coder = SAE(arch or ReluConfig(), d_in=d_in, d_sae=expansion * d_in, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    torch.randn(coder.W_dec.shape, generator=generator)  # as its directions were drawn
    with torch.no_grad():
        coder.W_enc.copy_(coder.W_dec.T)
        coder.b_enc.normal_(std=0.3, generator=generator)
        coder.b_enc[::5] = -1e4
        coder.b_dec.normal_(std=0.3, generator=generator)
    return coder


def identity_sae() -> SAE:
    """`x = relu(x) - relu(-x)`, exactly."""
    coder, eye = make_sae(expansion=2), torch.eye(WIDTH)
    with torch.no_grad():
        coder.W_enc.copy_(torch.cat([eye, -eye], 1))
        coder.W_dec.copy_(torch.cat([eye, -eye]))
        coder.b_enc.zero_()
        coder.b_dec.zero_()
    return coder


def make_provenance(**settings) -> Provenance:
    """Of a store that need not be there."""
    given = {
        "path": Path("/data/a.actstore"), "fingerprint": "f" * 64, "model": "builtin",
        "revision": "main", "model_fingerprint": "m" * 64, "text": "builtin", "site": "mlp_out.1",
        "d_in": WIDTH, "ctx_len": CTX_LEN, "n_rows": 1200, "dtype": "bfloat16",
    }  # fmt: skip
    return Provenance(**(given | settings))


def save_sae(
    path: Path,
    coder: SAE,
    *,
    model: Path | str,
    text: str = "somewhere",
    site: str = "mlp_out.1",
    arch: ArchConfig | None = None,
    model_fingerprint: str = "",
    **read: str,
) -> Path:
    """A finished run of this coder; `read` says how the text of its store was."""
    path.mkdir(parents=True)
    config = TrainConfig(
        store=path / "gone.actstore",
        out=path,
        arch=arch or ReluConfig(l1=1e-3),
        batch_size=1024,
        lr=1e-4,
        expansion=coder.d_sae / coder.d_in,
    )
    provenance = make_provenance(
        path=config.store,
        model=str(model),
        model_fingerprint=model_fingerprint,
        text=text,
        site=site,
        d_in=coder.d_in,
        **read,
    )
    norm = coder.input_norm
    SAERun(path=path, config=config, provenance=provenance, input_norm=norm).finish(coder)
    return path
