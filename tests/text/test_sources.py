import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest

import pipeline.text.files
from pipeline.errors import TextError
from pipeline.text.files import Format
from pipeline.text.open import heldout_of, open_text
from tests.helpers.dataset_hub import COMMIT, dataset_hub
from tests.helpers.refusals import refused

RECORDS = [{"text": "one"}, {"text": "two\nlines"}, {"text": ""}, {"text": None}, {"text": "é"}]
TEXTS = ["one", "two\nlines", "", "", "é"]


def parquet_of(column: str = "text") -> bytes:
    table = pyarrow.table({"id": range(len(TEXTS)), column: [row["text"] for row in RECORDS]})
    file = BytesIO()
    parquet.write_table(table, file, row_group_size=2)
    return file.getvalue()


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
FILES = {
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES.replace(b"\n", b"\n\n"), mtime=0),
    "a.json": json.dumps(RECORDS).encode(),
    "a.parquet": parquet_of(),
}
CUT_SHORT = gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9]


def written(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def save(path: Path, records=RECORDS) -> Path:
    datasets.Dataset.from_list(records).save_to_disk(str(path))
    return path


def texts_of(source: Path | str, start: int = 0, *, column: str = "text") -> list[str]:
    return list(open_text(str(source), column=column).documents(start))


@pytest.mark.parametrize("name", [*FILES, "saved"])
def test_every_kind_gives_its_documents_from_any_number_on(tmp_path, name):
    save(written(tmp_path, FILES) / "saved")
    for start in range(len(TEXTS) + 1):
        assert texts_of(tmp_path / name, start) == TEXTS[start:]
    with refused(TextError, r"no column 'body'.*'text'.*--text-column NAME"):
        texts_of(tmp_path / name, column="body")


def test_a_document_is_a_string_a_question_with_its_answer_or_a_column_asked_for(tmp_path):
    question = b'{"context": "1 + 1?", "completion": " 2"}'
    files = {"a.json": b'["a", "b"]', "b.jsonl": question, "c.parquet": parquet_of("body")}
    written(tmp_path, files)
    assert texts_of(tmp_path / "a.json") == ["a", "b"]
    assert texts_of(tmp_path / "b.jsonl") == ["1 + 1? 2"]
    assert texts_of(tmp_path / "c.parquet", column="body") == TEXTS


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    written(tmp_path, {f"{n}-{name}": content for n, (name, content) in enumerate(FILES.items())})
    written(tmp_path / "deeper", {"z.txt": b"last"})
    ignored = ("README.md", "SOURCE.md", "table.csv", ".hidden.txt", "LICENSE.txt")
    written(tmp_path, {"2b.txt": b""} | dict.fromkeys(ignored, b"not text"))
    whole = TEXTS * 4 + ["last"]
    for start in range(len(whole) + 1):
        assert texts_of(tmp_path, start) == whole[start:]


def test_a_format_is_one_entry(tmp_path, monkeypatch):
    """One word a document; found in a folder, skipped by its count, and its faults one line."""

    def read(path, column, start):
        assert column.name == "text"
        yield from path.read_text().split()[start:]

    words = Format(read=read, count=lambda path: len(path.read_text().split()))
    monkeypatch.setitem(pipeline.text.files.FORMATS, ".words", words)
    written(tmp_path, {"a.WORDS": b"one two three", "b.txt": b"four"})
    assert texts_of(tmp_path / "a.WORDS", 1) == ["two", "three"]
    for start in range(5):
        assert texts_of(tmp_path, start) == ["one", "two", "three", "four"][start:]
    (tmp_path / "a.WORDS").write_bytes(b"\xff")
    with refused(TextError, r"a\.WORDS is not UTF-8 text"):
        texts_of(tmp_path)
    with refused(TextError, "there is no text 'org/gone.words'"):
        open_text("org/gone.words")


def test_a_text_file_is_one_document(tmp_path):
    written(tmp_path, {"a.txt": "first\r\nsecond é".encode("utf-8-sig")})
    assert texts_of(tmp_path / "a.txt") == ["first\nsecond é"]


def test_a_long_text_file_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.text.files, "PIECE_CHARACTERS", 10)
    content = "".join(f"line {n}\n" for n in range(20)) + "x" * 25
    (tmp_path / "a.txt").write_text(content)
    pieces = texts_of(tmp_path / "a.txt")
    assert "".join(pieces) == content
    assert all(piece.endswith("\n") and len(piece) < 20 for piece in pieces[:-2])
    assert max(map(len, pieces)) <= 20
    assert texts_of(tmp_path / "a.txt", 2) == pieces[2:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', r"a\.jsonl line 3 is neither a record nor"),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl line 1 holds a int where text is expected"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl line 1 is not UTF-8 text"),
        ("a.jsonl", b'"a"\n{"text": "b\\ud83d"}', r"a\.jsonl line 2 holds \\ud83d, which is no"),
        ("a.json", b'["a\\udc00"]', r"a\.json record 1 holds \\udc00, which is no character"),
        ("a.jsonl", b'{"n": 1%s}' % (b"0" * 5000), r"a\.jsonl line 1 is not valid JSON"),
        ("a.jsonl", b"[" * 200_000, r"a\.jsonl line 1 is not valid JSON"),
        ("a.txt", b"caf\xe9\n", r"a\.txt is not UTF-8 text"),
        ("a.json", b'{"text": "a"}', r"a\.json is not a list of records or strings"),
        ("a.json", b"[{]", r"a\.json is not valid JSON"),
        ("a.parquet", b"PAR1 no", r"a\.parquet cannot be read"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.gz", CUT_SHORT, r"a\.jsonl\.gz cannot be read"),
    ],
    ids=[
        "jsonl, cut", "jsonl, a list", "jsonl, a number", "jsonl, not UTF-8", "half a pair",
        "half a pair in a list", "a long number", "deep lists", "txt, not UTF-8",
        "json, no list", "json, cut", "parquet", "no gzip", "gzip, cut short",
    ],
)  # fmt: skip
def test_a_damaged_file_is_a_one_line_error_that_names_it(tmp_path, name, content, message):
    written(tmp_path, {name: content})
    with refused(TextError, message):
        texts_of(tmp_path / name)


def test_a_record_that_is_no_text_is_told_by_its_number(tmp_path):
    body = pyarrow.table({"text": pyarrow.array([[1]] * 3)})
    parquet.write_table(body, tmp_path / "a.parquet", row_group_size=2)
    save(tmp_path / "saved", [{"text": [1]}] * 3)
    for name in ("a.parquet", "saved"):
        for start in range(3):
            with refused(TextError, f"{name} record {start + 1} holds a list where text is"):
                texts_of(tmp_path / name, start)


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("a\n")
    except OSError:
        pytest.skip("this system takes no such name")
    assert open_text(str(tmp_path)).fingerprint().startswith("sha256-2:")
    assert texts_of(tmp_path) == ["a\n"]


@pytest.mark.parametrize("name", ["table.csv", "folder"])
def test_what_holds_no_usable_file_lists_the_kinds(tmp_path, name):
    written(written(tmp_path, {"table.csv": b"a,b"}) / "folder", {"README.md": b"about"})
    with refused(TextError, r"\.jsonl, \.jsonl\.gz, \.md, \.parquet, \.txt"):
        open_text(str(tmp_path / name))


NEITHER = "--text takes builtin, builtin:arithmetic, the path"
EMBEDDED = "the embedded ones are builtin and builtin:arithmetic"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nope.txt", NEITHER),
        ("folder/nope.jsonl", NEITHER),
        ("./nope", NEITHER),
        ("/nope/no", NEITHER),
        ("nope", NEITHER),
        ("a/b/c", NEITHER),
        ("a/b:c:d@", NEITHER),
        ("builtin:nope", EMBEDDED),
        ("builtin@test", EMBEDDED),
        ("builtin:arithmetic@train", EMBEDDED),
    ],
)
def test_a_name_of_nothing_says_what_there_is(source, message):
    with refused(TextError, message):
        open_text(source)


def test_only_embedded_texts_have_a_heldout_part():
    for source in ("builtin", "builtin:arithmetic"):
        assert heldout_of(source) == f"{source}@heldout"
    for source in ("builtin@heldout", "builtin:arithmetic@heldout", "a/b", "a.txt"):
        assert heldout_of(source) is None


@pytest.fixture
def splits(tmp_path) -> Path:
    saved = datasets.DatasetDict()
    for name, texts in {"train": ["a", "b"], "test": ["c"]}.items():
        saved[name] = datasets.Dataset.from_dict({"text": texts})
    saved.save_to_disk(str(tmp_path / "splits"))
    return tmp_path / "splits"


def test_a_split_of_a_saved_folder_is_chosen_after_an_at_sign(splits):
    assert texts_of(f"{splits}@test") == ["c"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("splits", "train, test: name one, as --text .*splits@train"),
        ("splits@valid", "train, test: name one, as --text .*splits@train"),
        ("saved@test", "has no splits: leave out @test"),
        ("damaged", "cannot be read"),
    ],
)
def test_a_saved_folder_that_cannot_be_used_is_a_one_line_error(splits, tmp_path, name, message):
    save(tmp_path / "saved")
    (save(tmp_path / "damaged") / "state.json").write_text("{")
    with refused(TextError, message):
        texts_of(tmp_path / name)


def test_equal_files_have_equal_fingerprints_wherever_they_lie(tmp_path):
    content = b"a\n" * 100_000
    variants = {
        "as it was": {"a.txt": content, "b.txt": b"z"},
        "the same": {"a.txt": content, "b.txt": b"z"},
        "start": {"a.txt": b"b" + content[1:], "b.txt": b"z"},
        "end": {"a.txt": content[:-1] + b"b", "b.txt": b"z"},
        "middle": {"a.txt": content[:99_999] + b"b" + content[100_000:], "b.txt": b"z"},
        "size": {"a.txt": content + b"a\n", "b.txt": b"z"},
        "name": {"c.txt": content, "b.txt": b"z"},
        "other": {"a.txt": content, "b.txt": b"y"},
    }
    prints = {
        variant: open_text(str(written(tmp_path / variant, files))).fingerprint()
        for variant, files in variants.items()
    }
    assert prints["as it was"] == prints["the same"]
    assert len(set(prints.values())) == len(variants) - 1


def test_of_much_text_evenly_spaced_blocks_are_covered(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.fingerprints._OF_TEXT", (10, 100))
    sizes = {"long.txt": 3_000, "short.txt": 40, "within.txt": 1_000}
    folder = written(tmp_path / "texts", {name: bytes(n) for name, n in sizes.items()})
    text = open_text(str(folder))
    before, covered = text.fingerprint(), dict[str, list[int]]()
    for name, n in sizes.items():
        covered[name] = []
        for i in range(0, n, 10):
            with (folder / name).open("r+b") as file:
                file.seek(i)
                file.write(b"?")
                file.flush()
                changed = text.fingerprint() != before
                file.seek(i)
                file.write(b"\0")
            covered[name] += [i] * changed
    assert text.fingerprint() == before
    blocks = [start for start in covered["long.txt"] if start - 10 not in covered["long.txt"]]
    assert (blocks[0], blocks[-1], len(blocks)) == (0, 2_900, 8)
    assert len(covered["short.txt"]) == 4
    assert {0, 990} < set(covered["within.txt"]) and len(covered["within.txt"]) == 30


def test_a_fingerprint_of_before_is_compared_as_it_was_made(tmp_path):
    content = b"a\n" * 100_000
    edited = content[:99_999] + b"b" + content[100_000:]
    told = f"a.txt:{len(content)}\n".encode() + content[: 1 << 16] + content[-(1 << 16) :]
    stored = f"sha256:{hashlib.sha256(told).hexdigest()}"
    for name, data in (("as it was", content), ("edited", edited)):  # it tells no more
        text = open_text(str(written(tmp_path / name, {"a.txt": data})))
        assert text.fingerprint_like(stored) == stored
        assert text.fingerprint_like(text.fingerprint()) == text.fingerprint()


def test_a_saved_folder_has_a_fingerprint(tmp_path):
    path, other = save(tmp_path / "saved"), save(tmp_path / "other", RECORDS[:2])
    before = open_text(str(path)).fingerprint()
    assert before == open_text(str(path)).fingerprint() != open_text(str(other)).fingerprint()


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


@pytest.fixture
def hub(tmp_path) -> Iterator[dict[str, str]]:
    with dataset_hub({"data/train-0.jsonl": LINES}, home=tmp_path) as environment:
        yield environment


def test_a_dataset_of_the_hub_is_streamed_from_any_number_on(hub):
    answer = read_in_a_new_process("some/texts", start=1, **hub)
    assert answer["texts"] == TEXTS[1:]
    assert answer["fingerprint"] == f"commit:{COMMIT}"


@pytest.mark.parametrize(
    ("source", "environment", "message"),
    [
        ("some/thing", {}, "the hub has no dataset some/thing"),
        ("some/texts@nope", {}, "some/texts@nope cannot be read.*train"),
        ("some/texts", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "could not be reached.* local path"),
        ("some/texts", {"HF_HUB_OFFLINE": "1"}, "could not be reached for dataset.* local path"),
    ],
    ids=["no dataset", "no split", "no network", "offline mode"],
)
def test_what_the_hub_does_not_give_is_one_line_within_seconds(hub, source, environment, message):
    answer = read_in_a_new_process(source, **hub | environment)
    assert re.search(message, answer["error"])
    assert "\n" not in answer["error"]
    assert answer["seconds"] < 10
