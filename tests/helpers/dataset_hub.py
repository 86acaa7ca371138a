"""A local stand-in for the hub, with one dataset of some files below data/."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.helpers.standin import StandIn, serving

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def dataset_hub(files: Mapping[str, bytes], *, home: Path) -> Generator[dict[str, str]]:
    """Yields what a process must know to find some/texts there."""

    class Texts(StandIn):
        """The few answers of the hub that streaming `some/texts` needs; it has nothing else."""

        def do_GET(self):  # noqa: N802 - as it is called
            path = unquote(self.path.partition("?")[0])
            if "/texts" not in path:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            elif path.startswith("/api/datasets/some/texts/tree/"):
                below = path.partition(f"/tree/{COMMIT}")[2].strip("/")
                self.answer_json(self.listing(below))
            elif path.startswith("/api/"):
                siblings = [{"rfilename": name} for name in files]
                self.answer_json({"id": "some/texts", "sha": COMMIT, "siblings": siblings})
            else:
                name = path.partition(f"/resolve/{COMMIT}/")[2]
                content = files.get(name)
                if content is None:
                    self.answer(404, X_Error_Code="EntryNotFound")
                else:
                    self.answer(200, content, ETag=f'"{len(content)}"', X_Repo_Commit=COMMIT)

        def do_POST(self):  # noqa: N802
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            paths = (
                json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
            )
            everything = [*self.listing(""), *self.listing("data")]
            self.answer_json([entry for entry in everything if entry["path"] in paths])

        def listing(self, below: str) -> list[dict[str, Any]]:
            folder = {"type": "directory", "path": "data", "oid": "d", "size": 0}
            in_data = [
                {"type": "file", "path": name, "oid": "f", "size": len(content)}
                for name, content in files.items()
            ]
            return in_data if below == "data" else [folder] if below == "" else []

        def answer_json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    with serving(Texts) as url:
        yield {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
