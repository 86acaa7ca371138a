"""The language model and the text in which runs are evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int32
from torch import Tensor

from pipeline.config import EvalConfig
from pipeline.device import pick_dtype, pick_precision
from pipeline.evaluate.subject import Setting, Subject
from pipeline.families import Site
from pipeline.heldout import load_contexts
from pipeline.model import LanguageModel, load_model
from pipeline.splicing import check_fits
from pipeline.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A setting, loaded."""

    setting: Setting
    lm: LanguageModel
    precision: str
    tokenizer: Tokenizer
    contexts: Int32[Tensor, "contexts ctx_len"]
    """On the CPU."""


def load_scene(
    setting: Setting, subjects: Sequence[Subject], config: EvalConfig, *, device: torch.device
) -> Scene:
    """The language model, sure to fit its subjects, and the text.

    Raises:
        ConfigError: the model lacks a site, a layer, the width or the context of a subject.
        ModelError: the model cannot be used.
        TextError: the text cannot be used.
    """
    dtype = pick_dtype(config.precision, device)
    lm = load_model(setting.model, revision=setting.revision, device=device, dtype=dtype)
    for subject in subjects:
        site = subject.site
        check_fits(lm, site, d_in=subject.coder.d_in, ctx_len=setting.ctx_len, run=subject.path)
        for layer in config.layers:
            lm.shape.check(Site(layer=layer, rank=site.rank), name=lm.name)
    tokenizer = load_tokenizer(setting.model, revision=setting.revision)
    contexts = load_contexts(
        setting.text,
        tokenizer,
        ctx_len=setting.ctx_len,
        n=-(-config.tokens // setting.ctx_len),
        column=config.text_column,
    )
    return Scene(
        setting=setting,
        lm=lm,
        precision=pick_precision(config.precision, device=device),
        tokenizer=tokenizer,
        contexts=contexts,
    )
