"""Readings of the shared pass against naive float64 definitions: lens, norms, attention, similarity, influence, geometry."""

import copy

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, VOCABULARY, WIDTH, tiny_model
from rebuilt import logits_of
from test_weights import LAYER_NORM, spread_norms
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.errors import RunError, UnsupportedError
from depthscope.experiments.attention import Attention
from depthscope.experiments.geometry import Geometry
from depthscope.experiments.influence import Influence
from depthscope.experiments.lens import LensReading
from depthscope.experiments.norms import Norms
from depthscope.experiments.similarity import Similarity
from depthscope.models.load import load
from depthscope.schema.attention import ATTENTION_TABLE, HEADS_TABLE
from depthscope.schema.lens import LENS_TABLE
from depthscope.schema.norms import NORMS_TABLE
from depthscope.schema.similarity import GEOMETRY_TABLE, INFLUENCE_TABLE, SIMILARITY_TABLE

NAIVE = ["gpt2", "gpt_neox", "phi", "llama", "qwen2", "gemma2", "granite", "falcon", "opt", "bloom"]
LENGTH = 20
DOCUMENTS = np.array([0, 0, 1, 2, 2, 5])


def windows(seed: int = 0) -> Windows:
    # Token 0 pads: in some families its embedding is zero, and a zero vector has no direction.
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, (len(DOCUMENTS), LENGTH + 1)).astype(np.int32)
    starts = np.array([0, LENGTH, 0, 0, LENGTH, 0])
    return Windows(ids, DOCUMENTS, starts, "none")


TEXT = windows()
IDS, TARGETS = TEXT.batch()


def tables(reading, model, text: Windows = TEXT, cuts: tuple[int, ...] = (4,)) -> dict[str, pl.DataFrame]:
    """Tables of a reading done in two units: a document is cut between them."""
    shards = []
    for start, stop in zip((0, *cuts), (*cuts, len(text)), strict=True):
        part = text.part(start, stop)
        with torch.inference_mode():
            shards.append(reading.read(Baseline(model, *part.batch(), keep=reading.keep), part))
    return reading.tables(shards)


@pytest.fixture(params=NAIVE)
def pair(request):
    """A model with norms that scale and shift, and the same in float64 to define things with."""
    model = spread_norms(tiny_model(request.param))
    return model, copy.deepcopy(model.hf).double()


def check(table: pl.DataFrame, keys: dict[str, object], metric: str, values: np.ndarray, atol: float = 2e-4) -> None:
    row = table.filter(pl.col("metric") == metric, *(pl.col(key) == value for key, value in keys.items()))
    assert len(row) == 1
    found = row.select("mean", "ci_low", "ci_high").row(0)
    expected = naive.estimate(np.asarray(values, dtype=np.float64), TEXT.document)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=atol)
    for bound, wanted in zip(found[1:], expected[1:], strict=True):
        if abs(bound - wanted) > 1e-3:  # cut at what the metric can be
            assert bound in (0.0, 1.0, -1.0)
    assert row["documents"][0] == 4


def own_head(model: PreTrainedModel, residual: torch.Tensor) -> torch.Tensor:
    """Logits the model would give, were this the residual stream after its last block."""
    holder, name = naive.block_list(model)

    def replaced(_module, _args, output):
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    handle = getattr(holder, name)[-1].register_forward_hook(replaced)
    try:
        return logits_of(model, IDS)
    finally:
        handle.remove()


def test_lens(pair):
    model, exact = pair
    table = tables(LensReading(model), model)["lens"]
    assert dict(table.schema) == LENS_TABLE
    own = logits_of(exact, IDS)
    for layer, residual in enumerate(naive.residuals(exact, IDS)):
        for metric, values in naive.measures(own, own_head(exact, residual), TARGETS).items():
            check(table, {"layer": layer}, metric, values.numpy(), atol=2e-2 if metric == "agreement" else 2e-4)
    last = table.filter(pl.col("layer") == DEPTH)
    assert last.filter(pl.col("metric") == "kl")["mean"][0] == 0
    assert last.filter(pl.col("metric") == "agreement")["mean"][0] == 1


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "qwen2"])
def test_lens_of_the_script_divides_by_the_last_layers_scale(family):
    model = spread_norms(tiny_model(family))
    exact = copy.deepcopy(model.hf).double()
    table = tables(LensReading(model, "lad2024"), model)["lens"]
    norm, streams, own = load(exact).unembedding.modules[0], naive.residuals(exact, IDS), logits_of(exact, IDS)
    bias = getattr(norm, "bias", None)
    for layer, residual in enumerate(streams):
        centred, last = residual, streams[-1]
        if family in LAYER_NORM:
            centred, last = (x - x.mean(-1, keepdim=True) for x in (residual, last))
        scaled = centred / last.square().mean(-1, keepdim=True).sqrt() * norm.weight + (0 if bias is None else bias)
        logits = exact.get_output_embeddings()(scaled)
        for metric in ("kl", "entropy"):
            check(table, {"layer": layer}, metric, naive.measures(own, logits, TARGETS)[metric].detach().numpy(), 1e-3)


def test_norms(pair):
    model, exact = pair
    table = tables(Norms(model), model)["norms"]
    assert dict(table.schema) == NORMS_TABLE
    streams = naive.residuals(exact, IDS)
    for layer in range(DEPTH):
        vectors = {"residual": streams[layer]}
        vectors["attention"], vectors["mlp"] = naive.contributions(exact, IDS, layer)
        if model.family in LAYER_NORM:
            vectors = {name: x - x.mean(-1, keepdim=True) for name, x in vectors.items()}
        norms = {f"{name}_norm": np.linalg.norm(x.numpy(), axis=-1) for name, x in vectors.items()}
        norms["norm_ratio"] = norms["attention_norm"] / norms["mlp_norm"]
        for metric, values in norms.items():
            check(table, {"layer": layer}, metric, values, atol=1e-3)


@pytest.mark.parametrize(("protocol", "queries"), [("text", "full"), ("text", "all"), ("lad2024", "full")])
def test_attention(pair, protocol, queries):
    model, exact = pair
    found = tables(Attention(model, LENGTH, protocol, queries), model)
    layers, heads = found["attention"], found["attention_heads"]
    assert (dict(layers.schema), dict(heads.schema)) == (ATTENTION_TABLE, HEADS_TABLE)
    eager = AutoModelForCausalLM.from_config(exact.config, attn_implementation="eager").double().eval()
    eager.load_state_dict(exact.state_dict())
    with torch.no_grad():
        patterns = eager(input_ids=IDS, output_attentions=True, use_cache=False).attentions
    for layer, pattern in enumerate(pattern.numpy() for pattern in patterns):
        expected = naive_shares(pattern, 16 * (queries == "full")) if protocol == "text" else naive_bands(pattern)
        for metric, values in expected.items():
            for head in range(pattern.shape[1]):
                check(heads, {"layer": layer, "head": head}, metric, values[:, head], 1e-5)
            check(layers, {"layer": layer}, metric, values.mean(1), 1e-5)


def naive_shares(pattern: np.ndarray, first: int) -> dict[str, np.ndarray]:
    """Per window, head and query from `first` on, by loops over the definition."""
    queries = range(first, LENGTH)
    shares = {
        f"previous_{k}": [
            [[row[h, q, max(q - k, 0) : q].sum() for q in queries] for h in range(row.shape[0])] for row in pattern
        ]
        for k in (1, 2, 4, 5, 8, 16)
    }
    shares["first"] = [[[row[h, q, 0] for q in queries] for h in range(row.shape[0])] for row in pattern]
    shares["self"] = [[[row[h, q, q] for q in queries] for h in range(row.shape[0])] for row in pattern]
    return {name: np.array(values) for name, values in shares.items()}


def naive_bands(pattern: np.ndarray) -> dict[str, np.ndarray]:
    bands = {
        f"band_{k}": [
            [[np.mean([head[q, q - d] for d in range(1, k + 1) for q in range(d, LENGTH)])] for head in row]
            for row in pattern
        ]
        for k in (1, 2, 4, 5, 8, 16)
    }
    return {name: np.array(values) for name, values in bands.items()}


def cosine(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return torch.cosine_similarity(a, b, dim=-1).numpy()


def test_similarity(pair):
    model, exact = pair
    table = tables(Similarity(model), model)["similarity"]
    assert dict(table.schema) == SIMILARITY_TABLE
    in_place = [naive.contributions(exact, IDS, layer) for layer in range(DEPTH)]
    for layer in range(DEPTH - 1):
        order = list(range(DEPTH))
        order[layer : layer + 2] = layer + 1, layer
        moved = {block: naive.contributions(exact, IDS, block, order) for block in (layer, layer + 1)}
        for i, component in enumerate(("attention", "mlp")):
            for way, block, displaced in (("later", layer, layer + 1), ("earlier", layer + 1, layer)):
                keys = {"layer": layer, "component": component, "moved": way}
                check(table, keys, "self", cosine(moved[block][i], in_place[block][i]))
                check(table, keys, "index", cosine(moved[block][i], in_place[displaced][i]))
                check(table, keys, "adjacent", cosine(in_place[layer][i], in_place[layer + 1][i]))


def test_influence(pair):
    model, exact = pair
    table = tables(Influence(model), model)["influence"]
    assert dict(table.schema) == INFLUENCE_TABLE
    streams = naive.residuals(exact, IDS)
    for layer in range(DEPTH):
        check(table, {"layer": layer}, "block_influence", 1 - cosine(streams[layer], streams[layer + 1]))


def test_geometry(pair):
    model, exact = pair
    table = tables(Geometry(model, TEXT), model)["geometry"]
    assert dict(table.schema) == GEOMETRY_TABLE
    last = [stream[:, -1].numpy() for stream in naive.residuals(exact, IDS)]
    for layer in range(DEPTH + 1):
        for other in range(layer + 1, DEPTH + 1):
            cosines = [
                a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(last[layer], last[other], strict=True)
            ]
            keys = {"layer": layer, "other": other}
            check(table, keys, "angular_distance", np.arccos(np.clip(cosines, -1, 1))[:, None] / np.pi, 1e-3)
            (row,) = table.filter(pl.col("metric") == "cka", *(pl.col(k) == v for k, v in keys.items())).to_dicts()
            assert row["mean"] == pytest.approx(naive_cka(last[layer], last[other]), abs=1e-3)
            assert row["ci_low"] <= row["mean"] <= row["ci_high"]  # the interval corrects a bias that the value has
            assert row["ci_low"] < row["ci_high"]


def naive_cka(x: np.ndarray, y: np.ndarray) -> float:
    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        """Song et al. 2012, equation 5, as it is printed."""
        k, m, n = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), len(k)
        one = np.ones(n)
        return (
            np.trace(k @ m)
            + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ m @ one)
        ) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_how_the_text_is_cut_into_units_changes_no_number(pair):
    model, _ = pair
    for make in (LensReading, Norms, Similarity, Influence):
        for name, table in tables(make(model), model).items():
            other = tables(make(model), model, cuts=(1, 2, 5))[name]
            np.testing.assert_allclose(table["mean"].to_numpy(), other["mean"].to_numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_written_adds_up_to_the_blocks_output(tiny):
    """x + attention + MLP is the residual stream after the block, whatever norm or scale stands in between."""
    if tiny.components is None:
        with pytest.raises(UnsupportedError, match="no separate attention and MLP"):
            _ = tiny.writers
        return
    with torch.inference_mode():
        baseline = Baseline(tiny, IDS % 90, TARGETS % 90, keep=Keep.WRITES)
    assert len(baseline.writes) == DEPTH
    for layer, written in enumerate(baseline.writes):
        total = baseline.residuals[layer] + written.attention + written.mlp
        torch.testing.assert_close(total, baseline.residuals[layer + 1], atol=1e-4, rtol=1e-4)
        assert written.attention.shape == (*IDS.shape, WIDTH)


def test_what_a_model_lacks_is_said():
    mamba = load(tiny_model("mamba"))
    for make in (Norms, Similarity):
        with pytest.raises(UnsupportedError, match="no separate attention and MLP"):
            make(mamba)
    with pytest.raises(UnsupportedError, match="no attention patterns"):
        Attention(mamba, LENGTH)
    with pytest.raises(UnsupportedError, match="has one layer"):
        Similarity(load(tiny_model("gpt2", n_layer=1)))
    assert tables(Influence(mamba), mamba)["influence"].height == DEPTH


def test_short_windows_count_the_reaches_they_have():
    model = load(tiny_model("gpt2"))
    reading = Attention(model, 6)
    assert reading.settings["reaches"] == [1, 2, 4, 5]
    assert reading.queries == 1


def test_a_shard_that_lost_rows_is_refused(tiny_of):
    model = tiny_of("gpt2")
    lens = LensReading(model)
    with torch.inference_mode():
        shard = lens.read(Baseline(model, IDS, TARGETS, keep=lens.keep), TEXT)
    with pytest.raises(RunError, match=rf"has {shard.height - 1} rows, expected {DEPTH + 1} for each document"):
        lens.tables([shard[:-1]])
