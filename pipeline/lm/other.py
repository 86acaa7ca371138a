"""Causal language models as transformers itself loads them: of any family, whole, quantised or not.

A folder or a repository may bring code of its own, which runs only where that is asked for. Weights
are read from safetensors alone.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.hub import ModelFiles
from pipeline.lm.weights import Weights

_CAUSAL = "AutoModelForCausalLM"
_SHOWN = 3
_CLOSE = {torch.float32: 1e-5}
"""Of logits, relative to the largest, in the numbers of a model; in 16 bits `_CLOSE_16`."""
_CLOSE_16 = 2e-2


def outline_of(files: ModelFiles, *, trust_remote_code: bool) -> Any:  # noqa: ANN401
    """The whole model by its config.json, without memory for a single tensor.

    Raises:
        ModelError: it is no causal language model, or its own code was not trusted.
    """
    import transformers

    folder = _folder(files, trust_remote_code=trust_remote_code)
    with _told(files):
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
        with torch.device("meta"):
            module = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code
            )  # products of experts are of these numbers alone, where there is no memory
    return _checked(module, files)


def load_whole(
    files: ModelFiles, *, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> Any:  # noqa: ANN401
    """The whole model with its weights, frozen and in evaluation mode.

    Raises:
        ModelError: it is no causal language model, its own code was not trusted, a file or a tensor
            is missing or of another size, or what reads its quantised weights is not installed.
    """
    import transformers

    folder = _folder(files, trust_remote_code=trust_remote_code)
    for file in sorted({*Weights.locate(files).file_of.values()}):
        files.need(file)
    placed: dict[str, Any] = {"device_map": {"": device}} if _quantized(files) else {}
    with _told(files):
        both: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # they are told below, in a line
            output_loading_info=True,
            **placed,
        )
    module, loaded = both
    if wrong := sorted(loaded["mismatched_keys"]):
        name, there, wanted = wrong[0]
        raise ModelError(
            f"{name} is {[*there]} in the checkpoint of {files.name}, and {[*wanted]} by its "
            "config.json: they are not of one model"
        )
    if missing := sorted(loaded["missing_keys"]):
        more = ", ..." if len(missing) > _SHOWN else ""
        raise ModelError(
            f"the checkpoint of {files.name} lacks {', '.join(missing[:_SHOWN])}{more}: "
            "save the model again"
        )
    module = _checked(module, files).eval().requires_grad_(False)
    return module if placed else module.to(device)


def load_first_layers(
    files: ModelFiles, n_layers: int, *, device: torch.device, dtype: torch.dtype
) -> Any:  # noqa: ANN401
    """As `load_whole`, without the layers after the first ones: what follows them is another's.

    Raises:
        ModelError: it cannot be loaded.
    """
    import transformers

    folder = str(files.need("config.json").parent)
    with _told(files):
        config = transformers.AutoConfig.from_pretrained(folder)
        text = config.get_text_config()
        text.num_hidden_layers = n_layers
        if isinstance(vars(text).get("layer_types"), list):
            text.layer_types = text.layer_types[:n_layers]
        module: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    return module.eval().requires_grad_(False).to(device)


@torch.no_grad()
def require_plain_head(module: Any, *, name: str) -> None:  # noqa: ANN401
    """Hold a model's logits to its unembedding of its last hidden states.

    Raises:
        ConfigError: it does more than that.
    """
    body, head = module.base_model, module.get_output_embeddings()
    tokens = torch.arange(8, device=body.get_input_embeddings().weight.device)[None]
    hidden = body(input_ids=tokens, use_cache=False).last_hidden_state
    told = module(input_ids=tokens, use_cache=False).logits.float()
    ours = None if head is None else head(hidden).float()
    close = _CLOSE.get(hidden.dtype, _CLOSE_16) * told.abs().max()
    if ours is None or ours.shape != told.shape or (ours - told).abs().max() > close:
        raise ConfigError(
            f"{name} does more to its last hidden states than its unembedding, and saepipe does "
            "not know what: it can be harvested and trained on, but no logits are computed"
        )


def require_causal(files: ModelFiles, *, trust_remote_code: bool) -> None:
    """Refuse what predicts no next token, and code that was not trusted.

    Raises:
        ModelError: it is one of these.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    config, name = files.config, files.name
    its = config.get("model_type")
    own_code = _CAUSAL in (config.get("auto_map") or {})
    if own_code and trust_remote_code:
        return
    if its not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and own_code:
        raise ModelError(
            f"{name} brings its own code, which would run with all that you may do: read it, "
            "then type --trust-remote-code"
        )
    what = ""
    if its not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = "predicts no next token, as far as the installed transformers knows"
    elif config.get("is_encoder_decoder"):
        what = "is an encoder with a decoder"
    elif its in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        what = "is an encoder"
    if what:
        raise ModelError(f"{name}, a {its!r} model, {what}: saepipe takes causal language models")


def _folder(files: ModelFiles, *, trust_remote_code: bool) -> str:
    """Where its config.json is, and its code if that is to run."""
    require_causal(files, trust_remote_code=trust_remote_code)
    if trust_remote_code and files.folder is None and files.config.get("auto_map"):
        from huggingface_hub import snapshot_download

        snapshot_download(files.name, revision=files.revision, allow_patterns="*.py")
    return str(files.need("config.json").parent)


def _quantized(files: ModelFiles) -> str:
    told = files.config.get("quantization_config") or {}
    return str(told.get("quant_method", "")) if isinstance(told, dict) else ""


def _checked(module: Any, files: ModelFiles) -> Any:  # noqa: ANN401
    """A model whose body is a module of it: its last hidden states are the body's result."""
    if module.base_model is module:
        raise ModelError(
            f"{files.name} has no base model inside, whose hidden states its logits are made of: "
            "saepipe cannot run it"
        )
    return module


@contextmanager
def _told(files: ModelFiles) -> Generator[None]:
    """What transformers refuses in one line; what it says beside that is not for users of ours."""
    from transformers.utils import logging

    before, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    method = _quantized(files)
    try:
        yield
    except ImportError as error:
        what = f"the weights of {files.name} are quantised by {method}" if method else files.name
        raise ModelError(f"{what}, which takes more than is installed: {_line(error)}") from error
    except SafetensorError as error:
        raise ModelError(f"the checkpoint of {files.name} is damaged: {_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"transformers cannot load {files.name}: {_line(error)}") from error
    finally:
        logging.set_verbosity(before)
        if shows_bars:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    """The first line of what it says, which may have many."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
