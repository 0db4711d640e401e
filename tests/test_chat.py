"""Chats become tokens as the tokenizer's own template does it; what messages write stays text."""

import copy

import pytest
from families import tiny_model

import depthscope as ds
from depthscope.data.tokens import document_tokens
from depthscope.data.windows import make_windows
from depthscope.data.word_prompts import word_prompts
from depthscope.errors import DataError
from depthscope.models.load import load

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|endoftext|>\n{% endfor %}"
CHAT = ({"role": "user", "content": "Is it fine? "}, {"role": "assistant", "content": "It is a fine day.\n"})
END = 0


@pytest.fixture(scope="module")
def chatty(gpt2):
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return load(gpt2.hf, tokenizer=tokenizer)


def own(model, chat) -> list[int]:
    found = model.tokenizer.apply_chat_template(list(chat), tokenize=True, return_dict=False)
    return list(found)


def test_the_templates_special_tokens_are_tokens(chatty):
    assert document_tokens(chatty, CHAT, "text") == document_tokens(chatty, CHAT, "keep") == own(chatty, CHAT)
    assert own(chatty, CHAT).count(END) == 2


def test_what_a_message_writes_is_text_and_the_rest_as_it_was(chatty):
    """A special token's name in a message: the tokens of its characters, in place, and all other tokens unchanged."""
    chat = ({"role": "user", "content": "What is <|endoftext|>, or\n<|endoftext|>?"}, *CHAT)
    ids = document_tokens(chatty, chat, "text")
    assert ids.count(END) == 3
    assert chatty.tokenizer.decode(ids) == chatty.tokenizer.apply_chat_template(list(chat), tokenize=False)
    first, second = (
        chatty.tokenize(text, "text") for text in ("user: What is <|endoftext|>, or\n<|endoftext|>?", "\n")
    )
    assert ids[: len(first) + 1 + len(second)] == [*first, END, *second][: len(first) + 1 + len(second)]
    assert ids[-len(own(chatty, CHAT)) + 3 :] == own(chatty, CHAT)[3:]
    assert document_tokens(chatty, chat, "keep") == own(chatty, chat)
    assert own(chatty, chat).count(END) == 5


def test_cutting_at_special_tokens_is_what_the_tokenizer_does(chatty):
    """A chat read piece by piece, but for what it names, gives the ids of the whole."""
    marked = ({"role": "user", "content": "x <|endoftext|> y"}, *CHAT)
    plain = ({"role": "user", "content": "x"}, *CHAT)
    tail = own(chatty, plain)[own(chatty, plain).index(END) :]
    assert document_tokens(chatty, marked, "text")[-len(tail) :] == tail


def test_chats_are_documents(chatty, tmp_path):
    chats = [[{"role": "user", "content": f"It is the {n}th fine day. " * 9}, *CHAT] for n in range(12)]
    windows = make_windows(ds.corpus(chats, chat=True, tokens=16 * 12), chatty, length=16)
    assert windows.documents == 12
    assert windows.ids[3].tolist() == own(chatty, chats[3])[:17]
    tiny = load(tiny_model("gpt2", vocab_size=4096), tokenizer=chatty.tokenizer)
    study = ds.study(tiny, ds.corpus(chats, chat=True), out=tmp_path, window=16, experiments=["lens"], progress=False)
    assert study.run.settings.chat is True
    with pytest.raises(DataError, match="too few words"):
        word_prompts(ds.corpus(chats, chat=True), chatty)


def test_a_template_that_writes_bos_and_a_window_that_begins_with_it_make_one(gpt2):
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    model = load(gpt2.hf, tokenizer=tokenizer)
    windows = make_windows(ds.corpus([CHAT], chat=True), model, length=8, bos="window")
    assert windows.ids[0].tolist() == own(model, CHAT)[:9]


def test_what_no_template_can_do_is_refused(gpt2):
    with pytest.raises(DataError, match="the tokenizer of bookshelf-gpt2 has no chat template"):
        make_windows(ds.corpus([CHAT], chat=True), gpt2, length=8)
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match="refuses a chat with the roles user, assistant: no system role"):
        make_windows(ds.corpus([CHAT], chat=True), load(gpt2.hf, tokenizer=tokenizer), length=8)
