import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import pipeline.text.contexts
from pipeline.errors import TextError
from pipeline.text.contexts import Contexts, ContextStream, Cursor, ReadAhead
from pipeline.text.source import TextSource

END = 0


class Letters:
    """One token a character, then the separator; a bar ends a document inside of another."""

    def __init__(self):
        self.calls: list[int] = []

    def parts(self, document: list[int]) -> list[list[int]]:
        ends = [i + 1 for i, token in enumerate(document) if token == ord("|")]
        return [document[i:j] for i, j in pairwise([0, *ends, len(document)])]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        self.calls.append(len(texts))
        return [[*map(ord, text), END] for text in texts]


class Listed(TextSource):
    """Documents from a list; remembers which were read."""

    def __init__(self, documents: Sequence[str], *, failure: BaseException | None = None):
        self.name = "listed"
        self.read: list[int] = []
        self._documents = documents
        self._failure = failure

    def fingerprint(self) -> str:
        return "listed"

    def documents(self, start: int = 0) -> Iterator[str]:
        for number in range(start, len(self._documents)):
            self.read.append(number)
            yield self._documents[number]
        if self._failure is not None:
            raise self._failure


def flat(documents: Sequence[str], *, unit: int = 1) -> list[tuple[int, int]]:
    """(token, document) of everything, by the plainest loop; of parts whole multiples of `unit`."""
    found, breaks = [], 0
    for number, text in enumerate(documents):
        if text.strip():
            pieces = [p for p in split_after(f"{text}\0", "|") if len(p) >= unit]
            for i, piece in enumerate(pieces):
                breaks += i > 0
                kept = piece[: len(piece) // unit * unit]
                found += [(ord(letter), number + breaks) for letter in kept]
    return found


def split_after(text: str, mark: str) -> list[str]:
    """What ends with each mark, and the rest."""
    *first, last = text.split(mark)
    return [*(piece + mark for piece in first), last]


def drain(stream: ContextStream, n: int) -> list[tuple[Cursor, Contexts]]:
    """Every take of `n`, with the cursor after it; the last, short take included."""
    taken: list[tuple[Cursor, Contexts]] = []
    while not taken or len(taken[-1][1].tokens) == n:
        contexts = stream.take(n)
        taken.append((stream.cursor, contexts))
    return taken


def pairs(parts: Sequence[Contexts]) -> list[tuple[int, int]]:
    tokens = np.concatenate([part.tokens.ravel() for part in parts])
    documents = np.concatenate([part.document_id.ravel() for part in parts])
    return list(zip(tokens.tolist(), documents.tolist(), strict=True))


texts = st.lists(st.text(alphabet="ab |\n", max_size=12), min_size=1, max_size=8).filter(
    lambda documents: any(text.strip() for text in documents)
)


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(pipeline.text.contexts, "GROUP_CHARACTERS", 16)
    monkeypatch.setattr(pipeline.text.contexts, "_FIRST_GROUP", 4)


@pytest.mark.usefixtures("small_groups")
class TestAnyDocuments:
    @settings(deadline=None, max_examples=60)
    @given(documents=texts, ctx_len=st.integers(1, 7), n=st.integers(1, 4))
    def test_contexts_are_the_documents_end_to_end_and_only_a_partial_one_is_lost(
        self, documents, ctx_len, n
    ):
        with ContextStream(Listed(documents), Letters(), ctx_len=ctx_len) as stream:
            parts = [contexts for _, contexts in drain(stream, n)]
        expected = flat(documents)
        assert pairs(parts) == expected[: len(expected) // ctx_len * ctx_len]
        assert all(part.tokens.shape == part.document_id.shape for part in parts)

    @settings(deadline=None, max_examples=60)
    @given(documents=texts, ctx_len=st.integers(1, 7), n=st.integers(1, 4))
    def test_kept_separate_no_context_holds_two_documents(self, documents, ctx_len, n):
        apart = ContextStream(Listed(documents), Letters(), ctx_len=ctx_len, documents="separate")
        with apart as stream:
            parts = [contexts for _, contexts in drain(stream, n)]
        assert pairs(parts) == flat(documents, unit=ctx_len)
        for part in parts:
            assert (part.document_id == part.document_id[:, :1]).all()

    @settings(deadline=None, max_examples=60)
    @given(
        documents=texts, ctx_len=st.integers(1, 7), other=st.integers(1, 5),
        how=st.sampled_from(["joined", "separate"]),
    )  # fmt: skip
    def test_a_stream_opened_at_any_cursor_goes_on_as_the_first_would_have(
        self, documents, ctx_len, other, how
    ):
        options = {"ctx_len": ctx_len, "documents": how}
        with ContextStream(Listed(documents), Letters(), **options) as stream:
            whole = drain(stream, 1)
        for done, (cursor, _) in enumerate(whole, start=1):
            kept = Cursor.from_json(asdict(cursor))
            source = Listed(documents)
            with ContextStream(source, Letters(), **options, start=kept) as stream:
                rest = drain(stream, other)
            expected = [contexts for _, contexts in whole[done:]]
            assert pairs([part for _, part in rest]) == (pairs(expected) if expected else [])
            assert rest[-1][0] == whole[-1][0]
            assert all(number >= cursor.document for number in source.read)


def test_after_the_last_token_of_a_document_the_cursor_is_at_the_next_one():
    with ContextStream(Listed(["abc", "de"]), Letters(), ctx_len=2) as stream:
        cursors = [(stream.take(1), stream.cursor)[1] for _ in range(3)]
    assert cursors == [
        Cursor(document=0, offset=2),
        Cursor(document=1, offset=0),
        Cursor(document=1, offset=2),
    ]


@pytest.mark.parametrize("start", [Cursor(document=1, offset=1), Cursor(document=2)])
def test_nothing_taken_leaves_the_cursor_where_it_is(start):
    with ContextStream(Listed(["abc", "de"]), Letters(), ctx_len=5, start=start) as stream:
        contexts = stream.take(3)
        assert contexts.tokens.shape == (0, 5)
        assert (contexts.tokens.dtype, contexts.document_id.dtype) == (np.int32, np.int64)
        assert stream.cursor == start


def test_empty_documents_keep_their_number_but_give_no_token():
    tokenizer = Letters()
    documents = ["", "ab", " \n", "", "cd"]
    with ContextStream(Listed(documents), tokenizer, ctx_len=3) as stream:
        contexts = stream.take(9)
    assert contexts.document_id.tolist() == [[1, 1, 1], [4, 4, 4]]
    assert tokenizer.calls == [2]


@pytest.mark.parametrize("documents", [[], ["", " ", "\n"]])
def test_a_source_without_any_text_is_an_error(documents):
    with (
        ContextStream(Listed(documents), Letters(), ctx_len=2) as stream,
        pytest.raises(TextError, match=r"^listed holds no text$"),
    ):
        stream.take(1)


def test_what_was_read_before_an_error_is_still_given_and_the_error_each_time(small_groups):
    source = Listed(["abcdefgh"], failure=TextError("line 7 is no JSON"))
    with ContextStream(source, Letters(), ctx_len=4) as stream:
        assert stream.take(1).tokens.tolist() == [[*map(ord, "abcd")]]
        assert stream.take(1).tokens.tolist() == [[*map(ord, "efgh")]]
        for _ in range(2):
            with pytest.raises(TextError, match="line 7"):
                stream.take(1)


def test_documents_are_tokenised_many_at_a_time():
    tokenizer = Letters()
    with ContextStream(Listed(["x" * 100] * 4000), tokenizer, ctx_len=101) as stream:
        assert len(stream.take(4001).tokens) == 4000
    assert sum(tokenizer.calls) == 4000
    assert len(tokenizer.calls) <= 4


def test_the_thread_reads_no_further_ahead_than_it_is_told(small_groups):
    source = Listed(["x" * 20] * 1000)
    with ContextStream(source, Letters(), ctx_len=21) as stream:
        stream.take(1)
        time.sleep(0.1)
        assert len(source.read) <= 5


def test_closing_stops_the_thread_while_text_is_left():
    before = threading.active_count()
    stream = ContextStream(Listed(["x" * 2**20] * 1000), Letters(), ctx_len=8)
    stream.take(1)
    began = time.perf_counter()
    stream.close()
    stream.close()
    assert threading.active_count() == before
    assert time.perf_counter() - began < 2


def test_an_endless_source_is_read_ahead_in_order():
    ahead = ReadAhead(iter(range(10**9)), items=2)
    assert [ahead.get() for _ in range(100)] == list(range(100))
    ahead.close()
