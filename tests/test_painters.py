"""The painters' edits: routes as the paper defines them, tables against loops over documents, the order, the command."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from families import tiny_model
from scipy import stats
from test_sweep import run, save

import depthscope as ds
from depthscope.cli.console import console
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.painters import NO_DRAW, Painters, middle_ranges, painters_routes
from depthscope.models.load import load
from depthscope.models.located import EMBEDDED
from depthscope.schema.painters import CLAIMED_ORDER, ORDERS, PAINTERS_ORDER_TABLE, PAINTERS_TABLE


def test_ranges_and_routes_are_those_of_the_paper():
    # Layers N to T − N of T = 32, from 1: here from 0, and the center is layer 16, here 15.
    assert middle_ranges(32)[0] == (0, 30)
    assert all(
        (first + last) // 2 == 15 and last - first + 1 == 32 - 2 * first - 1 for first, last in middle_ranges(32)
    )
    assert middle_ranges(6) == [(0, 4), (1, 3)]
    assert middle_ranges(3) == [(0, 1)]
    routes = {key: route.name for key, route in painters_routes(6).items()}
    for edit, name in (
        ("skip", "0 4-5"),
        ("repeat_middle", "0 2 2 2 4-5"),
        ("reverse", "0 3-1 4-5"),
        ("parallel", "0 (1+2+3) 4-5"),
        ("loop", "0 (1+2+3) (1+2+3) (1+2+3) 4-5"),
        ("repeat_3", "0-1 1-2 2-3 3-5"),
    ):
        assert routes[edit, 1, 3, NO_DRAW] == name
    assert ("repeat_5", 1, 5, NO_DRAW) in routes
    assert len({routes["random", 0, 4, draw] for draw in range(ORDERS)}) > 5
    with pytest.raises(UnsupportedError, match="a model of 2 layers has no range in the middle: expected at least 3"):
        painters_routes(2)


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> ds.Study:
    folder = tmp_path_factory.mktemp("painters")
    tiny_model("llama", vocab_size=4096, num_hidden_layers=6).save_pretrained(folder / "model")
    model = load(folder / "model", tokenizer=load(EMBEDDED / "bookshelf-gpt2").tokenizer)
    text = ds.corpus(tokens=400)
    return ds.study(model, text, out=folder / "run", window=20, experiments="painters", progress=False)


def means(study: ds.Study) -> tuple[dict, np.ndarray]:
    """Mean KL per document by key, and the documents' tokens, from the shards."""
    rows = pl.concat(pl.read_parquet(file) for file in sorted((study.path / "shards" / "painters").iterdir()))
    summed = rows.group_by("document", "edit", "layer", "other", "draw", maintain_order=True).sum()
    found = {}
    for key, one in summed.group_by("edit", "layer", "other", "draw", maintain_order=True):
        found[key] = one["kl"].to_numpy()
        tokens = one["tokens"].to_numpy()
    return found, tokens


def over_documents(sums: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """Mean and standard error, by the definition of estimates."""
    mean, count = sums.sum() / tokens.sum(), len(tokens)
    return mean, np.sqrt(count / (count - 1) * ((sums - mean * tokens) ** 2).sum()) / tokens.sum()


def test_a_random_order_is_a_mean_over_orders_with_an_interval_over_both(painted):
    table, (kl, tokens) = painted.table("painters"), means(painted)
    assert dict(table.schema) == PAINTERS_TABLE
    for first, last in ((0, 4), (1, 3)):
        drawn = np.stack([kl["random", first, last, draw] for draw in range(ORDERS)])
        mean, error = over_documents(drawn.mean(0), tokens)
        per_draw = drawn.sum(1) / tokens.sum()
        of_draws = per_draw.var(ddof=1) / ORDERS
        total = error**2 + of_draws
        freedom = total**2 / (error**4 / (len(tokens) - 1) + of_draws**2 / (ORDERS - 1))
        half = np.sqrt(total) * stats.t.ppf(0.975, freedom)
        whole = table.filter(pl.col("draw").is_null(), edit="random", layer=first, other=last, metric="kl")
        assert whole.select("mean", "ci_low", "ci_high").row(0) == pytest.approx(
            (mean, max(0, mean - half), mean + half)
        )
        each = table.filter(pl.col("draw").is_not_null(), edit="random", layer=first, other=last, metric="kl").sort(
            "draw"
        )
        assert each["mean"].to_list() == pytest.approx(per_draw.tolist())
    assert table.filter(edit="skip", layer=1, metric="kl")["mean"].item() == pytest.approx(
        kl["skip", 1, 3, NO_DRAW].sum() / tokens.sum()
    )


def test_the_claimed_order_is_tested_with_paired_intervals(painted):
    order, (kl, tokens) = painted.table("painters_order"), means(painted)
    assert dict(order.schema) == PAINTERS_ORDER_TABLE
    pooled = order.filter(ranges=2)
    assert list(pooled.select("worse", "better").iter_rows()) == list(pairwise(CLAIMED_ORDER))
    assert len(order) == 5 * (1 + 2)
    ranges = ((0, 4), (1, 3))
    for worse, better in (("repeat_middle", "skip"), ("skip", "parallel")):
        sums = np.mean([kl[worse, *span, NO_DRAW] - kl[better, *span, NO_DRAW] for span in ranges], axis=0)
        mean, error = over_documents(sums, tokens)
        half = error * stats.t.ppf(1 - 0.05 / 5 / 2, len(tokens) - 1)
        row = pooled.filter(worse=worse, better=better).row(0, named=True)
        assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx((mean, mean - half, mean + half))
        verdict = "as claimed" if mean - half > 0 else "reversed" if mean + half < 0 else "not resolved"
        assert row["verdict"] == verdict
    drawn = np.array([np.mean([kl["random", *span, k].sum() for span in ranges]) for k in range(ORDERS)]) / tokens.sum()
    row = pooled.filter(worse="reverse").row(0, named=True)
    reverse = np.mean([kl["reverse", *span, NO_DRAW].sum() for span in ranges]) / tokens.sum()
    assert row["mean"] == pytest.approx(reverse - drawn.mean())
    assert row["ci_high"] - row["mean"] > drawn.std(ddof=1) / np.sqrt(ORDERS) * 2.5


def test_the_command_and_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    folder = save("gpt2", tmp_path / "model")
    said = run("sweep", folder, "--edits", "painters", "--tokens", 240, "--window", 20, "--out", tmp_path / "run")
    assert "as claimed" in said or "reversed" in said or "not resolved" in said
    assert "Repeat the middle" in said
    study = ds.Study(tmp_path / "run")
    assert set(study.run.settings.experiments) == {"painters"}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Of the claimed order, from worst to best" in page
    both = run("sweep", folder, "--edits", "drop,painters", "--tokens", 240, "--window", 20, "--out", tmp_path / "both")
    assert "Drop KL" in both
    assert set(ds.Study(tmp_path / "both").run.settings.experiments) == {"sweep", "painters"}
    assert ds.Study(tmp_path / "both").run.settings.of("sweep")["edits"] == ["drop"]


def test_random_orders_that_a_model_cannot_run_are_left_out_with_their_mean(tmp_path, monkeypatch):
    model = load(save("gpt2", tmp_path / "model"))
    one = painters_routes(4)["random", 0, 2, 3]

    def refuse(route):
        if route == one:
            raise RouteError("block 2 reads what block 0 stores")

    monkeypatch.setattr(model, "check_route", refuse)
    found = Painters(model)
    assert found.not_done == {"random": "layers 0 to 2: block 2 reads what block 0 stores"}
    assert "random" not in {edit for edit, _, _, _ in found.routes}
    assert {(one.worse, one.better) for one in found.contrasts} == {
        ("repeat_middle", "skip"),
        ("skip", "parallel"),
        ("parallel", "reverse"),
    }
