"""The bytes of tokens that are not whole characters, from the names that a tokenizer gives them."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""The characters that stand for bytes in byte-level BPE."""
FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte as SentencePiece's byte fallback names it."""


def token_bytes(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> dict[int, bytes]:
    """Bytes of tokens of byte-level BPE and of byte fallback, by token; others are left out."""
    found = {}
    for token, name in zip(tokens, tokenizer.convert_ids_to_tokens(list(tokens)), strict=True):
        if fallback := FALLBACK.fullmatch(name):
            found[token] = bytes.fromhex(fallback[1])
        elif all(character in BYTES for character in name):
            found[token] = bytes(BYTES[character] for character in name)
    return found
