"""Classes of predicted tokens: each against its definition in loops, on texts as tokenizers cut them."""

import unicodedata

import numpy as np
import pytest
from families import VOCABULARY

from depthscope.data.corpus import Corpus
from depthscope.data.predicted_classes import predicted_classes, repeated
from depthscope.data.windows import Windows, make_windows
from depthscope.schema.token_classes import CLASSINGS, RANK_EDGES

RNG = np.random.default_rng(0)


def windows_of(ids):
    ids = np.array(ids, dtype=np.int32)
    return Windows(ids, np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64), "none")


def named(classes, windows, entropy=None):
    """The class of each predicted token, by classing."""
    entropy = np.zeros((len(windows), windows.length)) if entropy is None else entropy
    found = classes.labels(windows, entropy)
    return {name: [[CLASSINGS[name].classes[i].name for i in row] for row in rows] for name, rows in found.items()}


def longest_repeated(row, place, longest=3):
    best = 0
    for n in range(1, longest + 1):
        gram = tuple(row[place - n + 1 : place + 1])
        if place - n + 1 >= 0 and any(tuple(row[i - n + 1 : i + 1]) == gram for i in range(n - 1, place)):
            best = n
    return best


def test_repeated_phrases_are_those_of_the_window_alone():
    ids = np.concatenate([RNG.integers(0, 5, (4, 13)), RNG.integers(0, 90, (2, 13))]).astype(np.int32)
    ids[5] = ids[4]  # what another window has is no repetition
    found = repeated(ids)
    assert found.tolist() == [[longest_repeated(row, place) for place in range(1, 13)] for row in ids.tolist()]
    assert repeated(np.array([[7, 7, 7, 7, 7]], dtype=np.int32)).tolist() == [[1, 2, 3, 3]], "occurrences may overlap"
    assert repeated(np.array([[1, 2]], dtype=np.int32)).tolist() == [[0]]


def test_bands_by_their_edges(tiny_of):
    ids = RNG.integers(0, VOCABULARY, (40, 12))
    ids[:, 3] = 5
    windows, model = windows_of(ids), tiny_of("gpt2")
    classes = predicted_classes(model, windows)
    entropy = np.tile([0.0, 0.49, 0.5, 0.99, 1.0, 1.99, 2.0, 3.99, 4.0, 11.0, 0.5], (40, 1))
    found = named(classes, windows, entropy)
    bands = ["0-0.5", "0-0.5", "0.5-1", "0.5-1", "1-2", "1-2", "2-4", "2-4", "4+", "4+", "0.5-1"]
    assert found["entropy"] == [bands] * 40
    assert found["position"] == [["1-8"] * 8 + ["9-32"] * 3] * 40
    tokens, counts = np.unique(ids[:, 1:], return_counts=True)
    ranked = sorted(zip(-counts, tokens, strict=True))
    rank = {int(token): place for place, (_, token) in enumerate(ranked, 1)}
    for row, names in zip(ids[:, 1:].tolist(), found["frequency"], strict=True):
        for token, name in zip(row, names, strict=True):
            edge = next((edge for edge in RANK_EDGES if rank[token] <= edge), None)
            assert name == {10: "1-10", 100: "11-100", 1000: "101-1000", None: "1001+"}[edge]
    assert found["frequency"][0][2] == "1-10"
    assert classes.not_done.keys() == {"word_place", "kind"}
    assert "has no tokenizer" in classes.not_done["kind"]
    member = classes.member(windows, entropy)
    assert member.shape == (len(classes.names), ids[:, 1:].size)
    for classing in classes.settings:
        parts = [one for one, (name, _) in zip(member, classes.names, strict=True) if name == classing]
        assert (np.sum(parts, axis=0) == 1).all(), "every token is in one class of each classing"


def test_a_part_of_the_windows_has_the_classes_of_the_whole(gpt2):
    windows = make_windows(Corpus(tokens=320), gpt2, length=32)
    classes = predicted_classes(gpt2, windows)
    entropy = RNG.exponential(2, (len(windows), 32))
    whole = classes.labels(windows, entropy)
    for start, stop in ((0, 3), (3, len(windows))):
        part = classes.labels(windows.part(start, stop), entropy[start:stop])
        assert all(np.array_equal(part[name], whole[name][start:stop]) for name in whole)


def letter(character):
    return unicodedata.category(character)[0] in "LMN"


@pytest.mark.parametrize("text", ["It wasn't 1894; NOBODY unwillingly\n sold “houses” — or so-called castles."])
def test_places_in_words_and_kinds_on_text_as_it_is_cut(shelf, text):
    """The words of the tokens' own texts, one after the other."""
    ids = [0, *shelf.tokenize(text)]
    windows = windows_of([ids])
    found = named(predicted_classes(shelf, windows), windows)
    texts = [shelf.tokenizer.decode([token]) for token in ids]
    for before, now, place, kind in zip(texts, texts[1:], found["word_place"][0], found["kind"][0], strict=False):
        core, start = now.strip(), now[:1]
        if "\ufffd" in now:
            continue  # part of a character
        inside = letter(start) or (start in "'’" and letter(now[1:2] or " "))
        if inside and letter(before[-1:] or " "):
            assert place == "continues", (before, now)
        else:
            assert place == ("begins" if core and letter(core.lstrip("'’")[:1] or " ") else "no_word"), (before, now)
        if not core:
            assert kind == "whitespace"
        elif core.isdecimal():
            assert kind == "digits"
        elif all(unicodedata.category(one)[0] in "PS" for one in core):
            assert kind == "punctuation"
        elif core.lstrip("'’")[:1].isalpha():
            assert kind == ("capital" if core.lstrip("'’")[0].isupper() else "lower_case")
        else:
            assert kind == "other"
    there = set(found["kind"][0])
    assert {"lower_case", "capital", "punctuation"} <= there
    assert set(found["word_place"][0]) == {"begins", "continues", "no_word"}


def test_special_tokens_are_in_no_word(gpt2):
    special = gpt2.tokenizer.all_special_ids[0]
    ids = [*gpt2.tokenize("house"), special, *gpt2.tokenize("house")]
    windows = windows_of([ids])
    found = named(predicted_classes(gpt2, windows), windows)
    place = ids.index(special)
    assert (found["kind"][0][place - 1], found["word_place"][0][place - 1]) == ("other", "no_word")
    assert found["word_place"][0][place] == "begins"
