"""From a document to token ids: texts as they are, chats through the tokenizer's template.

In a chat the template's special tokens are tokens, while a special token's name that a message writes is the characters that
are there (unless the corpus keeps special tokens). The tokenizer has one switch for both, so such a text is cut at the
template's special tokens, and what lies between them is tokenized piece by piece, as the tokenizer itself does.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from depthscope.data.fields import Document, Message, require_text
from depthscope.errors import DataError
from depthscope.models.model import Model
from depthscope.printable import first_line, listed

CHARACTERS_PER_TOKEN = 8
"""More than a token has on average, so that text cut at this many characters a token mostly holds enough tokens."""
PRIVATE = range(0xF0000, 0xFFFFD)
"""Private-use characters. One that a chat does not use marks where its messages wrote the name of a special token."""


def document_tokens(
    model: Model, document: Document, special_tokens: str, characters: int | None = None, *, answer: bool = False
) -> list[int]:
    """Token ids of a document, no special tokens added beyond a chat template's own.

    Of a text the first `characters` are read; `answer`: a chat ends with the beginning of the model's answer. Raises DataError
    without a tokenizer, or for a chat that has no template.
    """
    if not document:
        return []
    if isinstance(document, str):
        return model.tokenize(document[:characters], special_tokens)
    if special_tokens == "keep":
        return model.tokenize(rendered(model, document, answer), "keep")
    return list(_chat_tokens(model, document, answer))


def rendered(model: Model, document: Document, answer: bool = False) -> str:
    """A document as text: a chat as the tokenizer's template writes it, with `answer` up to where the model's answer begins.

    Raises DataError without a tokenizer or a template, or where the template refuses the messages.
    """
    if isinstance(document, str):
        return document
    require_template(model)
    tokenizer = model.require_tokenizer()
    try:
        messages = [dict(message) for message in document]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))
    except Exception as error:  # a template is a program of its own, which may raise anything
        roles = listed(message["role"] for message in document)
        raise DataError(
            f"the chat template of {model.name} refuses a chat with the roles {roles}: {first_line(error)}. Expected messages "
            "as it was made for"
        ) from error
    return require_text(text, "a chat")


def require_template(model: Model) -> None:
    """Raise DataError for a model that cannot read chats."""
    if not model.require_tokenizer().chat_template:
        raise DataError(
            f"the tokenizer of {model.name} has no chat template, so --chat cannot be done: give a model that was made for "
            "chats, or its text as a field of its own"
        )


def _chat_tokens(model: Model, messages: Sequence[Message], answer: bool) -> Iterator[int]:
    names = _special_names(model.tokenizer)
    written = [str(message["content"]) for message in messages]
    if not any(name in text for text in written for name in names):
        yield from model.tokenize(rendered(model, tuple(messages), answer), "keep")
        return
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    used = set("".join(written))
    place = next(chr(code) for code in PRIVATE if chr(code) not in used)
    found: list[str] = []

    def hidden(content: Any) -> Any:
        if isinstance(content, str):
            return pattern.sub(lambda name: (found.append(name.group()), f"{place}{len(found) - 1}{place}")[1], content)
        if isinstance(content, list | tuple):
            return [hidden(part) for part in content]
        return {key: hidden(value) for key, value in content.items()} if isinstance(content, dict) else content

    text = rendered(model, tuple({**one, "content": hidden(one["content"])} for one in messages), answer)
    placed = re.compile(f"{place}(\\d+){place}")
    for piece in re.split(f"({pattern.pattern})", text):
        if piece in names:
            yield int(names[piece])
        elif piece:
            yield from model.tokenize(placed.sub(lambda number: found[int(number.group(1))], piece), "text")


def _special_names(tokenizer: Any) -> dict[str, int]:
    """The special tokens that text can name, and their ids."""
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
