"""Measures: any edits by any measures against naive definitions, and a measure registered from outside the package."""

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH

import depthscope as ds
from depthscope.data.windows import Windows
from depthscope.engine import token_functions
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import Pieces, RouteMeter
from depthscope.errors import DataError, DepthscopeError, NumericError, RouteError, RunMismatchError
from depthscope.experiments.measure_edits import MEASURE_TABLE, measure_edits
from depthscope.report.page import render
from depthscope.routes import Route
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.measures import BUILT_IN, OTHER_COLUMNS, all_measures, chosen, unregister_measure
from depthscope.schema.sweep import TOKEN_KEYS

OWN = Route.own(DEPTH)
ROUTES = {
    edit.name: edit(OWN)
    for edit in (ds.swap(1), ds.drop(2), ds.reverse(), ds.drop(0) | ds.swap(2), ds.swap(1) | ds.swap(1))
}


def reverse_kl(p, q, next_token):
    return (q.exp() * (q - p)).sum(-1)


def surprised(p, q, next_token):
    """Depends on the next token, and returns no floating-point number."""
    return q.argmax(-1) != next_token


REVERSE_KL = ds.Measure("reverse_kl", "nats", "Reverse KL", "KL(q‖p)", 0.0, per_token=reverse_kl)
SURPRISED = ds.Measure(
    "surprised", "share", "Surprised", "share of next tokens that q misses", 0.0, 1.0, "more than p", surprised
)


@pytest.fixture
def total_variation():
    @ds.register_measure(
        unit="share",
        title="Total variation",
        definition="half the sum of |p − q|",
        lowest=0,
        highest=1,
        change="itself",
    )
    def total_variation(p, q, next_token):
        return (p.exp() - q.exp()).abs().sum(-1) / 2

    yield total_variation
    unregister_measure("total_variation")


def windows_of(model, count=5, length=9):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, model.unembedding.vocabulary, (count, length + 1), generator=generator).int().numpy()
    return Windows(ids, np.array([0, 0, 1, 2, 2]), start=np.zeros(count, dtype=np.int64), bos="none")


@pytest.mark.parametrize(
    ("family", "rows"), [("gpt2", 1), ("gpt2", 10_000), ("llama", 7), ("gemma2", 7), ("granite", 7), ("mamba", 7)]
)
def test_functions_of_distributions_equal_their_naive_definitions(tiny_of, total_variation, family, rows, monkeypatch):
    model = tiny_of(family)
    monkeypatch.setattr(token_functions, "NUMBERS", rows * model.unembedding.vocabulary)
    windows = windows_of(model)
    ids, targets = windows.batch()
    measures = chosen(["kl", REVERSE_KL, "total_variation", SURPRISED])
    table = measure_edits(model, windows, ROUTES, measures)
    assert dict(table.schema) == MEASURE_TABLE
    own = ds.logits(model, ids).double().log_softmax(-1)
    for name, route in {"none": OWN, **ROUTES}.items():
        edited = ds.logits(model, ids, route).double().log_softmax(-1)
        missed, missed_by_own = ((x.argmax(-1) != targets).double() for x in (edited, own))
        expected = {
            "kl": (own.exp() * (own - edited)).sum(-1),
            "reverse_kl": (edited.exp() * (edited - own)).sum(-1),
            "total_variation": (own.exp() - edited.exp()).abs().sum(-1) / 2,
            "total_variation_change": (own.exp() - edited.exp()).abs().sum(-1) / 2,
            "surprised": missed,
            "surprised_change": missed - missed_by_own,
        }
        found = table.filter(edit=name)
        assert found["metric"].to_list() == list(expected)
        for metric, values in expected.items():
            row = found.row(by_predicate=pl.col("metric") == metric, named=True)
            assert (row["tokens"], row["documents"]) == (45, 3)
            mean, low, high = naive.estimate(values.numpy(), windows.document)
            assert row["mean"] == pytest.approx(mean, abs=2e-5, rel=1e-4), (name, metric)
            if not metric.endswith("_change"):  # the ends are cut at what a measure can be
                low, high = max(low, 0.0), min(high, 1.0) if row["unit"] == "share" else high
            assert row["ci_low"] == pytest.approx(low, abs=1e-4, rel=1e-3), (name, metric)
            assert row["ci_high"] == pytest.approx(high, abs=1e-4, rel=1e-3), (name, metric)
    nothing = table.filter(
        pl.col("edit").is_in(["none", "swap(1) | swap(1)"]), ~pl.col("metric").str.starts_with("surp")
    )
    assert nothing["mean"].abs().max() == 0, "the unmodified route differs from itself by exactly nothing"


def test_one_edit_is_measured_as_the_sweep_measures_it(gpt2, few, tmp_path):
    text = {"text": str(few), "tokens": 60, "window": 20, "progress": False}
    study = ds.study(gpt2, out=tmp_path / "run", experiments=["sweep"], edits=["drop"], **text)
    told = []
    ours = ds.measure(
        gpt2, edits=[ds.drop(3), "drop(7)", Route.own(12)], **{**text, "progress": lambda *x: told.append(x)}
    )
    assert told[-1] == ("measuring edits", 1, 1)
    assert ours["edit"].unique(maintain_order=True).to_list() == ["none", "drop(3)", "drop(7)", "0-11"]
    numbers = ["metric", "unit", "mean", "ci_low", "ci_high", "tokens", "documents"]
    sweep = study.table("sweep")
    for layer in (3, 7):
        expected = sweep.filter(edit="drop", layer=layer).select(numbers)
        assert ours.filter(edit=f"drop({layer})").select(numbers).equals(expected)
    alone = ds.measure(gpt2, edits="drop(3)", measures="loss", **text)
    assert alone["metric"].to_list() == ["loss", "loss_change"] * 2


def test_a_function_sees_few_rows_at_a_time_and_only_what_was_asked_for_is_computed(tiny_of, monkeypatch):
    model, seen = tiny_of("gpt2"), []

    def rows(p, q, next_token):
        seen.append(len(p))
        assert p.dtype == q.dtype == torch.float32
        torch.testing.assert_close(p.exp().sum(-1), torch.ones(len(p)))
        return torch.zeros(len(next_token))

    monkeypatch.setattr(token_functions, "NUMBERS", 6 * model.unembedding.vocabulary + 5)
    monkeypatch.setattr(
        Baseline, "reference", property(lambda self: pytest.fail("no sum over the vocabulary is needed"))
    )
    ids, targets = windows_of(model).batch()
    meter = RouteMeter(model, list(ROUTES.values()), measures=[ds.Measure("rows", "none", "", "", per_token=rows)])
    assert list(meter.measure(ids, targets)) == ["rows"]
    assert max(seen) == 6


def test_what_cannot_be_measured_is_said(gpt2, tiny_of):
    text = {"text": ["It was a dark and stormy night. " * 9], "window": 16, "progress": False}
    for edits, measures, error, said in (
        ("jump(3)", "kl", RouteError, "cannot read the edit 'jump"),
        ("drop(12)", "kl", RouteError, "first layer 12 is out of range"),
        (Route.own(3), "kl", RouteError, "route is for 3 blocks"),
        ("drop(3)", "melt", DepthscopeError, "unknown measure melt: expected some of kl, agreement"),
        ("drop(3)", (), DepthscopeError, "no measure given"),
        ("drop(3)", ("kl", "kl", REVERSE_KL, ds.Measure("reverse_kl", "", "", "", per_token=surprised)), DepthscopeError,
         "a measure reverse_kl already"),
        ("drop(3)", ds.Measure("mine", "", "", ""), DepthscopeError, "measure mine has no function"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            ds.measure(gpt2, edits=edits, measures=measures, **text)
    with pytest.raises(DataError, match="a window of 1 tokens is too short"):
        ds.measure(gpt2, edits="drop(3)", **{**text, "window": 1})
    for function, said in (
        (
            lambda p, q, next_token: p,
            r"measure mine returned a tensor shaped \[16, 4096\]: expected one number per token",
        ),
        (lambda p, q, next_token: 1.0, "measure mine returned float"),
    ):
        with pytest.raises(DepthscopeError, match=said):
            ds.measure(
                gpt2, edits="drop(3)", measures=ds.Measure("mine", "", "", "", per_token=function), tokens=16, **text
            )
    infinite = ds.Measure("mine", "", "", "", per_token=lambda p, q, next_token: (p - q).sum(-1) / 0)
    with pytest.raises(NumericError, match="NaN or infinity in the measure mine on the route"):
        ds.measure(gpt2, edits="drop(3)", measures=infinite, tokens=16, **text)


def test_a_registered_measure_is_in_study_table_page_and_settings(total_variation, gpt2, few, tmp_path):
    def study(per_token):
        out = tmp_path / str(per_token)
        asked = {"edits": ["drop"], "window": 20, "per_token": per_token, "experiments": ["sweep"]}
        return ds.study(gpt2, str(few), out=out, tokens=60, progress=False, **asked)

    run, per_token = study(False), study(True)
    assert study(False).table("sweep").equals(run.table("sweep")), "the same measures resume a run"
    assert per_token.table("sweep").equals(run.table("sweep"))
    tokens = pl.read_parquet(per_token.path / "shards" / "sweep" / "00000.parquet")
    assert tokens.columns[-5:] == [*BUILT_IN, "total_variation"]
    ours = ds.measure(gpt2, str(few), [ds.drop(3)], [total_variation], tokens=60, window=20, progress=False)
    inside = run.table("sweep").filter(edit="drop", layer=3, metric="total_variation")
    assert inside["mean"].item() == ours.filter(edit="drop(3)", metric="total_variation")["mean"].item()
    assert {"total_variation", "total_variation_change"} < set(run.table("sweep")["metric"])

    recorded = run.run.settings.of("sweep")["measures"]
    assert [measure["name"] for measure in recorded] == ["total_variation"]
    unregister_measure("total_variation")
    with pytest.raises(
        RunMismatchError, match=r"experiments\.sweep\.measures: .*total_variation.* stored, None requested"
    ):
        study(False)
    page = render(run.run)  # by whoever has not registered it
    ds.register_measure(unit="share", title="", definition="")(total_variation.per_token)
    for shown in ("Total variation <code>total_variation</code>", "half the sum of |p − q|", "sweep-total_variation"):
        assert shown in page
    assert "Total variation" in run.figure("sweep").to_json()


def test_only_other_names_can_be_registered(total_variation):
    declare = {"unit": "nats", "title": "Mine", "definition": "mine"}
    assert all_measures()[-1] is total_variation
    again = ds.register_measure(name="total_variation", **declare)(reverse_kl)
    assert all_measures()[-1] is again
    for name in ("kl", "loss_change"):
        with pytest.raises(DepthscopeError, match=f"a measure {name} already exists"):
            ds.register_measure(name=name, **declare)(reverse_kl)
    for name in ("document", "mean", "Total variation", "1st"):
        with pytest.raises(DepthscopeError, match="cannot name a measure"):
            ds.register_measure(name=name, **declare)(reverse_kl)
    with pytest.raises(DepthscopeError, match="no measure is registered as 'kl'"):
        unregister_measure("kl")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "granite", "mamba"])
def test_routes_end_with_what_the_unembedding_reads(tiny_of, family):
    tiny = tiny_of(family)
    ids, targets = windows_of(tiny).batch()
    routes = list(ROUTES.values())
    meter = RouteMeter(tiny, routes)
    with tiny.measuring():
        baseline = Baseline(tiny, ids, targets, keep=meter.keep)
        for start in (0, 6):
            seen = {}
            for groups, hidden in meter.ends(baseline, start):
                parts = tiny.unembedding.logits(hidden).unflatten(0, (len(groups), len(ids), -1))
                assert seen or groups[0][0] == 0, "the model's own route is the first to end"
                seen |= {route: part for group, part in zip(groups, parts, strict=True) for route in group}
            assert sorted(seen) == list(range(len(routes) + 1))
            for index, route in enumerate([OWN, *routes]):
                expected = ds.logits(tiny, ids, route)[:, start:]
                torch.testing.assert_close(seen[index], expected, atol=2e-3, rtol=1e-3)


def test_a_meter_keeps_to_its_pieces_and_leaves_the_model_alone(gpt2):
    ids, targets = torch.arange(60).view(3, 20), torch.arange(1, 61).view(3, 20)
    routes = [ds.drop(3)(Route.own(12))]
    narrow = RouteMeter(gpt2, routes, Pieces(slice_width=100))
    with gpt2.measuring():
        baseline = Baseline(gpt2, ids, targets)
        plain = RouteMeter(gpt2, routes).against(baseline)
        packed = dict(gpt2.kernels._packed)
        assert packed
        assert torch.equal(narrow.against(baseline).loss, narrow.measure(ids, targets).loss)
        assert not torch.equal(narrow.against(baseline).entropy, plain.entropy), "added up in another order"
        assert baseline.reference.slice_width != 100
        half = baseline.part(1, 3)
        for name in ("log_normaliser", "hidden", "top"):
            assert torch.equal(getattr(half.reference.own, name), getattr(baseline.reference.own, name)[20:])
        assert torch.equal(half.measured.loss, baseline.measured.loss[20:])
        assert torch.equal(half.hidden, baseline.hidden[20:])
    before = dict(gpt2.kernels._packed)
    RouteMeter(gpt2, routes)
    assert gpt2.kernels._packed == before


def test_no_measure_can_have_the_name_of_another_column():
    assert {*ESTIMATE, *TOKEN_KEYS} <= {*OTHER_COLUMNS}
