"""The page of a run: whatever was run it comes out, says what is missing, and needs nothing but itself."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from drawn_plots import UNDRAWN, wait_until_drawn
from playwright.sync_api import sync_playwright
from report_runs import EDITS, HOSTILE, all_tables, made_up_stages, make_run, sweep_table

from depthscope.errors import RunError
from depthscope.report.figures import FIGURES
from depthscope.report.html import script_json
from depthscope.report.page import render, write_page
from depthscope.schema.sweep import SWEEP_TABLE

SECTION = re.compile(r'<section id="(\w+)">')


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", frame=sweep_table(6))


@pytest.fixture
def full(tmp_path):
    return make_run(tmp_path / "full", tables=all_tables(), stages=made_up_stages())


def text_of(page):
    """What a reader sees: no scripts, styles or tags, and plain spaces."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def figures_in(page):
    """The plots' specifications by panel."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    return json.loads(found.group(1)) if found else {}


def test_every_experiment_has_its_section_with_its_plots_in_order(full):
    page = render(full)
    first, *others = FIGURES
    assert SECTION.findall(page) == [first, *others, "table", "trust", "method"]
    drawn = {name.split("-")[0] for name in figures_in(page)}
    assert drawn == set(FIGURES)
    assert "could not be done" not in page
    assert "Not part of this run" not in page
    assert re.findall(r'data-panel="([^"]+)"', page) == list(figures_in(page))
    assert [name for name in FIGURES if f'href="#{name}"' not in page] == []


@pytest.mark.parametrize("documents", [1, 7])
@pytest.mark.parametrize("depth", [1, 2, 12])
def test_a_page_of_all_tables_reads_well_at_any_depth_and_with_one_document(tmp_path, depth, documents):
    page = render(make_run(tmp_path / "run", depth, tables=all_tables(depth, documents=documents)))
    shown = text_of(page)
    assert not {"nan", "none.", "inf"} & set(shown.lower().split())
    assert "None" not in shown
    assert [name for name in FIGURES if name not in ("stages", *SECTION.findall(page))] == []
    assert "NaN" not in "".join(json.dumps(figure) for figure in figures_in(page).values())
    stacked = re.findall(r'<table class="own words">.*?</table>', page, re.DOTALL)
    assert stacked
    assert "<td>" not in "".join(stacked), "on a phone each cell is a line, which says what it is"


def test_what_was_not_done_what_is_not_there_yet_and_what_was_not_asked_for(tmp_path):
    tables = {name: all_tables()[name] for name in ("sweep", "norms")}
    not_done = {"attention": "Mamba has no attention patterns", "stages": "too few layers"}
    run = make_run(tmp_path / "run", tables=tables, not_done=not_done, experiments=("lens",), complete=False)
    page = render(run)
    shown = text_of(page)
    assert (
        "Where attention goes Lad et al. 2024, figure 4 This could not be done: Mamba has no attention patterns."
        in shown
    )
    assert "No table yet: the run is incomplete." in shown
    assert SECTION.findall(page) == [
        "overview",
        "stages",
        "sweep",
        "components",
        "lens",
        "norms",
        "attention",
        "table",
        "trust",
        "method",
    ]
    closing = re.search(r"Not part of this run: (.*?)\.", shown)
    assert closing
    left = {"neurons", "probes", "heads", "similarity", "influence", "geometry", "tasks"}
    left |= {"sinks", "massive", "effective_depth", "guess_refine"}
    assert set(closing.group(1).split("; ")) == {FIGURES[name].title for name in left}


def test_a_damaged_table_is_a_gap_and_the_rest_is_shown(tmp_path):
    tables = all_tables()
    damaged = {**tables, "sweep": tables["sweep"].drop("ci_low"), "lens": tables["lens"].clear()}
    run = make_run(tmp_path / "run", tables=damaged, stages={"found": True})
    shown = text_of(render(run))
    assert "This cannot be shown: the sweep table of this run lacks ci_low" in shown
    assert "This cannot be shown: the lens table of this run has no rows" in shown
    assert "stages.json is damaged: it lacks summary, layers" in shown
    assert "Attention writes" in shown or "MLP writes" in shown


def test_the_page_is_one_small_file_that_asks_for_nothing(full, tmp_path):
    out = write_page(full, tmp_path / "new" / "report.html")
    page = out.read_text(encoding="utf-8")
    library = max(re.findall(r"<script>.*?</script>", page, flags=re.DOTALL), key=len)
    assert len(page.encode()) - len(library.encode()) < 1_000_000
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:|//)|@import|url\(", ours)
    assert not re.search(r"<(link|script|img|iframe)[^>]+(src|href)=\"(?!data:,)", page)
    assert "default-src 'none'" in page
    assert "displaylogo: false" in page
    assert 'plotlyServerURL: ""' in page
    assert "displayModeBar: false" in page
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["report.html"]


def test_a_deep_model_with_many_heads_gives_a_page_of_bearable_size(tmp_path):
    run = make_run(tmp_path / "deep", 48, tables=all_tables(48, heads_per_layer=25), stages=made_up_stages(48))
    page = render(run)
    assert len(page.encode()) < 10_000_000
    assert "Too large for this file: tables/heads.parquet , tables/head_positions.parquet" in text_of(page)


def test_a_page_that_cannot_be_written_is_a_run_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "report.html"):
        with pytest.raises(RunError, match="cannot be written"):
            write_page(run, out)


def test_text_from_the_run_is_escaped(tmp_path):
    stages = made_up_stages(summary=HOSTILE)
    stages["signals"][0]["title"] = HOSTILE
    tables = {name: table for name, table in all_tables().items() if name != "lens"}
    run = make_run(tmp_path / "run", tables=tables, model=HOSTILE, not_done={"lens": HOSTILE}, stages=stages)
    page = render(run)
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    assert json.loads(script_json({"a": "</script><!--"})) == {"a": "</script><!--"}
    assert not set("<>&") & set(script_json({"a": "</script>&"}))


def test_writing_a_page_imports_no_torch(full, tmp_path):
    program = (
        "import sys, depthscope.report.page as page; from depthscope.run.store import RunDirectory; from pathlib import Path;"
        "page.write_page(RunDirectory.reading(sys.argv[1]), Path(sys.argv[2]));"
        "print([name for name in ('torch', 'transformers', 'scipy', 'depthscope.models') if name in sys.modules])"
    )
    arguments = [sys.executable, "-c", program, str(full.path), str(tmp_path / "page.html")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("depth", [1, 3, 48])
@pytest.mark.parametrize("edits", [EDITS, ("drop",), ("swap",), ("drop_attn",), ("drop_mlp", "swap"), ()])
def test_any_depth_and_any_edits_give_a_page(tmp_path, depth, edits):
    page = render(make_run(tmp_path / "run", depth, sweep_table(depth, edits)))
    shown = text_of(page)
    measured_edits = [edit for edit in EDITS if edit in edits and not (edit == "swap" and depth == 1)]
    if not measured_edits:
        assert "no edit was measured" in shown
        return
    assert "nan" not in shown.lower().split()
    assert "None" not in shown
    assert page.count('class="layer">') == depth + 1
    assert page.count('class="group"') == len(measured_edits)
    if "drop" not in edits and "swap" not in edits:
        assert "Swap was not part of this run." in shown or depth == 1
    if depth == 1 and edits == EDITS:
        assert "a one-layer model has no neighbouring layers" in shown


def test_why_an_edit_was_not_done_is_said(tmp_path):
    reason = "the model has no separate attention and MLP"
    run = make_run(tmp_path / "run", frame=sweep_table(4, ("swap", "drop")), not_done={"drop_attn": reason})
    shown = text_of(render(run))
    assert f"Drop attention could not be done: {reason}." in shown
    assert "Drop MLP was not part of this run." in shown


def test_one_document_gives_no_intervals_and_the_page_says_so(tmp_path):
    shown = text_of(render(make_run(tmp_path / "run", frame=sweep_table(4, documents=1))))
    assert "The text is a single document, so there are no intervals" in shown
    assert "Values in parentheses" not in shown
    few = text_of(render(make_run(tmp_path / "few", frame=sweep_table(4, documents=2))))
    assert "The intervals rest on only 2 documents" in few
    without = make_run(tmp_path / "lens", tables={"lens": all_tables(documents=2)["lens"]})
    without.manifest = replace(without.manifest, text=replace(without.manifest.text, documents=2))
    assert "The intervals rest on only 2 documents" in text_of(render(without)), "also where no sweep was made"


def test_a_kl_of_nought_is_not_lost_on_the_logarithmic_axis(tmp_path):
    run = make_run(tmp_path / "run", frame=sweep_table(4, means={("drop", 1, "kl"): 0.0}))
    assert "KL is exactly 0, so not shown on the logarithmic axis, for drop(1)." in text_of(render(run))


def test_an_unfinished_run_gives_a_page_that_says_what_is_missing(tmp_path):
    run = make_run(tmp_path / "run", complete=False, experiments=("sweep",))
    run.write_shard("sweep", 0, pl.DataFrame({"a": [1]}))
    page = render(run)
    shown = text_of(page)
    assert "This run is incomplete. Work units stored (a pass over the text has 4): sweep 1." in shown
    assert "There are no tables yet" in shown
    assert "1.23 M (1,234,567)" in shown
    assert len(page) < 100_000, "plotly.js is left out where nothing is drawn"
    resumed = make_run(tmp_path / "resumed", frame=sweep_table(3), complete=False)
    assert "The tables below are complete" in text_of(render(resumed))


def test_versions_a_run_was_begun_with_are_shown(tmp_path):
    run = make_run(tmp_path / "run", frame=sweep_table(3))
    run.manifest = replace(run.manifest, earlier_versions=[{"torch": "2.10.0"}])
    assert "torch 2.10.0" in text_of(render(run))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_all_plots_are_drawn_and_the_toggles_work_in_a_browser_without_errors_or_requests(full, tmp_path):
    out = write_page(full, tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
        page.goto(out.as_uri())
        assert page.evaluate(UNDRAWN) > 0, "plots far below wait until they come near"
        for plot in page.query_selector_all(".plot"):
            plot.scroll_into_view_if_needed()
        wait_until_drawn(page)
        state = "(() => { const p = document.getElementById('plot-components-kl'); "
        state += "return [p._fullLayout.yaxis.type, p.data[0].x[5], p.layout.xaxis.title.text]; })()"
        assert page.evaluate(state) == ["log", 5, "layer"]
        page.click("#sweep >> text=linear")
        page.click("#sweep >> text=relative depth")
        assert page.evaluate(state) == ["linear", 1, "relative depth"]
        page.click("#components >> text=logarithmic")
        assert page.evaluate(state) == ["log", 1, "relative depth"]
        lens = "document.getElementById('plot-lens-entropy').data[0].x[6]"
        assert page.evaluate(lens) == 1, "the last depth of six layers is x_6"
        heat = "(() => { const p = document.getElementById('plot-geometry-cka'); return p.calcdata[0][0].z[6][5]; })()"
        cka = full.table("geometry").filter(metric="cka", layer=5, other=6)["mean"].item()
        assert page.evaluate(heat) == pytest.approx(cka)
        with page.expect_download() as saved:
            page.click("#sweep >> [data-csv=sweep]")
        assert saved.value.suggested_filename == "sweep.csv"
        assert pl.read_csv(saved.value.path(), schema=SWEEP_TABLE).equals(full.table("sweep"), null_equal=True)
        for kind, start in (("svg", b"<svg"), ("png", b"\x89PNG")):
            with page.expect_download() as saved:
                page.click(f"#lens >> [data-picture={kind}][data-of=lens-kl]")
            assert saved.value.suggested_filename == f"lens-kl.{kind}"
            assert Path(saved.value.path()).read_bytes().startswith(start)
        browser.close()
    assert troubles == []
    assert Path(out).exists()
