"""What an import of activations, and an export of them, can be told."""

from pathlib import Path
from typing import Literal

from pipeline.config.checks import require_positive
from pipeline.config.settings import Count, settings
from pipeline.errors import ConfigError

ExportFormat = Literal["npy", "safetensors", "parquet", "arrow"]

NAMES = {
    "bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64",
}  # fmt: skip
"""Of numbers, as `saepipe harvest` and as numpy and torch call them."""


@settings
class ImportConfig:
    """One import: which rows of which files, and as what a store keeps them."""

    source: Path
    """A file or a folder of them."""
    out: Path
    sites: tuple[str, ...] = ()
    """What the rows are of, as mlp_out.3; where the source does not say it."""
    columns: tuple[str, ...] = ()
    """Those with activations, in the order of `sites`; none means all that may be."""
    model: str = ""
    """That the activations are from: hub id, local folder, or `builtin`."""
    revision: str = "main"
    tokens_file: Path | None = None
    """Token ids of the rows, where they are not in the source."""
    ctx_len: int | None = None
    """Rows of a context; None means as the source says, and 1 where it does not."""
    shape: tuple[int, ...] = ()
    """Of a raw file, whose numbers `dtype` names: the width, or rows and width, or contexts, their
    length and the width."""
    dtype: str | None = None
    """bf16, fp16 or fp32; None means as the source has them."""
    codec: str = "lz4"
    """As of a harvest: lz4, zstd, raw or bitround:N."""
    shard_rows: Count | None = None
    """Rows per shard; None means about 64 MiB of the widest site."""

    def __post_init__(self) -> None:
        require_positive(self, "ctx_len", "shard_rows")
        if self.dtype is not None and self.dtype not in {*NAMES, *NAMES.values()}:
            raise ConfigError(f"dtype must be one of {', '.join(NAMES)}, got {self.dtype!r}")
        if any(n < 1 for n in self.shape) or len(self.shape) > 3:
            raise ConfigError(
                f"shape must be up to 3 positive numbers, got {','.join(map(str, self.shape))}: "
                "type --shape WIDTH or --shape ROWS,WIDTH"
            )

    @property
    def numbers(self) -> str | None:
        """The dtype under its long name."""
        return NAMES.get(self.dtype or "", self.dtype)


@settings
class ExportConfig:
    """One export: a site of a store into a format of others."""

    store: Path
    site: str
    to: ExportFormat
    out: Path
    """The file; of arrow the folder."""
