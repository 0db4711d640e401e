"""The figures hold exactly the numbers of their tables."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from report_runs import HOSTILE, all_tables, estimates, made_up_stages, make_run, plotted, sweep_table

from depthscope.errors import DepthscopeError, RunError
from depthscope.report.canvas import drawn
from depthscope.report.figures import FIGURES, figure
from depthscope.report.palette import LOOKS
from depthscope.report.sections.sweep import PANELS
from depthscope.schema import attention, heads, lens, norms, similarity

DEPTH = 6


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", DEPTH, tables=all_tables(DEPTH), stages=made_up_stages(DEPTH))


def curves(section):
    """(panel, trace) for each line of a section."""
    return [(panel, trace) for panel in section.panels for trace in plotted(panel) if trace.type == "scatter"]


def holds(trace, rows, by):
    """Whether a trace shows some rows of a table: means, interval ends, places."""
    rows = rows.sort(by)
    assert list(trace.y) == rows["mean"].to_list()
    assert [row[0] for row in trace.customdata] == rows[by].to_list()
    assert [row[2] for row in trace.customdata] == rows["ci_low"].to_list()
    assert [row[3] for row in trace.customdata] == rows["ci_high"].to_list()
    drawn = [y - down for y, down in zip(trace.y, trace.error_y.arrayminus, strict=True)]
    assert drawn == pytest.approx(rows["ci_low"].to_list())


@pytest.mark.parametrize(
    ("name", "edits"), [("sweep", ("swap", "drop")), ("components", ("drop", "drop_attn", "drop_mlp"))]
)
@pytest.mark.parametrize("axis", ["layer", "relative depth"])
def test_the_sweep_by_edit_and_metric(run, name, edits, axis):
    shown = figure(run, name, axis)
    assert [trace.meta for trace in shown.data] == list(edits) * 3
    frame = run.table("sweep")
    for place, trace in enumerate(shown.data):
        metric = PANELS[place // len(edits)]
        rows = frame.filter(pl.col("edit") == trace.meta, pl.col("metric") == metric.name)
        holds(trace, rows, "layer")
        layers = rows["layer"].sort().to_list()
        assert list(trace.x) == (layers if axis == "layer" else [layer / 5 for layer in layers])
        assert f"{trace.meta}(0)" in trace.text[0]


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("lens", [lens.KL, lens.ENTROPY]),
        ("norms", [norms.NORM_RATIO, norms.ATTENTION_NORM, norms.MLP_NORM, norms.RESIDUAL_NORM]),
        ("attention", [*attention.PREVIOUS.values(), attention.FIRST, attention.ITSELF]),
        ("influence", [similarity.BLOCK_INFLUENCE]),
    ],
)
def test_lines_by_layer(run, name, metrics):
    traces = [trace for _, trace in curves(FIGURES[name].build(run))]
    for metric, trace in zip(metrics, traces, strict=False):
        holds(trace, run.table(name).filter(metric=metric.name), "layer")


def test_similarity_by_component_and_move(run):
    shown = curves(FIGURES["similarity"].build(run))
    assert len(shown) == 12
    for place, (panel, trace) in enumerate(shown):
        _, component, moved = panel.name.split("-")
        metric = similarity.SWAP_METRICS[place % 3]
        rows = run.table("similarity").filter(metric=metric.name, component=component, moved=moved)
        holds(trace, rows, "layer")


def test_heads_ranking_map_and_positions(run):
    ranking, heat, positions = FIGURES["heads"].build(run).panels
    merge = run.table("heads").filter(metric="merge").sort("mean", descending=True)
    assert list(plotted(ranking)[0].x) == merge["mean"].head(10).to_list()
    assert [row[2] for row in plotted(ranking)[0].customdata] == merge["ci_low"].head(10).to_list()
    best = merge.row(0, named=True)
    assert plotted(ranking)[0].y[0] == f"L{best['layer']}H{best['head']}"
    for row in merge.iter_rows(named=True):
        assert plotted(heat)[0].z[row["head"]][row["layer"]] == row["mean"]
        assert list(plotted(heat)[0].customdata[row["head"]][row["layer"]]) == [row["ci_low"], row["ci_high"]]
    table = run.table("head_positions").filter(layer=best["layer"], head=best["head"])
    for trace, prompts in zip(plotted(positions), (heads.WORD, heads.PLAIN), strict=True):
        holds(trace, table.filter(prompts=prompts), "offset")


def test_attention_and_geometry_as_heat_maps(run):
    heat = plotted(FIGURES["attention"].build(run).panels[-1])[0]
    for row in run.table("attention_heads").filter(metric="previous_5").iter_rows(named=True):
        assert heat.z[row["head"]][row["layer"]] == row["mean"]
    for panel in FIGURES["geometry"].build(run).panels:
        table = run.table("geometry").filter(metric=panel.name.removeprefix("geometry-"))
        numbers = np.array(plotted(panel)[0].z)
        assert np.isfinite(numbers).sum() == len(table) == DEPTH * (DEPTH + 1) // 2
        for row in table.iter_rows(named=True):
            assert numbers[row["other"], row["layer"]] == row["mean"]


def test_neurons_counts_beside_the_lens_and_alone(run):
    counts = run.table("neuron_counts")
    alone, others, kurtosis = FIGURES["neurons"].build(run).panels
    beside = FIGURES["lens"].build(run).panels[-1]
    for panel, kinds in ((alone, 2), (beside, 2), (others, 2)):
        assert len(plotted(panel)) == kinds
        for trace in plotted(panel):
            assert list(trace.y) == counts.filter(kind=trace.meta).sort("layer")["count"].to_list()
            assert not trace.error_y.visible
    assert list(plotted(kurtosis)[0].y) == [5.0 + layer for layer in range(DEPTH)]
    assert beside.x.range == (-0.5, DEPTH + 0.5), "the lens's axis has one place more than there are layers"
    (table,) = FIGURES["neurons"].build(run).tables
    assert [row[0] for row in table.rows] == ["L0.1", "L0.2", "L0.3", "L0.4"]
    assert table.rows[0][2] == f"␣a · {HOSTILE}"


def test_what_lies_below_a_logarithmic_axis_is_left_out_of_the_curve(run):
    table = estimates(
        lens.LENS_TABLE,
        [(depth,) for depth in range(DEPTH + 1)],
        lens.METRICS,
        value=lambda key, _: (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 1e-12)[key[0]],
    )
    run.write_table("lens", table)
    panel = FIGURES["lens"].build(run).panels[0]
    assert list(plotted(panel, "layer")[0].y) == [8.0, 4.0, 2.0, 1.0, 0.5, 0.25, None]
    assert list(plotted(panel)[0].y)[-1] == 1e-12, "a linear axis shows it"
    assert list(figure(run, "lens").data[0].y)[-1] is None
    zero = make_run(run.path.parent / "zero", DEPTH, frame=sweep_table(DEPTH, means={("drop", 2, "kl"): 0.0}))
    drops = [t for t in plotted(FIGURES["sweep"].build(zero).panels[0], "layer") if t.meta == "drop"]
    assert drops[0].y[2] is None


def test_probes_over_the_number_of_neurons(run):
    section = FIGURES["probes"].build(run)
    mean = run.table("probes").filter(pl.col("draw").is_null(), metric="accuracy")
    for panel, group in zip(section.panels, ("prediction", "suppression", "both"), strict=True):
        by_name = {trace.name: trace for trace in plotted(panel)}
        chosen = next(trace for trace in plotted(panel) if trace.meta == group and trace.mode != "markers")
        holds(chosen, mean.filter(group=group), "k")
        holds(by_name["Random neurons"], mean.filter(group=f"random_{group}"), "k")
        assert set(by_name["Model, top-1"].y) == set(mean.filter(group="model_top1")["mean"])
        for name, baseline in (("Last token", "unigram"), ("Last two tokens", "bigram")):
            assert set(by_name[name].y) == set(mean.filter(group=baseline)["mean"])
        holds(by_name["Control tasks"], run.table("probes").filter(metric="control_accuracy", group=group), "k")
        assert set(by_name["Whole layer"].y) == set(mean.filter(group="layer")["mean"])
        if group != "both":
            holds(by_name["each neuron alone"], run.table("probe_neurons").filter(group=group), "rank")
    assert len({panel.y[0].range for panel in section.panels}) == 1, "three groups on one scale"


def test_the_stage_map_and_its_tables(run):
    found = made_up_stages(DEPTH)
    section = FIGURES["stages"].build(run)
    strips, bars, bounds = plotted(section.panels[0])
    assert [list(row) for row in reversed(strips.z)] == [signal["standardised"] for signal in found["signals"]]
    assert list(bars.base) == [stage["first"] - 0.5 for stage in found["stages"]]
    assert list(bars.x) == [2, 2, 2]
    assert list(bounds.x) == [1.5, 3.5]
    assert (list(bounds.error_x.arrayminus), list(bounds.error_x.array)) == ([1, 0], [1, 0])
    stages, transitions, ends, signatures = section.tables
    assert [row[:2] for row in stages.rows][1] == ("Feature engineering", "layers 2–3")
    assert [row[1] for row in transitions.rows][1:] == [
        ("named", ""),
        ("not named", "the readings do not confirm a step"),
    ]
    assert transitions.rows[0][2:5] == (("layer 2", "95% interval 1 to 5"), "25 %", "0.004")
    assert ends.rows[0] == ("first (layer 0)", "Cost of dropping the layer", "17×", "< 0.001", "exceptional")
    assert signatures.rows[0][3] == ("3.5×", "3.1×\u00a0to\u00a03.9×")
    assert signatures.rows[1][2] == ("inconclusive", "made up: no such signal")
    said = " ".join(section.sentences)
    assert (
        "The signals have a step beyond smooth change with depth and autocorrelated noise (p = 0.003; level 2 %)."
        in said
    )
    assert (
        "predicted best by 3 segments over depth, better than by a straight line (squared error 0.20 and 0.50" in said
    )
    assert "Layer 0 is exceptional: its cost of dropping the layer is 17× the median layer’s" in said
    assert [trace.name for trace in plotted(section.panels[1])][:2] == [
        "Feature engineering begins",
        "Prediction ensembling begins",
    ]
    assert "Feature engineering begins at layer 2 (95% interval 1 to 3; at this layer in 93% of resamples)" in said
    assert "1 of the 2 signals relevant to it change within a layer of it on their own (alone they change" in said
    assert "at: cost of dropping the layer (2))" in said


def test_stages_that_are_not_found_and_changes_without_a_name(tmp_path):
    change = {"layer": 3, "low": 2, "high": 4, "support": 0.5, "before": None, "after": None, "votes": {}}
    untested = {"structure": None, "shapes": [], "transitions": [], "edges": []}
    empty = made_up_stages(
        DEPTH, found=False, stages=[], boundaries=[], unnamed_changes=[change], summary="No stages.", **untested
    )
    for signal in empty["signals"]:
        signal["standardised"] = None
    section = FIGURES["stages"].build(make_run(tmp_path / "run", stages=empty))
    assert (
        "A change that matches none of the hypothesis’s transitions at layer 3 (95% interval 2 to 4;"
        in section.sentences[1]
    )
    assert [table.title for table in section.tables] == ["The signatures of the stages", "The signals by layer"]
    assert section.panels == [], "no empty grid where the signals were not compared"
    assert "no map" in section.missing[0]
    assert section.tables[-1].title == "The signals by layer"
    assert section.tables[-1].rows[0][:3] == ("Signal drop", "−1.5\u00a0nats", "1.5\u00a0nats")
    compared = made_up_stages(DEPTH, found=False, stages=[], boundaries=[], summary="No stages.", **untested)
    (panel,) = FIGURES["stages"].build(make_run(tmp_path / "compared", stages=compared)).panels
    assert "no stages found" in [note.text for note in panel.notes]
    assert drawn([panel], 1, "").axes


def test_every_figure_is_there_for_notebooks_with_all_that_its_panels_draw(run):
    for name, kind in FIGURES.items():
        section = kind.build(run)
        for axis in ("layer", "relative depth"):
            shown = figure(run, name, axis)
            assert len(shown.data) == sum(len(plotted(panel)) for panel in section.panels)
            assert {trace.meta for trace in shown.data} <= set(LOOKS), "every trace has a colour of the page"
        assert "tiny" in shown.layout.title.text


def test_figures_refuse_other_names_and_axes_and_say_what_was_expected(run, tmp_path):
    with pytest.raises(DepthscopeError, match="'sweeps': expected one of overview, stages, sweep, components, lens"):
        figure(run, "sweeps")
    with pytest.raises(DepthscopeError, match="'depth': expected one of layer, relative depth"):
        figure(run, "sweep", "depth")
    swaps = make_run(tmp_path / "swaps", frame=sweep_table(6, ("swap",)))
    with pytest.raises(RunError, match=r"no data for the figure 'components'. Drop attention was not part of this run"):
        figure(swaps, "components")
    with pytest.raises(RunError, match="has no table 'lens': it has sweep"):
        figure(swaps, "lens")
    hostile = figure(make_run(tmp_path / "hostile", frame=sweep_table(3), model=HOSTILE), "sweep")
    assert "<script" not in str(hostile.layout.title.text)
    alone = make_run(tmp_path / "one", frame=sweep_table(4, documents=1))
    assert not any(trace.error_y.visible for trace in figure(alone, "sweep").data)


def test_the_script_s_attention_is_told_from_the_papers(tmp_path):
    layers = [(layer,) for layer in range(4)]
    bands = estimates(attention.ATTENTION_TABLE, layers, [*attention.BANDS.values(), attention.FIRST, attention.ITSELF])
    run = make_run(tmp_path / "run", 4, tables={"attention": bands})
    settings = replace(run.settings, experiments={"attention": {"protocol": "lad2024"}})
    run.manifest = replace(run.manifest, settings=settings)
    section = FIGURES["attention"].build(run)
    assert section.panels[0].title == "Mean entry of the first k sub-diagonals"
    holds(plotted(section.panels[0])[0], bands.filter(metric="band_1"), "layer")
    assert "lad2024" in section.notes[0]
