"""A local server that stands in for the hub as a place to write to, too: repositories in memory.

It speaks what huggingface_hub does without xet: create, preupload, large files by their SHA-256,
commits as lines of JSON, trees, files with their ETag. What it shall fail at is told it by a test.
"""

import base64
import hashlib
import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from tests.helpers.standin import StandIn, serving

TOKEN = "hf_" + "sEcReT" * 6
"""Of whoever may write; a test looks for it in whatever is said."""
LARGE = (".safetensors", ".parquet", ".png")
"""Endings of files that git keeps elsewhere; so it does with what is no text."""


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """Branches, each a list of commits; a commit is its id and all files."""

    private: bool = False
    gated: bool = False
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        log = self.branches.setdefault(branch, [])
        n = sum(map(len, self.branches.values()))
        oid = hashlib.sha1(f"{branch}{n}".encode()).hexdigest()
        log.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        every = [one for log in self.branches.values() for one in log]
        return next((one for one in every if one[0] == revision), None)


@dataclass
class Hub:
    """What is on it, and what was asked of it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By kind and name: `models/org/name`."""
    large: dict[str, bytes] = field(default_factory=dict)
    """Files that were sent, by their SHA-256."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""
    fails: Callable[[str], int | None] = lambda what: None
    """The status to answer such a request with in place of what it asks for; None serves it.

    999 cuts the answer in its middle.
    """
    latency: float = 0.0
    bytes_per_s: float = float("inf")
    writers: tuple[str, ...] = (TOKEN,)

    def put(self, name: str, files: dict[str, bytes], *, branch: str = "main") -> str:
        """Have a repository of these files."""
        return self.repositories.setdefault(name, Repository()).commit(branch, dict(files))

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[name].branches[branch][-1][1]

    def sent(self) -> list[str]:
        """Requests that changed something."""
        return [one for one in self.asked if "/commit/" in one or one.startswith("PUT")]


def _handler(hub: Hub) -> type[StandIn]:
    class Answers(StandIn):
        def do_GET(self):  # noqa: N802 - as it is called
            self.served(self.get)

        def do_POST(self):  # noqa: N802
            self.served(self.post)

        def do_PUT(self):  # noqa: N802
            self.served(self.put)

        def served(self, serve: Callable[[], None]) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.where = urlparse(self.path)
            self.parts = unquote(self.where.path).strip("/").split("/")
            asked = f"{self.command} {unquote(self.path)}"
            hub.asked.append(asked)
            time.sleep(hub.latency)
            status = hub.fails(asked)
            if status == 999 and self.command == "HEAD":
                serve()
            elif status == 999:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"cut")
                self.close_connection = True
            elif status is not None:
                token = self.headers.get("Authorization", "")
                self.answer(status, f"no: {token}".encode(), X_Error_Message=f"no: {token}")
            else:
                serve()

        def told(self, value: object, status: int = 200) -> None:
            self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

        def may_write(self) -> bool:
            return self.headers.get("Authorization", "") in {f"Bearer {t}" for t in hub.writers}

        def missing(self, what: str = "Repo") -> None:
            self.answer(404, b"{}", X_Error_Code=f"{what}NotFound")

        def repository(self, name: str) -> Repository | None:
            found = hub.repositories.get(name)
            if found is None or (found.private and not self.may_write()):
                self.missing()
                return None
            if found.gated and not self.may_write():
                self.answer(403, b"{}", X_Error_Code="GatedRepo")
                return None
            return found

        def get(self) -> None:
            if self.parts[0] != "api":
                return self.resolve()
            name, rest = "/".join(self.parts[1:4]), self.parts[4:]
            repository = self.repository(name)
            if repository is None:
                return None
            revision = rest[1] if len(rest) > 1 else "main"
            found = repository.at(revision)
            if found is None:
                return self.missing("Revision")
            commit, files = found
            if rest[:1] == ["tree"]:
                return self.tree(files, "/".join(rest[2:]))
            return self.told({
                "id": "/".join(self.parts[2:4]), "sha": commit, "private": repository.private,
                "siblings": [{"rfilename": path} for path in files], "tags": [], "downloads": 0,
            })  # fmt: skip

        def tree(self, files: dict[str, bytes], folder: str) -> None:
            below = f"{folder}/" if folder else ""
            found: list[dict[str, Any]] = []
            folders = set[str]()
            for path, data in files.items():
                if not path.startswith(below):
                    continue
                entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
                if is_large(path, data):
                    sha = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
                found.append(entry)
                folders |= {path.rpartition("/")[0]} - {""}
            if below and not found:
                return self.missing("Entry")
            found += [
                {"type": "directory", "path": path, "oid": "d", "size": 0} for path in folders
            ]
            return self.told(found)

        def resolve(self) -> None:
            parts = self.parts
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if parts[0] == "datasets" else parts
            repository = self.repository(f"{kind}/{'/'.join(parts[:2])}")
            if repository is None:
                return None
            found = repository.at(parts[3])
            if found is None:
                return self.missing("Revision")
            commit, files = found
            path = "/".join(parts[4:])
            if path not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            data = files[path]
            sha = hashlib.sha256(data).hexdigest() if is_large(path, data) else git_oid(data)
            told = {"ETag": f'"{sha}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes=") and self.command == "GET":
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or len(data) - 1), len(data) - 1) + 1
                told["Content_Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                part = data[start:stop]
                time.sleep(len(part) / hub.bytes_per_s)
                return self.answer(206, part, **told)
            if self.command == "GET":
                time.sleep(len(data) / hub.bytes_per_s)
            return self.answer(200, data, **told)

        def post(self) -> None:
            if not self.may_write():
                self.answer(
                    401, b"{}", X_Error_Message="Invalid credentials in Authorization header"
                )
            elif self.parts == ["api", "validate-yaml"]:
                self.told({"errors": [], "warnings": []})
            elif self.parts == ["api", "repos", "create"]:
                self.create(json.loads(self.body))
            elif self.parts[-2:] == ["objects", "batch"]:
                self.batch(json.loads(self.body))
            else:
                name = "/".join(self.parts[1:4])
                if (repository := self.repository(name)) is not None:
                    self.change(repository, self.parts[4], "/".join(self.parts[5:]))

        def create(self, told: dict[str, Any]) -> None:
            kind = told.get("type") or "model"
            name = f"{told['organization']}/{told['name']}"
            private = bool(told.get("private")) or told.get("visibility") == "private"
            known = f"{kind}s/{name}"
            if known in hub.repositories:
                return self.told({"error": "there"}, 409)
            hub.repositories[known] = Repository(private=private)
            hub.put(known, {".gitattributes": b"*.safetensors filter=lfs\n"})
            prefix = "" if kind == "model" else f"{kind}s/"
            return self.told({"url": f"{hub.url}/{prefix}{name}"})

        def change(self, repository: Repository, what: str, revision: str) -> None:
            if what == "branch":
                repository.branches.setdefault(revision, [*repository.branches["main"][-1:]])
                return self.told({})
            found = repository.at(revision)
            if found is None:
                return self.missing("Revision")
            commit, files = found
            if what == "preupload":
                asked = json.loads(self.body)["files"]
                return self.told({"files": [self.mode(one, files) for one in asked]})
            if what == "paths-info":
                return self.told([])
            assert what == "commit"
            return self.committed(repository, revision, commit, dict(files))

        def mode(self, asked: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
            path = asked["path"]
            large = is_large(path, base64.b64decode(asked["sample"]))
            told = {
                "path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False,
            }  # fmt: skip
            if path in files:
                data = files[path]
                told["oid"] = hashlib.sha256(data).hexdigest() if large else git_oid(data)
            return told

        def committed(
            self, repository: Repository, revision: str, parent: str, files: dict[str, bytes]
        ) -> None:
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                match line["key"]:
                    case "header":
                        if value.get("parentCommit", parent) != parent:
                            return self.answer(412, b"{}")
                    case "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        files[value["path"]] = hub.large[value["oid"]]
                    case "deletedFile":
                        del files[value["path"]]
                    case other:
                        raise AssertionError(other)
            oid = repository.commit(revision, files)
            where = "/".join(self.parts[1:4]).removeprefix("models/")
            return self.told({"commitUrl": f"{hub.url}/{where}/commit/{oid}", "commitOid": oid})

        def batch(self, asked: dict[str, Any]) -> None:
            objects: list[dict[str, Any]] = []
            for one in asked["objects"]:
                told = {"oid": one["oid"], "size": one["size"]}
                if one["oid"] not in hub.large:
                    told["actions"] = {"upload": {"href": f"{hub.url}/large/{one['oid']}"}}
                objects.append(told)
            self.told({"transfer": "basic", "objects": objects})

        def put(self) -> None:
            sha = hashlib.sha256(self.body).hexdigest()
            assert sha == self.parts[-1]
            hub.large[sha] = self.body
            self.answer(200)

    return Answers


def is_large(path: str, data: bytes) -> bool:
    return path.endswith(LARGE) or b"\0" in data[:512] or len(data) > 10_000_000


@contextmanager
def serving_hub() -> Generator[Hub]:
    """A hub with nothing on it."""
    hub = Hub()
    with serving(_handler(hub)) as url:
        hub.url = url
        yield hub


def point_here(monkeypatch: pytest.MonkeyPatch, hub: Hub, home: Any, *, token: str = TOKEN) -> None:
    """Have the hub's client in this process ask this server, with its own token and cache."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    at_once = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", at_once)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    for module in (constants, file_download):  # which had a copy of it before the hub's 1.0
        monkeypatch.setattr(
            module, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template, raising=False
        )
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
