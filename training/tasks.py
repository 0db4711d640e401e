"""The local tasks of `depthscope eval`, made from the embedded held-out text: `python training/tasks.py`.

Both are made by rule, without a person's selection, from the 180 passages of books that the bookshelf models were not trained
on (`depthscope/data/bookshelf.jsonl.xz`, public domain). `bookshelf_last_word` asks for the last word of a passage, as LAMBADA
does (Paperno et al. 2016): the word occurs earlier in the passage, which stands in for LAMBADA's selection by people who
could guess it from the passage and not from its last sentence. `bookshelf_next_sentence` asks which of four sentences of the
same book comes next, as HellaSwag does (Zellers et al. 2019), whose wrong endings are machine-made instead.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depthscope.data.corpus import BOOKSHELF_FILE
from depthscope.data.lines import lines

HERE = Path(__file__).resolve().parents[1] / "src/depthscope/data/tasks"
PER_DOCUMENT = 2
"""Examples of each task from one passage."""
LEAST_WORDS, MOST_WORDS = 30, 60
"""Words of a context."""
WORDS = range(6, 26)
"""Words of a sentence that may follow."""
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def passages() -> list[dict[str, Any]]:
    """The held-out passages: id, title, author, text."""
    return [json.loads(line) for line in lines(BOOKSHELF_FILE)]


def last_words(document: str, sentences: list[str]) -> Iterator[dict[str, Any]]:
    """Every passage that ends with a word of four letters or more that occurs before its last sentence."""
    for stop in range(1, len(sentences)):
        context = _context(sentences, stop)
        found = re.fullmatch(r"(.+) ([a-z]{4,})[.!?]", sentences[stop])
        if context and found and re.search(rf"\b{found[2]}\b", context):
            yield {"document": document, "text": f"{context} {found[1]} {found[2]}"}


def next_sentences(document: str, sentences: list[str], others: list[str], chance: random.Random) -> Iterator[dict]:
    """Every context with the sentence that follows among three of other passages of the book."""
    for stop in range(1, len(sentences)):
        context = _context(sentences, stop)
        if context and _may_follow(sentences[stop]):
            endings = [sentences[stop], *chance.sample(others, 3)]
            order = chance.sample(range(4), 4)
            yield {
                "document": document,
                "context": context,
                "endings": [endings[place] for place in order],
                "label": order.index(0),
            }


def _context(sentences: list[str], stop: int) -> str:
    """The sentences before `stop`, back to the first with which they have LEAST_WORDS; empty if they have fewer, or more
    than MOST_WORDS."""
    for start in range(stop - 1, -1, -1):
        context = " ".join(sentences[start:stop])
        if len(context.split()) >= LEAST_WORDS:
            return context if len(context.split()) <= MOST_WORDS else ""
    return ""


def _may_follow(sentence: str) -> bool:
    return len(sentence.split()) in WORDS and sentence[-1] in ".!?"


def _spread(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """PER_DOCUMENT of a passage's examples, from all over it."""
    if len(found) <= PER_DOCUMENT:
        return found
    return [found[len(found) * (2 * place + 1) // (2 * PER_DOCUMENT)] for place in range(PER_DOCUMENT)]


def examples() -> dict[str, list[dict[str, Any]]]:
    """The examples of both tasks by file name; the same whenever it is called."""
    rows = passages()
    split = {row["id"]: SENTENCE.split(" ".join(row["text"].split())) for row in rows}
    chance = random.Random(0)
    words, following = [], []
    for row in rows:
        sentences = split[row["id"]]
        others = [
            sentence
            for other in rows
            if other["title"] == row["title"] and other["id"] != row["id"]
            for sentence in split[other["id"]]
            if _may_follow(sentence)
        ]
        words += _spread(list(last_words(row["id"], sentences)))
        following += _spread(list(next_sentences(row["id"], sentences, others, chance)))
    return {"bookshelf_last_word.jsonl": words, "bookshelf_next_sentence.jsonl": following}


def main() -> None:
    """Write the files of the tasks."""
    for name, rows in examples().items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
