"""The script that wrote the golden stores, each once: `python -m tests.golden.make_store`.

It refuses to replace what it wrote. A new format version gets a golden store of its own beside it.
"""

import json
import sys
from pathlib import Path

import numpy as np

from actstore.reader import ActStore
from tests.helpers.stores import column, make_spec, write_store

OLD, GOLDEN = (Path(__file__).parent / version for version in ("v1", "v2"))
N_ROWS = 88
SPEC = make_spec(
    widths={"mlp_out.1": 8, "resid.0": 4},
    shard_rows=32,
    seed=5,
    source={"model": "golden", "revision": "main"},
)


def main() -> None:
    """Write the store, and beside it what it holds."""
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} is there; it is never written again")
    store = ActStore.open(write_store(GOLDEN, SPEC, n_rows=N_ROWS))
    content = {
        "fingerprint": store.fingerprint,
        "arrays": {n: column(store, n).astype(np.int64).tolist() for n in SPEC.arrays},
        "mean": {site: store.mean(site).tolist() for site in store.sites},
        "var": {site: store.var(site).tolist() for site in store.sites},
    }
    (GOLDEN / "LOCK").unlink()
    GOLDEN.with_suffix(".json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
