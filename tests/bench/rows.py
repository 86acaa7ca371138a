"""How fast activations of others come in and go out, beside a plain read and write of them.

    python tests/bench/rows.py                # 5 rounds, about 3 minutes

131,072 rows of 1,024 float32 (512 MiB), normal, in contexts of 128, with token ids. Every cell
runs in a process of its own, in turn with the others, on files that the system has in memory.
`plain_read` reads the bytes of the .npy, `plain_write` writes as many and syncs; ratios are taken
round by round.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from tests.bench.common import in_turn, printed_by, ratios, spread

N_ROWS, WIDTH, CTX_LEN, SITE = 2**17, 1024, 128, "mlp_out.1"
FILES = {
    "npy": "acts.npy", "safetensors": "acts.safetensors", "parquet": "acts.parquet", "arrow": "acts"
}  # fmt: skip
BLOCK = 2**22


def make_data(folder: Path) -> None:
    """The rows as a store, and by it in every format."""
    from pipeline.config.rows import ExportConfig, ImportConfig
    from pipeline.exchange.rows.export import export_rows
    from pipeline.exchange.rows.importing import import_rows

    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.standard_normal((N_ROWS, WIDTH), np.float32))
    np.save(folder / "t.npy", rng.integers(0, 50_000, (N_ROWS // CTX_LEN, CTX_LEN), np.int32))
    store = folder / "acts.actstore"
    tokens = folder / "t.npy"
    import_rows(ImportConfig(source=folder / "x.npy", out=store, sites=SITE, tokens_file=tokens))
    for to, name in FILES.items():
        export_rows(ExportConfig(store=store, site=SITE, to=to, out=folder / name))


def cell(name: str, folder: Path) -> float:
    """Rows a second."""
    from pipeline.config.rows import ExportConfig, ImportConfig
    from pipeline.exchange.rows.export import export_rows
    from pipeline.exchange.rows.importing import import_rows

    what, _, form = name.partition("_")
    with tempfile.TemporaryDirectory(dir=folder) as made:
        start = time.perf_counter()
        if name == "plain_read":
            with (folder / FILES["npy"]).open("rb", buffering=0) as file:
                block = bytearray(BLOCK)
                while file.readinto(block):
                    pass
        elif name == "plain_write":
            data = bytes(BLOCK)
            with Path(made, "x").open("wb", buffering=0) as file:
                for _ in range(N_ROWS * WIDTH * 4 // BLOCK):
                    file.write(data)
                os.fdatasync(file.fileno())
        elif what == "import":
            beside = folder / "acts.tokens.npy" if form == "npy" else None
            import_rows(
                ImportConfig(
                    source=folder / FILES[form], out=Path(made, "a.actstore"), sites=SITE,
                    tokens_file=beside,
                )
            )  # fmt: skip
        else:
            export_rows(
                ExportConfig(
                    store=folder / "acts.actstore", site=SITE, to=form,
                    out=Path(made, FILES[form]),
                )
            )  # fmt: skip
        return N_ROWS / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="On the disk to measure; default: a temporary.")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(cell(args.cell[0], Path(args.cell[1]))))
        return
    imports, exports = ([f"{what}_{form}" for form in FILES] for what in ("import", "export"))
    names = ["plain_read", *imports, "plain_write", *exports]
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        make_data(folder)
        run = partial(printed_by, sys.executable, __file__, "--cell")
        told = in_turn({name: partial(run, name, folder) for name in names}, args.rounds)
    finally:
        shutil.rmtree(folder)
    print("| what | rows/s | of the plain one |\n|---|---|---|")
    for name, rates in told.items():
        plain = told["plain_read" if "import" in name else "plain_write"]
        share = "" if name.startswith("plain") else spread(ratios(rates, plain))
        print(f"| {name.replace('_', ' ')} | {spread(rates, '{:,.0f}')} | {share} |")


if __name__ == "__main__":
    main()
