"""Our side of rows_saelens.py: what it reads, and what is read of what it wrote.

python tests/interop/rows.py export FOLDER
python tests/interop/rows.py import FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from actstore.moments import as_float
from actstore.reader import ActStore
from pipeline.config.rows import ExportConfig, ImportConfig
from pipeline.exchange.rows.export import export_rows
from pipeline.exchange.rows.importing import import_rows
from tests.helpers.stores import contexts, make_spec, write_store

SITE, N_CONTEXTS = "mlp_out.1", 40
DTYPES = ("bfloat16", "float16", "float32")


def export(folder: Path) -> None:
    """A store of each dtype as SAELens' cache, and its rows as SAELens is to give them."""
    for dtype in DTYPES:
        spec = make_spec(dtype=dtype)
        store = write_store(folder / f"{dtype}.actstore", spec, n_rows=N_CONTEXTS * spec.ctx_len)
        acts, tokens, _ = contexts(spec, 0, N_CONTEXTS)
        export_rows(ExportConfig(store=store, site=SITE, to="arrow", out=folder / dtype))
        np.savez(folder / f"{dtype}.npz", acts=as_float(acts[SITE]), tokens=tokens)


def read(folder: Path) -> None:
    """Hold stores of what SAELens cached to the rows that it was given."""
    for dtype in DTYPES:
        arrays, out = np.load(folder / f"{dtype}.npz"), folder / f"{dtype}.again.actstore"
        import_rows(ImportConfig(source=folder / f"{dtype}.theirs", out=out))
        store = ActStore.open(out)
        assert store.sites == (SITE,)
        found = store.contexts(np.arange(store.n_contexts))
        np.testing.assert_array_equal(np.stack([c.acts[SITE] for c in found]), arrays["acts"])
        np.testing.assert_array_equal(np.stack([c.tokens for c in found]), arrays["tokens"])
        print(f"{dtype}: saepipe reads what SAELens cached")


if __name__ == "__main__":
    {"export": export, "import": read}[sys.argv[1]](Path(sys.argv[2]))
