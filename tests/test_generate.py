"""Generation along a route: with caches as without, transformers' own where nothing is edited, and no trace left."""

import _thread
import copy
import signal
import threading
from typing import Any

import pytest
import torch
from families import DEPTH, FAMILIES, HYBRIDS, WITHOUT_COMPONENTS, tiny_model
from torch import Tensor

import depthscope as ds
from depthscope.engine import generation
from depthscope.engine.execute import run_route
from depthscope.engine.generation import check_caches, generate_tokens, left_padded
from depthscope.errors import DataError, DepthscopeError, RouteError, UnsupportedError
from depthscope.models import routed
from depthscope.models.generation import generate_ids
from depthscope.models.hooks import hooked
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.models.written import Written
from depthscope.routes import Route, parse_route

ROUTES = ("3 1 0 1 3", "2 (1+3) 2")
"""Reordered, repeated, with a block (also the first) dropped, and parallel."""
ABLATED = ("0~attn 1 2~mlp 2 3",)
NEW = 4


@torch.inference_mode()
def replayed(model: Model, route: Route, ids: Tensor) -> Tensor:
    """Logits of a route after each token of one row, without a cache."""
    residual = run_route(model, route, ids)
    return model.unembedding.logits(model.unembedding.hidden(residual)).float()


def generated(model: Model, route: Route, ids: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    """What the model generates on a route, and the logits its own forward gave for it, shaped [batch, new, vocab]."""
    rows: list[Tensor] = []
    with hooked(after=[(model.hf, lambda _m, _a, _k, output: rows.append(output.logits[:, -1].float()))]):
        found = generate_ids(model, route, ids, tokens=NEW, min_new_tokens=NEW, **more)
    return found, torch.stack(rows, 1)


def routes_of(model: Model) -> list[Route]:
    names = ROUTES if model.family in (*WITHOUT_COMPONENTS, *HYBRIDS) else ROUTES + ABLATED
    return [parse_route(name, DEPTH) for name in names]


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_generation_with_caches_equals_generation_without(family, tiny_of):
    model = tiny_of(family)
    ids = (torch.arange(11) * 7 % 89)[None]
    for route in routes_of(model):
        found, logits = generated(model, route, ids)
        expected = replayed(model, route, found[:, :-1])[10:]
        scale = max(1.0, float(expected.abs().max()))
        # Token for token: each token is the likeliest of the logits without a cache, up to their rounding.
        assert float((logits[0] - expected).abs().max()) <= 1e-4 * scale, route.name
        free = expected.clone()
        free[:, 0] = -torch.inf  # the end of the text, which min_new_tokens forbids
        chosen = free.gather(1, found[0, 11:, None])[:, 0]
        assert float((free.amax(1) - chosen).max()) <= 1e-4 * scale, route.name


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_the_unmodified_model_generates_as_transformers_does(family, tiny_of):
    model = tiny_of(family)
    ids = (torch.arange(9) * 5 % 89)[None]
    own = model.hf.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(generate_tokens(model, Route.own(DEPTH), ids, tokens=NEW), own)
    with routed.RoutedForward(model, Route.own(DEPTH)).active():  # the mechanism itself changes no bit either
        assert torch.equal(model.hf.generate(ids, max_new_tokens=NEW, do_sample=False), own)


def test_drawn_tokens_are_those_of_transformers_and_leave_the_random_numbers(tiny_of):
    model, ids = tiny_of("llama"), torch.arange(9)[None]
    torch.manual_seed(3)
    drawn = model.hf.generate(ids, max_new_tokens=8, do_sample=True, temperature=1.5)
    before = torch.get_rng_state()
    assert torch.equal(generate_tokens(model, Route.own(DEPTH), ids, tokens=8, temperature=1.5, seed=3), drawn)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mpt", "mamba", "falcon_h1", "zamba2", "minimax"])
@pytest.mark.parametrize("cached", [True, False])
def test_padding_passes_its_check_on_a_route(family, cached, tiny_of):
    check_caches(tiny_of(family), parse_route("1 0 1 3", DEPTH), padded=True, cached=cached)


def test_padding_that_changes_logits_is_refused(tiny_of):
    # transformers' own MiniMax attends to padding where its first layer is a linear attention.
    with pytest.raises(UnsupportedError, match=r"minimax.*other logits for a prompt that is padded at the left"):
        check_caches(tiny_of("minimax"), Route.own(DEPTH), padded=True)


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_prompts_of_different_length_do_not_see_each_other(family, tiny_of):
    model = tiny_of(family)
    prompts = [[3, 14, 15, 92 % 89, 65, 35, 8, 9], [27, 18, 28], [61, 80, 33, 9, 8]]
    ids, mask = left_padded(prompts)
    route = parse_route("1 0 1 3", DEPTH)
    found, logits = generated(model, route, ids, mask=mask)
    for row, prompt in enumerate(prompts):
        alone = found[row : row + 1, ids.shape[1] - len(prompt) : -1]
        expected = replayed(model, route, alone)[len(prompt) - 1 :]
        assert float((logits[row] - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_the_empty_route_generates_from_the_embedding(tiny_of):
    model, route = (
        tiny_of("gpt2"),
        parse_route("empty", DEPTH),
    )  # learned positions count tokens without any block's help
    found, logits = generated(model, route, torch.arange(11)[None])
    assert torch.allclose(logits[0], replayed(model, route, found[:, :-1])[10:], atol=1e-4)


def state_of(model: Model) -> dict[str, Any]:
    """Everything that could be left behind: modules, their attributes and hooks, configurations."""
    modules = {
        name: (id(module), type(module), {key: id(value) for key, value in vars(module).items()}, dict(module._modules))
        for name, module in model.hf.named_modules()
    }
    hooks = {
        name: [list(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks")]
        for name, module in model.hf.named_modules()
    }
    return {
        "modules": modules,
        "hooks": hooks,
        "config": copy.deepcopy(model.hf.config.to_dict()),
        "generation": copy.deepcopy(model.hf.generation_config.to_dict()),
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mamba", "zamba2", "gemma4_text", "mixtral"])
def test_the_model_is_left_as_it_was(family, tiny_of):
    model, route = tiny_of(family), parse_route("1 0 1 3", DEPTH)
    ids = (torch.arange(9) * 5 % 89)[None]
    generate_ids(model, Route.own(DEPTH), ids, tokens=2)  # what transformers itself keeps, it keeps from now on
    before = state_of(model)
    steps: list[bool] = []

    def seen(_ids: Any) -> bool:
        steps.append(state_of(model) == before)  # also while a stream waits
        return len(steps) == 3

    found = generate_ids(model, route, ids, tokens=NEW, seed=1, temperature=1.0, min_new_tokens=NEW, seen=seen)
    assert steps == [True] * 3
    assert found.shape == (1, 12)
    assert state_of(model) == before

    def broken(_ids: Any) -> bool:
        raise ValueError("the reader's own")

    with pytest.raises(ValueError, match="the reader's own"):
        generate_ids(model, route, ids, tokens=NEW, seed=1, seen=broken)
    assert state_of(model) == before

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), hooked(before=[(model.stack.blocks[3], interrupt)]):
        generate_ids(model, route, ids, tokens=NEW, seed=1)
    assert state_of(model) == before


def test_a_model_whose_caches_are_wrong_is_refused(tiny_of, monkeypatch):
    model, route, ids = tiny_of("stablelm"), parse_route("0-2 1-3", DEPTH), torch.arange(5)[None]
    visit = routed.RoutedForward._visit

    def shared(self: Any, place: int, step: Any, *given: Any) -> Any:
        return visit(self, [one.block for one in self.route.steps()].index(step.block), step, *given)

    # As if visits shared the entry of their block.
    monkeypatch.setattr(routed.RoutedForward, "_visit", shared)
    with pytest.raises(UnsupportedError, match=r"stablelm.*cannot generate with caches on the route '0-2 1-3'"):
        generate_tokens(model, route, ids, tokens=2)
    without = generate_tokens(model, route, ids, tokens=4, min_new_tokens=4, use_cache=False)
    monkeypatch.undo()
    assert torch.equal(without, generate_tokens(model, route, ids, tokens=4, min_new_tokens=4))


def test_layers_that_share_keys_and_values():
    model = load(tiny_model("gemma4_text", num_kv_shared_layers=2))
    ids = (torch.arange(9) * 5 % 89)[None]
    for name in ("1 0 3 2-3", "0 1 0 (2+3)"):
        route = parse_route(name, DEPTH)
        found, logits = generated(model, route, ids)
        expected = replayed(model, route, found[:, :-1])[8:]
        assert float((logits[0] - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))
    with pytest.raises(RouteError, match=r"reads shared_kv_states"):
        generate_tokens(model, parse_route("0 2-3", DEPTH), ids, tokens=2)


def test_each_route_is_checked_once(tiny_of, monkeypatch):
    model, route = tiny_of("qwen2"), parse_route("0 0 0 3", DEPTH)
    check_caches(model, route)
    monkeypatch.setattr(generation, "generate_ids", lambda *_a, **_k: pytest.fail("checked again"))
    check_caches(model, route)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 cannot be used: beam search reorders caches"),
        ({"custom_generate": "someone/else"}, "runs code from elsewhere"),
        ({"max_new_tokens": 5}, "is `tokens`"),
        ({"temprature": 1.0}, "unknown option of generation 'temprature'"),
        ({"temperature": -1.0}, "temperature is -1.0: expected a number from 0"),
        ({"top_p": 7.0}, "top_p is 7.0: expected a number from 0 to 1"),
        ({"temperature": 0, "do_sample": True}, "temperature 0 takes the likeliest token"),
        ({"repetition_penalty": -1.0}, "cannot generate with these options"),
        ({"tokens": 0}, "tokens is 0: expected how many"),
        ({"tokens": 300}, "longer than the context of bookshelf-gpt2, 256: expected at most 25"),
        ({"stop": ["a", ""]}, "stop is one string or several, none of them empty"),
        ({"chat": True}, "has no chat template"),
        ({"bos": "maybe"}, "unknown BOS policy"),
        ({"edit": "drop(99)"}, "out of range"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "a prompt is a text"),
    ],
)
def test_what_cannot_be_done_is_refused(given, message, gpt2):
    more = dict(given)
    with pytest.raises(DepthscopeError, match=message):
        ds.generate(gpt2, more.pop("prompt", "It was the"), more.pop("edit", "drop(3)"), **more)


def test_a_second_bos_is_refused(gpt2):
    model = gpt2
    text = f"{model.tokenizer.bos_token}It was"
    with pytest.raises(DataError, match="two BOS tokens"):
        ds.generate(model, text, bos="window", tokens=2)
    assert isinstance(ds.generate(model, text, tokens=2), str)


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return load("bookshelf-gpt2")


PROMPT = "It was the best of times, it was the worst of"


def test_streamed_pieces_are_the_text_and_stop_strings_end_it(gpt2):
    model = gpt2
    whole = ds.generate(model, PROMPT, "repeat(4)", tokens=16, seed=5, temperature=0.9)
    assert "".join(ds.generate_stream(model, PROMPT, "repeat(4)", tokens=16, seed=5, temperature=0.9)) == whole
    stop = whole[7:10]
    expected = whole[: whole.index(stop)]
    assert ds.generate(model, PROMPT, "repeat(4)", tokens=16, seed=5, temperature=0.9, stop=stop) == expected
    pieces = ds.generate_stream(model, PROMPT, "repeat(4)", tokens=16, seed=5, temperature=0.9, stop=stop)
    assert "".join(pieces) == expected


def test_several_prompts_give_the_text_of_each(gpt2):
    model = gpt2
    prompts = [PROMPT, "The ship", "She had never"]
    alone = [ds.generate(model, prompt, ds.drop(5), tokens=8) for prompt in prompts]
    assert ds.generate(model, prompts, ds.drop(5), tokens=8) == alone
    assert ds.generate(model, prompts[:1], ds.drop(5), tokens=8) == alone[:1]


def test_a_stream_given_up_leaves_the_model_free_and_its_thread_ended(gpt2):
    model = gpt2
    before = state_of(model)
    stream = ds.generate_stream(model, PROMPT, "swap(3)", tokens=100, seed=0, top_k=5)
    assert next(stream)
    assert state_of(model) == before
    between = ds.generate(model, PROMPT, "drop(2)", tokens=3)  # the model can be used while a stream waits
    stream.close()
    assert state_of(model) == before
    assert between == ds.generate(model, PROMPT, "drop(2)", tokens=3)
    with pytest.raises(DataError, match="cannot generate with these options"):
        list(ds.generate_stream(model, PROMPT, "swap(3)", tokens=3, repetition_penalty=-1.0))
    assert state_of(model) == before


def test_pieces_wait_for_whole_characters_and_possible_stops(gpt2):
    tokenizer = gpt2.tokenizer
    for text in ("a café — “quoted”", "one\ntwo", "ends with a st"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        written = Written(tokenizer, [5, 6], ["stop"])
        pieces = [written.add([one]) for one in ids]
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) + written.rest() == text
    ids = tokenizer("this is a stop and more", add_special_tokens=False)["input_ids"]
    written = Written(tokenizer, [], ["stop", " and"])
    assert "".join([written.add([one]) for one in ids]) + written.rest() == "this is a "


def test_a_chat_is_written_by_the_template(gpt2, monkeypatch):
    model = gpt2
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}[he]{% endif %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    expected = ds.generate(model, "[user] Good morning\n[he]", tokens=5)
    assert ds.generate(model, "Good morning", tokens=5, chat=True) == expected
    assert ds.generate(model, [{"role": "user", "content": "Good morning"}], tokens=5, chat=True) == expected


def test_a_streamed_model_generates_the_same(tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    whole, streamed = load(str(tmp_path), stream="no"), load(str(tmp_path), stream="yes")
    assert streamed.stack.streamed
    ids, route = (torch.arange(9) * 5 % 89)[None], parse_route("3 1 0 1 3", DEPTH)
    for one in (route, Route.own(DEPTH)):
        found, logits = generated(whole, one, ids)
        again, others = generated(streamed, one, ids)
        assert torch.equal(found, again)
        assert torch.allclose(logits, others, atol=1e-5)


def test_an_answer_in_a_chat_ends_at_the_tokenizers_end_of_a_text():
    model = load("bookshelf-gpt2")
    ids = torch.tensor([model.tokenize("It was the best of")])
    first = int(generate_tokens(model, Route.own(model.depth), ids, tokens=1)[0, -1])
    model.tokenizer.chat_template = "{{ messages[0].content }}"
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(first)
    assert ds.generate(model, "It was the best of", tokens=4, chat=True) == ""


def test_ctrl_c_while_a_stream_is_read_leaves_the_model_as_it_was(gpt2):
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    before, threads = state_of(gpt2), threading.active_count()
    interrupt = threading.Timer(0.2, _thread.interrupt_main)
    stream = ds.generate_stream(gpt2, PROMPT, "swap(3)", tokens=200, min_new_tokens=200)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it comes at any of these
        interrupt.start()
        for _piece in stream:
            pass
    stream.close()
    interrupt.join()
    signal.signal(signal.SIGINT, usual)
    assert state_of(gpt2) == before
    assert threading.active_count() == threads
