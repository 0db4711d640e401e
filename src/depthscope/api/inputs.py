"""What the functions of the interface accept as a text, as a model and as tokens."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.data.fields import messages_of, require_text
from depthscope.errors import DataError, ModelError
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.printable import shown
from depthscope.shapes import TokenIds


def corpus(
    source: str | Path | Sequence[Any] = BOOKSHELF,
    tokens: int | None = None,
    special_tokens: str = "text",
    *,
    chat: bool = False,
    pack: bool = False,
    cluster: str | None = None,
) -> Corpus:
    """Text to measure on: `bookshelf` (embedded), a file, pattern or folder, `hf:NAME`, or a list of texts.

    Files are .txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, all but the last also .gz, .xz, .bz2 or .zst; a
    folder holds such files or was written by `save_to_disk`. `#FIELD` after the name is the field with the text.
    `tokens` is how many tokens a study uses, rounded up to whole windows (16,384 by default). `special_tokens`: how the name
    of a special token in a document is read, as `text` (its characters) or `keep` (the token).
    `chat`: documents are lists of messages with role and content, read through the tokenizer's chat template. `pack`:
    documents shorter than a window are joined until they fill one. `cluster` is the name of a field, such as `book`:
    documents with the same value of it count as one in every interval (`title` or `author` for `bookshelf`). Nothing is read
    yet. Raises DataError for a source that does not exist, has an unsupported format or no fields to cluster by, or a list
    that contains anything but documents.
    """
    how: dict[str, Any] = {"special_tokens": special_tokens, "chat": chat, "pack": pack, "cluster": cluster}
    if isinstance(source, str | Path):
        named = Corpus(source=str(source), tokens=tokens, **how)
        named.check()
        return named
    if not isinstance(source, Iterable):
        raise DataError(f"a corpus is the name of a text or a list of documents, got {shown(source)}")
    documents = tuple(source)
    if chat:
        documents = tuple(messages_of(one, f"document {number}") for number, one in enumerate(documents))
    if not documents or not (chat or all(isinstance(text, str) for text in documents)):
        other = next((type(text).__name__ for text in documents if not isinstance(text, str)), "none")
        raise DataError(
            f"a corpus in memory is a list of documents, each a text, or with chat=True a list of messages; got a list of "
            f"{len(documents)} with {other}"
        )
    for number, text in enumerate(documents):
        if isinstance(text, str):
            require_text(text, f"document {number}")
    name = f"{len(documents)} documents in memory"
    return Corpus(source=name, tokens=tokens, texts=documents, **how)


def model_of(model: Model | str) -> Model:
    """The model, loaded if it is given by name or folder. Raises ModelError for anything else, and whatever `load` raises."""
    if not isinstance(model, Model | str):
        raise ModelError(f"a model is the name of one, or what ds.load gives; got {shown(model)}")
    return load(model) if isinstance(model, str) else model


def ids_of(model: Model, text: str | Sequence[Any] | Tensor) -> TokenIds:
    """Token ids shaped [batch, seq], on the model's device, of a text or of ids shaped [seq] or [batch, seq].

    A text longer than the model's context is truncated, with a warning. Raises DataError for no tokens, for other shapes and
    for ids outside the vocabulary.
    """
    if isinstance(text, str):
        found = model.tokenize(require_text(text, "the text"))
        if not found:
            raise DataError("the text is empty: expected at least one token")
        if model.context is not None and len(found) > model.context:
            warnings.warn(
                f"the text has {len(found)} tokens; only the first {model.context}, the context of {model.name}, are used",
                stacklevel=3,
            )
            found = found[: model.context]
        ids = torch.tensor(found, dtype=torch.int64)
    elif not isinstance(text, Tensor | Iterable):
        raise DataError(f"expected a text, or token ids shaped [seq] or [batch, seq], got {shown(text)}")
    elif not isinstance(text, Tensor) and any(isinstance(one, str) for one in text):
        raise DataError(
            "expected one text, or token ids shaped [seq] or [batch, seq]; got a list of texts: pass them one at a time"
        )
    else:
        try:
            ids = torch.as_tensor(text, dtype=torch.int64)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise DataError(f"expected token ids shaped [seq] or [batch, seq], got {shown(text)}") from error
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.numel() == 0:
        raise DataError(
            f"expected token ids shaped [seq] or [batch, seq] with at least one token, got {list(ids.shape)}"
        )
    model.check_ids(ids)
    return ids.to(model.device)
