"""The run of a sparse autoencoder: its weights are `sae.safetensors`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from pipeline.config.architectures import InputNorm
from pipeline.config.serialization import UNLESS_DEFAULT
from pipeline.config.training import TrainConfig
from pipeline.errors import CheckpointError
from pipeline.runs.advice import advice_on
from pipeline.runs.belongs import RUN
from pipeline.runs.folder import RunFolder
from pipeline.sae.sae import SAE, filled, metadata_of

CODER = "sae.safetensors"


@final
@dataclass(frozen=True, kw_only=True)
class SAERun(RunFolder):
    """The training of an SAE on disk: a folder, which every verb takes in place of its path.

    run = SAERun.open("runs/topk")
    run.sae, run.config, run.metrics["explained_variance"]
    """

    KIND: ClassVar[str] = "sae"
    WEIGHTS: ClassVar[str] = CODER
    MADE_BY: ClassVar[str] = "saepipe train"

    config: TrainConfig
    """As it ran: the site named, the paths absolute."""
    input_norm: InputNorm = field(default="none", metadata=UNLESS_DEFAULT)
    """What the SAE does to each row first: of some that were imported."""

    @classmethod
    def as_now(cls, told: Any) -> Any:  # noqa: ANN401 - a parsed run.json
        """Runs of before dictionaries started at rows, and dead latents were helped as today."""
        match told:
            case {"config": {"dead_window": str(window), **others}}:
                before = {"w_dec_start": "random", "revive": 0.0, "revive_after": window}
                told = {**told, "config": before | others | {"dead_window": window}}
            case _:
                pass
        match told:
            case {"config": {"arch": {"kind": "gated" | "jumprelu", **knobs} as arch, **others}}:
                arch = arch if "k_aux" in knobs else arch | {"k_aux": 0}
                return {**told, "config": others | {"arch": arch}}
            case _:
                return told

    @property
    def origins(self) -> Mapping[str, tuple[Path, str]]:
        """The store."""
        return {"store": (self.provenance.path, self.provenance.fingerprint)}

    @property
    def command(self) -> str:
        """The command that began it, without its options."""
        return f"saepipe train {self.provenance.path}"

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.d_sae(self.provenance.d_in)

    @cached_property
    def sae(self) -> SAE:
        """The finished SAE in float32 on the CPU, read when it is first asked for.

        Raises:
            CheckpointError: it is unfinished or damaged.
        """
        return SAE.from_pretrained(self.path)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to look at and try before the SAE is trusted; empty where all is as it should be.

        Raises:
            CheckpointError: it is unfinished, or its curves are damaged, or another run's.
        """
        curves = self.curves
        if not self.finished or not curves:
            raise CheckpointError(f"{self.path} is an unfinished run: train it to its end first")
        n_rows = self.provenance.n_rows
        return advice_on(self.config, curves, d_sae=self.d_sae, n_rows=n_rows)

    def _metadata(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """What opens sae.safetensors alone."""
        source = self.provenance
        shape = {"d_in": source.d_in, "d_sae": self.d_sae}
        where: Any = {"site": source.site, "input_norm": self.input_norm}
        return metadata_of(tensors, self.config.arch, **shape, **where)

    def load_sae(self, device: torch.device) -> SAE:
        """The finished SAE in float32, every byte checked.

        Raises:
            CheckpointError: sae.safetensors is missing or damaged, or does not fit run.json.
        """
        file, told = self.path / self.WEIGHTS, self.path / RUN
        return filled(self.blank_sae(), self.trained(), file=file, told=told).to(device)

    def __repr__(self) -> str:
        what = f"{self.config.arch} at {self.provenance.site}, {self.d_sae:,} features"
        if self.failure:
            return f"SAERun({self.path}: {what}, diverged: {self.failure})"
        try:
            last = self.metrics
        except CheckpointError:
            last = {}
        known = (("l0", "L0"), ("explained_variance", "explained variance"))
        ends = "".join(f", {words} {last[name]:.4g}" for name, words in known if name in last)
        return f"SAERun({self.path}: {what}{ends}{'' if self.finished else ', unfinished'})"

    def blank_sae(self) -> SAE:
        """An SAE of this run's shape and architecture, its parameters still to be loaded."""
        source = self.provenance
        where: Any = {"site": source.site, "input_norm": self.input_norm}
        return SAE(self.config.arch, d_in=source.d_in, d_sae=self.d_sae, **where)
