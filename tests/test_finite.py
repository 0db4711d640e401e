"""NaN and infinity: refused with their place, by everything that runs a model, and never part of a number."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, VOCABULARY, tiny_model

import depthscope as ds
from depthscope.api.study import Study
from depthscope.data.corpus import Corpus
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import NumericError
from depthscope.experiments.document_sums import Rows
from depthscope.models.activations import ActivationReader
from depthscope.models.finite import all_finite
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.models.noise_floor import noise_floor
from depthscope.models.patterns import attention_patterns
from depthscope.models.weights import mlp_output_weights, reading_weights, unembedding
from depthscope.routes import Route, Step
from depthscope.schema.experiments import EXPERIMENTS
from depthscope.schema.norms import ATTENTION_NORM, NORM_RATIO

BROKEN = [torch.nan, torch.inf, -torch.inf]
IDS = torch.from_numpy(np.random.default_rng(3).integers(1, VOCABULARY - 1, (3, 12)))
INFINITE = 2000
"""The token whose embedding is infinite."""
PLACES = ("embedding", "block", "buffer", "head")


def tensors(model: Model, place: str, draw: np.random.Generator) -> torch.Tensor | None:
    """A tensor of the model to be damaged; None where it has none of that kind."""
    if place == "embedding":
        return model.hf.get_input_embeddings().weight
    if place == "head":
        return model.unembedding.weight
    if place == "block":
        found = [p for p in model.stack.blocks[draw.integers(DEPTH)].parameters() if p.is_floating_point()]
    else:
        found = [b for _, b in model.hf.named_buffers() if b.is_floating_point() and b.numel()]
    return found[draw.integers(len(found))] if found else None


@contextmanager
def damaged(model: Model, tensor: torch.Tensor, row: int, value: float) -> Iterator[None]:
    """A row of a tensor at a value that is no number, and back."""
    whole = tensor.detach().clone()
    try:
        with torch.no_grad():
            (tensor if tensor.ndim else tensor[None])[row % (tensor.shape[0] if tensor.ndim else 1)] = value
        model.stack._cache.clear()
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(whole)
        model.stack._cache.clear()
        model.kernels.forget()


def first_depth(model: Model, ids: torch.Tensor) -> int | None:
    """The first residual stream that is not finite, by hooks on a plain forward; DEPTH + 1: the logits; None: all are."""
    with torch.inference_mode():
        streams = naive.residuals(model.hf, ids)
        logits = model.hf(input_ids=ids, use_cache=False).logits
    broken = [depth for depth, stream in enumerate([*streams, logits]) if not torch.isfinite(stream).all()]
    return broken[0] if broken else None


def said_depth(error: NumericError) -> int:
    """The depth that a message names."""
    said = str(error)
    if "from the embedding" in said:
        return 0
    found = re.search(r"from block (\d+) on", said)
    return DEPTH + 1 if found is None else int(found[1]) + 1


@pytest.mark.fault(
    "NaN or infinity in an embedding row, a block's weight, a buffer or the head", "an error that names the block"
)
def test_the_first_depth_that_is_not_finite_is_named_by_whatever_runs_the_model(tiny, tries):
    for seed in range(tries(4, of=40)):
        draw = np.random.default_rng(seed)
        tensor = tensors(tiny, PLACES[seed % 4], draw)
        if tensor is None:
            continue
        row = int(IDS[1, 5]) if PLACES[seed % 4] == "embedding" else int(draw.integers(1000))
        with damaged(tiny, tensor, row, BROKEN[draw.integers(3)]), torch.inference_mode():
            expected = first_depth(tiny, IDS)
            if expected is None:  # such as an expert that no token is sent to
                whole_baseline(tiny)
                continue
            errors = [refusal(run, tiny) for run in (whole_baseline, measured, edited_logits)]
            assert [said_depth(error) for error in errors] == [expected] * 3, [str(error) for error in errors]
            refusal(floor, tiny)
            if expected <= DEPTH:
                patterns_refused(tiny, expected)
        with torch.inference_mode():
            whole_baseline(tiny)


def refusal(run, model: Model) -> NumericError:
    with pytest.raises(NumericError) as caught:
        run(model)
    return caught.value


def whole_baseline(model: Model) -> None:
    assert Baseline(model, IDS, IDS).reference.own.top.shape == (IDS.numel(),)


def measured(model: Model) -> None:
    RouteMeter(model, []).measure(IDS, IDS)


def edited_logits(model: Model) -> None:
    ds.logits(model, IDS)


def floor(model: Model) -> None:
    for row in range(len(IDS)):  # the floor is on one window
        noise_floor(model, IDS[row : row + 1])


def patterns_refused(model: Model, expected: int) -> None:
    """Where a pattern is broken before the residual stream is, that is said of the same block."""
    with pytest.raises(NumericError) as caught:
        list(attention_patterns(model, IDS))
    said = re.search(r"attention pattern of block (\d+)", str(caught.value))
    assert (said_depth(caught.value) if said is None else int(said[1]) + 1) == expected


@pytest.mark.fault("NaN or infinity on an edited route alone", "an error that names route, window and block")
@pytest.mark.parametrize("value", BROKEN)
def test_an_edited_route_that_is_not_finite_is_named(tiny_of, monkeypatch, value):
    model = tiny_of("llama")
    own = model.visit

    def broken(step: Step, residual, arguments, state=None):
        found = own(step, residual, arguments, state)
        if step.silent:
            found[-1, 4:] = value
        return found

    monkeypatch.setattr(model, "visit", broken)
    routes = [ds.swap(0)(Route.own(DEPTH)), ds.drop_attn(2)(Route.own(DEPTH))]
    meter = RouteMeter(model, routes)
    meter.keep = type(meter.keep)(0)
    with pytest.raises(
        NumericError, match=r"on the route .*2~attn.* window 2 of the batch, position \d+, from block 2~attn on"
    ):
        meter.measure(IDS, IDS)
    with pytest.raises(NumericError, match=r"on the route .*2~attn.*, window 2 of the batch, from block 2~attn on"):
        ds.logits(model, IDS, "drop_attn(2)")


@pytest.mark.fault("float16 overflows in the middle of a model", "an error that names the block and says so")
def test_float16_that_overflows_is_named(tiny_of):
    hf = tiny_model("llama", torch.float16)
    model = load(hf)
    with torch.no_grad():
        model.stack.blocks[2].mlp.down_proj.weight.fill_(60000.0)
    with torch.inference_mode(), pytest.raises(NumericError, match=r"from block 2 on.*float16 overflows above 65,504"):
        Baseline(model, IDS, IDS)


@pytest.mark.fault(
    "NaN in weights that are read without running the model", "an error that names the block, no dead neurons"
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_weights_that_are_read_by_themselves(tiny_of, family):
    model = tiny_of(family)
    with damaged(model, next(iter(model.stack.blocks[2].parameters())), 0, torch.nan):
        for read in (mlp_output_weights, reading_weights):
            with pytest.raises(NumericError, match="NaN or infinity in the weights of block 2"):
                read(model, 2)
    with (
        damaged(model, model.unembedding.weight, 7, torch.inf),
        pytest.raises(NumericError, match="the final norm or the unembedding"),
    ):
        unembedding(model)


@pytest.mark.fault(
    "one token's embedding is infinite, in one of many prompts", "probes and heads name what the prompt is of"
)
def test_prompts_of_own_units_are_named(tiny_of):
    model = tiny_of("gpt2")
    reader = ActivationReader(model, torch.tensor([[1, 0]]))
    with damaged(model, model.hf.get_input_embeddings().weight, int(IDS[2, 3]), torch.inf), torch.inference_mode():
        ids = IDS[[int(IDS[2, 3]) in row.tolist() for row in IDS]]
        with pytest.raises(NumericError, match="from the embedding, before block 0, in a context of document 0"):
            reader.read(ids, [-1], lambda row: f"a context of document {row}")
        with pytest.raises(NumericError, match="from the embedding, before block 0, in a prompt of document 0"):
            list(attention_patterns(model, ids, named=lambda row: f"a prompt of document {row}"))


def test_large_finite_numbers_whose_sum_overflows_are_finite():
    assert all_finite([torch.full((4, 4), 3e38), torch.full((9,), 60000.0, dtype=torch.float16)])
    assert all_finite([])
    assert not all_finite([torch.zeros(3), torch.tensor([torch.inf, -torch.inf])])


@pytest.mark.fault(
    "a measured quantity overflows on finite residual streams", "an error, unless the quantity may not exist"
)
def test_sums_that_are_not_finite_make_no_shard():
    rows = Rows({"layer": pl.Int32}, [(0,), (1,)], [ATTENTION_NORM, NORM_RATIO], undefined=(NORM_RATIO.name,))
    sums = np.ones((2, 2, 3))
    sums[1, 0, 1] = np.nan
    assert len(rows.shard(sums, 4, np.array([0, 0, 2]))) == 4, "a ratio to zero has no value"
    sums[0, 1, 2] = np.inf
    with pytest.raises(NumericError, match="attention_norm at layer 1, in window 2 of the work unit, of document 2"):
        rows.shard(sums, 4, np.array([0, 0, 2]))


@pytest.fixture(scope="module")
def untied() -> Model:
    """The first blocks of a trained model in which one token's embedding is infinite, and no other token notices."""
    own = load("bookshelf-gpt2")
    del own.hf.transformer.h[4:]
    own.hf.config.n_layer = 4
    own.hf.lm_head.weight = torch.nn.Parameter(own.hf.lm_head.weight.detach().clone())
    model = load(own.hf, tokenizer=own.tokenizer)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[INFINITE, 3] = torch.inf
    return model


@pytest.fixture(scope="module")
def text(tmp_path_factory, untied) -> str:
    """Documents of which the fourth alone has a certain token, whose embedding is infinite."""
    chosen = [text for text in list(Corpus().documents())[::4] if INFINITE not in untied.tokenize(text)]
    chosen[3] = untied.tokenizer.decode([INFINITE]) + chosen[3]
    path = tmp_path_factory.mktemp("text") / "one-broken.jsonl"
    path.write_text("\n".join(json.dumps({"text": one}) for one in chosen), encoding="utf-8")
    return str(path)


PROMPTS = ("heads", "probes", "neurons", "patching")
"""Experiments that read no windows of the text, so they need not meet the token."""
MORE_WINDOWS = ("dimension",)
"""Six windows are too few for it; it reads them with the code of `geometry`."""
ON_THE_TEXT = [name for name, one in EXPERIMENTS.items() if one.tables and name not in (*PROMPTS, *MORE_WINDOWS)]


@pytest.mark.fault(
    "one token's embedding is infinite, in one document of a text", "every experiment refuses; finished units stay"
)
@pytest.mark.parametrize("experiment", ON_THE_TEXT)
def test_no_reading_gives_numbers_of_a_text_that_is_not_finite(untied, text, tmp_path, experiment):
    options = {"tokens": 6 * 32, "window": 32, "unit_tokens": 64, "progress": False, "out": tmp_path / "run"}
    with pytest.raises(NumericError, match=r"from the embedding, before block 0, in window 0 of document 3"):
        ds.study(untied, text, experiments=experiment, **options)
    assert [shard.name for shard in (tmp_path / "run/shards" / experiment).iterdir()] == ["00000.parquet"]
    assert not Study(tmp_path / "run").run.complete
