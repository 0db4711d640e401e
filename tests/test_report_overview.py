"""The first screen and what the page says of itself: the overview, the five numbers, trust, downloads."""

import base64
import io
import itertools
import json
import re
import zlib
from dataclasses import replace

import polars as pl
import pytest
from report_runs import HOSTILE, all_tables, made_up_stages, make_run, plotted, sweep_table

from depthscope.api.study import Study
from depthscope.errors import RunError
from depthscope.report import downloads, trust
from depthscope.report.figures import FIGURES
from depthscope.report.key_numbers import halved_at, key_numbers
from depthscope.report.measured import Value, read_sweep, scientific
from depthscope.report.page import render
from depthscope.report.sections.overview import SHADES
from depthscope.schema.manifest import Manifest, NoiseFloorEntry

DEPTH = 6


def plain(text):
    return text.replace("\u00a0", " ")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", DEPTH, tables=all_tables(DEPTH), stages=made_up_stages(DEPTH))


def bands_of(section):
    """(left, right, shade) of the bands."""
    return [tuple(band) for band in section.panels[0].bands]


def test_the_overview_shows_the_tables_numbers_each_on_its_own_axis(run):
    (panel,) = FIGURES["overview"].build(run).panels
    drop, local, prediction, suppression = plotted(panel)
    dropped = run.table("sweep").filter(edit="drop", metric="kl").sort("layer")
    assert list(drop.y) == dropped["mean"].to_list()
    assert [row[2:] for row in drop.customdata] == [
        list(row) for row in dropped.select("ci_low", "ci_high").iter_rows()
    ]
    assert list(local.y) == run.table("attention").filter(metric="previous_5").sort("layer")["mean"].to_list()
    for trace in (prediction, suppression):
        counts = run.table("neuron_counts").filter(kind=trace.meta).sort("layer")
        assert list(trace.y) == counts["share"].to_list()
    assert [trace.yaxis or "y" for trace in plotted(panel)] == ["y", "y2", "y3", "y3"]
    assert [axis.scale for axis in panel.y] == ["log", "linear", "linear"]
    for above, below in itertools.pairwise(panel.y):
        assert above.part[0] > below.part[1], "rows do not overlap"


def test_bands_are_the_stages_and_fade_over_their_boundaries_intervals(run):
    bands = bands_of(FIGURES["overview"].build(run))
    assert bands[0] == (-0.5, 0.5, SHADES[0])
    fading = [band for band in bands if band[0] >= 0.5 and band[1] <= 2.5 + 1e-9]
    assert (fading[0][0], fading[-1][1]) == pytest.approx((0.5, 2.5)), "the interval is 1 to 3"
    shades = [shade for _, _, shade in fading]
    assert shades == sorted(shades, reverse=True)
    assert SHADES[1] < min(shades) < max(shades) < SHADES[0]
    assert bands[-2:] == [(2.5, 3.5, SHADES[1]), (3.5, 5.5, SHADES[0])], "no interval, no fading"
    assert all(left[1] == pytest.approx(right[0]) for left, right in itertools.pairwise(bands))


def test_what_the_overview_lacks_is_left_out_and_said(tmp_path):
    tables = {name: table for name, table in all_tables(DEPTH).items() if name != "attention"}
    section = FIGURES["overview"].build(make_run(tmp_path / "some", DEPTH, tables=tables))
    assert [trace.meta for trace in plotted(section.panels[0])] == ["drop", "prediction", "suppression"]
    assert section.missing == [
        "Not in the figure, because this run lacks the table: attention to the previous five tokens."
    ]
    assert section.notes[0] == "This run did not look for stages, so there are no bands."
    assert section.panels[0].bands == ()
    none = make_run(tmp_path / "none", stages=made_up_stages(DEPTH, stages=[]), frame=sweep_table(DEPTH))
    assert FIGURES["overview"].build(none).notes[0] == "No stages were found, so there are no bands."
    norms = make_run(tmp_path / "norms", tables={"norms": tables["norms"]})
    with pytest.raises(RunError, match="none of what the overview shows"):
        FIGURES["overview"].build(norms)
    page = render(norms)
    assert 'id="overview"' not in page
    assert FIGURES["overview"].title not in page, "it is no experiment that could have been asked for"


def test_curves_that_lie_on_the_axis_are_told_from_missing_ones(tmp_path):
    counts = all_tables(DEPTH)["neuron_counts"].with_columns(pl.lit(0.0).alias("share"))
    section = FIGURES["overview"].build(make_run(tmp_path / "run", DEPTH, tables={"neuron_counts": counts}))
    said = "The model has no prediction neurons and no suppression neurons: their curves lie on the axis, at 0."
    assert said in section.notes
    assert section.panels[0].y[0].range[1] < 0.01


def test_the_five_numbers_are_those_of_the_tables(tmp_path):
    stages = made_up_stages(DEPTH)
    sweep = all_tables(DEPTH)["sweep"]
    kept = sweep.filter(pl.col("layer").is_between(1, DEPTH - 2), edit="drop", metric="agreement")["mean"]
    stages["signatures"].append(
        {**stages["signatures"][0], "name": "robust_middle", "effect": kept.mean(), "ci_low": 0.8, "ci_high": 0.95}
    )
    tables = all_tables(DEPTH)
    falling = pl.when(pl.col("metric") == "kl").then(10.0 / 2 ** pl.col("layer")).otherwise(pl.col("mean"))
    tables["lens"] = tables["lens"].with_columns(falling.alias("mean"))
    first, middle, lens, neurons, signatures = key_numbers(
        make_run(tmp_path / "run", DEPTH, tables=tables, stages=stages)
    )
    assert (plain(first.value), plain(first.interval)) == ("5.00 nats", "4.50 to 5.50")
    assert (middle.value, plain(middle.interval)) == (f"{100 * kept.mean():.1f}%", "80.0 to 95.0")
    assert middle.note == f"top-1, mean over dropping each of 4; {100 * kept.min():.0f} to {100 * kept.max():.0f}%"
    assert lens.value == "x_2"
    assert lens.note.startswith("33% of depth")
    counts = {kind: tables["neuron_counts"].filter(kind=kind)["count"].sum() for kind in ("prediction", "suppression")}
    assert neurons.note.startswith(f"{counts['prediction']} and {counts['suppression']} of 600")
    assert (signatures.value, signatures.note) == ("2 of 3", "1 inconclusive")


def test_numbers_that_a_run_lacks_are_left_out_and_no_interval_is_made_up(tmp_path):
    (first, middle) = key_numbers(make_run(tmp_path / "run", DEPTH, frame=sweep_table(DEPTH)))
    assert first.interval
    assert middle.interval == "", "no stages were looked for, so nothing was resampled"
    assert key_numbers(make_run(tmp_path / "none", tables={})) == []


def test_where_the_lens_has_halved():
    series = {depth: Value(kl) for depth, kl in enumerate((30.0, 8.0, 3.9, 5.0, 4.0, 1.0))}
    assert halved_at(series) == 4, "at x_2 it had not stayed"
    assert halved_at({depth: Value(5.0) for depth in range(6)}) is None
    assert halved_at({0: Value(2.0), 1: Value(1.0)}) is None


def test_the_noise_floor_is_said_where_it_was_measured_and_nothing_is_guessed(tmp_path):
    run = make_run(tmp_path / "run", DEPTH, frame=sweep_table(DEPTH, means={("swap", 3, "kl"): 0.002}))
    measured = read_sweep(run)
    said = trust.noise_floor(run.manifest, measured)
    assert said == "Not measured in this run. It is the level of float32 rounding error."
    manifest = replace(run.manifest, settings=replace(run.settings, dtype="bfloat16"))
    assert trust.noise_floor(manifest, measured) == "Not measured in this run."
    tried = replace(manifest, noise_floor=None, noise_floor_of=None)
    assert trust.noise_floor(tried, measured).startswith("It could not be measured")
    of = NoiseFloorEntry(kl=4e-5, dtype="bfloat16", finer="float32", tokens=128)
    said = plain(trust.noise_floor(replace(manifest, noise_floor=4e-5, noise_floor_of=of), measured))
    assert "KL 4.0 × 10⁻⁵ nats between the model’s predictions in bfloat16 and in float32, mean over 128 tokens" in said
    assert said.endswith("swap(3), is 0.00200 nats (0.00180 to 0.00220), 50 times the floor.")
    assert trust.noise_floor(replace(manifest, noise_floor=0.01), measured).endswith("not above the floor.")
    assert scientific(0.0) == "0"


def test_trust_says_text_policy_versions_and_what_was_not_done(tmp_path):
    run = make_run(tmp_path / "run", frame=sweep_table(4), not_done={"drop_attn": "it has none"})
    said = dict(trust.trust(run.manifest, read_sweep(run)))
    assert said["Text"].startswith("1,024 tokens of 7 documents, in windows of 64")
    assert said["BOS"] == "Policy “none”: windows have no BOS token."
    assert said["Not done: Drop attention"] == "it has none."
    assert said["Versions"] == "depthscope 0.0."
    assert 'id="trust"' in render(run)
    assert dict(trust.trust(Manifest.from_json({"settings": {}}), None))["Text"] == "An unknown number of tokens."


def test_the_page_holds_the_tables_of_its_sections_as_csv(run):
    page = render(run)
    found = re.search(r'<script type="application/json" id="tables">(.*?)</script>', page, re.DOTALL)
    assert found
    packed = json.loads(found.group(1))
    offered = set(re.findall(r'data-csv="([^"]+)"', page))
    assert offered == set(packed) == {*run.tables(), "overview", "stages", "signatures"}
    for name in run.tables():
        text = zlib.decompress(base64.b64decode(packed[name])).decode()
        table = run.table(name)
        lists = [column for column, kind in table.schema.items() if isinstance(kind, pl.List)]
        read = pl.read_csv(
            io.StringIO(text), schema_overrides={c: pl.String if c in lists else t for c, t in table.schema.items()}
        )
        assert read.drop(lists).equals(table.drop(lists), null_equal=True), "numbers in full"
        for column in lists:
            assert read[column].to_list() == [" | ".join(map(str, cell)) for cell in table[column]]
    drawn = pl.read_csv(io.StringIO(zlib.decompress(base64.b64decode(packed["overview"])).decode()))
    assert drawn.filter(curve="Drop")["mean"].to_list() == [
        5.0,
        *run.table("sweep").filter(pl.col("layer") > 0, edit="drop", metric="kl")["mean"],
    ]
    assert zlib.decompress(base64.b64decode(packed["signatures"])).decode().count("\n") == 3


def test_tables_too_large_for_the_page_stay_where_they_are(run):
    fitting, too_large = downloads.packed_tables(run, ["sweep", "lens", "gone"])
    assert (set(fitting), too_large) == ({"sweep", "lens"}, [])
    room = len(fitting["lens"])
    assert len(fitting["sweep"]) > room
    fitting, too_large = downloads.packed_tables(run, ["sweep", "lens", "gone"], room)
    assert (set(fitting), too_large) == ({"lens"}, ["sweep"])


def test_every_figure_says_what_to_look_for(run):
    page = render(run)
    assert page.count("What to look for:") == len(FIGURES)
    assert all(kind.look_for.endswith(".") for kind in FIGURES.values())


def test_a_notebook_shows_a_study_by_its_numbers_stages_and_tables(run, tmp_path):
    shown = Study(run.path)._repr_html_()
    text = plain(re.sub(r"<[^>]+>", " ", shown))
    assert "tiny" in text
    assert "1,024 tokens of 7 documents (bookshelf)" in text
    assert "5.00 nats 4.50 to 5.50" in re.sub(r"\s+", " ", text)
    assert "Feature engineering: layers 2–3, 1 of 2 signatures supported" in text
    assert [int(width) for width in re.findall(r"flex: (\d+) 1 0", shown)] == [2, 2, 2]
    assert f"tables: {', '.join(run.tables())}" in text
    assert "<script" not in shown
    hostile = make_run(
        tmp_path / "hostile", model=HOSTILE, complete=False, stages=made_up_stages(stages=[], summary=HOSTILE)
    )
    shown = Study(hostile.path)._repr_html_()
    assert HOSTILE not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "incomplete" in shown
    assert "tables: none yet" in shown
