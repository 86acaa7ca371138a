"""Which activations a coder was trained on."""

from dataclasses import dataclass
from pathlib import Path

from actstore.reader import ActStore


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which activations a coder was trained on. Texts are empty where the store does not say."""

    path: Path
    fingerprint: str
    model: str
    revision: str
    model_fingerprint: str
    text: str
    site: str
    d_in: int
    ctx_len: int
    n_rows: int
    dtype: str

    @staticmethod
    def of(store: ActStore, *, site: str) -> "Provenance":
        """The provenance of one site of an open store."""
        spec = store.spec
        source = {name: value for name, value in spec.source.items() if isinstance(value, str)}
        return Provenance(
            path=store.path.resolve(),
            fingerprint=store.fingerprint,
            model=source.get("model", ""),
            revision=source.get("revision", ""),
            model_fingerprint=source.get("model_fingerprint", ""),
            text=source.get("text", ""),
            site=site,
            d_in=store.width(site),
            ctx_len=spec.ctx_len,
            n_rows=store.n_rows,
            dtype=spec.dtype,
        )
