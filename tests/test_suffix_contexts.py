"""Contexts before a suffix: balanced, parted by documents, spelled as they should be, none taken twice."""

import json
from collections import Counter

import numpy as np
import pytest

from depthscope.data.corpus import Corpus
from depthscope.data.suffix_contexts import ends_in, suffix_contexts
from depthscope.errors import DataError

SHELF = Corpus()


@pytest.fixture(scope="module")
def contexts(gpt2):
    return suffix_contexts(SHELF, gpt2, "ing", per_class=300)


def test_classes_are_balanced_and_documents_are_in_one_part(contexts):
    assert len(contexts) == 600
    for document in np.unique(contexts.document):
        here = contexts.document == document
        assert contexts.label[here].mean() == 0.5
        assert len(set(contexts.training[here].tolist())) == 1
    tested = np.unique(contexts.document[~contexts.training])
    assert len(tested) == round(0.3 * len(np.unique(contexts.document)))
    assert (np.diff(contexts.document) >= 0).all()


def test_labels_are_spellings_and_no_word_is_the_class(contexts, gpt2):
    texts = [gpt2.tokenizer.decode([token]) for token in contexts.target]
    assert contexts.label.tolist() == [text.rstrip().lower().endswith("ing") for text in texts]
    assert max(Counter(contexts.target.tolist()).values()) == 30  # "ing" itself is more frequent than a tenth
    assert len({text for text, label in zip(texts, contexts.label, strict=True) if label}) > 20


def test_contexts_are_the_24_tokens_before_the_target_and_none_comes_twice(contexts, gpt2):
    assert contexts.ids.shape == (600, 24)
    assert len({row.tobytes() for row in contexts.ids}) == 600
    documents = list(SHELF.documents())
    for row in range(0, 600, 37):
        tokens = np.array(gpt2.tokenize(documents[contexts.document[row]]))
        windows = np.lib.stride_tricks.sliding_window_view(tokens, 25)
        expected = [*contexts.ids[row], contexts.target[row]]
        assert (windows == expected).all(1).any()


def test_contexts_follow_from_the_seed(contexts, gpt2):
    again = suffix_contexts(SHELF, gpt2, " ING", per_class=300)
    other = suffix_contexts(SHELF, gpt2, "ing", per_class=300, seed=1)
    assert again.token_hash() == contexts.token_hash() != other.token_hash()


def test_text_that_comes_twice_is_taken_once(gpt2, tmp_path):
    passages = list(SHELF.documents())[:60]
    file = tmp_path / "twice.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in passages * 2))
    twice = suffix_contexts(Corpus(source=str(file)), gpt2, "ing", per_class=5_000)
    assert len(np.unique(twice.ids, axis=0)) == len(twice) > 1_000


def test_what_gives_no_balanced_set_is_refused_with_the_counts(gpt2, tiny_of, tmp_path):
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(json.dumps({"text": text}) for text in list(SHELF.documents())[:4]))
    with pytest.raises(
        DataError, match=r"too few next tokens end in 'ing' .*: \d+ for training and \d+ for test, in 4 doc"
    ):
        suffix_contexts(Corpus(source=str(short)), gpt2)
    with pytest.raises(DataError, match="0 of the 4096 tokens of bookshelf-gpt2 end in 'zzz'"):
        suffix_contexts(SHELF, gpt2, "zzz")
    with pytest.raises(DataError, match="suffix ' ' is empty"):
        ends_in(gpt2, " ")
    with pytest.raises(DataError, match="without a tokenizer"):
        suffix_contexts(SHELF, tiny_of("llama"))
    with pytest.raises(DataError, match="contexts of 300 tokens are longer than the context of bookshelf-gpt2, 256"):
        suffix_contexts(SHELF, gpt2, length=300)
