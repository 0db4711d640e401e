"""Figures and page of a run: they hold the table's numbers, whatever was run, and the page needs nothing but itself."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import sync_playwright

from depthscope.errors import DepthscopeError, RunError
from depthscope.report import findings, measured
from depthscope.report.figures import PANELS, figure, layer_step
from depthscope.report.page import render, script_json, write_page
from depthscope.run.store import COMPLETE, RunDirectory
from depthscope.schema.sweep import AGREEMENT, KL, METRICS, SWEEP_TABLE

EDITS = ("swap", "drop", "drop_attn", "drop_mlp")
HOSTILE = "<script>alert(1)</script>"
FIRST_LAYER = {"kl": 5.0, "agreement": 0.01}


def table(depth, edits=EDITS, documents=7, means=None):
    """A sweep table in which the first layer matters most; `means` overrides (edit, layer, metric)."""
    rows = []
    places = [("none", -1)] + [(edit, i) for edit in edits for i in range(depth - (edit == "swap"))]
    for edit, layer in places:
        for metric in METRICS.values():
            mean = 0.02 * (layer + 1) + 0.003 * EDITS.index(edit) if edit != "none" else 0.0
            mean = 1 - mean if metric is AGREEMENT else mean
            mean = FIRST_LAYER.get(metric.name, mean) if layer == 0 else mean
            mean = (means or {}).get((edit, layer, metric.name), mean)
            bounds = (None, None) if documents == 1 else sorted((mean * 0.9, mean * 1.1))
            rows.append((edit, layer, metric.name, metric.unit, mean, *bounds, 1024, documents))
    return pl.DataFrame(rows, schema=SWEEP_TABLE, orient="row")


def make_run(path, depth=6, frame=None, model="tiny", complete=True, not_done=None):
    settings = {"model": model, "weights": "ab" * 32, "dtype": "float32", "device": "cpu", "data": "bookshelf"}
    settings |= {"tokens": 1024, "window": 64, "bos": "none", "token_hash": "cd" * 32, "windows_per_unit": 4}
    facts = {
        "model": {"layers": depth, "d_model": 8, "parameters": 1_234_567, "layout": "parallel", "norm": "RMSNorm"},
        "text": {"documents": 7, "too_short": 2},
        "not_done": not_done or {},
        "versions": {"depthscope": "0.0"},
    }
    with RunDirectory.writing(path, settings, facts) as run:
        if frame is not None:
            run.write_table("sweep", frame)
        if complete:
            run.update(status=COMPLETE)
    return RunDirectory.reading(path)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", frame=table(6))


def text_of(page):
    """What a reader sees: no scripts, styles or tags, and plain spaces."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


@pytest.mark.parametrize(
    ("name", "edits"), [("sweep", ("swap", "drop")), ("components", ("drop", "drop_attn", "drop_mlp"))]
)
@pytest.mark.parametrize("axis", ["layer", "relative depth"])
def test_figures_hold_exactly_the_tables_values(run, name, edits, axis):
    shown = figure(run, name, axis)
    assert [trace.meta for trace in shown.data] == list(edits) * 3
    frame = run.table("sweep")
    for place, trace in enumerate(shown.data):
        metric = PANELS[place // len(edits)]
        rows = frame.filter(pl.col("edit") == trace.meta, pl.col("metric") == metric.name).sort("layer")
        layers = rows["layer"].to_list()
        assert list(trace.y) == rows["mean"].to_list()
        assert list(trace.x) == (layers if axis == "layer" else [layer / 5 for layer in layers])
        assert [row[0] for row in trace.customdata] == layers
        assert [row[2] for row in trace.customdata] == rows["ci_low"].to_list()
        assert [row[3] for row in trace.customdata] == rows["ci_high"].to_list()
        drawn = [y - down for y, down in zip(trace.y, trace.error_y.arrayminus, strict=True)]
        assert drawn == pytest.approx(rows["ci_low"].to_list())
        assert f"{trace.meta}(0)" in trace.text[0]


def test_figures_refuse_other_names_and_axes_and_say_what_was_expected(run, tmp_path):
    with pytest.raises(DepthscopeError, match="'sweeps': expected one of sweep, components"):
        figure(run, "sweeps")
    with pytest.raises(DepthscopeError, match="'depth': expected one of layer, relative depth"):
        figure(run, "sweep", "depth")
    swaps = make_run(tmp_path / "swaps", frame=table(6, ("swap",)))
    with pytest.raises(RunError, match="expected drop_attn or drop_mlp, it has swap"):
        figure(swaps, "components")
    with pytest.raises(RunError, match="has no table 'sweep'"):
        figure(make_run(tmp_path / "empty"), "sweep")


def test_a_table_of_another_kind_is_refused(tmp_path):
    with pytest.raises(RunError, match="lacks ci_low"):
        render(make_run(tmp_path / "other", frame=table(3).drop("ci_low")))
    with pytest.raises(RunError, match="no rows"):
        render(make_run(tmp_path / "none", frame=table(3).clear()))


def test_the_page_is_one_file_that_asks_for_nothing(run, tmp_path):
    out = write_page(run, tmp_path / "new" / "report.html")
    page = out.read_text(encoding="utf-8")
    assert out.stat().st_size < 6_000_000
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:|//)|@import|url\(", ours)
    assert not re.search(r"<(link|script|img|iframe)[^>]+(src|href)=\"(?!data:,)", page)
    assert "default-src 'none'" in page
    assert "displaylogo: false" in page
    assert 'plotlyServerURL: ""' in page
    assert 'modeBarButtons: [["toImage"]]' in page
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["report.html"]


def test_a_page_that_cannot_be_written_is_a_run_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "report.html"):
        with pytest.raises(RunError, match="cannot be written"):
            write_page(run, out)


def test_text_from_the_manifest_is_escaped(tmp_path):
    run = make_run(tmp_path / "run", frame=table(4, ("swap", "drop")), model=HOSTILE, not_done={"drop_mlp": HOSTILE})
    page = render(run)
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert "<script" not in str(figure(run, "sweep").layout.title.text)
    assert json.loads(script_json({"a": "</script><!--"})) == {"a": "</script><!--"}
    assert not set("<>&") & set(script_json({"a": "</script>&"}))


def test_writing_a_page_imports_no_torch(run, tmp_path):
    program = (
        "import sys, depthscope.report.page as page; from depthscope.run.store import RunDirectory; from pathlib import Path;"
        "page.write_page(RunDirectory.reading(sys.argv[1]), Path(sys.argv[2]));"
        "print([name for name in ('torch', 'transformers', 'scipy', 'depthscope.models') if name in sys.modules])"
    )
    arguments = [sys.executable, "-c", program, str(run.path), str(tmp_path / "page.html")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_answer_says_what_the_table_holds(tmp_path):
    frame = table(6, means={("drop", 2, "kl"): 0.001, ("swap", 4, "kl"): 3.0})
    read = measured.read_sweep(make_run(tmp_path / "run", frame=frame))
    plain = findings.headline(read).replace("\u00a0", " ")
    assert plain == (
        "Dropping layer 0 changes the predictions most: KL 5.00 nats (4.50 to 5.50), and the most likely token stays the "
        "same at 1.0% (0.9 to 1.1) of positions."
    )
    said = " ".join(findings.further(read)).replace("\u00a0", " ")
    assert "less certain: their entropy rises by 0.0230 nats (0.0207 to 0.0253)." in said
    assert "Layer 2 is missed least: KL 0.00100 nats (0.00090 to 0.00110) without it." in said
    assert "Dropping any one of the middle layers, 1 to 4" in said
    assert "between 89.7% (layer 4;" in said
    assert "and 95.7% (layer 1;" in said
    assert "(layers 3 and 4;" in said, "a swap with the last layer is not one of middle layers"
    assert (
        "Dropping a layer costs less KL than swapping it with the next at layers 2 and 4; too close to call at" in said
    )


def test_layers_are_told_apart_only_where_intervals_are():
    value = measured.Value
    first = {0: value(3.0, 2.5, 3.5), 1: value(1.0, 0.5, 1.5), 2: value(2.0, 1.0, 3.0), 4: value(1.0, None, None)}
    second = {0: value(2.0, 1.6, 2.4), 1: value(2.0, 1.6, 2.4), 2: value(2.1, 1.7, 2.5), 4: value(0.5, None, None)}
    assert findings.compared(first, second) == ([0, 4], [1], [2])
    assert findings.ranges([0, 1, 2, 5, 6, 9]) == "0–2, 5, 6 and 9"


def test_sentences_stand_alone_where_nothing_is_settled_and_in_a_model_of_one_layer(tmp_path):
    level = {(edit, i, "kl"): 0.5 for edit in EDITS for i in range(4)} | {("drop", 0, "entropy_change"): -0.2}
    read = measured.read_sweep(make_run(tmp_path / "run", frame=table(4, means=level)))
    said = " ".join(findings.further(read) + findings.components(read)).replace("\u00a0", " ")
    assert (
        "Whether swapping a layer with the next costs less KL than dropping it is too close to call at layers 0–2."
        in said
    )
    assert "Which costs more KL, silencing the MLP or the attention, is too close to call at layers 0–3." in said
    assert "more certain: their entropy falls by 0.200 nats (0.180 to 0.220)." in said
    alone = findings.headline(measured.read_sweep(make_run(tmp_path / "one", 1, table(1))))
    assert alone.replace("\u00a0", " ").startswith("Dropping layer 0 changes the predictions by KL 5.00 nats")


def test_an_uncertain_headline_says_so(tmp_path):
    frame = table(4, means={("drop", 3, "kl"): 4.9})
    read = measured.read_sweep(make_run(tmp_path / "run", frame=frame))
    said = " ".join(findings.further(read))
    assert "too close to call between layers 0 and 3: their intervals overlap." in said
    near = table(5, means={("drop", 2, "kl"): 0.02, ("drop", 3, "kl"): 0.021})
    said = " ".join(findings.further(measured.read_sweep(make_run(tmp_path / "near", frame=near))))
    assert "Layer 2 is missed least: KL" in said
    assert "without it, too close to call against layer 3." in said


@pytest.mark.parametrize("depth", [1, 2, 3, 48])
@pytest.mark.parametrize("edits", [EDITS, ("drop",), ("swap",), ("drop_attn",), ("drop_mlp", "swap"), ()])
def test_any_depth_and_any_edits_give_a_page(tmp_path, depth, edits):
    page = render(make_run(tmp_path / "run", depth, table(depth, edits)))
    shown = text_of(page)
    measured_edits = [edit for edit in EDITS if edit in edits and not (edit == "swap" and depth == 1)]
    if not measured_edits:
        assert "no edit was measured" in shown
        return
    assert "nan" not in shown.lower().split()
    assert "None" not in shown
    assert page.count('<th scope="row"') == depth
    assert page.count('class="group"') == len(measured_edits)
    if "drop" not in edits and "swap" not in edits:
        assert "Swap was not part of this run." in shown or depth == 1
    if depth == 1 and edits == EDITS:
        assert "a model of one layer has no neighbours" in shown


def test_why_an_edit_was_not_done_is_said(tmp_path):
    reason = "the model has no separate attention and MLP"
    run = make_run(tmp_path / "run", frame=table(4, ("swap", "drop")), not_done={"drop_attn": reason})
    shown = text_of(render(run))
    assert f"Drop attention could not be done: {reason}." in shown
    assert "Drop MLP was not part of this run." in shown


def test_one_document_gives_no_intervals_and_the_page_says_so(tmp_path):
    run = make_run(tmp_path / "run", frame=table(4, documents=1))
    shown = text_of(render(run))
    assert "The text is one document, so there are no intervals" in shown
    assert "Brackets hold" not in shown
    assert not any(trace.error_y.visible for trace in figure(run, "sweep").data)
    few = text_of(render(make_run(tmp_path / "few", frame=table(4, documents=2))))
    assert "The intervals rest on 2 documents only" in few


def test_a_kl_of_nought_is_not_lost_on_the_logarithmic_axis(tmp_path):
    run = make_run(tmp_path / "run", frame=table(4, means={("drop", 1, "kl"): 0.0}))
    assert "KL is exactly 0, so not on the logarithmic axis, for drop(1)." in text_of(render(run))


def test_an_unfinished_run_gives_a_page_that_says_what_is_missing(tmp_path):
    run = make_run(tmp_path / "run", complete=False)
    run.write_shard("sweep", 0, pl.DataFrame({"a": [1]}))
    page = render(run)
    shown = text_of(page)
    assert "This run has not come to its end. 1 of 4 work units of the sweep are stored." in re.sub(r" +", " ", shown)
    assert "There is no sweep table yet" in shown
    assert "1.23 M (1,234,567)" in shown
    assert len(page) < 100_000, "plotly.js is left out where nothing is drawn"
    resumed = make_run(tmp_path / "resumed", frame=table(3), complete=False)
    assert "The sweep table below is whole" in text_of(render(resumed))


def test_versions_a_run_was_begun_with_are_shown(tmp_path):
    run = make_run(tmp_path / "run", frame=table(3))
    run.manifest["earlier_versions"] = [{"torch": "2.10.0"}]
    assert "torch 2.10.0" in text_of(render(run))


def test_numbers_as_text():
    assert measured.number(0.7, AGREEMENT) == "70.0"
    assert measured.number(-0.04348, METRICS["entropy_change"]) == "−0.0435"
    assert measured.number(-0.0000001, METRICS["entropy_change"], 3) == "0.000"
    assert measured.number(5.30258, KL) == "5.30"
    assert measured.number(123.4, KL) == "123.40"
    assert [layer_step(depth) for depth in (1, 9, 12, 48, 80)] == [1, 1, 2, 10, 10]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_toggles_work_in_a_browser_without_errors_or_requests(run, tmp_path):
    out = write_page(run, tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
        page.goto(out.as_uri())
        state = "(() => { const p = document.getElementById('plot-components-kl'); "
        state += "return [p._fullLayout.yaxis.type, p.data[0].x[5], p.layout.xaxis.title.text]; })()"
        assert page.evaluate(state) == ["log", 5, "layer"]
        page.click("#sweep >> text=linear")
        page.click("#sweep >> text=relative depth")
        assert page.evaluate(state) == ["linear", 1, "relative depth"]
        page.click("#components >> text=logarithmic")
        assert page.evaluate(state) == ["log", 1, "relative depth"]
        browser.close()
    assert troubles == []
    assert Path(out).exists()
