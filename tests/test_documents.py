"""Reading in search of documents that fill a window: what is counted, what is told, and that it ends."""

import json
from itertools import count

import numpy as np
import pytest

import depthscope as ds
from depthscope.data import documents
from depthscope.data.corpus import Corpus
from depthscope.data.documents import Found, _Search
from depthscope.data.windows import make_windows
from depthscope.errors import DataError

SENTENCE = "the cat sat on the mat. "


def test_rows_without_text_and_short_documents_are_counted_and_leave_the_others_where_they_were(gpt2, tmp_path):
    texts = [None, "short", SENTENCE * 10, "", SENTENCE * 12, "short too", "cat"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    windows = make_windows(ds.corpus(str(tmp_path / "a.jsonl")), gpt2, length=16)
    assert (windows.read, windows.skipped, windows.too_short, windows.given_up) == (5, 2, 3, False)
    assert set(windows.document.tolist()) == {2, 4}


def test_reading_is_told_and_comes_to_an_end(gpt2):
    told = []
    texts = [SENTENCE * 10 if number % 3 == 0 else "short" for number in range(300)]
    make_windows(ds.corpus(texts, tokens=16 * 60), gpt2, length=16, tell=lambda *one: told.append(one))
    assert [what for what, _, _ in told] == ["reading documents"] * len(told)
    assert [done for _, done, _ in told] == [32, 64, 96, 128, 160, 178]
    assert all(done <= least for _, done, least in told)
    assert told[-1][1] == told[-1][2]


def test_a_stream_of_short_documents_ends_with_what_to_do(gpt2, monkeypatch):
    """Endless or not: so many tokens without a document that fills a window are enough."""
    monkeypatch.setattr(documents, "READ_FREELY", 5000)
    monkeypatch.setattr(Corpus, "numbered", lambda self, passage: ((n, n, SENTENCE * (3 + n % 3)) for n in count()))
    with pytest.raises(DataError) as error:
        make_windows(ds.corpus(tokens=64), gpt2, length=64)
    lengths = [len(gpt2.tokenize(SENTENCE * times)) for times in (3, 4, 5)]
    for said in (
        "has no document as long as one window: expected a document of at least 65 tokens",
        "documents were read before giving up",
        f"a median of {lengths[1]} tokens and the longest of {lengths[2]}",
        f"Give longer documents or --window {lengths[1] - 1}, which half of them fill, or join",
        "--pack",
    ):
        assert said in str(error.value), said
    assert make_windows(ds.corpus(tokens=64), gpt2, length=lengths[1] - 1).documents >= 2


def test_a_stream_whose_long_documents_end_is_used_as_far_as_it_went(gpt2, monkeypatch):
    monkeypatch.setattr(documents, "READ_FREELY", 2000)
    monkeypatch.setattr(
        Corpus, "numbered", lambda self, passage: ((n, n, SENTENCE * 20 if n < 3 else "short") for n in count())
    )
    windows = make_windows(ds.corpus(tokens=64 * 10), gpt2, length=64)
    assert windows.given_up
    assert windows.documents == 3
    assert windows.too_short == windows.read - 3


def test_documents_that_are_long_enough_now_and_then_are_all_found(gpt2, monkeypatch):
    """What ends the search is a run of short documents, not how many there are in all."""
    monkeypatch.setattr(documents, "READ_FREELY", 400)
    texts = [SENTENCE * 12 if number % 100 == 99 else "short" for number in range(3000)]
    assert make_windows(ds.corpus(texts, tokens=64 * 30), gpt2, length=64).documents == 30


def test_nothing_but_rows_without_text(gpt2, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n' * 7)
    with pytest.raises(DataError, match="has no text: 7 rows were read and all are empty"):
        make_windows(ds.corpus(str(tmp_path / "a.jsonl")), gpt2, length=16)


def test_the_median_of_short_documents_is_the_median():
    generator = np.random.default_rng(0)
    for size in (1, 2, 7, 100):
        lengths = generator.integers(1, 20, size)
        found = Found(short={int(length): int((lengths == length).sum()) for length in lengths})
        assert found.median == np.sort(lengths)[(size - 1) // 2]


def test_a_document_of_no_tokens_is_no_progress(gpt2, monkeypatch):
    monkeypatch.setattr(documents, "READ_FREELY", 100)
    search = _Search(gpt2, stride=16, wanted=1, packer=None)
    for number in range(search.most):
        search.add(number, " ", np.empty(0, np.int32))
    assert search.ended
