"""Train the byte-level BPE tokenizer of the embedded models and write it as a transformers folder.

    python -m training.tokenizer --corpus CORPUS --out training/runs/tokenizer

Trained on the first 60 million characters of the training parts; 4,096 tokens, the end-of-text token first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.architectures import CONTEXT, VOCABULARY
from training.atomic import write_json
from training.corpus import END_OF_TEXT, books, training_parts

CHARACTERS = 60_000_000


def first_characters(parts: list[Path], characters: int) -> Iterator[str]:
    """The books of the training parts in order, the last one cut, until `characters` characters."""
    left = characters
    for part in parts:
        for book in books(part):
            yield book[:left]
            left -= len(book)
            if left <= 0:
                return


def train_tokenizer(corpus: Path, characters: int = CHARACTERS, vocabulary: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE of `vocabulary` tokens trained on the first `characters` characters of the training parts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(first_characters(training_parts(corpus), characters), trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "backend": "tokenizers",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": CONTEXT,
        "tokenizer_class": "TokenizersBackend",
    }
    write_json(out / "tokenizer_config.json", settings)


def main() -> None:
    """Train and write the tokenizer the command line asks for."""
    parser = argparse.ArgumentParser(description="Train the byte-level BPE tokenizer of the embedded models.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with train-*.txt.xz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    tokenizer = train_tokenizer(arguments.corpus)
    write_tokenizer(tokenizer, arguments.out)
    print(f"{tokenizer.get_vocab_size():,} tokens in {arguments.out}")


if __name__ == "__main__":
    main()
