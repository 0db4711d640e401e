import json

import numpy as np
import pytest
import torch

import depthscope as ds
from depthscope.data.windows import make_windows
from depthscope.errors import DataError
from depthscope.models.load import load


@pytest.fixture
def text_file(tmp_path):
    def write(name: str, *documents: str):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in documents), encoding="utf-8")
        return str(path)

    return write


def test_windows_are_the_documents_tokens_cut_up(gpt2):
    corpus = ds.corpus(tokens=2000)
    windows = make_windows(corpus, gpt2, length=100)
    assert (len(windows), windows.length, windows.tokens) == (20, 100, 2000)
    for row, document, start in zip(windows.ids, windows.document, windows.start, strict=True):
        expected = gpt2.tokenize(corpus[int(document)])[start : start + 101]
        assert row.tolist() == expected
    ids, targets = windows.part(3, 5).batch()
    assert torch.equal(ids[:, 1:], targets[:, :-1])
    assert ids.shape == targets.shape == (2, 100)


def test_as_many_documents_as_possible_are_used(gpt2):
    assert make_windows(ds.corpus(tokens=64 * 256), gpt2).documents == 64
    everything = make_windows(ds.corpus(tokens=10_000_000), gpt2)
    assert everything.documents == 180
    assert everything.tokens >= 220_000


def test_windows_lie_in_document_order_and_each_only_once(gpt2):
    windows = make_windows(ds.corpus(tokens=100_000), gpt2)
    places = list(zip(windows.document.tolist(), windows.start.tolist(), strict=True))
    assert places == sorted(set(places))


def test_tokens_are_rounded_up_to_whole_windows(gpt2):
    assert make_windows(ds.corpus(tokens=257), gpt2).tokens == 512


def test_the_hash_names_the_tokens(gpt2):
    first, again, other = (make_windows(ds.corpus(tokens=n), gpt2).token_hash() for n in (1000, 1000, 2000))
    assert first == again != other


def test_one_million_tokens_are_arrays_not_lists(gpt2):
    windows = make_windows(ds.corpus(tokens=1_000_000), gpt2)
    assert windows.ids.dtype == np.int32
    assert windows.ids.nbytes <= 4 * 1.01 * windows.tokens


def test_bos_before_each_window(gpt2, text_file):
    source = text_file("a.jsonl", "the cat sat on the mat. " * 40)
    windows = make_windows(ds.corpus(source, tokens=60), gpt2, length=20, bos="window")
    plain = gpt2.tokenize("the cat sat on the mat. " * 40)
    assert windows.bos == "window"
    assert windows.ids[:, 0].tolist() == [0, 0, 0]
    assert windows.ids[0, 1:].tolist() == plain[:20]
    assert windows.ids[1, 1:].tolist() == plain[19:39]
    assert make_windows(ds.corpus(source, tokens=60), gpt2, length=20).bos == "none"


def test_double_bos_is_refused(gpt2, text_file):
    source = text_file("a.jsonl", "<|endoftext|>the cat sat on the mat. " * 40)
    with pytest.raises(DataError, match=r"window 0 would begin with two BOS tokens \(id 0\)"):
        make_windows(ds.corpus(source, tokens=60, special_tokens="keep"), gpt2, length=20, bos="window")
    assert make_windows(ds.corpus(source, tokens=60, special_tokens="keep"), gpt2, length=20).ids[0, 0] == 0


def test_text_is_text(gpt2, text_file):
    """A special token's name written in a document is those characters, and never the token, unless that is asked for."""
    source = text_file("a.jsonl", "<|endoftext|>the cat <|endoftext|> sat on the mat. " * 40)
    windows = make_windows(ds.corpus(source, tokens=200), gpt2, length=20, bos="window")
    assert (windows.ids[:, 1:] != 0).all()
    assert (windows.ids[:, 0] == 0).all()
    assert gpt2.tokenizer.decode(windows.ids[0, 1:]).startswith("<|endoftext|>the cat <|")
    assert windows.special_tokens == 80
    kept = make_windows(ds.corpus(source, tokens=200, special_tokens="keep"), gpt2, length=20)
    assert (kept.ids == 0).any()
    assert kept.token_hash() != make_windows(ds.corpus(source, tokens=200), gpt2, length=20).token_hash()
    with pytest.raises(DataError, match="special_tokens is 'drop': expected text or keep"):
        ds.corpus(source, special_tokens="drop")


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_byte_order_mark_is_no_text(gpt2, tmp_path, kind):
    text = "the cat sat on the mat. " * 40
    content = text if kind == "txt" else json.dumps({"text": text})
    files = [tmp_path / f"plain.{kind}", tmp_path / f"marked.{kind}"]
    files[0].write_bytes(content.encode())
    files[1].write_bytes(b"\xef\xbb\xbf" + content.encode())
    plain, marked = (make_windows(ds.corpus(str(file), tokens=60), gpt2, length=20) for file in files)
    assert np.array_equal(plain.ids, marked.ids)


def test_a_document_of_long_tokens_gives_the_tokens_asked_for(gpt2, text_file):
    """As whitespace in code or repeated signs: many characters a token."""
    longest = max(gpt2.tokenizer.get_vocab(), key=lambda token: len(gpt2.tokenizer.convert_tokens_to_string([token])))
    text = gpt2.tokenizer.convert_tokens_to_string([longest]) * 3000
    tokens = gpt2.tokenize(text)
    assert len(text) > 8 * len(tokens), "more characters a token than expected"
    windows = make_windows(ds.corpus(text_file("a.jsonl", text), tokens=1000), gpt2, length=20)
    assert windows.tokens == 1000
    assert np.array_equal(windows.ids[:, :-1].ravel(), tokens[:1000])


def test_short_documents_are_left_out_and_counted(gpt2, text_file):
    source = text_file("a.jsonl", "too short", "the cat sat on the mat. " * 10, "also short")
    windows = make_windows(ds.corpus(source), gpt2, length=16)
    assert windows.too_short == 2
    assert set(windows.document.tolist()) == {1}


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"length": 257}, "a window of 257 tokens is longer than the context of bookshelf-gpt2, 256"),
        ({"length": 1}, "too short"),
        ({"bos": "twice"}, "unknown BOS policy 'twice'"),
    ],
)
def test_impossible_windows_are_refused(gpt2, keywords, says):
    with pytest.raises(DataError, match=says):
        make_windows(ds.corpus(), gpt2, **keywords)


def test_fewer_tokens_than_one_window(gpt2, text_file):
    says = "no document as long as one window: expected a document of at least 65 tokens; 1 document was"
    with pytest.raises(DataError, match=says):
        make_windows(ds.corpus(text_file("a.jsonl", "only this")), gpt2, length=64)


def test_a_model_without_tokenizer_takes_no_text(gpt2):
    with pytest.raises(DataError, match="without a tokenizer"):
        make_windows(ds.corpus(), load(gpt2.hf))
