"""SAEs as other libraries keep them, and what each computes, in float64 and apart from ours."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D, F, K, ROWS = 12, 20, 4, 50


def drawn(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random numbers of these shapes, in float32."""
    rng = np.random.default_rng(seed)
    return {n: (0.5 * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}


def matrices(seed: int = 0) -> dict[str, np.ndarray]:
    """Of an SAE, as SAELens lays them."""
    return drawn(seed, W_enc=(D, F), b_enc=(F,), W_dec=(F, D), b_dec=(D,))


def rows(seed: int = 9) -> np.ndarray:
    return 1.5 * np.random.default_rng(seed).standard_normal((ROWS, D)) + 0.4


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def top_k(pre: np.ndarray, k: int = K) -> np.ndarray:
    """The k largest of each row, clipped at zero."""
    kept = np.zeros_like(pre)
    best = np.argsort(-pre, axis=-1)[:, :k]
    np.put_along_axis(kept, best, np.take_along_axis(relu(pre), best, -1), -1)
    return kept


def above(threshold: np.ndarray | float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pre: relu(pre) * (pre > threshold)


def computes(
    w: Mapping[str, np.ndarray],
    act: Callable[[np.ndarray], np.ndarray],
    *,
    centred: bool = True,
    x: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstruction, by the formula."""
    x = rows() if x is None else x
    w = {name: t.astype(np.float64) for name, t in w.items()}
    z = act((x - centred * w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    return z, z @ w["W_dec"] + w["b_dec"]


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: torch.from_numpy(t).contiguous().clone() for n, t in tensors.items()}, path)


def write_pickle(path: Path, told: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {
        n: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for n, v in told.items()
    }
    torch.save(made, path)


def saelens(
    folder: Path, tensors: Mapping[str, np.ndarray] | None = None, *, kind="standard", **cfg: Any
) -> Path:
    """A folder of SAELens 6."""
    hook = cfg.pop("hook_name", "blocks.1.hook_mlp_out")
    told = {
        "d_in": D, "d_sae": F, "dtype": "float32", "architecture": kind,
        "metadata": {"sae_lens_version": "6.1.0", "hook_name": hook, "model_name": "gpt2-small"},
    }  # fmt: skip
    write_json(folder / "cfg.json", told | cfg)
    write_safetensors(
        folder / "sae_weights.safetensors", matrices() if tensors is None else tensors
    )
    return folder


def sparsify(folder: Path, w: Mapping[str, np.ndarray] | None = None, **cfg: Any) -> Path:
    w = w or matrices()
    told = {"activation": "topk", "k": K, "num_latents": F, "d_in": D, "transcode": False}
    write_json(folder / "cfg.json", told | cfg)
    named = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"]}
    write_safetensors(
        folder / "sae.safetensors", {**named, "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    )
    return folder


def dictionary(folder: Path, kind: str, tensors: Mapping[str, Any], **trainer: Any) -> Path:
    told = {"dict_class": kind, "activation_dim": D, "dict_size": F, **trainer}
    write_json(folder / "config.json", {"trainer": told, "buffer": {"ctx_len": 64}})
    write_pickle(folder / "ae.pt", tensors)
    return folder


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file of another library, and what that library makes of rows."""

    write: Callable[[Path], Path]
    """Puts it below a folder; gives the source."""
    z: np.ndarray
    x_hat: np.ndarray
    kind: str
    site: str = ""
    notes: str = ""
    """What some note says."""
