"""The page of several runs: every curve at its relative depth, stages and signatures model by model, and what differs."""

import base64
import io
import json
import re
import shutil
import zlib
from dataclasses import replace

import polars as pl
import pytest
from drawn_plots import wait_until_drawn
from playwright.sync_api import sync_playwright
from report_runs import HOSTILE, all_tables, made_up_stages, make_run, plotted, sweep_table
from typer.testing import CliRunner

from depthscope.cli import app
from depthscope.errors import DepthscopeError, RunError
from depthscope.report.comparison import render_comparison, side_by_side, warnings, write_comparison
from depthscope.report.overlays import OVERLAYS, overlay
from depthscope.report.palette import MOST_RUNS

DEEP, SHALLOW = 9, 5


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / name, depth, model=name, tables=all_tables(depth), stages=made_up_stages(depth))
        for name, depth in (("deep", DEEP), ("shallow", SHALLOW))
    ]


def text_of(page):
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def embedded(page, name):
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def panels_of(runs):
    compared = side_by_side(runs)
    return {panel.name: panel for kind in OVERLAYS for panel in overlay(kind, compared).panels}


def expected(run, name):
    """Rows of the run's own table that a panel shows, with depth as the number that relative depth 1 stands for."""
    depth = run.manifest.model.layers
    section, _, metric = name.partition("-")
    if section in ("drop", "swap"):
        return run.table("sweep").filter(edit=section, metric=metric).sort("layer"), depth - 1
    if metric in ("prediction", "suppression"):
        counted = run.table("neuron_counts").filter(kind=metric).sort("layer")
        return counted.with_columns(pl.col("share").alias("mean")), depth - 1
    if section == "predictions":
        rows = run.table("lens").filter(metric=metric).sort("layer")
        return (rows.head(depth) if metric == "kl" else rows), depth
    table = "attention" if metric.startswith("previous") else "norms"
    return run.table(table).filter(metric=metric).sort("layer"), depth - 1


def test_every_curve_is_its_run_s_table_at_relative_depth(runs):
    panels = panels_of(runs)
    assert len(panels) == 13
    for name, panel in panels.items():
        assert [trace.meta for trace in plotted(panel)] == ["run-0", "run-1"]
        assert len({(t.line.color, t.marker.symbol, t.line.dash) for t in plotted(panel)}) == 2
        for run, trace in zip(runs, plotted(panel), strict=True):
            rows, last = expected(run, name)
            assert list(trace.y) == rows["mean"].to_list(), name
            assert list(trace.x) == pytest.approx([layer / last for layer in rows["layer"]])
            if "ci_low" in rows.columns:
                assert [row[2:] for row in trace.customdata] == [
                    list(r) for r in rows.select("ci_low", "ci_high").rows()
                ]
            assert run.settings.model in trace.text[0]


def test_looks_of_as_many_runs_as_allowed_all_differ(tmp_path, runs):
    many = [make_run(tmp_path / f"r{i}", 3, frame=sweep_table(3)) for i in range(MOST_RUNS)]
    looks = [one.look for one in side_by_side(many)]
    assert len({(look.light, look.marker) for look in looks}) == MOST_RUNS
    assert len({look.title for look in looks}) == MOST_RUNS, "runs of one model are told apart by their directories"
    assert looks[3].title == "tiny (r3)"
    for wrong in (runs[:1], [*many, runs[0]]):
        with pytest.raises(DepthscopeError, match=f"expected 2 to {MOST_RUNS} runs to compare, got {len(wrong)}"):
            render_comparison(wrong)
    twice = [one.look.title for one in side_by_side([runs[0], runs[0]])]
    assert twice == ["deep (deep) #1", "deep (deep) #2"]


def test_stages_and_signatures_side_by_side(tmp_path):
    supported = made_up_stages(DEEP)
    differs = made_up_stages(SHALLOW)
    differs["signatures"][0] |= {"verdict": "not supported", "effect": 1.25}
    runs = [
        make_run(tmp_path / "a", DEEP, model="a", stages=supported),
        make_run(tmp_path / "b", SHALLOW, model="b", stages=differs),
        make_run(tmp_path / "c", 4, model="c", frame=sweep_table(4)),
    ]
    page = render_comparison(runs)
    shown = text_of(page).replace("\u00a0", " ")
    assert "The last layer is costly to lose Residual calibration ✓ 3.5× 3.1× to 3.9× ✗ 1.25× 3.1× to 3.9×" in shown
    assert "1 of 2 signatures are supported in none: another." in shown
    assert "1 of 2 signatures are supported in some only: the last layer is costly to lose." in shown
    assert "No readable stages (not run, or damaged): c." in shown
    bars = [trace for trace in embedded(page, "figures")["stages-compared"]["data"] if trace["type"] == "bar"]
    for run, bar, last in zip((differs, supported), bars, (SHALLOW - 1, DEEP - 1), strict=True):
        ends = [(base, base + width) for base, width in zip(bar["base"], bar["x"], strict=True)]
        found = [((stage["first"] - 0.5) / last, (stage["last"] + 0.5) / last) for stage in run["stages"]]
        assert [end for pair in ends for end in pair] == pytest.approx([end for pair in found for end in pair])


def test_what_a_run_lacks_is_said_and_the_others_are_shown(tmp_path, runs):
    bare = make_run(tmp_path / "bare", 4, model="bare", tables={"lens": all_tables(4)["lens"]})
    page = render_comparison([*runs, bare])
    shown = text_of(page)
    assert "Missing drop: KL divergence: bare." in shown
    assert "Missing attention to the 5 previous tokens: bare." in shown
    assert "Missing lens entropy" not in shown
    assert len(embedded(page, "figures")["predictions-entropy"]["data"]) == 3
    assert "nan" not in shown.lower().split()
    nothing = [make_run(tmp_path / name, 4, tables={}) for name in ("x", "y")]
    assert "Missing lens entropy: tiny (x) and tiny (y)." in text_of(render_comparison(nothing))


def test_numbers_and_facts_have_a_column_per_model(runs):
    shown = text_of(render_comparison(runs)).replace("\u00a0", " ")
    assert "KL of dropping the first layer 5.00 nats 4.50 to 5.50 5.00 nats 4.50 to 5.50" in shown
    assert "Layers 9 5" in shown
    assert "Run deep shallow" in shown


def test_what_makes_runs_less_comparable_is_said(tmp_path, runs):
    assert warnings(side_by_side(runs)) == []
    other = make_run(tmp_path / "other", 4, model="other", frame=sweep_table(4), complete=False)
    experiments = other.settings.experiments | {"lens": {"protocol": "lad2024"}}
    settings = replace(other.settings, data="hf:c4", dtype="bfloat16", experiments=experiments)
    model = replace(other.manifest.model, vocabulary=7)
    other.manifest = replace(other.manifest, settings=settings, model=model)
    said = " ".join(warnings(side_by_side([*runs, other])))
    assert "differences may come from the text: deep bookshelf, shallow bookshelf and other hf:c4." in said
    assert "The models were run in different dtypes: deep float32, shallow float32 and other bfloat16." in said
    assert "Vocabularies differ" in said
    assert "lad2024" in said
    assert said.endswith("Incomplete: other.")
    assert "differences may come from the text" in text_of(render_comparison([*runs, other]))


def test_the_comparison_is_one_file_with_its_numbers_and_escapes_text(tmp_path, runs):
    hostile = make_run(tmp_path / "hostile", 4, model=HOSTILE + "{}", tables=all_tables(4), stages=made_up_stages(4))
    out = write_comparison([*runs, hostile], tmp_path / "new" / "comparison.html")
    page = out.read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert len(page.encode()) < 6_000_000
    assert "default-src 'none'" in page
    packed = embedded(page, "tables")
    assert (
        set(packed)
        == set(re.findall(r'data-csv="([^"]+)"', page))
        == {"stages", "signatures"} | {o.name for o in OVERLAYS}
    )
    drop = pl.read_csv(io.StringIO(zlib.decompress(base64.b64decode(packed["drop"])).decode()))
    kl = drop.filter(panel="Drop: KL divergence", curve="deep")
    assert kl["mean"].to_list() == runs[0].table("sweep").filter(edit="drop", metric="kl")["mean"].to_list()
    verdicts = pl.read_csv(io.StringIO(zlib.decompress(base64.b64decode(packed["signatures"])).decode()))
    assert verdicts["model"].unique(maintain_order=True).to_list() == ["deep", "shallow", HOSTILE + "{}"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_comparison(runs, tmp_path / "file" / "comparison.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_comparison_is_drawn_in_a_browser_without_errors_or_requests(runs, tmp_path):
    out = write_comparison(runs, tmp_path / "comparison.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
        page.goto(out.as_uri())
        for plot in page.query_selector_all(".plot"):
            plot.scroll_into_view_if_needed()
        wait_until_drawn(page)
        drawn = "document.getElementById('plot-drop-kl').calcdata.map((curve) => curve.map((point) => point.x))"
        assert page.evaluate(drawn) == [[i / 8 for i in range(9)], [i / 4 for i in range(5)]]
        with page.expect_download() as saved:
            page.click("[data-csv=signatures]")
        assert saved.value.suggested_filename == "signatures.csv"
        browser.close()
    assert troubles == []


def test_report_of_several_runs_and_compare_write_the_same_page(runs, tmp_path):
    command = CliRunner()
    paths = [str(run.path) for run in runs]
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for name, page in zip(("report", "compare"), pages, strict=True):
        done = command.invoke(app, [name, *paths, "--out", str(page)])
        assert done.exit_code == 0, done.output
    assert pages[0].read_bytes() == pages[1].read_bytes()
    alone = command.invoke(app, ["compare", paths[0], "--out", str(tmp_path / "c.html")])
    assert isinstance(alone.exception, DepthscopeError)
    assert str(alone.exception) == f"expected 2 to {MOST_RUNS} runs to compare, got 1"
    bare = make_run(tmp_path / "bare", 3, frame=sweep_table(3, ("drop",)))
    done = command.invoke(app, ["report", str(bare.path), "--figures", str(tmp_path / "figures")])
    assert done.exit_code == 0, done.output
    assert "(6 files)" in done.output
    assert {file.suffix for file in (tmp_path / "figures").iterdir()} == {".svg", ".pdf", ".png"}
