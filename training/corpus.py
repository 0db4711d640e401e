"""Tokenise the training parts of the corpus into one uint16 memory map.

    python -m training.corpus --corpus CORPUS --tokenizer FOLDER --out training/runs/tokens.bin

CORPUS holds `train-*.txt.xz`: paragraphs one per line, books separated by an empty line. The map is one stream of
token ids, each book preceded by the end-of-text token; `tokens.json` beside it says how it was made.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.atomic import atomic_writer, sha256, write_json

END_OF_TEXT = "<|endoftext|>"
BOOKS_PER_BATCH = 16

TokenMap = npt.NDArray[np.uint16]


def read_text(path: Path) -> str:
    """The text of a .txt or .txt.xz file."""
    if path.suffix == ".xz":
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    return path.read_text(encoding="utf-8")


def books(path: Path) -> list[str]:
    """The books of one part, in its order; paragraphs within a book are separated by a newline."""
    return [book for book in (part.strip("\n") for part in read_text(path).split("\n\n")) if book]


def training_parts(corpus: Path) -> list[Path]:
    """The training files of a corpus folder, sorted by name.

    Raises FileNotFoundError where there is none.
    """
    parts = sorted([*corpus.glob("train-*.txt.xz"), *corpus.glob("train-*.txt")])
    if not parts:
        raise FileNotFoundError(f"no train-*.txt.xz or train-*.txt in {corpus}: is this the corpus folder?")
    return parts


def encoded_books(parts: list[Path], tokenizer: Tokenizer) -> Iterator[TokenMap]:
    """Token ids of each book, the end-of-text token first."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    if end_of_text is None:
        raise ValueError(f"the tokenizer has no {END_OF_TEXT} token, which separates the books")
    if tokenizer.get_vocab_size() > np.iinfo(np.uint16).max + 1:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens do not fit a uint16 map (at most 65,536)")
    for part in parts:
        texts = books(part)
        for first in range(0, len(texts), BOOKS_PER_BATCH):
            for encoding in tokenizer.encode_batch(texts[first : first + BOOKS_PER_BATCH], add_special_tokens=False):
                yield np.array([end_of_text, *encoding.ids], dtype=np.uint16)


def write_token_map(corpus: Path, tokenizer_folder: Path, out: Path) -> dict[str, Any]:
    """Write the token map and the JSON file beside it; return what that file says.

    `out`: path of the map, raw little-endian uint16. Both files are written atomically, the JSON file last.
    """
    parts = training_parts(corpus)
    tokenizer_file = tokenizer_folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokens = number_of_books = 0
    with atomic_writer(out) as file:
        for ids in encoded_books(parts, tokenizer):
            file.write(ids.astype("<u2").tobytes())
            tokens += len(ids)
            number_of_books += 1
    facts = {
        "tokens": tokens,
        "books": number_of_books,
        "parts": [part.name for part in parts],
        "vocabulary": tokenizer.get_vocab_size(),
        "tokenizer_sha256": sha256(tokenizer_file),
        "map_sha256": sha256(out),
    }
    write_json(out.with_suffix(".json"), facts)
    return facts


def open_token_map(path: Path) -> tuple[TokenMap, dict[str, Any]]:
    """The token ids (read-only, shape [tokens]) and the facts written beside them.

    Raises FileNotFoundError where either file is missing, ValueError where they do not belong together.
    """
    facts_file = path.with_suffix(".json")
    if not path.exists() or not facts_file.exists():
        raise FileNotFoundError(f"{path} and {facts_file.name} are needed: make them with python -m training.corpus")
    facts = json.loads(facts_file.read_text())
    tokens = np.memmap(path, dtype="<u2", mode="r")
    if len(tokens) != facts["tokens"]:
        raise ValueError(f"{path} holds {len(tokens):,} tokens but {facts_file.name} says {facts['tokens']:,}")
    return tokens, facts


def main() -> None:
    """Write the token map the command line asks for."""
    parser = argparse.ArgumentParser(description="Tokenise the training parts into a uint16 memory map.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with train-*.txt.xz")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="the map to write, e.g. training/runs/tokens.bin")
    arguments = parser.parse_args()
    facts = write_token_map(arguments.corpus, arguments.tokenizer, arguments.out)
    print(f"{facts['tokens']:,} tokens of {facts['books']} books in {arguments.out}")


if __name__ == "__main__":
    main()
