"""The SAE: encode, sparsify, decode. Its architecture is its activation, not a subclass.

`TunedSAE` is a frozen one seen through a learned scale and a learned bias per latent.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.architectures import ArchConfig, InputNorm
from pipeline.config.serialization import UNLESS_DEFAULT, from_json, to_json
from pipeline.device import pick_device
from pipeline.errors import CheckpointError, ConfigError, NoSuchArchitectureError
from pipeline.formats.files import named
from pipeline.formats.foreign_sae import ForeignSAE
from pipeline.formats.table import ours_of_hub, read_foreign, seems_foreign
from pipeline.hub.publish import Publication, publish
from pipeline.hub.repository import MAIN, Address
from pipeline.sae.architecture import Activation, Architecture, architecture_of
from pipeline.sae.card import sae_card
from pipeline.sae.input_norm import normalised, restored, scale_of

BLOCK_ROWS = 1024
WEIGHTS, ABOUT, RUN = "sae.safetensors", "cfg.json", "run.json"


METADATA = "saepipe"
"""Under which key a file of weights says what they are."""


@dataclass(frozen=True, kw_only=True)
class _About:
    """What cfg.json says of the weights beside it, and a file of weights of its own."""

    format: int = 1
    arch: ArchConfig
    d_in: int
    d_sae: int
    site: str = ""
    input_norm: InputNorm = field(default="none", metadata=UNLESS_DEFAULT)
    sha256: str
    """Of the file; where it stands in the file itself, of the tensors."""

    @staticmethod
    def inside(file: Path) -> "_About | None":
        """What a file of weights says of itself; None if it does not, or cannot be read."""
        try:
            told = metadata_inside(file).get(METADATA)
            return None if told is None else from_json(_About, json.loads(told), where=METADATA)
        except (OSError, ValueError, RecursionError):
            return None

    @staticmethod
    def beside(folder: Path) -> Path:
        """The file that says what the weights in a folder are."""
        return folder / (RUN if (folder / RUN).exists() else ABOUT)

    @staticmethod
    def read(folder: Path) -> "_About":
        """By `save_pretrained`, or from the run.json of a training."""
        path = _About.beside(folder)
        try:
            raw = json.loads(path.read_bytes())
            if path.name == RUN and isinstance(raw, dict) and raw.get("kind") == "finetune":
                raise CheckpointError(
                    f"{folder} is a fine-tuning: saepipe.FinetunedRun.open(path).sae is its SAE, "
                    "with the scales and biases that were learned"
                )
            if path.name == RUN:
                config, store = raw["config"], raw["store"]
                raw = {
                    "arch": config["arch"], "d_in": store["d_in"], "site": store["site"],
                    "d_sae": round(config["expansion"] * store["d_in"]), "sha256": raw["sha256"],
                    "input_norm": raw.get("input_norm", "none"),
                }  # fmt: skip
            return from_json(_About, raw, where=path.name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(
                f"{folder} holds no SAE: it has neither the {RUN} of a training nor the {ABOUT} "
                "that save_pretrained writes"
            ) from error
        except NoSuchArchitectureError as error:
            raise error.of(folder) from error
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not of the run of an SAE: {error}") from error
        except (OSError, ValueError, RecursionError, ConfigError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error


def metadata_inside(file: Path) -> dict[str, str]:
    """What a file of weights says beside them.

    Its head is read here, since safetensors opens no file whose name is not UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file} is not of safetensors")
        head = json.loads(opened.read(length))
    told = head.get("__metadata__", {}) if isinstance(head, dict) else {}
    return told if isinstance(told, dict) else {}


def metadata_of(
    tensors: Mapping[str, Tensor],
    arch: ArchConfig,
    *,
    d_in: int,
    d_sae: int,
    site: str,
    input_norm: InputNorm = "none",
) -> dict[str, str]:
    """What goes into a file of these weights, so that it can be opened alone."""
    sha256 = _digest(tensors)
    about = _About(
        arch=arch, d_in=d_in, d_sae=d_sae, site=site, input_norm=input_norm, sha256=sha256
    )
    return {METADATA: json.dumps(to_json(about))}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def filled(sae: "SAE", tensors: Mapping[str, Tensor], *, file: Path, told: Path) -> "SAE":
    """An SAE with these tensors, sure to be what their file says that they are.

    Args:
        sae: Made as `told`, a run.json or cfg.json, says.
        tensors: Those of `file`, their bytes checked.
        file: The weights.
        told: What lies beside them.

    Raises:
        CheckpointError: the file says something else of itself, or holds other shapes.
    """
    own = _About.inside(file)
    shapes, wanted = (
        {name: list(tensor.shape) for name, tensor in its.items()}
        for its in (tensors, sae.state_dict())
    )
    unlike = _unlike(_facts(sae), _facts(own)) if own is not None else ""
    if unlike := unlike or _unlike(wanted, shapes):
        raise _unfit(told, file, unlike)
    sae.load_state_dict(dict(tensors))
    return sae


def _unfit(told: Path, file: Path, unlike: str) -> CheckpointError:
    return CheckpointError(
        f"{told} does not fit {file.name} ({unlike}): put a copy back, or train again into "
        "another --out"
    )


def described(sae: "SAE", *, sha256: str) -> bytes:
    """The cfg.json of an SAE whose file of weights has this checksum."""
    shape = {"d_in": sae.d_in, "d_sae": sae.d_sae}
    where: Any = {"site": sae.site, "input_norm": sae.input_norm}
    about = _About(arch=sae.arch, **shape, **where, sha256=sha256)
    return (json.dumps(to_json(about), indent=2) + "\n").encode()


def _facts(it: "SAE | _About") -> dict[str, object]:
    """What an SAE is, by name: settings of its architecture first."""
    settings = cast("dict[str, object]", to_json(it.arch))
    norm = {} if it.input_norm == "none" else {"input_norm": it.input_norm}
    return {**settings, "d_in": it.d_in, "d_sae": it.d_sae, "site": it.site, **norm}


def _unlike(now: Mapping[str, object], there: Mapping[str, object]) -> str:
    """What differs: `k: 9, 4 there`."""
    return "; ".join(
        f"{name}: {now.get(name)}, {there.get(name)} there"
        for name in (*now, *(there.keys() - now.keys()))
        if now.get(name) != there.get(name)
    )


class Coder(nn.Module, ABC):
    """Whatever encodes and decodes: an SAE, or a tuned one."""

    W_dec: nn.Parameter
    b_dec: nn.Parameter
    activation: Activation
    input_norm: InputNorm
    """What is done to each row before it is encoded; none, but in some that were imported."""

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @abstractmethod
    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations of each row."""

    @abstractmethod
    def encoder_directions(self) -> Float[Tensor, "d_sae d_in"]:
        """What each latent reads: a row of its encoder weights."""

    def encode(
        self, x: Float[Tensor, "*batch d_in"] | Float[np.ndarray, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Latents of each row; numpy's arrays are taken, too, as the store gives them.

        Raises:
            ConfigError: rows are not `d_in` wide.
        """
        return self.activation(self.pre(self._rows(x, "encode", self.d_in)))

    def decode(
        self, z: Float[Tensor, "*batch d_sae"], *, of: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from latents.

        Args:
            z: Latents.
            of: The rows they are of, which an SAE needs that normalises each (`input_norm`).

        Raises:
            ConfigError: rows are not `d_sae` wide, or those that are needed are not given.
        """
        x_hat = F.linear(self._rows(z, "decode", self.d_sae), self.W_dec.T, self.b_dec)
        if self.input_norm == "none":
            return x_hat
        if of is None:
            raise ConfigError(
                f"this SAE normalises each row ({self.input_norm}): give decode the rows that were "
                "encoded, decode(z, of=x), or call it, sae(x)"
            )
        return restored(self.input_norm, x_hat, of)

    def written_scale(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
        """A latent writes `W_dec[i]` times its activation and this: 1 but for `input_norm`."""
        return scale_of(self.input_norm, x)

    def _rows(self, x: Any, verb: str, width: int) -> Tensor:  # noqa: ANN401 - what people give
        """What was given as rows, sure to be of this width."""
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x).to(self.W_dec)
        if not isinstance(x, Tensor) or x.shape[-1:] != (width,):
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ConfigError(
                f"{verb} takes [..., {width}] of an SAE with d_in {self.d_in} and d_sae "
                f"{self.d_sae}, got {got}"
            )
        return x

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of each row."""
        return self.decode(self.encode(x), of=x)


@final
class SAE(Coder):
    """`x_hat = f((x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec`.

    Rows of `W_dec` are the dictionary: `W_dec[i]` is the direction latent `i` writes. They start
    as random directions and `W_enc` as their transpose; both biases start at zero. One seed gives
    the same bits for every device.

        sae = SAE.from_pretrained("runs/topk", device="cuda")
        z = sae.encode(x)                                 # [..., d_in] -> [..., d_sae]
        x_hat = sae.decode(z)

    Args:
        arch: The architecture.
        d_in: Width of the activations.
        d_sae: Number of latents.
        seed: Of the dictionary's random directions.
        rms: Root mean square of the activations, the unit of JumpReLU's thresholds.
        site: Where in a model it belongs, if that is known.
        input_norm: What is done to each row first.

    Raises:
        ConfigError: `k` is above `d_sae`, or the like.
    """

    def __init__(
        self,
        arch: ArchConfig,
        *,
        d_in: int,
        d_sae: int,
        seed: int = 0,
        rms: float = 1.0,
        site: str = "",
        input_norm: InputNorm = "none",
    ) -> None:
        super().__init__()
        architecture = architecture_of(arch, d_in=d_in, d_sae=d_sae, rms=rms)
        generator = torch.Generator().manual_seed(seed)
        W_dec = F.normalize(torch.randn(d_sae, d_in, generator=generator), dim=-1)
        self.arch = arch
        self.site = site
        self.input_norm: InputNorm = input_norm
        self.W_enc = nn.Parameter((W_dec * architecture.encoder_norm).T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(W_dec * architecture.decoder_norm)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.activation = architecture.activation()

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], *, device: str | torch.device = "cpu"
    ) -> "SAE":
        """An SAE in float32: of a training's folder, as it was saved, or of another library.

            sae = SAE.from_pretrained("runs/topk")
            sae = SAE.from_pretrained("org/name/folder@revision")

        Args:
            folder: Of the run, or of what was saved; or the file of weights alone; or of an SAE of
                SAELens, dictionary_learning, sparsify, Gemma Scope, OpenAI or Llama Scope; or, if
                nothing of that name is here, where on the hub any of these is.
            device: `cpu`, `cuda`, `mps`, or `auto` for the best that is there.

        Raises:
            CheckpointError: there is none, or it is unfinished or damaged.
            HubError: it is looked for on the hub, which has none, or cannot be reached.
            ConfigError: the device is not there, or files of no library do not say what they are.
        """
        return cls.load(ours_of_hub(named(folder)) or folder, device=device)

    @classmethod
    @torch.inference_mode(mode=False)
    def load(cls, path: str | PathLike[str], *, device: str | torch.device = "cpu") -> "SAE":
        """An SAE in float32, from its file of weights alone or from the folder that holds it.

            sae = SAE.load("sae.safetensors")

        What it raises is `from_pretrained`'s.
        """
        where = pick_device(device)
        if seems_foreign(source := named(path)):
            return cls.of(read_foreign(source)[0]).to(where)
        path = Path(source)
        file = path if path.is_file() else path / WEIGHTS
        folder = file.parent
        described = any((folder / name).exists() for name in (RUN, ABOUT))
        about = _About.inside(file) if path.is_file() or not described else None
        alone = about is not None
        if not alone and (described or not file.exists()):
            about = _About.read(folder)
            if not about.sha256:
                raise CheckpointError(f"{folder} is an unfinished run: train it to its end first")
        try:
            data = file.read_bytes()
            tensors = load(data)
            if about is None:
                raise ValueError(f"it has no {RUN} beside it and does not say what it is")  # noqa: TRY301
            checksum = _digest(tensors) if alone else hashlib.sha256(data).hexdigest()
            if checksum != about.sha256:
                raise ValueError("its checksum is another")  # noqa: TRY301
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{file} is missing or damaged ({error})") from error
        told = file if alone else _About.beside(folder)
        shape = {"d_in": about.d_in, "d_sae": about.d_sae}
        held = zip(("d_sae", "d_in"), tensors.get("W_dec", torch.empty(0)).shape, strict=False)
        if unlike := _unlike(shape, dict(held)):
            raise _unfit(told, file, unlike)  # before memory is taken for what is told
        sae = cls(about.arch, **shape, site=about.site, input_norm=about.input_norm)
        return filled(sae, tensors, file=file, told=told).to(where, torch.float32)

    @classmethod
    def of(cls, foreign: ForeignSAE) -> "SAE":
        """One that another library wrote."""
        shape = {"d_in": foreign.d_in, "d_sae": foreign.d_sae}
        sae = cls(foreign.arch, **shape, site=foreign.site, input_norm=foreign.input_norm)
        sae.load_state_dict(dict(foreign.tensors))
        return sae

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `sae.safetensors`, and the `cfg.json` that describes it and has its checksum."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.as_files().items():
            (folder / name).write_bytes(data)

    def push_to_hub(
        self, repo: str, *, license: str, private: bool = False, revision: str = MAIN
    ) -> str:
        """Put it into a repository of the hub, with a card; `from_pretrained(repo)` reads it there.

        What `sp.push` puts there of a run says far more: how it was trained, and how good it is.

        Args:
            repo: `ORG/NAME`, or `ORG/NAME/FOLDER`; made if it is not there.
            license: Its short name on the hub: `mit`, `apache-2.0`, `cc-by-4.0`.
            private: Whether a new repository is for its owners alone.
            revision: The branch.

        Returns:
            Where it is now.

        Raises:
            ConfigError: a setting is impossible, or nobody is logged in.
            HubError: the hub cannot be reached, or refuses it.
        """
        address = replace(Address.of(repo), revision=revision)
        settings = {"site": self.site or "not said", **_facts(self)}
        told = [(name.replace("_", " "), str(value)) for name, value in settings.items()]
        card = sae_card(str(address), license=license, settings=told)
        contents = {**self.as_files(), "README.md": card.encode()}
        what = Publication(
            source=Path(), address=address, kind="model", private=private, contents=contents,
            owns=lambda name: False,
        )  # fmt: skip
        return publish(what).url

    def as_files(self) -> dict[str, bytes]:
        """What `save_pretrained` writes, by name."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.state_dict().items()}
        where: Any = {"site": self.site, "input_norm": self.input_norm}
        data = save(
            tensors, metadata_of(tensors, self.arch, d_in=self.d_in, d_sae=self.d_sae, **where)
        )
        return {WEIGHTS: data, ABOUT: described(self, sha256=hashlib.sha256(data).hexdigest())}

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations of each row: what fine-tuning scales and shifts."""
        return F.linear(normalised(self.input_norm, x) - self.b_dec, self.W_enc.T, self.b_enc)

    def encoder_directions(self) -> Float[Tensor, "d_sae d_in"]:
        """The columns of `W_enc`."""
        return self.W_enc.T

    def __repr__(self) -> str:
        site = f", site={self.site}" if self.site else ""
        return f"SAE({self.arch}, d_in={self.d_in}, d_sae={self.d_sae}{site})"


def fit(
    sae: SAE, arch: Architecture, blocks: Iterable[Float[Tensor, "_ d_in"]], *, l0: float
) -> None:
    """Let `l0` latents of a row be active, on average over these rows, in the architecture's way.

    There are many more latents than inputs, so that few rows are looked at together.
    """
    pre = (sae.pre(rows) for x in blocks for rows in x.split(BLOCK_ROWS))
    arch.fit(sae.activation, sae.b_enc, pre, l0=l0)


def fold(state: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """The state of an SAE that learned from `x / scale`, as one that takes `x` to its latents.

        ((x / s) - b_dec) @ W_enc + b_enc = (x - s b_dec) @ (W_enc / s) + b_enc
        s (z @ W_dec + b_dec)             = z @ (s W_dec) + s b_dec

    Latents do not change, so that thresholds do not either.
    """
    folded = dict(state)
    folded["W_enc"] = state["W_enc"] / scale
    folded["W_dec"] = state["W_dec"] * scale
    folded["b_dec"] = state["b_dec"] * scale
    return folded


@final
class TunedSAE(Coder):
    """`z = f(c * pre(x) + d)`: `c` and `d` act just before the activation `f` of a frozen SAE.

    It starts at `c = 1, d = 0`, which is the SAE itself, bit for bit.
    """

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae = sae.requires_grad_(False)
        self.W_dec, self.b_dec, self.activation = sae.W_dec, sae.b_dec, sae.activation
        self.input_norm = sae.input_norm
        self.c = nn.Parameter(torch.ones_like(sae.b_enc))
        self.d = nn.Parameter(torch.zeros_like(sae.b_enc))
        self.learned: Bool[Tensor, " d_sae"]
        """Which latents were ever active in fine-tuning; of the others nothing was learned."""
        self.register_buffer("learned", torch.zeros_like(sae.b_enc, dtype=torch.bool))

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Scaled and shifted pre-activations of each row."""
        return self.c * self.sae.pre(x) + self.d

    def with_error(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Rows with what the frozen SAE does not explain of them left in: the change alone.

        At `c = 1, d = 0` it is `x`, bit for bit.
        """
        return x + (self(x) - self.sae(x))

    def encoder_directions(self) -> Float[Tensor, "d_sae d_in"]:
        """The columns of the frozen encoder, scaled: where `c` is negative, turned around."""
        return (self.sae.W_enc * self.c).T

    @torch.no_grad()
    def fold(self) -> SAE:
        """The plain SAE that computes the same, for tools that know no `c` and `d`.

        `c * ((x - b_dec) W_enc + b_enc) + d = (x - b_dec) (W_enc * c) + (c * b_enc + d)`:
        the centring, the dictionary and thresholds stay as they are. Where the activation has
        biases of its own (gated), these take the new one. A tied encoder, scaled, is the
        dictionary no longer: it is untied.
        """
        plain = deepcopy(self.sae)
        plain.arch = plain.arch.untied
        plain.W_enc.mul_(self.c)
        plain.b_enc.mul_(self.c).add_(self.d)
        plain.activation.take_bias(plain.b_enc)
        return plain
