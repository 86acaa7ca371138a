import gzip
import time

import pytest

from tests.helpers.ids import LONGEST, ROOT, wrong_with


def test_every_collected_test_has_a_short_name_that_no_process_changes(collected_ids):
    wrong = {node_id: found for node_id in collected_ids if (found := wrong_with(node_id))}
    assert not wrong, "give these explicit ids"
    assert len(set(collected_ids)) == len(collected_ids)


@pytest.mark.parametrize("inside", ["a-b", "k=8,seed=0 twice", "{'dtype': 'float32'}", "a.b/c"])
def test_an_ordinary_name_is_right(inside):
    assert wrong_with(f"tests/test_a.py::test_b[{inside}]") == []


BAD = {
    "bytes": repr(gzip.compress(b"", mtime=time.time())),
    "escapes": r"\x1f\x8b\x08\x00",
    "line feed": r"a\nb",
    "object": repr(object()),
    "lambda": repr(lambda: 0),
    "set": repr({"a", "b"}),
    "long": "a" * (LONGEST + 1),
    "not ASCII": "é",
    "checkout": f"{ROOT}/data",
}


@pytest.mark.parametrize("what", BAD)
def test_a_name_of_another_kind_is_seen(what):
    assert wrong_with(f"tests/test_a.py::test_b[x-{BAD[what]}]")


def test_a_temporary_path_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert wrong_with(f"tests/test_a.py::test_b[{tmp_path}/a]")
