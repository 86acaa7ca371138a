"""What leaves: an SAE of ours with what others ask about it, and the files that are made of it."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.config.architectures import ArchConfig, GatedConfig, InputNorm
from pipeline.errors import ConfigError

ABOUT = "activation."


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Files by name, and what whoever opens them must know."""

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaving:
    """A plain SAE, its scaling and all that was learned since in its weights, in float32."""

    arch: ArchConfig
    """What computes the same with an encoder of its own."""
    kind: str
    """The architecture that it was trained as."""
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None
    gates: Mapping[str, Tensor]
    """Of a gated one; its `b_enc`, in them, is zero."""
    site: str = ""
    model: str = ""
    text: str = ""
    ctx_len: int | None = None
    input_norm: InputNorm = "none"

    @staticmethod
    def of(
        arch: ArchConfig,
        state: Mapping[str, Tensor],
        *,
        site: str = "",
        model: str = "",
        text: str = "",
        ctx_len: int | None = None,
        input_norm: InputNorm = "none",
    ) -> "Leaving":
        """Of the state of an SAE.

        Raises:
            ConfigError: its activation has what no other library knows.
        """
        kept = {name: tensor.detach().cpu().float() for name, tensor in state.items()}
        own = {name.removeprefix(ABOUT): t for name, t in kept.items() if name.startswith(ABOUT)}
        gates, b_enc = dict[str, Tensor](), kept["b_enc"]
        if isinstance(arch, GatedConfig):
            gates = {
                "b_gate": own.pop("b_gate") + b_enc,
                "r_mag": own["r_mag"],
                "b_mag": own.pop("b_mag") + own.pop("r_mag").exp() * b_enc,
            }
            b_enc = torch.zeros_like(b_enc)
        threshold = own.pop("threshold", None)
        if own:
            raise ConfigError(
                f"the architecture {arch.kind} has {', '.join(own)}, which nothing that it could "
                "be exported to knows"
            )
        return Leaving(
            arch=arch.untied,
            kind=arch.kind,
            W_enc=kept["W_enc"],
            b_enc=b_enc,
            W_dec=kept["W_dec"],
            b_dec=kept["b_dec"],
            threshold=threshold,
            gates=gates,
            site=site,
            model=model,
            text=text,
            ctx_len=ctx_len,
            input_norm=input_norm,
        )

    @property
    def uncentred(self) -> Tensor:
        """`b_enc` for one that takes its input as it is: `b_enc - b_dec W_enc`."""
        return (self.b_enc.double() - self.b_dec.double() @ self.W_enc.double()).float()

    def require_plain(self, library: str) -> None:
        """Refuse one that normalises each row, to which `library` has nothing like.

        Raises:
            ConfigError: it does.
        """
        if self.input_norm != "none":
            raise ConfigError(
                f"this SAE normalises each row ({self.input_norm}), and {library} has none that "
                "does: type --to saelens"
            )


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A file of safetensors."""
    return save({name: tensor.float().contiguous().clone() for name, tensor in tensors.items()})


def pickle_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A file of `torch.save`."""
    buffer = io.BytesIO()
    torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()
