"""Prompts of both classes are cut from the text as the tokenizer cuts it, and balanced; too little text is refused."""

import copy
import json
import re
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from depthscope.data import word_prompts as searching
from depthscope.data.corpus import Corpus
from depthscope.data.repeats import random_repeats
from depthscope.data.word_prompts import spans_by_decoding, token_spans, word_prompts
from depthscope.errors import DataError
from depthscope.models.load import load
from depthscope.models.model import Model


@pytest.fixture(scope="module")
def prompts(gpt2):
    return word_prompts(Corpus(), gpt2)


@pytest.fixture
def texts(tmp_path):
    def write(documents):
        path = tmp_path / "texts.jsonl"
        path.write_text("\n".join(json.dumps({"text": text}) for text in documents), encoding="utf-8")
        return Corpus(source=str(path))

    return write


@pytest.fixture(scope="module")
def words(gpt2):
    """Different words of the embedded text by how many tokens they take after a space."""
    found = {length: [] for length in range(1, 20)}
    text = " ".join(islice(Corpus().documents(), 20))
    for word in dict.fromkeys(re.findall(r"\b[a-z]{2,}\b", text)):
        found[len(gpt2.tokenize(" " + word))].append(word)
    return found


def made_of(words, documents, length=60, seed=0):
    """Documents of random words, with spaces between them and a stop at the end."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, length)) + "." for _ in range(documents)]


def with_tokenizer(gpt2, tokenizer):
    return Model(gpt2.hf, tokenizer, gpt2.name)


def test_both_classes_are_equally_long_and_come_from_the_same_documents(prompts):
    assert len(prompts) == 256
    assert prompts.word.shape == prompts.plain.shape == (256, 20)
    assert (prompts.word_tokens, prompts.bos, prompts.documents) == (4, False, 180)
    assert prompts.document.tolist() == sorted(prompts.document.tolist())
    assert np.unique(prompts.document, return_counts=True)[1].max() <= 4
    word, plain = prompts.batch(slice(3, 8))
    assert word.tolist() == prompts.word[3:8].tolist()
    assert plain.tolist() == prompts.plain[3:8].tolist()


@pytest.mark.parametrize(("kind", "length"), [("word", 4), ("plain", 1)])
def test_every_prompt_stands_in_its_document_and_ends_with_a_whole_word(gpt2, prompts, kind, length):
    """By looking the prompt up in the tokens of the whole document: the text around it shows where the word ends."""
    documents = list(Corpus().documents())
    words = set()
    for row, number in zip(getattr(prompts, kind), prompts.document, strict=True):
        ids = gpt2.tokenize(documents[number])
        stop = next(i + 20 for i in range(len(ids) - 19) if ids[i : i + 20] == row.tolist())
        before, word, after = (
            gpt2.tokenizer.decode(part) for part in (ids[: stop - length], ids[stop - length : stop], ids[stop:])
        )
        assert documents[number].startswith(before + word)
        assert word.strip().isalpha()
        assert word[0].isspace() or before[-1].isspace()
        assert not after[0].isalnum()
        assert after[0] not in "_'’"
        words.add(word.strip().casefold())
    assert len(words) == 256


def test_prompts_follow_from_the_seed(gpt2, monkeypatch):
    monkeypatch.setattr(searching, "MOST_TOKENS", 30_000)
    first = word_prompts(Corpus(), gpt2).token_hash()
    assert word_prompts(Corpus(tokens=100), gpt2).token_hash() == first
    assert word_prompts(Corpus(), gpt2, seed=1).token_hash() != first


@pytest.mark.parametrize("length", [3, 2])
def test_shorter_words_are_taken_where_there_are_no_longer_ones(gpt2, texts, words, length):
    found = word_prompts(texts(made_of(words[1] + words[length], 20)), gpt2)
    assert (found.word_tokens, found.word.shape[1]) == (length, 16 + length)
    assert len(found) >= 32
    for ids in found.word:
        assert gpt2.tokenize(" " + gpt2.tokenizer.decode(ids[-length:]).strip()) == ids[-length:].tolist()


def test_a_text_of_short_words_is_refused_with_what_was_found(gpt2, texts, words):
    with pytest.raises(
        DataError, match=r"found in \d+ tokens 0 of 4 tokens \(0 documents\), 0 of 3 .*, 0 of 2 "
    ) as error:
        word_prompts(texts(made_of(words[1], 20)), gpt2)
    assert "expected at least 32 from 8 documents" in str(error.value)
    assert "\n" not in str(error.value)


def test_too_few_documents_are_refused(gpt2, texts, words):
    source = made_of(words[1] + words[4], 12, length=200)
    assert word_prompts(texts(source), gpt2).documents == 12
    with pytest.raises(DataError, match=r"28 of 4 tokens \(7 documents\)"):
        word_prompts(texts(source[:7]), gpt2)


def test_the_last_word_of_a_text_may_be_cut_off_and_is_not_taken(gpt2, texts, words):
    fillers = made_of(words[1], 40, length=40)
    ends = [f"{filler} {word}" for filler, word in zip(fillers, words[4], strict=False)]
    with pytest.raises(DataError, match="0 of 4 tokens"):
        word_prompts(texts(ends), gpt2)
    assert len(word_prompts(texts([f"{text}." for text in ends]), gpt2)) >= 30


@pytest.mark.parametrize("after", ["'s", "’s", "9", "_", "\u0301"])
def test_parts_of_longer_strings_are_no_words(gpt2, texts, words, after):
    fillers = made_of(words[1], 40, length=40)
    ends = [f"{filler} {word}{after} it" for filler, word in zip(fillers, words[4], strict=False)]
    with pytest.raises(DataError, match="0 of 4 tokens"):
        word_prompts(texts(ends), gpt2)


def test_reading_stops_when_enough_is_found(gpt2, prompts, monkeypatch):
    monkeypatch.setattr(searching, "MOST_PAIRS", 10)
    first, text = 0, Corpus().documents()
    for _ in range(10):
        first += len(gpt2.tokenize(next(text)))
    monkeypatch.setattr(searching, "FEWEST_PAIRS", 10)
    found = word_prompts(Corpus(), gpt2)
    assert (len(found), found.documents, found.tokens_read) == (10, 10, first)
    monkeypatch.setattr(searching, "MOST_PAIRS", 256)
    monkeypatch.setattr(searching, "MOST_TOKENS", first)
    assert word_prompts(Corpus(), gpt2).tokens_read == first < prompts.tokens_read


def test_prompts_begin_with_bos_where_the_tokenizer_does(gpt2, monkeypatch):
    monkeypatch.setattr(searching, "MOST_TOKENS", 30_000)
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    model = with_tokenizer(gpt2, tokenizer)
    found, prompts = word_prompts(Corpus(), model), word_prompts(Corpus(), gpt2)
    assert found.bos
    assert found.word[:, 0].tolist() == [0] * len(prompts)
    assert found.word[:, 1:].tolist() == prompts.word.tolist()
    assert found.plain[:, 1:].tolist() == prompts.plain.tolist()
    assert word_prompts(Corpus(), model, bos="none").token_hash() == prompts.token_hash()
    assert word_prompts(Corpus(), gpt2, bos="window").token_hash() == found.token_hash()


class WithoutOffsets:
    """A tokenizer that keeps no offsets, as those written in Python do."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, text, **settings):
        assert "return_offsets_mapping" not in settings
        return self.tokenizer(text, **settings)


def test_a_tokenizer_without_offsets_gives_the_same_prompts(gpt2, monkeypatch):
    monkeypatch.setattr(searching, "MOST_TOKENS", 30_000)
    slow = copy.copy(gpt2)
    slow.tokenizer = WithoutOffsets(gpt2.tokenizer)
    assert word_prompts(Corpus(), slow).token_hash() == word_prompts(Corpus(), gpt2).token_hash()


@given(st.text(min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_spans_by_decoding_are_the_tokenizers_own(text):
    model = load_once()
    ids, spans = token_spans(model, text)
    assert spans_by_decoding(model.tokenizer, ids, text) == spans


LOADED = []


def load_once():
    if not LOADED:
        LOADED.append(load("bookshelf-gpt2"))
    return LOADED[0]


def test_a_text_that_decoding_does_not_give_back_has_no_spans(gpt2):
    ids = gpt2.tokenize("the cat sat on the mat and sat on")
    assert spans_by_decoding(gpt2.tokenizer, ids, "the cat sat on the mat and sat on the dog") == []
    assert spans_by_decoding(gpt2.tokenizer, ids, "The Cat Sat On The Mat And Sat On") == []


def test_no_tokenizer_no_prompts(gpt2):
    bare = load(gpt2.hf)
    with pytest.raises(DataError, match="without a tokenizer"):
        word_prompts(Corpus(), bare)
    with pytest.raises(DataError, match="without a tokenizer"):
        random_repeats(bare)


def test_random_tokens_are_different_ordinary_and_said_twice(gpt2):
    ids = random_repeats(gpt2, [0], seed=3)
    assert ids.shape == (64, 101)
    assert ids[:, 0].tolist() == [0] * 64
    assert ids[:, 1:51].tolist() == ids[:, 51:].tolist()
    assert all(len(set(row)) == 50 and 0 not in row for row in ids[:, 1:51].tolist())
    assert ids.tolist() == random_repeats(gpt2, [0], seed=3).tolist()
    assert ids.tolist() != random_repeats(gpt2, [0], seed=4).tolist()
    assert 1500 < len(ids[:, 1:51].unique()) <= 4095
