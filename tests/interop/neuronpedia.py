"""An export for Neuronpedia, taken in by Neuronpedia's own importer into its own database.

    python tests/interop/neuronpedia.py CHECKOUT [FOLDER]

CHECKOUT is a repository of github.com/hijohnnylin/neuronpedia (bare will do); FOLDER one that
`export_neuronpedia` wrote, or else one of a demo is made. It needs PostgreSQL's programs, node and
npm (the packages pg and esbuild), and runs offline otherwise. A database is made of the migrations
in the checkout, less the index of embeddings; the importer's `importJsonlString` puts in features
and activations; what `prisma.create` does of the four other files is done by the same columns.
Everything is imported twice: the second time must add nothing. Then every value is read back.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CREATOR = "clkht01d40000jv08hvalcvly"
MODULES = Path(os.environ.get("NODE_FOLDER", "/tmp/saepipe-interop-node"))
TABLES = {
    "release": "SourceRelease",
    "model": "Model",
    "sourceset": "SourceSet",
    "source": "Source",
}


def main() -> None:
    checkout, folder = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(prefix="np-") as scratch:
        work = Path(scratch)
        work.chmod(0o755)
        folder = folder or demo(work)
        database = Database(work)
        try:
            check(checkout, folder, database, work)
        finally:
            database.stop()


def demo(work: Path) -> Path:
    """A small run of the embedded model, and its export."""
    import saepipe as sp

    from pipeline.exchange.neuronpedia import export_neuronpedia

    sp.harvest(sites=["mlp_out.2"], tokens="50k", out=work / "a.actstore")
    sp.train(work / "a.actstore", arch="topk", k=16, expansion=2, out=work / "topk")
    sp.features(work / "topk")
    told = export_neuronpedia(work / "topk", out=work / "out", release="demo", creator="Someone")
    print(told.folder.name, told.n_features, "features", told.n_activations, "activations")
    return told.folder


class Database:
    """A PostgreSQL of its own, in a folder, behind a socket."""

    def __init__(self, work: Path) -> None:
        initdb = shutil.which("initdb") or next(
            map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), "initdb"
        )
        self.bin, self.at = Path(initdb).parent, work / "db"
        self.at.mkdir()
        self.user = "postgres" if os.getuid() == 0 else ""  # it refuses to be run by root
        if self.user:
            shutil.chown(self.at, self.user)
        self._run("initdb", "-D", self.at / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8")
        options = f"-k {self.at} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "-D", self.at / "data", "-o", options, "-l", self.at / "log", "start")
        self.url = f"postgresql://postgres@/postgres?host={self.at}"

    def _run(self, program: str, *arguments: object) -> None:
        before = ["runuser", "-u", self.user, "--"] if self.user else []
        command = [*before, self.bin / program, *arguments]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd="/")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.at / "data", "-m", "immediate", "stop")

    def query(self, sql: str) -> str:
        """What psql says to some SQL, which may be long."""
        command = ["psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", self.url]
        done = subprocess.run(command, input=sql, text=True, capture_output=True, check=False)
        if done.returncode:
            sys.exit(f"psql: {done.stderr[:2000]}")
        return done.stdout.strip()


def migrations(git, commit: str) -> str:
    """The schema; this PostgreSQL need not have vectors, which only explanations use."""
    top = "apps/webapp/prisma/migrations"
    names = sorted(git("ls-tree", "-r", "--name-only", commit, top).split())
    whole = "\n".join(git("show", f"{commit}:{name}") for name in names if name.endswith(".sql"))
    whole = re.sub(r'CREATE EXTENSION IF NOT EXISTS "vector";', "", whole)
    whole = re.sub(r'("\w*[eE]mbedding") vector\(256\)', r"\1 TEXT", whole)
    statements = re.split(r";[ \t]*\n", whole)
    return ";\n".join(s for s in statements if "hnsw" not in s and "vector_" not in s) + ";"


def check(checkout: str, folder: Path, database: Database, work: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", checkout, *arguments]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout

    commit = git("rev-parse", "HEAD").strip()
    print("neuronpedia", commit)
    database.query(migrations(git, commit))
    database.query(
        'INSERT INTO "User" (id, name, "emailUnsubscribeCode") '
        f"VALUES ('{CREATOR}', 'bot', 'x')"
    )
    source = work / "import.ts"
    source.write_text(git("show", f"{commit}:apps/webapp/lib/db/import.ts"))
    MODULES.mkdir(exist_ok=True)
    if not (MODULES / "node_modules" / "pg").exists():
        install = ["npm", "install", "--no-fund", "--no-audit", "pg", "esbuild"]
        subprocess.run(install, cwd=MODULES, check=True, stdout=subprocess.DEVNULL)

    for name, table in TABLES.items():
        path = folder / f"{name}.jsonl"
        for row in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
            columns = ", ".join(f'"{column}"' for column in row)
            told = json.dumps(row).replace("'", "''")
            database.query(
                f'INSERT INTO "{table}" ({columns}) SELECT {columns} '
                f"FROM jsonb_populate_record(NULL::\"{table}\", '{told}')"
            )
    counts = []
    for _ in range(2):
        for table, kind in (("Neuron", "features"), ("Activation", "activations")):
            files = sorted((folder / kind).iterdir())
            subprocess.run(
                ["node", HERE / "neuronpedia_import.mjs", source, table, *files],
                cwd=MODULES, check=True,
                env=os.environ | {"POSTGRES_URL_NON_POOLING": database.url},
            )  # fmt: skip
        counts.append(
            database.query('SELECT (SELECT count(*) FROM "Neuron"), count(*) FROM "Activation"')
        )
    assert counts[0] == counts[1], counts

    for table, kind, key in (("Neuron", "features", "index"), ("Activation", "activations", "id")):
        written = {
            row[key]: row
            for path in (folder / kind).iterdir()
            for row in map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
        }
        there = {
            row[key]: row
            for row in map(
                json.loads, database.query(f'SELECT to_jsonb(t) FROM "{table}" t').splitlines()
            )
        }
        assert written.keys() == there.keys(), (len(written), len(there))
        for name, row in written.items():
            for column, value in row.items():
                assert there[name][column] == value, (
                    table,
                    name,
                    column,
                    there[name][column],
                    value,
                )
        print(table, len(there), "rows, every value as it was written")
    print("ok")


if __name__ == "__main__":
    main()
