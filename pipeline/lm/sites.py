"""Sites: the kinds there are, in the order in which a layer computes them, and modules by path.

All about a kind of site is its entry of `KINDS`. A kind says in which *part* of a layer it lies
(`mlp`, `attention_out`); how a model calls that part is in `pipeline.lm.families`.

A layer adds to its residual stream what two branches make of it, each through a norm of its own:

    resid_pre ─┬─ norm ─ attention ── attn_z ─ W_O ─ attn_out ─┐
               ├───────────────────────────────────────────────+── resid_mid
               ├─ norm ─ W_in ─ mlp_pre ─ f ─ mlp_act ─ W_out ─ mlp_out ─┐
               └─────────────────────────────────────────────────────────+── resid_post

In a parallel layer (Pythia's) both read `resid_pre`, and there is no `resid_mid`; in others the MLP
reads `resid_mid`. `attn_out` and `mlp_out` are what is added, so that the sum holds in every model:
where a branch ends in a norm (Gemma 2, OLMo 2), they are behind it. The names and what they mean
are TransformerLens'. Torch-free, so that a plan can be made before anything heavy is imported.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from difflib import get_close_matches
from functools import total_ordering
from typing import Any, Literal, final

from pipeline.errors import ConfigError
from pipeline.lm.names import kind_and_layer, path_and_side

Side = Literal["in", "out"]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A way that leaves the residual stream of a layer, and whose result is added to it."""

    norm: str
    """The part it reads the stream through."""
    module: str
    """The part that does the rest."""
    post_norm: str
    """The part that comes after it, where a family has one."""
    output: str
    """The kind of site that holds what it adds."""


ATTENTION = Branch(
    norm="attention_norm", module="attention", post_norm="attention_post_norm", output="attn_out"
)
MLP = Branch(norm="mlp_norm", module="mlp", post_norm="mlp_post_norm", output="mlp_out")
BRANCHES = (ATTENTION, MLP)
"""In the order in which a layer computes them."""


@dataclass(frozen=True, kw_only=True)
class SiteKind:
    """All that is to be known of a kind of site."""

    name: str
    part: str = ""
    """The module that has the site at one of its sides; empty for the layer itself."""
    instead: str = ""
    """A part that has it in the place of `part`, where a family has such a part."""
    fallback: str = ""
    """The part that has it where a family has no `part`."""
    side: Side
    """Whether it is the first input of that module or its output."""
    shared: bool = False
    """The layer reads this input once more by another way, so that an edit must be in place."""
    width: Literal["d_model", "d_mlp", "d_attn"] = "d_model"
    """Which of a model's widths it has, a field of `Shape`."""
    needs: tuple[str, ...] = ()
    """Parts that run between the kind before and this one, where a family has them."""

    added: tuple[Branch, ...] = ()
    """On the residual stream: the branches of its layer that were added before it."""
    branch: Branch | None = None
    """The branch it lies on; None on the stream."""
    through: str | None = None
    """On a branch: the part, linear, that makes of it what is added; None if it is that itself."""
    nonlinear: bool = False
    """On a branch: what follows is not linear, so there is no direct way to the logits."""
    beside: tuple[str, ...] = ()
    """Parts that read the branch's norm beside the way to this site, where a family has them."""

    def __str__(self) -> str:
        return self.name


KINDS: dict[str, SiteKind] = {
    kind.name: kind
    for kind in (
        SiteKind(name="resid_pre", side="in"),
        SiteKind(
            name="attn_z", part="attention_out", side="in", width="d_attn", branch=ATTENTION,
            through="attention_out", needs=("attention_norm", "attention"),
        ),
        SiteKind(
            name="attn_out", part="attention_out", instead="attention_post_norm", side="out",
            branch=ATTENTION, needs=("attention_post_norm",),
        ),
        SiteKind(
            name="resid_mid", part="mlp_norm", fallback="mlp", side="in", shared=True,
            added=(ATTENTION,),
        ),
        SiteKind(
            name="mlp_pre", part="mlp_in", side="out", width="d_mlp", branch=MLP,
            nonlinear=True, needs=("mlp_norm", "mlp_in"), beside=("mlp_gated",),
        ),
        SiteKind(
            name="mlp_act", part="mlp_out", side="in", width="d_mlp", branch=MLP,
            through="mlp_out", needs=("mlp",),
        ),
        SiteKind(
            name="mlp_out", part="mlp", instead="mlp_post_norm", fallback="mlp_out", side="out",
            branch=MLP, needs=("mlp", "mlp_out", "mlp_post_norm"),
        ),
        SiteKind(name="resid_post", side="out", added=BRANCHES),
    )
}  # fmt: skip
"""In the order in which one layer computes them."""


@total_ordering
class Site(ABC):
    """One place where activations are read or replaced: a kind of site in a layer, or a module.

    Sites of layers sort in the order in which a forward pass computes them. The order of modules is
    the model's own, and nothing here knows it: they come last, by their names.
    """

    @staticmethod
    def parse(text: str) -> "Site":
        """Read `mlp_out.3`, what another tool calls it, or the path of a module.

        Raises:
            ConfigError: it is none of these.
        """
        kind, _, layer = text.partition(".")
        if kind in KINDS and layer.isascii() and layer.isdecimal() and layer == str(int(layer)):
            return LayerSite(int(layer), KINDS[kind])
        if (told := kind_and_layer(text)) is not None and told[0] in KINDS:
            return LayerSite(told[1], KINDS[told[0]])
        module = path_and_side(text)
        if module is None or get_close_matches(kind, KINDS, n=1):  # a kind that was misspelt
            raise ConfigError(
                f"bad site {text!r}: expected KIND.LAYER, as in mlp_out.1, with KIND one of "
                f"{', '.join(KINDS)}; or the path of a module, as saepipe sites MODEL lists them"
            )
        return ModuleSite(module[0], "in" if module[1] == "in" else "out")

    @property
    @abstractmethod
    def side(self) -> Side:
        """Whether it is the first input of its module or its output."""

    @property
    @abstractmethod
    def shared(self) -> bool:
        """What reads it reads it once more by another way, so that an edit must be in place."""

    @abstractmethod
    def at(self, layer: int) -> "LayerSite":
        """The same kind of site in another layer.

        Raises:
            ConfigError: it is of no kind.
        """

    def of_layer(self, asked: str) -> "LayerSite":
        """The site, if it is one of a layer, for what is of layers alone.

        Raises:
            ConfigError: it is not.
        """
        if isinstance(self, LayerSite):
            return self
        raise ConfigError(
            f"{asked} is for sites of layers, as mlp_out.3, and {self} is a module by its path: "
            "leave it out, or name such a site"
        )

    @property
    @abstractmethod
    def order(self) -> tuple[Any, ...]:
        """What sites sort by."""

    def __lt__(self, other: "Site") -> bool:
        return self.order < other.order


@final
@dataclass(frozen=True)
class LayerSite(Site):
    """A kind of site in a layer, written `kind.layer`: `mlp_out.3`."""

    layer: int
    kind: SiteKind

    @property
    def side(self) -> Side:
        """Whether it is the first input of its module or its output."""
        return self.kind.side

    @property
    def shared(self) -> bool:
        """What reads it reads it once more by another way, so that an edit must be in place."""
        return self.kind.shared

    def at(self, layer: int) -> "LayerSite":
        """The same kind of site in another layer."""
        return LayerSite(layer, self.kind)

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @property
    def order(self) -> tuple[Any, ...]:
        """What sites sort by."""
        return 0, self.layer, list(KINDS).index(self.kind.name)


@final
@dataclass(frozen=True)
class ModuleSite(Site):
    """The output of a module, or its first input, by the path that the model itself has for it.

    Written as the path, as a store can call it: `model.layers.3.mlp`, `model.layers.3.mlp.input`.
    """

    path: str
    side: Side = "out"  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def shared(self) -> bool:
        """Others that read the same tensor are not known, so that they keep what they read."""
        return False

    def at(self, layer: int) -> LayerSite:
        """Refused: which module of another layer it would be is not known."""
        raise ConfigError(
            f"{self} is a module, which has no kind to be found at in layer {layer}: leave out "
            "--layers"
        )

    def __str__(self) -> str:
        own_name_says_side = self.path.endswith((".input", ".output"))
        return self.path + (".input" if self.side == "in" else ".output" * own_name_says_side)

    @property
    def order(self) -> tuple[Any, ...]:
        """What sites sort by: layers as numbers."""
        parts = [
            (part.isdecimal(), int(part) if part.isdecimal() else part)
            for part in self.path.split(".")
        ]
        return 1, parts, self.side
