"""Linearity: tables against numpy's least squares and plain forwards with hooks, exact cases, resuming, bad input, the page."""

import copy
import warnings
from itertools import islice, product

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, VOCABULARY, WIDTH, tiny_model
from rebuilt import block_list, logits_of, with_order, without_component
from scipy import stats
from test_sweep import run, save

import depthscope as ds
from depthscope.cli.console import console
from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.execute import run_route
from depthscope.engine.plan import Call, block_order, make_plan
from depthscope.errors import DamageWarning, DataError, DepthscopeError, RouteError
from depthscope.experiments import linear_fit
from depthscope.experiments.fit_text import FitText, fit_text
from depthscope.experiments.linear_fit import fitted_maps
from depthscope.experiments.linear_maps import LinearSums
from depthscope.experiments.linearity import Linearity
from depthscope.models.load import load
from depthscope.routes import Replaced, Route, Step
from depthscope.run.check import State, check_run
from depthscope.run.layout import LINEARITY, LINEARITY_FILES
from depthscope.schema import linearity as schema
from depthscope.studies.settings import study_settings

FAMILIES = ["gpt2", "gpt_neox", "llama", "gemma2", "bloom", "mamba"]
LENGTH = 20
DOCUMENTS = np.array([0, 0, 1, 2, 2, 5])


def windows(documents: np.ndarray, seed: int) -> Windows:
    # Token 0 pads: in some families its embedding is zero.
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, (len(documents), LENGTH + 1)).astype(np.int32)
    starts = np.array([LENGTH * int((documents[:row] == documents[row]).sum()) for row in range(len(documents))])
    return Windows(ids, documents, starts, "none")


TEXT = windows(DOCUMENTS, 0)
FIT = FitText("made up", 6, windows(np.repeat(np.arange(6, 36), 2), 1))
IDS, TARGETS = TEXT.batch()
NO_DIRECTION = 1e-6
"""Singular values below this share of the largest are rounding: a norm without bias after the embedding (Bloom) leaves one."""
POSITIONS = {schema.ALL: slice(0, None), schema.NOT_FIRST: slice(1, None)}


def nothing(what: str, done: int, units: int) -> None:
    """Progress that nobody sees."""


def measured(model, tmp_path, cuts: tuple[int, ...] = (4,), fit: FitText = FIT) -> tuple[Linearity, dict]:
    """Linearity done in units that cut a document, and its tables."""
    reading, shards = Linearity(model, fit), []
    reading.prepare(tmp_path, nothing)
    for start, stop in zip((0, *cuts), (*cuts, len(TEXT)), strict=True):
        part = TEXT.part(start, stop)
        with torch.inference_mode():
            shards.append(reading.read(Baseline(model, *part.batch(), keep=reading.keep), part))
    return reading, reading.tables(shards)


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and b of y ≈ x A + b by numpy's least squares, for windows × positions × d_model."""
    x, y = (values.reshape(-1, values.shape[-1]) for values in (x, y))
    a = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=NO_DIRECTION)[0]
    return a, y.mean(0) - x.mean(0) @ a


def source_score(x: np.ndarray, y: np.ndarray) -> float:
    """As the published definition has it: both centred and of unit Frobenius norm, one minus the squared residual."""
    x, y = (values.reshape(-1, values.shape[-1]) for values in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return 1 - np.square(x @ np.linalg.lstsq(x, y, rcond=NO_DIRECTION)[0] - y).sum()


def replaced_logits(model, layer: int, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    """A plain forward in which a hook puts x A + b in the place of a block's output."""
    holder, name = block_list(model)
    a, b = (torch.from_numpy(part).to(next(model.parameters())) for part in (a, b))

    def replace(_module, args, kwargs, output):
        after = (args[0] if args else kwargs["hidden_states"]) @ a + b
        return (after, *output[1:]) if isinstance(output, tuple) else after

    handle = getattr(holder, name)[layer].register_forward_hook(replace, with_kwargs=True)
    try:
        return logits_of(model, IDS)
    finally:
        handle.remove()


def ratio(numerator: np.ndarray, denominator: np.ndarray, level: float = 0.95) -> tuple[float, ...]:
    """1 − the mean over blocks of Σ numerator / Σ denominator, blocks × windows × positions, with its interval by loops."""
    blocks, documents = len(numerator), np.unique(TEXT.document)
    shares = [numerator[k].sum() / denominator[k].sum() for k in range(blocks)]
    spread = 0.0
    for document in documents:
        rows = TEXT.document == document
        parts = [
            (numerator[k][rows].sum() - shares[k] * denominator[k][rows].sum()) / denominator[k].sum()
            for k in range(blocks)
        ]
        spread += np.mean(parts) ** 2
    mean, count = np.mean(shares), len(documents)
    half = np.sqrt(count / (count - 1) * spread) / mean * stats.t.ppf((1 + level) / 2, count - 1)
    return 1 - mean, 1 - mean * np.exp(half), 1 - mean * np.exp(-half)


def cell(table: pl.DataFrame, metric: str, **keys: object) -> tuple[float, ...]:
    (row,) = table.filter(pl.col("metric") == metric, **keys).select("mean", "ci_low", "ci_high").rows()
    return row


def check_scores(tables: dict[str, pl.DataFrame], fit: list[np.ndarray], streams: list[np.ndarray]) -> None:
    """The scores by block, their means over blocks, and the interval of the least linear one."""
    table, errors, squares = tables["linearity"], {}, {}
    for layer, (positions, part), metric in product(range(DEPTH), POSITIONS.items(), schema.SCORES):
        keys, of = {"layer": layer, "positions": positions}, (metric.name, positions)
        x, y, here, target = (values[k][:, part] for values in (fit, streams) for k in (layer, layer + 1))
        if metric is schema.WRITE:
            y, target = y - x, target - here
        mean, *interval = cell(table, f"{metric.name}_in_sample", **keys)
        assert mean == pytest.approx(source_score(x, y), abs=1e-6)
        assert interval == [None, None]
        a, b = least_squares(x, y)
        errors.setdefault(of, []).append(np.square(target - here @ a - b).sum(-1))
        squares.setdefault(of, []).append(np.square(target - y.mean((0, 1))).sum(-1))
        expected = ratio(errors[of][layer][None], squares[of][layer][None])
        assert cell(table, metric.name, **keys) == pytest.approx(expected, abs=1e-4)
    for metric, positions in errors:
        both = (np.stack(values[metric, positions]) for values in (errors, squares))
        found = cell(tables["linearity_mean"], metric, positions=positions)
        assert found == pytest.approx(ratio(*both), abs=1e-4)
    low = tables["linearity_extremes"].filter(metric="write_linearity", positions="all").row(0, named=True)
    of, layer = ("write_linearity", "all"), low["layer"]
    wide = ratio(errors[of][layer][None], squares[of][layer][None], 1 - 0.05 / DEPTH)
    assert (low["ci_low"], low["ci_high"]) == pytest.approx(wide[1:], abs=1e-4)


def check_edits(model, reading: Linearity, table: pl.DataFrame, fit: list[np.ndarray]) -> None:
    """Logits of each replaced block, and the KL of replacing and of dropping it."""
    own = logits_of(model.hf, IDS)
    for layer in range(DEPTH):
        logits = replaced_logits(model.hf, layer, *least_squares(fit[layer], fit[layer + 1]))
        route = next(route for route in reading.meter.routes if f"{layer}=linear" in route.name)
        with torch.inference_mode():
            ours = model.unembedding.logits(model.unembedding.hidden(run_route(model, route, IDS)))
        torch.testing.assert_close(ours.view_as(logits), logits, rtol=1e-3, atol=1e-3)
        dropped = logits_of(with_order(model.hf, [block for block in range(DEPTH) if block != layer]), IDS)
        base, linear, drop = (naive.measures(own, one, TARGETS) for one in (own, logits, dropped))
        values = {
            "linear_kl": linear["kl"],
            "drop_kl": drop["kl"],
            "kl_difference": drop["kl"] - linear["kl"],
            "linear_agreement": linear["agreement"],
            "linear_loss_change": linear["loss"] - base["loss"],
        }
        for (name, one), (positions, part) in product(values.items(), POSITIONS.items()):
            expected = np.array(naive.estimate(one.numpy()[:, part], TEXT.document))
            if name not in ("kl_difference", "linear_loss_change"):
                expected = expected.clip(0, 1 if name == "linear_agreement" else None)
            near = pytest.approx(expected, abs=3e-2 if name == "linear_agreement" else 1e-3, rel=1e-3)
            assert cell(table, name, layer=layer, positions=positions) == near


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tables_are_the_naive_definition(family, tmp_path):
    model = load(tiny_model(family))
    reading, tables = measured(model, tmp_path)
    table, extremes = tables["linearity"], tables["linearity_extremes"]
    assert dict(table.schema) == schema.LINEARITY_TABLE
    assert dict(extremes.schema) == schema.LINEARITY_EXTREMES_TABLE
    fit, streams = (
        [x.double().numpy() for x in naive.residuals(model.hf, text.batch()[0])] for text in (FIT.windows, TEXT)
    )
    check_scores(tables, fit, streams)
    check_edits(model, reading, table, fit)
    assert len(extremes) == len(schema.EXTREMES) * len(POSITIONS)
    for row in extremes.iter_rows(named=True):
        among = table.filter(metric=row["metric"], positions=row["positions"]).sort("mean")
        picked = among.row(0 if row["extreme"] == "lowest" else -1, named=True)
        assert (row["layer"], row["mean"], row["blocks"]) == (picked["layer"], picked["mean"], DEPTH)
        assert row["ci_low"] <= picked["ci_low"] <= picked["ci_high"] <= row["ci_high"]


class AffineBlock(torch.nn.Module):
    """A block that is an affine map of the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.matrix = torch.nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH)
        self.bias = torch.nn.Parameter(torch.randn(WIDTH, generator=generator))

    def forward(self, hidden_states, *_args, **_kwargs):
        return hidden_states + hidden_states @ self.matrix + self.bias


def test_an_affine_block_is_explained_and_replaced_exactly(tmp_path):
    hf = without_component(without_component(tiny_model("llama"), 2, "attention"), 2, "mlp")
    holder, name = block_list(hf)
    getattr(holder, name)[1] = AffineBlock()
    table = measured(load(hf), tmp_path)[1]["linearity"]
    for positions in POSITIONS:
        for metric in (*schema.SCORES, *schema.IN_SAMPLE):
            assert cell(table, metric.name, layer=1, positions=positions)[0] == pytest.approx(1, abs=1e-9)
        assert cell(table, "linear_kl", layer=1, positions=positions)[0] == pytest.approx(0, abs=1e-6)
        # Block 2 passes the stream on: nothing varies in what it writes, and the map is the identity, bit for bit.
        assert cell(table, "stream_linearity", layer=2, positions=positions) == (1, 1, 1)
        assert cell(table, "write_linearity", layer=2, positions=positions) == (None, None, None)
        assert cell(table, "linear_kl", layer=2, positions=positions) == (0, 0, 0)
        assert cell(table, "drop_kl", layer=2, positions=positions) == (0, 0, 0)


def test_scores_do_not_depend_on_scale_and_origin_of_the_stream():
    generator = torch.Generator().manual_seed(0)
    streams = [torch.randn(30, LENGTH, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    fitted = []
    for scale, shift in ((1.0, 0.0), (30.0, 1e5)):
        moved = [scale * stream + shift for stream in streams]
        sums = LinearSums(
            *(torch.zeros(shape, dtype=torch.float64) for shape in ((3, 8), (2, 3, 8), (2, 2, 8, 16), (2, 2, 2))),
            torch.zeros(2, dtype=torch.int64),
        )
        for part in (slice(0, 12), slice(12, None)):
            sums.add([stream[part] for stream in moved])
        fitted.append(sums.solved(torch.float64).fitted / scale**2)
    torch.testing.assert_close(*fitted, rtol=1e-6, atol=0)


def test_parts_are_the_whole_and_the_model_is_left_as_it_was(tiny_of, tmp_path):
    model = tiny_of("gpt2")
    before = copy.deepcopy(model.hf.state_dict())
    whole, halves = (measured(model, tmp_path, cuts) for cuts in ((), (1, 3)))
    for name, table in whole[1].items():
        columns = ["mean", "ci_low", "ci_high"]
        ours, other = (one.select(columns).to_numpy() for one in (table, halves[1][name]))
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-5)
    reading = whole[0]
    with torch.inference_mode():
        parts = [reading.read(Baseline(model, *part.batch()), part) for part in (TEXT.part(0, 1), TEXT.part(1, 6))]
        one = reading.read(Baseline(model, *TEXT.batch()), TEXT)
    joined = reading.joined(parts)
    assert joined["tokens"].to_list() == one["tokens"].to_list()
    np.testing.assert_allclose(joined["linear_kl"], one["linear_kl"], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_a_fit_that_was_interrupted_ends_with_the_same_bytes(tiny_of, tmp_path, monkeypatch):
    model = tiny_of("llama")
    monkeypatch.setattr(linear_fit, "UNIT", 10 * LENGTH)
    monkeypatch.setattr(linear_fit, "STORE_EVERY", 0.0)
    monkeypatch.setattr(linear_fit, "STORE_SHARE", 1e9)
    maps, sums = LINEARITY_FILES

    def kill(what: str, done: int, units: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    fitted_maps(model, FIT, tmp_path / "whole", nothing)
    with pytest.raises(KeyboardInterrupt):
        fitted_maps(model, FIT, tmp_path / "cut", kill)
    folder = tmp_path / "cut" / LINEARITY
    assert [file.name for file in folder.iterdir()] == [sums]
    done = []
    fitted_maps(model, FIT, tmp_path / "cut", lambda what, number, units: done.append(number))
    assert done == [4, 5, 6]
    expected = (tmp_path / "whole" / LINEARITY / maps).read_bytes()
    assert (folder / maps).read_bytes() == expected
    assert not (folder / sums).exists()
    damaged = bytearray(expected)
    damaged[-3] ^= 1
    (folder / maps).write_bytes(damaged)
    with pytest.warns(DamageWarning, match="is damaged .*The affine maps are fitted again"):
        fitted_maps(model, FIT, tmp_path / "cut", nothing)
    assert (folder / maps).read_bytes() == expected
    other = FitText("made up", 6, windows(np.arange(6, 50), 7))
    with pytest.raises(DepthscopeError, match="was made for another model, or on other text, than this run's"):
        fitted_maps(model, other, tmp_path / "cut", nothing)


def test_too_little_text_and_invalid_options_are_one_clear_line(gpt2):
    corpus = Corpus(texts=tuple(islice(Corpus().documents(), 6)))
    text = {"measured": ds.data.windows.make_windows(Corpus(tokens=128), gpt2, length=64), "bos": "none"}
    with pytest.raises(
        DataError, match=r"after document 1, the last that is measured, .* expected at least 384\. Measure"
    ):
        fit_text(Corpus(texts=corpus.texts[:2]), gpt2, **text)
    with pytest.raises(
        DataError, match="100 tokens to fit on are too few for maps of 192 coordinates: expected --fit-tok"
    ):
        fit_text(Corpus(), gpt2, tokens=100, **text)
    with pytest.raises(DataError, match=r"for the affine maps are also measured: .* Name other text with --fit-data"):
        fit_text(Corpus(source="own", texts=corpus.texts), gpt2, data="bookshelf", tokens=640, **text)
    fitted = fit_text(Corpus(), gpt2, tokens=640, **text)
    assert (fitted.first_document, fitted.windows.tokens) == (2, 640)
    for value in (0, -3):
        with pytest.raises(DepthscopeError, match=f"{value} tokens to fit on: expected a whole number from 1"):
            study_settings(experiments=["linearity"], fit_tokens=value)
    with pytest.raises(DepthscopeError, match="setting fit_data is ''"):
        study_settings(experiments=["linearity"], fit_data="")


def test_a_block_that_cannot_be_left_out_has_scores_and_no_kl(tiny_of, tmp_path, monkeypatch):
    model = tiny_of("gpt2")
    check = model.check_route

    def refuse(route):
        if Step(1) not in route.visits:
            raise RouteError("block 2 reads what block 1 stores")
        check(route)

    monkeypatch.setattr(model, "check_route", refuse)
    reading, tables = measured(model, tmp_path)
    assert reading.not_done == {"linearity(1)": "block 2 reads what block 1 stores"}
    table = tables["linearity"]
    assert cell(table, "linear_kl", layer=1, positions="all") == (None, None, None)
    assert None not in cell(table, "write_linearity", layer=1, positions="all")
    assert None not in cell(table, "linear_kl", layer=2, positions="not_first")
    assert tables["linearity_extremes"].filter(metric="linear_kl")["blocks"].to_list() == [DEPTH - 1] * 2


def test_a_replaced_visit_is_a_step_of_its_own():
    double, triple = (lambda stream: 2 * stream), (lambda stream: 3 * stream)
    one, same, other = Replaced(1, by="two", function=double), Replaced(1, by="two", function=double), Step(1)
    assert one == same != other
    assert one != Replaced(1, by="two", function=triple)
    route = Route(4, (Step(0), one, Step(2), Step(3)))
    assert route.name == "0 1=two 2-3"
    assert not route.silences
    plan = make_plan([Route.own(4), route], width=2)
    calls = [instruction.step for instruction in plan if isinstance(instruction, Call)]
    assert calls.count(Step(0)) == 1
    assert calls.count(one) == 1
    assert block_order(plan) == [0, 1, 2, 3, 2, 3]


def test_the_command_and_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    folder = save("gpt2", tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terminal = run(
            "linearity", folder, "--tokens", 160, "--window", 20, "--fit-tokens", 320, "--out", tmp_path / "run"
        )
    study = ds.Study(tmp_path / "run")
    assert study.run.settings.of("linearity")["fit"]["tokens"] == 320
    assert all(one.state is State.INTACT for one in check_run(tmp_path / "run"))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for said in (
        "On average over the blocks, an affine map explains",
        "Cheapest to replace by its affine fit is layer",
    ):
        assert said in page
    few = "10 tokens per coordinate, which is few"
    assert few in page
    assert few in " ".join(terminal.split())
    assert "all positions" in terminal
