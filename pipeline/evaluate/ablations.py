"""What ablating a site costs. It says nothing of any coder, so it is measured once and kept.

Before its losses can be measured, its mean must be known, and the largest norm that counts: one
short pass up to the site finds them.

Beside the activation store of a run, `NAME.losses/KEY.safetensors` holds the sums of one site: its
mean, and per context the losses of its zero- and mean-ablated passes. KEY names all that they
depend on, down to the batch size, so that the bits are those a new measurement would give. A file
that is damaged is measured again; where there is no store, or no right to write, none is kept.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from actstore.files import canonical_json, make_folder, write_file
from pipeline.evaluate.setup import EvalContext, EvalSite
from pipeline.evaluate.sums import Columns, exact, zeros
from pipeline.lm.hooks import reading
from pipeline.lm.model import LanguageModel

# Several of one collection differ in size, so this names no shape to a type checker.
Tokens = Tensor
"""`[contexts ctx_len]` token ids."""

OnTokens = Callable[[int], None]
"""Told the number of tokens done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteMean:
    """What a place is edited and counted by."""

    mean: Float64[Tensor, " width"]
    """Over the rows of the whole text that count, on the CPU."""
    limit: float | None
    """The largest norm that counts; None where rows are not excluded by their norm."""


@torch.no_grad()
def find_site_means(
    lm: LanguageModel,
    batches: Sequence[Tokens],
    places: Sequence[EvalSite],
    on_tokens: OnTokens,
) -> dict[EvalSite, SiteMean]:
    """Means of these places; nothing above the last of their sites runs."""
    limits = _limits(lm, batches, places, on_tokens)
    sums = {place: zeros(lm.width(place.site), device=lm.device) for place in places}
    counts, n_tokens = dict.fromkeys(places, 0), 0
    with reading(lm, [place.site for place in places]) as read:
        for tokens in batches:
            acts = read(tokens)
            for place in places:
                x = acts[place.site]
                kept = place.kept(tokens, x, limit=limits[place])
                sums[place] += exact(x[kept]).sum(0)
                counts[place] += int(kept.sum())
            n_tokens += tokens.numel()
            on_tokens(n_tokens)
    return {
        place: SiteMean(mean=sums[place].cpu() / max(1, counts[place]), limit=limits[place])
        for place in places
    }


def _limits(
    lm: LanguageModel,
    batches: Sequence[Tokens],
    places: Sequence[EvalSite],
    on_tokens: OnTokens,
) -> dict[EvalSite, float | None]:
    """The largest norms that count: a multiple of the median over all rows of the whole text."""
    limited = {place: place.excluded.norms for place in places}
    sites = sorted({place.site for place in places if place.excluded.norms is not None})
    if not sites:
        return dict.fromkeys(places)
    norms: dict[object, list[Tensor]] = {site: [] for site in sites}
    n_tokens = 0
    with reading(lm, sites) as read:
        for tokens in batches:
            for site, acts in read(tokens).items():
                norms[site].append(torch.linalg.vector_norm(acts.float(), dim=-1).flatten().cpu())
            n_tokens += tokens.numel()
            on_tokens(n_tokens)
    medians = {site: float(torch.cat(parts).median()) for site, parts in norms.items()}
    return {
        place: None if times is None else times * medians[place.site]
        for place, times in limited.items()
    }


FORMAT = 1
ABLATED = ("nll_zero", "nll_mean", "kl_zero")
"""Sums of each context, in nats."""

_STORE, _KEPT, _DIGEST = ".actstore", ".losses", "sha256"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where what ablating one place costs on one text is kept: `ABLATED`, of each context."""

    folders: tuple[Path, ...]
    key: str

    def load(self) -> tuple[SiteMean, Columns] | None:
        """What is kept, if it is there and every bit of it is as it was written."""
        for folder in self.folders:
            with suppress(OSError, SafetensorError, KeyError):
                tensors = load((folder / f"{self.key}.safetensors").read_bytes())
                if _bytes(tensors.pop(_DIGEST)) == self._digest(tensors):
                    limit = tensors.get("limit")
                    limit = None if limit is None else float(limit)
                    ground = SiteMean(mean=tensors["mean"], limit=limit)
                    return ground, {name: tensors[name].numpy() for name in ABLATED}
        return None

    def keep(self, ground: SiteMean, sums: Columns) -> None:
        """Keep these in the first folder that can be written to, if there is one."""
        tensors = {name: torch.from_numpy(sums[name]) for name in ABLATED}
        tensors["mean"] = ground.mean
        if ground.limit is not None:
            tensors["limit"] = torch.tensor(ground.limit, dtype=torch.float64)
        digest = torch.frombuffer(bytearray(self._digest(tensors)), dtype=torch.uint8)
        data = save(tensors | {_DIGEST: digest})
        for folder in self.folders:
            with suppress(OSError):
                make_folder(folder)
                write_file(folder / f"{self.key}.safetensors", [data])
                return

    def _digest(self, tensors: Mapping[str, Tensor]) -> bytes:
        digest = hashlib.sha256(self.key.encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        return digest.digest()


def slot_of(
    place: EvalSite, scene: EvalContext, *, batch_size: int, beside: Iterable[Path]
) -> Slot:
    """Where what ablating a place costs is kept: beside those of these stores that are there."""
    contexts = scene.contexts
    told = {
        "format": FORMAT,
        "site": str(place.site),
        "excluded": asdict(place.excluded),
        "shape": list(contexts.shape),
        "model": scene.lm.fingerprint(),
        "precision": scene.precision,
        "device": scene.lm.device.type,
        "batch_size": batch_size,  # another one rounds differently
    }
    return Slot(
        folders=tuple(
            store.with_name(store.name.removesuffix(_STORE) + _KEPT)
            for store in dict.fromkeys(beside)
            if store.is_dir()
        ),
        key=hashlib.sha256(canonical_json(told) + contexts.numpy().tobytes()).hexdigest(),
    )


def _bytes(tensor: Tensor) -> bytes:
    """Of any dtype, as a damaged file may hold."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
