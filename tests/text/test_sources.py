import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest

import pipeline.text.files
from pipeline.errors import TextError
from pipeline.text.files import Format
from pipeline.text.open import heldout_of, open_text
from tests.helpers.standin import StandIn, serving

RECORDS = [{"text": "one"}, {"text": "two\nlines"}, {"text": ""}, {"text": None}, {"text": "é"}]
TEXTS = ["one", "two\nlines", "", "", "é"]


def write_jsonl(path: Path, records=RECORDS) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def write_jsonl_gz(path: Path) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n\n" for record in RECORDS)
    return path


def write_json(path: Path, value: object = RECORDS) -> Path:
    path.write_text(json.dumps(value), "utf-8")
    return path


def write_parquet(path: Path, *, column: str = "text") -> Path:
    table = pyarrow.table({"id": range(len(TEXTS)), column: [row["text"] for row in RECORDS]})
    parquet.write_table(table, path, row_group_size=2)
    return path


def write_saved(path: Path) -> Path:
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(path))
    return path


KINDS = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_jsonl_gz,
    "a.json": write_json,
    "a.parquet": write_parquet,
    "saved": write_saved,
}

CUT_SHORT = gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_its_documents_from_any_number_on(tmp_path, name):
    path = KINDS[name](tmp_path / name)
    for start in range(len(TEXTS) + 1):
        assert list(open_text(str(path)).documents(start)) == TEXTS[start:]


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    for number, name in enumerate(("a.jsonl", "a.jsonl.gz", "a.json", "a.parquet")):
        KINDS[name](tmp_path / f"{number}-{name}")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "z.txt").write_text("last")
    (tmp_path / "2b.txt").write_text("")
    for ignored in ("README.md", "SOURCE.md", "table.csv", ".hidden.txt", "LICENSE.txt"):
        (tmp_path / ignored).write_text("not text")
    whole = TEXTS * 4 + ["last"]
    for start in range(len(whole) + 1):
        assert list(open_text(str(tmp_path)).documents(start)) == whole[start:]


def test_a_format_is_one_entry(tmp_path, monkeypatch):
    """One word a document; found in a folder, skipped by its count, and its faults one line."""

    def read(path, column, start):
        assert column == "text"
        yield from path.read_text().split()[start:]

    words = Format(read=read, count=lambda path: len(path.read_text().split()))
    monkeypatch.setitem(pipeline.text.files.FORMATS, ".words", words)
    (tmp_path / "a.WORDS").write_text("one two three")
    (tmp_path / "b.txt").write_text("four")
    assert list(open_text(str(tmp_path / "a.WORDS")).documents(1)) == ["two", "three"]
    for start in range(5):
        texts = list(open_text(str(tmp_path)).documents(start))
        assert texts == ["one", "two", "three", "four"][start:]
    (tmp_path / "a.WORDS").write_bytes(b"\xff")
    with pytest.raises(TextError, match=r"a\.WORDS is not UTF-8 text"):
        list(open_text(str(tmp_path)).documents())
    with pytest.raises(TextError, match="there is no text 'org/gone.words'"):
        open_text("org/gone.words")


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("first\r\nsecond é".encode("utf-8-sig"))
    assert list(open_text(str(tmp_path / "a.txt")).documents()) == ["first\nsecond é"]


def test_a_long_text_file_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.text.files, "PIECE_CHARACTERS", 10)
    content = "".join(f"line {n}\n" for n in range(20)) + "x" * 25
    (tmp_path / "a.txt").write_text(content)
    pieces = list(open_text(str(tmp_path / "a.txt")).documents())
    assert "".join(pieces) == content
    assert all(piece.endswith("\n") and len(piece) < 20 for piece in pieces[:-2])
    assert max(map(len, pieces)) <= 20
    assert list(open_text(str(tmp_path / "a.txt")).documents(2)) == pieces[2:]


def test_a_list_of_strings_is_text(tmp_path):
    path = write_json(tmp_path / "a.json", ["one", "two"])
    assert list(open_text(str(path)).documents()) == ["one", "two"]


def test_a_question_and_its_answer_are_one_document(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"context": "Q: 1 + 1?\nA:", "completion": " 2"}])
    assert list(open_text(str(path)).documents()) == ["Q: 1 + 1?\nA: 2"]


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_missing_column_names_those_there_and_the_setting(tmp_path, write):
    path = write(tmp_path / ("a.jsonl" if write is write_jsonl else "a.parquet"))
    with pytest.raises(TextError, match=r"no column 'body'.*'text'.*text_column = ") as caught:
        list(open_text(str(path), column="body").documents())
    assert "\n" not in str(caught.value)


def test_another_column_is_read_when_asked_for(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", column="body")
    assert list(open_text(str(path), column="body").documents()) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', r"a\.jsonl line 3 is neither a record nor"),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl line 1 holds a int where text is expected"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl.*UTF-8"),
        ("a.txt", b"caf\xe9\n", r"a\.txt is not UTF-8 text"),
        ("a.json", b'{"text": "a"}', r"a\.json is not a list of records or strings"),
        ("a.json", b"[{]", r"a\.json is not valid JSON"),
        ("a.parquet", b"PAR1 no", r"a\.parquet cannot be read"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.gz", CUT_SHORT, r"a\.jsonl\.gz cannot be read"),
    ],
    ids=[
        "jsonl, cut", "jsonl, a list", "jsonl, a number", "jsonl, not UTF-8", "txt, not UTF-8",
        "json, no list", "json, cut", "parquet", "no gzip", "gzip, cut short",
    ],
)  # fmt: skip
def test_a_damaged_file_is_a_one_line_error_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message) as caught:
        list(open_text(str(tmp_path / name)).documents())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["table.csv", "folder"])
def test_what_holds_no_usable_file_lists_the_kinds(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("about")
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(TextError, match=r"\.jsonl, \.jsonl\.gz, \.md, \.parquet, \.txt"):
        open_text(str(tmp_path / name))


@pytest.mark.parametrize(
    "source", ["nope.txt", "folder/nope.jsonl", "./nope", "/nope/no", "nope", "a/b/c", "a/b:c:d@"]
)
def test_what_is_neither_a_path_nor_a_name_says_what_is(source):
    with pytest.raises(TextError, match=r"--text takes builtin, builtin:arithmetic, the path"):
        open_text(source)


@pytest.mark.parametrize("source", ["builtin:nope", "builtin@test", "builtin:arithmetic@train"])
def test_an_unknown_embedded_text_lists_those_there_are(source):
    with pytest.raises(TextError, match="the embedded ones are builtin and builtin:arithmetic"):
        open_text(source)


@pytest.mark.parametrize(
    "source", ["builtin", "builtin@heldout", "builtin:arithmetic", "builtin:arithmetic@heldout"]
)
def test_embedded_texts_open_by_name(source):
    assert open_text(source).name == source
    assert next(open_text(source).documents())


def test_only_embedded_texts_have_a_heldout_part():
    assert heldout_of("builtin") == "builtin@heldout"
    assert heldout_of("builtin:arithmetic") == "builtin:arithmetic@heldout"
    for source in ("builtin@heldout", "builtin:arithmetic@heldout", "a/b", "a.txt"):
        assert heldout_of(source) is None


class TestSavedFolder:
    def save(self, path: Path) -> Path:
        parts = {"train": ["a", "b"], "test": ["c"]}
        saved = datasets.DatasetDict()
        for name, texts in parts.items():
            saved[name] = datasets.Dataset.from_dict({"text": texts})
        saved.save_to_disk(str(path))
        return path

    def test_a_split_is_chosen_after_an_at_sign(self, tmp_path):
        path = self.save(tmp_path / "saved")
        assert list(open_text(f"{path}@test").documents()) == ["c"]

    @pytest.mark.parametrize("split", ["", "@valid"])
    def test_without_a_split_that_is_there_the_splits_are_listed(self, tmp_path, split):
        path = self.save(tmp_path / "saved")
        with pytest.raises(TextError, match=r"train, test: name one, as --text .*saved@train"):
            list(open_text(f"{path}{split}").documents())

    def test_a_split_of_what_has_none_is_an_error(self, tmp_path):
        path = write_saved(tmp_path / "saved")
        with pytest.raises(TextError, match="has no splits: leave out @test"):
            list(open_text(f"{path}@test").documents())

    def test_a_missing_column_names_those_there(self, tmp_path):
        path = write_saved(tmp_path / "saved")
        with pytest.raises(TextError, match="no column 'body'"):
            list(open_text(str(path), column="body").documents())

    def test_a_damaged_folder_is_a_one_line_error(self, tmp_path):
        path = write_saved(tmp_path / "saved")
        (path / "state.json").write_text("{")
        with pytest.raises(TextError, match="cannot be read"):
            list(open_text(str(path)).documents())


class TestFingerprint:
    def test_equal_files_have_equal_ones_wherever_they_lie(self, tmp_path):
        prints = set()
        for folder in ("x", "y"):
            (tmp_path / folder).mkdir()
            write_jsonl(tmp_path / folder / "a.jsonl")
            prints |= {open_text(str(tmp_path / folder)).fingerprint()}
        assert len(prints) == 1

    def test_name_size_start_and_end_of_every_file_count(self, tmp_path):
        content = b"a\n" * 100_000
        variants = {
            "start": {"a.txt": b"b" + content[1:], "b.txt": b"z"},
            "end": {"a.txt": content[:-1] + b"b", "b.txt": b"z"},
            "size": {"a.txt": content + b"a\n", "b.txt": b"z"},
            "name": {"c.txt": content, "b.txt": b"z"},
            "other": {"a.txt": content, "b.txt": b"y"},
            "same": {"a.txt": content, "b.txt": b"z"},
        }
        prints = set()
        for variant, files in variants.items():
            (tmp_path / variant).mkdir()
            for name, data in files.items():
                (tmp_path / variant / name).write_bytes(data)
            prints.add(open_text(str(tmp_path / variant)).fingerprint())
        assert len(prints) == len(variants)

    def test_a_saved_folder_has_one(self, tmp_path):
        path = write_saved(tmp_path / "saved")
        before = open_text(str(path)).fingerprint()
        datasets.Dataset.from_list(RECORDS[:2]).save_to_disk(str(tmp_path / "other"))
        assert before == open_text(str(path)).fingerprint()
        assert before != open_text(str(tmp_path / "other")).fingerprint()


READ = """
import json, sys, time
from pipeline.errors import TextError
from pipeline.text.open import open_text

began = time.perf_counter()
try:
    source = open_text(sys.argv[1])
    texts = list(source.documents(int(sys.argv[2])))
    answer = {"fingerprint": source.fingerprint(), "texts": texts}
except TextError as error:
    answer = {"error": str(error)}
print(json.dumps(answer | {"seconds": time.perf_counter() - began}))
"""


def read_in_a_new_process(source: str, *, start: int = 0, **environment: str) -> dict[str, Any]:
    """Where the hub lies is read from the environment once, when its client is imported."""
    done = subprocess.run(
        [sys.executable, "-c", READ, source, str(start)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_an_unreachable_hub_says_so_within_seconds_and_offers_a_local_path(tmp_path, environment):
    answer = read_in_a_new_process("some/texts", HF_HOME=str(tmp_path), **environment)
    assert "the hub could not be reached for dataset some/texts" in answer["error"]
    assert "local path" in answer["error"]
    assert "\n" not in answer["error"]
    assert answer["seconds"] < 10


COMMIT = "c0ffee" + "0" * 34
FILES = {"data/train-0.jsonl": "".join(json.dumps(r) + "\n" for r in RECORDS).encode()}


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
            siblings = [{"rfilename": name} for name in FILES]
            self.answer_json({"id": "some/texts", "sha": COMMIT, "siblings": siblings})
        else:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            content = FILES.get(name)
            if content is None:
                self.answer(404, X_Error_Code="EntryNotFound")
            else:
                self.answer(200, content, ETag=f'"{len(content)}"', X_Repo_Commit=COMMIT)

    def do_POST(self):  # noqa: N802
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
        everything = [*self.listing(""), *self.listing("data")]
        self.answer_json([entry for entry in everything if entry["path"] in paths])

    def listing(self, below: str) -> list[dict[str, Any]]:
        folder = {"type": "directory", "path": "data", "oid": "d", "size": 0}
        files = [
            {"type": "file", "path": name, "oid": "f", "size": len(content)}
            for name, content in FILES.items()
        ]
        return files if below == "data" else [folder] if below == "" else []

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")


@pytest.fixture
def hub(tmp_path) -> Iterator[dict[str, str]]:
    """A local stand-in for the hub; what a process must know to use it."""
    with serving(Texts) as url:
        yield {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}


def test_a_dataset_of_the_hub_is_streamed_from_any_number_on(hub):
    answer = read_in_a_new_process("some/texts", start=1, **hub)
    assert answer["texts"] == TEXTS[1:]
    assert answer["fingerprint"] == f"commit:{COMMIT}"


def test_a_dataset_that_the_hub_does_not_have_is_not_called_unreachable(hub):
    answer = read_in_a_new_process("some/thing", **hub)
    assert "the hub has no dataset some/thing" in answer["error"]
    assert "\n" not in answer["error"]


def test_a_split_that_the_dataset_lacks_lists_those_there_are(hub):
    answer = read_in_a_new_process("some/texts@nope", **hub)
    assert "some/texts@nope cannot be read" in answer["error"]
    assert "train" in answer["error"]
