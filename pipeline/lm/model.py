"""Language models, whole or only as far as a site needs. The only importer of transformers."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pipeline.config.stages import Precision, Quantize, Where
from pipeline.device import pick_device, pick_dtype
from pipeline.errors import ConfigError, ModelError
from pipeline.lm.asked import by_transformers, positions_in, shape_of
from pipeline.lm.families import Shape
from pipeline.lm.hooks import Edit, HookedModel, capture, in_float, splice
from pipeline.lm.hub import ModelFiles
from pipeline.lm.other import load_whole, outline_of, require_plain_head
from pipeline.lm.positions import Positions
from pipeline.lm.quantized import QuantizedLinear
from pipeline.lm.sites import ATTENTION, LayerSite, Site
from pipeline.lm.token_ids import Text, id_lists, is_texts
from pipeline.lm.tokenizer import Tokenizer, load_tokenizer
from pipeline.lm.weights import HEADS, Weights


@runtime_checkable
class SteersAt(Protocol):
    """What changes the activations of a site, as `saepipe.Steering` does."""

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        ...

    @property
    def latents(self) -> tuple[int, ...]:
        """Those that are steered."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """What takes the place of `x`, `[batch, position, d_in]` in float32."""
        ...


class LanguageModel(HookedModel):
    """A frozen causal language model: tokens to hidden states, hidden states to logits.

    model = LanguageModel.from_pretrained("builtin")
    logits, acts = model.run_with_acts("def f(x):", sites=["mlp_out.2"])
    with model.spliced({"mlp_out.2": sae}):
        print(model.generate("def f(x):", max_new_tokens=20))
    """

    def __init__(self, module: Any, *, files: ModelFiles, shape: Shape | None) -> None:  # noqa: ANN401
        prefix: str = module.base_model_prefix if shape is None else shape.family.prefix
        body = module.get_submodule(prefix)
        super().__init__(body, shape=shape, name=files.name, prefix=prefix)
        self.module = module
        self.files = files
        self._positions = Positions()

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str] = "builtin",
        *,
        revision: str = "main",
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        trust_remote_code: bool = False,
    ) -> "LanguageModel":
        """A whole model, in evaluation mode, every weight frozen.

        Args:
            name: Hub id, local folder, or `builtin` for the embedded model.
            revision: Of a model of the hub.
            device: auto is cuda, then mps, then cpu, by what is there.
            precision: Of weights and arithmetic; auto is fp32, but bf16 on a GPU that has it.
            trust_remote_code: Run the code that a model brings, if it brings any.

        Raises:
            ModelError: not found, not reached, damaged, or no causal language model.
            ConfigError: the device is not there.
        """
        where = pick_device(device)
        dtype = pick_dtype(precision, where)
        return load_model(
            fspath(name), revision=revision, device=where, dtype=dtype,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        return self.body.get_input_embeddings().weight.device  # pyright: ignore[reportCallIssue]

    @property
    def n_vocab(self) -> int:
        """Rows of the embedding; a tokenizer may use fewer."""
        return self.module.config.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """From text to token ids and back; read when it is first asked for.

        Raises:
            ModelError: the model has no tokenizer.json, or it cannot be read.
        """
        return load_tokenizer(self.name, revision=self.files.revision)

    def fingerprint(self) -> str:
        """What identifies the weights; see `ModelFiles.fingerprint`."""
        return self.files.fingerprint()

    def logits(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows n_vocab"]:
        """Next-token logits of these rows; slice the rows to bound the memory."""
        head = self.module.get_output_embeddings()
        logits = head(hidden.to(head.weight.dtype))  # Mamba's stream is float32 in any precision
        if self.family is None:
            return logits  # `load_model` saw that no more is done to them
        keys = self.family.keys
        if keys.logit_scale is not None:
            logits = logits * self.shape.logit_scale
        cap = None if keys.logit_cap is None else getattr(self.module.config, keys.logit_cap)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def to_tokens(self, text: Text) -> Int64[Tensor, "batch position"]:
        """Token ids on the model's device, as harvesting has them but without an end of text.

        Args:
            text: A text or several, or token ids: a list, a list of lists, an array or a tensor.

        Raises:
            ConfigError: there is no token, texts differ in length, are longer than the model knows
                positions, or an id is not one of its vocabulary.
        """
        if isinstance(text, str):
            ids: Sequence[Any] = self.tokenizer.encode([text], end=False)
        elif is_texts(text):
            ids = self.tokenizer.encode([str(one) for one in text], end=False)
        else:
            ids = id_lists(text)
        lengths = sorted({len(one) for one in ids})
        if not any(lengths):
            raise ConfigError("there is no token to run the model on: give it some text")
        if len(lengths) > 1:
            raise ConfigError(
                f"texts of {lengths[0]} to {lengths[-1]} tokens make no batch: give them one by "
                "one, or cut them to one length"
            )
        self._require_positions(lengths[0])
        tokens = torch.from_numpy(np.stack(ids).astype(np.int64)).to(self.device)
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.n_vocab:
            raise ConfigError(
                f"token ids of {self.name} are 0 to {self.n_vocab - 1}, got {low} to {high}"
            )
        return tokens

    @torch.no_grad()
    def run_with_acts(
        self, text: Text, sites: str | Sequence[str | Site]
    ) -> tuple[Float[Tensor, "batch position n_vocab"], dict[str, Tensor]]:
        """One forward pass: its next-token logits, and the activations at these sites.

        Args:
            text: As `to_tokens` takes it.
            sites: `mlp_out.2` and the like, one or several.

        Returns:
            Logits `[batch, position, n_vocab]`, and by the name of each site `[batch, position,
            width]`, both as the model computes them, on its device.

        Raises:
            ConfigError: the model has no such site, or the text is none it can read.
        """
        names = [sites] if isinstance(sites, str) else sites
        tokens, read = self.to_tokens(text), [self.site(site) for site in names]
        with capture(self, read) as acts:
            logits = self.logits(self.hidden(tokens).flatten(0, 1))
        return logits.unflatten(0, tokens.shape), {str(site): acts[site] for site in read}

    @contextmanager
    def spliced(
        self, edits: Mapping[str | Site, Callable[[Tensor], Tensor]] | Mapping[str, nn.Module]
    ) -> Generator["LanguageModel"]:
        """Within the block, every forward pass has the activations at these sites replaced.

        Args:
            edits: For each site what makes `x_hat` of `x`, an SAE or any other callable. Both are
                `[batch, position, width]`, `x` in float32 whatever the model computes in, and on
                the device of an SAE; in `generate`, `position` is the prompt first, and then one
                token at a time.

        Raises:
            ConfigError: the model has no such site, or `x_hat` has not the shape of `x`.
        """

        def checked(site: Site, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            weights = next(edit.parameters(), None) if isinstance(edit, nn.Module) else None

            def edited(x: Tensor) -> Tensor:
                x_hat: Any = edit(x if weights is None else x.to(weights.device))
                shape = tuple(x_hat.shape) if isinstance(x_hat, Tensor) else type(x_hat).__name__
                if shape != tuple(x.shape):
                    raise ConfigError(
                        f"what is spliced in at {site} makes {shape} of {tuple(x.shape)}: it must "
                        "keep the shape"
                    )
                return x_hat.to(x.device)

            if not callable(edit):
                raise ConfigError(f"{site} takes an SAE or a function from x to x_hat, got {edit}")
            return in_float(edited)

        if not isinstance(edits, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"spliced takes what goes in at each site, as {{'mlp_out.2': sae}}, got {edits!r}"
            )
        parsed = {self.site(name): edit for name, edit in edits.items()}
        with splice(self, {site: checked(site, edit) for site, edit in parsed.items()}):
            yield self

    @contextmanager
    def steered(
        self, edits: Mapping[str | Site, SteersAt] | Mapping[str, SteersAt], *, where: Where = "all"
    ) -> Generator["LanguageModel"]:
        """Within the block, every forward pass is steered at these sites, `generate` included.

            with model.steered({"mlp_out.2": sp.Steering(sae, add={123: 8.0})}, where="new"):
                print(model.generate("def f(x):", max_new_tokens=20))

        What is not steered keeps its bits. Activations that `run_with_acts` gives within the block
        are the steered ones, and an SAE at a later site reads what the earlier ones leave.

        Args:
            edits: For each site a `Steering`.
            where: Which positions are steered: `all`, those of the `prompt`, or the `new` ones,
                that is, those of tokens that `generate` has added. The first new token is predicted
                at the last position of the prompt. All of `run_with_acts` is prompt.

        Raises:
            ConfigError: the model has no such site, its width is another than the SAE's, or `where`
                is something else.
        """
        if where not in get_args(Where):
            raise ConfigError(f"where is one of {', '.join(get_args(Where))}, got {where!r}")
        if not isinstance(edits, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                "steered takes a Steering for each site, as {'mlp_out.2': saepipe.Steering(sae, "
                f"add={{123: 8.0}})}}, got {edits!r}"
            )
        parsed = {self.site(name): edit for name, edit in edits.items()}
        for site, edit in parsed.items():
            if not isinstance(edit, SteersAt):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(
                    f"{site} takes a saepipe.Steering, got {type(edit).__name__}: an SAE is put in "
                    "whole by spliced"
                )
            if edit.d_in != self.width(site):
                raise ConfigError(
                    f"the SAE for {site} has d_in {edit.d_in}, but {site} of {self.name} is "
                    f"{self.width(site)} wide: choose the model or the site it was trained on"
                )
        with splice(self, {site: self._edited(where, edit) for site, edit in parsed.items()}):
            yield self

    def _edited(self, where: Where, edit: SteersAt) -> Edit:
        """What it makes of the positions that it is for; the others keep their bits."""
        steer = in_float(edit)

        def edited(x: Tensor) -> Tensor:
            its = self._positions.edited(where, x.shape[1])
            if its.stop - its.start in (0, x.shape[1]):  # none, or all
                return steer(x) if its.stop > its.start else x
            return torch.cat([x[:, : its.start], steer(x[:, its]), x[:, its.stop :]], dim=1)

        return edited

    @torch.no_grad()
    def generate(
        self,
        prompt: Text,
        *,
        max_new_tokens: int = 50,
        do_sample: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> str | list[str] | Int64[Tensor, "batch position"]:
        """Go on with a text, by transformers' own `generate`, keys and values cached.

        Args:
            prompt: As `to_tokens` takes it.
            max_new_tokens: Fewer where the model ends its text.
            do_sample: Draw from its predictions; else take the likeliest token each time.
            options: What else transformers' `generate` takes, as `temperature`.

        Returns:
            The prompt and what follows: text for text, several for several, else token ids.

        Raises:
            ConfigError: the prompt is none the model can read, or too long to go on.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be positive, got {max_new_tokens}")
        tokens = self.to_tokens(prompt)
        self._require_positions(tokens.shape[1] + max_new_tokens)
        with self._positions.counted(self.body, n_prompt=tokens.shape[1]):
            ids: Tensor = self.module.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max_new_tokens,
                do_sample=do_sample,
                **{"pad_token_id": next(iter(self.end_ids), 0), **options},
            )
        if isinstance(prompt, str):
            return self.tokenizer.decode(ids[0].tolist())
        if not isinstance(prompt, Tensor | np.ndarray) and isinstance(prompt[0], str):
            return [self.tokenizer.decode(one) for one in ids.tolist()]
        return ids

    def require_fits(self, site: Site, *, d_in: int, ctx_len: int, run: Path) -> None:
        """Refuse an SAE that cannot be spliced in, by its site, its width or its context."""
        if self.width(site) != d_in:
            raise ConfigError(
                f"{run} is an SAE of {d_in} dimensions, but {site} of {self.name} has "
                f"{self.width(site)}: choose the model or the site it was trained on"
            )
        self._require_positions(ctx_len)

    @property
    def n_positions(self) -> int:
        """Tokens that fit into a context."""
        if self._shape is not None:
            return self._shape.n_positions
        return positions_in(self.files.config)

    def _require_positions(self, n: int) -> None:
        if n > self.n_positions:
            raise ConfigError(
                f"contexts of {n} tokens do not fit into {self.name}, which takes "
                f"{self.n_positions}"
            )

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a text: `generate` writes nothing after one."""
        told = self.module.config.eos_token_id
        return () if told is None else tuple(told) if isinstance(told, list) else (told,)

    def __repr__(self) -> str:
        shape, weight = self._shape, self.body.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
        if shape is None:
            return (
                f"LanguageModel({self.name!r}: {type(self.module).__name__}, {self.n_vocab} "
                f"tokens; {weight.dtype} on {weight.device}; sites are its modules)"
            )
        kinds = ", ".join(map(str, shape.kinds()))
        bound = shape.n_positions if shape.family.keys.n_positions else "any number of"
        return (
            f"LanguageModel({self.name!r}: {shape.family.model_class}, {shape.n_layers} layers, "
            f"d_model {shape.d_model}, d_mlp {shape.d_mlp}, {self.n_vocab} tokens, "
            f"{bound} positions; {weight.dtype} on {weight.device}; "
            f"sites {kinds}, each with .0 to .{shape.n_layers - 1})"
        )


class _NoAttention(nn.Module):
    """Stands where an attention would run whose result nobody reads."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        return hidden_states.new_zeros(()), None


def load_model(
    name: str,
    *,
    revision: str = "main",
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A whole model, in evaluation mode, every weight frozen, those of its layers quantised or not.

    Raises:
        ModelError: it is not found, not reached, damaged, or no causal language model.
        ConfigError: what quantises is not installed, or cannot quantise it.
    """
    files = ModelFiles(name, revision)
    if by_transformers(files):
        _require_unquantized(files, quantize)
        module = load_whole(files, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        if shape_of(files) is None:
            require_plain_head(module, name=name)
        return LanguageModel(module, files=files, shape=shape_of(files))
    model = _empty(files)
    names = [key for key, _ in model.module.named_parameters(remove_duplicate=False)]
    if quantize is not None:
        _quantize_layers(model, quantize)
    return _fill(model, names, device=device, dtype=dtype)


def outline_model(
    name: str,
    *,
    revision: str = "main",
    dtype: torch.dtype,
    quantize: Quantize | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """What `load_model` gives, with tensors that hold no memory: no weights are read.

    Raises:
        ModelError: config.json is not found, not reached, or of no causal language model.
        ConfigError: what quantises is not installed, or cannot quantise it.
    """
    files = ModelFiles(name, revision)
    if by_transformers(files):
        _require_unquantized(files, quantize)
        module = outline_of(files, trust_remote_code=trust_remote_code)
        module = module.eval().requires_grad_(False)
        model = LanguageModel(module, files=files, shape=shape_of(files))
    else:
        model = _empty(files)
    for p in model.module.parameters():
        p.data = p.data.to(dtype)
    if quantize is not None:
        _quantize_layers(model, quantize)
    return model


def _require_unquantized(files: ModelFiles, quantize: Quantize | None) -> None:
    if quantize is not None:
        raise ConfigError(
            f"--quantize {quantize} takes the layers of a model of a family that saepipe knows, "
            f"its weights as they were trained: leave it out for {files.name}"
        )


def _quantize_layers(model: LanguageModel, quantize: Quantize) -> None:
    """Put quantised modules, still empty, in the place of the matrices of the layers.

    What comes before and after the layers is read by its rows or decides every logit: it stays, and
    so do experts, which are no matrices of their own.
    """
    if ATTENTION.module not in model.shape.family.parts:
        raise ConfigError(
            f"{model.name} is a {model.shape.family.model_class}, which reads its matrices past "
            "their modules, so that they cannot be quantised: leave out --quantize"
        )
    layers = model.body.get_submodule(model.shape.family.layers)
    matrices = [path for path, part in layers.named_modules() if isinstance(part, _matrices())]
    for path in matrices:
        layers.set_submodule(path, QuantizedLinear(layers.get_submodule(path), quantize))


def _matrices() -> tuple[type[nn.Module], ...]:
    """Modules that are a matrix and nothing more, in all families."""
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D


def load_for_sites(
    name: str,
    sites: Sequence[Site],
    *,
    revision: str = "main",
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A model with only the weights that run before the last of these sites.

    What stays out holds no memory: it is on torch's meta device, and guarded against running. For
    modules by their paths, and for what transformers alone can load, the model is whole.
    """
    files = ModelFiles(name, revision)
    known = [site for site in sites if isinstance(site, LayerSite)]
    if by_transformers(files) or len(known) < len(sites):
        module = load_whole(files, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return LanguageModel(module, files=files, shape=shape_of(files))
    shape = Shape.of(files.config, name=name)
    for site in known:
        shape.check(site, name=name)
    last = max(known)
    model = _empty(files, n_layers=last.layer + 1)
    shape, family = model.shape, model.shape.family
    if shape.skips_attention(known):
        stand_ins: dict[str, nn.Module] = {"attention": _NoAttention()}
        if family.reads_norm(ATTENTION) == (ATTENTION,):
            stand_ins["attention_norm"] = nn.Identity()
        for part, stand_in in stand_ins.items():
            model.body.set_submodule(family.path(last.layer, part), stand_in)
    runs = tuple(f"{family.prefix}.{path}." for path in shape.modules_for(known))
    site_at = f"{family.prefix}.{family.module_path(last)}."
    reached = site_at if last.kind.side == "in" else "nothing"
    names = [
        key
        for key, _ in model.module.named_parameters()
        if key.startswith(runs) and not key.startswith(reached)
    ]
    return _fill(model, names, device=device, dtype=dtype)


def _empty(files: ModelFiles, *, n_layers: int | None = None) -> LanguageModel:
    """The model's modules, whole or only the first layers, without any memory for parameters."""
    import transformers

    shape = Shape.of(files.config, name=files.name)
    family = shape.family
    said = files.config if family.inside is None else files.config[family.inside]
    config = getattr(transformers, family.config_class).from_dict(said)
    model_class = getattr(transformers, family.model_class)
    if n_layers is not None:
        config.num_hidden_layers = n_layers  # in every family, whatever its own word is
        if isinstance(vars(config).get("layer_types"), list):
            config.layer_types = config.layer_types[:n_layers]
    with _no_weights():
        module = model_class(config)
    parts = family.parts_in(path for path, _ in module.named_modules())
    if parts != family.parts:
        shape = replace(shape, family=replace(family, parts=parts))
    return LanguageModel(module.eval().requires_grad_(False), files=files, shape=shape)


@contextmanager
def _no_weights() -> Generator[None]:
    """Within the block, parameters of new modules are on torch's meta device.

    Buffers are not: tables of rotary embeddings, say, are computed and in no checkpoint.
    """

    def to_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(to_meta)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        hook.remove()


def _fill(
    model: LanguageModel, names: Sequence[str], *, device: torch.device, dtype: torch.dtype
) -> LanguageModel:
    """Read these parameters from the checkpoint straight to the device."""
    module, family = model.module, model.shape.family
    weights = Weights.locate(model.files)
    tied = module.config.tie_word_embeddings and not set(HEADS).isdisjoint(names)
    wanted = [name for name in names if not (tied and name in HEADS)]
    quantized = {
        f"{path}.weight": part
        for path, part in module.named_modules()
        if isinstance(part, QuantizedLinear)
    }
    shapes = {name: p.shape for name, p in module.named_parameters(remove_duplicate=False)}
    shapes |= {name: part.shape for name, part in quantized.items()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.read(wanted, family=family, device=device, dtype=dtype):
        if tensor.shape != shapes[name]:
            raise ModelError(
                f"{name} is {list(tensor.shape)} in the checkpoint of {model.name}, and "
                f"{list(shapes[name])} by its config.json: they are not of one model"
            )
        if name in quantized:
            quantized[name].hold(tensor)
        else:
            tensors[name] = tensor
    module.load_state_dict(tensors, strict=False, assign=True)
    module.requires_grad_(False)
    if tied:
        module.get_output_embeddings().weight = module.get_input_embeddings().weight
    for part in module.modules():
        for key, buffer in part.named_buffers(recurse=False):
            setattr(part, key, buffer.to(device))
        if any(p.is_meta for p in part.parameters(recurse=False)):
            part.register_forward_hook(_refuse)  # not before: a site may be its input
    return model


def _refuse(module: nn.Module, _: object, __: object) -> None:
    """Torch may compute garbage, without an error, from a weight that holds no memory."""
    raise AssertionError(f"{module} was to stay out of this forward pass")
