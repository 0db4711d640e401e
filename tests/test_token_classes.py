"""Token texts from any kind of tokenizer, and the classes their tokens fall into."""

import numpy as np
import pytest
from families import VOCABULARY, tiny_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from depthscope.data.token_classes import PATTERNS, Vocabulary, token_classes, vocabulary_of
from depthscope.models.load import load
from depthscope.models.model import Model


def classes_of(text: str) -> set[str]:
    classes = token_classes(Vocabulary((text, None), frozenset()), smallest=0)
    return {name for name, member in zip(classes.names, classes.member[:, 0], strict=True) if member}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" walking", {"-ing", "leading space", "length 6-8"}),
        ("ing", {"-ing", "letters without leading space", "length 3"}),
        (" Walked", {"-ed", "capitalised", "leading space", "length 6-8"}),
        (" unless", {"-less", "-s", "un-", "leading space", "length 6-8"}),
        ("un", {"letters without leading space", "length 2"}),
        (" un", {"un-", "leading space", "length 2"}),
        ("NASA", {"all capitals", "letters without leading space", "length 4-5"}),
        ("A", {"capitalised", "letters without leading space", "length 1"}),
        (" 1984", {"digits", "leading space", "length 4-5"}),
        (" ...", {"punctuation", "leading space", "length 3"}),
        ("\n\n", {"whitespace"}),
        (" ", {"whitespace"}),
        (" née", {"not ASCII", "leading space", "length 3"}),
        ("�", {"part of a character"}),
        (" thing's", {"leading space", "length 6-8"}),
        ("extraordinarily", {"-ly", "letters without leading space", "length 9 or more"}),
    ],
)
def test_classes_of_a_token(text, expected):
    assert classes_of(text) == expected


def test_small_classes_and_small_rests_are_left_out_with_their_count():
    texts = (*[f" word{i}ing" for i in range(3)], *[f" {i}" for i in range(12)], *["x"] * 5, None)
    classes = token_classes(Vocabulary(texts, frozenset({0})), smallest=5)
    assert "digits" in classes.names
    assert dict(zip(classes.names, classes.sizes.tolist(), strict=True))["digits"] == 12
    assert classes.left_out["-ing"] == 0  # digits inside: not letters only
    assert (
        dict(zip(classes.names, classes.sizes.tolist(), strict=True))["leading space"] == 14
    )  # the special one is in none
    assert set(classes.names) | set(classes.left_out) == set(PATTERNS)
    assert all(5 <= size <= len(texts) - 5 for size in classes.sizes)
    assert token_classes(Vocabulary(("a", "b"), frozenset())).member.shape == (0, 2)


def tokenizer_from(tokens: list[str], decoder: decoders.Decoder, unknown: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=unknown))
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)


LLAMA_LIKE = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@pytest.mark.parametrize(
    ("tokens", "decoder"),
    [
        (["<unk>", "a", "▁the", "ing", "▁", "."], decoders.Metaspace()),
        (["<unk>", "a", "▁the", "ing", "▁", "."], LLAMA_LIKE),
        (["<unk>", "a", "Ġthe", "ing", "Ġ", "."], decoders.ByteLevel()),
        (["<unk>", "a", "the", "##ing", "▁▁", "##."], decoders.WordPiece(cleanup=False)),
    ],
    ids=["metaspace", "byte fallback", "byte level", "word piece"],
)
def test_a_token_is_the_text_it_adds_with_any_tokenizer(tokens, decoder):
    model = Model(tiny_model("llama"), tokenizer_from(tokens, decoder, "<unk>"), "tiny")
    vocabulary = vocabulary_of(model)
    assert vocabulary.texts[2:4] == (" the", "ing")
    assert vocabulary.texts[5] == "."
    assert vocabulary.shown(2) == "␣the"
    assert vocabulary.special == {0}
    assert len(vocabulary.texts) == VOCABULARY
    assert set(vocabulary.texts[6:]) == {None}
    assert vocabulary.shown(50) == "#50"


def test_a_byte_of_a_character_is_text_that_cannot_be_read():
    tokens = ["<unk>", "a", "<0xE2>", "<0x0A>"]
    vocabulary = vocabulary_of(Model(tiny_model("llama"), tokenizer_from(tokens, LLAMA_LIKE, "<unk>"), "tiny"))
    assert vocabulary.texts[2:4] == ("�", "\n")
    assert vocabulary.shown(2) == "<0xE2>"
    assert vocabulary.shown(3) == "⏎"


def test_bytes_that_are_no_character_are_shown_as_bytes():
    pieces = ["<unk>", "a", "âĢ", "ĠâĢ", "Ã©âĢ", "Ã©", "ï¿½", "Ģ"]  # é is whole; so is U+FFFD, which can be written
    tokenizer = tokenizer_from(pieces, decoders.ByteLevel(), "<unk>")
    vocabulary = vocabulary_of(Model(tiny_model("llama"), tokenizer, "tiny"))
    shown = [vocabulary.shown(token) for token in range(2, 8)]
    assert shown == ["<0xE2 0x80>", "␣<0xE2 0x80>", "é<0xE2 0x80>", "é", "�", "<0x80>"]
    assert vocabulary.texts[2] == "�", "classes go by the text, which has no bytes"


def test_without_a_tokenizer_there_are_no_texts_and_no_classes():
    vocabulary = vocabulary_of(load(tiny_model("gpt2")))
    assert set(vocabulary.texts) == {None}
    assert token_classes(vocabulary).names == ()


def test_embedded_vocabulary_is_read_as_it_encodes(shelf):
    """A text is what its tokens add to it, one after the other, wherever a token is whole characters."""
    vocabulary = vocabulary_of(shelf)
    text = "an old house, unwillingly sold: “Nobody” went\n to 12 LONDON streets."
    ids = shelf.tokenize(text)
    joined = "".join(vocabulary.texts[token] for token in ids)
    assert joined.replace("�", "") == text.replace("“", "").replace("”", "")
    classes = token_classes(vocabulary)
    member = dict(zip(classes.names, classes.member, strict=True))
    assert {vocabulary.texts[i] for i in np.flatnonzero(member["digits"])} >= set("0123456789")
    assert all(vocabulary.texts[i].lower().endswith("ing") for i in np.flatnonzero(member["-ing"]))
    assert not classes.member[:, list(vocabulary.special)].any()
    assert vocabulary.shown(vocabulary.texts.index("\x07")) == "\\x07"
