"""Cut the embedded evaluation text from the held-out books: passages spread over each book, whole paragraphs.

    python -m training.evaluation_text --corpus CORPUS --out src/depthscope/data/bookshelf.jsonl.xz

Every line of the result is one document: {"id", "title", "author", "text"}. The order goes round the books, so that
any beginning of the file covers all of them. The same corpus gives the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from training.atomic import atomic_writer
from training.corpus import books

PASSAGES = 180
CHARACTERS = 6_000

FRONT_MATTER = re.compile(
    r"Produced by|Transcribed from|\[Transcriber's Note|I\. .* II\. .* III\. |.*Chapter 1: .*Chapter 2: "
)
FRONT_PARAGRAPHS = 3

CORRECTIONS = {
    "The Journal of a Disappointed Man": ("disappointed-man", None, "Barbellion, W. N. P."),  # Wells wrote the preface
    "At the Point of the Bayonet: A Tale of the Mahratta War": ("bayonet", None, None),
    "The Woman in White": ("woman-in-white", None, None),
    "The Lay-Man's Sermon upon the Late StormHeld forth at an Honest Coffee-House-Conventicle": (
        "laymans-sermon",
        "The Lay-Man's Sermon upon the Late Storm",
        None,
    ),
    "A Portrait of the Artist as a Young Man": ("portrait-of-the-artist", None, None),
    "The Coxon Fund": ("coxon-fund", None, None),
    "The Triumph Of Night1916": ("triumph-of-night", "The Triumph of Night", None),
    "The Fortunes and Misfortunes of the Famous Moll Flanders": ("moll-flanders", None, None),
}
"""Short name, and title and author where the catalogue's are run together or name the wrong person."""


@dataclass(frozen=True, slots=True)
class Book:
    """A held-out book: a short name for ids, and its paragraphs."""

    slug: str
    title: str
    author: str
    paragraphs: tuple[str, ...]


def without_front_matter(paragraphs: list[str]) -> tuple[str, ...]:
    """The paragraphs less credits of transcribers and tables of contents among the first few."""
    front = [p for p in paragraphs[:FRONT_PARAGRAPHS] if not FRONT_MATTER.match(p)]
    return (*front, *paragraphs[FRONT_PARAGRAPHS:])


def held_out_books(corpus: Path) -> list[Book]:
    """The held-out books of a corpus folder, in its order, with title and author from books.tsv.

    Raises FileNotFoundError where a file is missing, ValueError where text and catalogue do not match in number.
    """
    text = next((f for f in (corpus / "held-out.txt.xz", corpus / "held-out.txt") if f.exists()), None)
    if text is None:
        raise FileNotFoundError(f"no held-out.txt.xz or held-out.txt in {corpus}: is this the corpus folder?")
    with (corpus / "books.tsv").open(encoding="utf-8", newline="") as file:
        catalogue = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [row for row in catalogue if row["part"] == "held-out"]
    texts = books(text)
    if len(rows) != len(texts):
        raise ValueError(f"{text.name} holds {len(texts)} books but books.tsv lists {len(rows)} held-out ones")
    shelf: list[Book] = []
    for row, book in zip(rows, texts, strict=True):
        slug, title, author = CORRECTIONS.get(row["title"], (None, None, None))
        slug = slug or re.sub(r"[^a-z0-9]+", "-", row["title"].lower()).strip("-")
        shelf.append(Book(slug, title or row["title"], author or row["author"], without_front_matter(book.split("\n"))))
    return shelf


def share_out(capacities: list[int], total: int) -> list[int]:
    """Share `total` passages equally among books which hold at most `capacities`; earlier books get the remainder."""
    shares = [0] * len(capacities)
    while sum(shares) < min(total, sum(capacities)):
        open_books = [i for i, capacity in enumerate(capacities) if shares[i] < capacity]
        for i in sorted(open_books, key=lambda i: shares[i])[: total - sum(shares)]:
            shares[i] += 1
    return shares


def passages(book: Book, characters: int) -> list[str]:
    """The whole book cut into consecutive passages.

    Each is the shortest run of whole paragraphs, joined by newlines, of at least `characters` characters; what is left
    at the end of the book is too short and is left out.
    """
    cut: list[str] = []
    run: list[str] = []
    for paragraph in book.paragraphs:
        run.append(paragraph)
        if sum(map(len, run)) + len(run) - 1 >= characters:
            cut.append("\n".join(run))
            run = []
    return cut


def evenly_spaced(items: list[str], count: int) -> list[str]:
    """`count` of the items, in order: the middle one of each of `count` equal parts."""
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def evaluation_text(corpus: Path, count: int = PASSAGES, characters: int = CHARACTERS) -> list[dict[str, str]]:
    """The documents of the evaluation text: `count` passages, or all there are, round the held-out books.

    The passages of a book are evenly spaced through it; short books give what they have, the others make up for it.
    """
    shelf = held_out_books(corpus)
    cut = [passages(book, characters) for book in shelf]
    shares = share_out([len(texts) for texts in cut], count)
    chosen = [evenly_spaced(texts, share) for texts, share in zip(cut, shares, strict=True)]
    documents: list[dict[str, str]] = []
    for number in range(max(shares)):
        for book, texts in zip(shelf, chosen, strict=True):
            if number < len(texts):
                name = f"{book.slug}-{number + 1:02d}"
                documents.append({"id": name, "title": book.title, "author": book.author, "text": texts[number]})
    return documents


def write_documents(documents: list[dict[str, str]], out: Path) -> None:
    """Write one JSON object per line, xz-compressed, atomically."""
    lines = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    with atomic_writer(out) as file:
        file.write(lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    """Write the evaluation text the command line asks for."""
    parser = argparse.ArgumentParser(description="Cut the embedded evaluation text from the held-out books.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with held-out.txt.xz and books.tsv")
    parser.add_argument("--out", type=Path, required=True, help="the .jsonl.xz file to write")
    arguments = parser.parse_args()
    documents = evaluation_text(arguments.corpus)
    write_documents(documents, arguments.out)
    characters = sum(len(document["text"]) for document in documents)
    print(f"{len(documents)} passages, {characters:,} characters in {arguments.out}")


if __name__ == "__main__":
    main()
