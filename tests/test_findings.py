"""The findings page: it is what the tables kept in the repository give, and its verdicts follow from intervals alone."""

import sys
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from report_runs import all_tables, estimates, make_run, sweep_table

import depthscope as ds
from depthscope.data.windows import make_windows
from depthscope.report.measured import Value
from depthscope.schema import lens
from depthscope.schema.sweep import AGREEMENT

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.findings import __main__ as command  # noqa: E402
from benchmarks.findings import evidence, page, pictures  # noqa: E402
from benchmarks.findings.claims import CLAIMS  # noqa: E402
from benchmarks.findings.costly_layers import CHANGES, measure_layers  # noqa: E402
from benchmarks.findings.evidence import ABSENT, FAILS, HOLDS, OPEN  # noqa: E402

EVERY = {claim.name: claim for claims in CLAIMS.values() for claim in claims}
NUMBER = st.floats(0.01, 100)


def test_page_readme_and_pictures_are_what_the_kept_tables_give():
    kept = command.kept()
    assert command.PAGE.read_text("utf-8") == page.render(kept.runs, kept.layers)
    readme = command.README.read_text("utf-8")
    assert readme == command.written(readme, page.readme(kept.runs))
    for name, (numbers, _) in command.pictures_of(kept).items():
        assert pictures.recorded(command.IMAGES / name) == pictures.fingerprint(numbers), f"{name}: make findings"
    assert all(f'<a id="{name}">' in command.PAGE.read_text("utf-8") for name in EVERY)


@st.composite
def with_truth(draw):
    """An estimate and a true value that its interval contains."""
    low, mean, high = sorted(draw(st.tuples(NUMBER, NUMBER, NUMBER)))
    return Value(mean, low, high), draw(st.floats(low, high))


@given(with_truth(), with_truth())
def test_combined_intervals_contain_what_is_combined_whatever_the_correlation(a, b):
    (first, x), (second, y) = a, b
    for found, truth in (
        (evidence.minus(first, second), x - y),
        (evidence.over(first, second), x / y),
        (evidence.largest({0: first, 1: second}), max(x, y)),
        (evidence.Curve(values={0: first, 1: second}, tokens=1, documents=9, depth=2).mean([0, 1]), (x + y) / 2),
    ):
        assert found.low - 1e-9 <= truth <= found.high + 1e-9


def test_intervals_that_hold_together_are_wider_and_one_alone_stays():
    curve = evidence.Curve(values={i: Value(1.0, 0.9, 1.1) for i in range(8)}, tokens=1, documents=9, depth=8)
    assert curve.together([3])[3].low == pytest.approx(0.9)
    assert curve.together(range(8))[3].low < 0.85
    assert evidence.above(Value(1.0)) == OPEN


def planted(tmp_path, means=None, **tables):
    frame = sweep_table(8, means=means)
    return make_run(tmp_path / "run", 8, frame, tables={**all_tables(8), **tables, "sweep": frame})


def test_a_robust_middle_holds_and_one_bad_layer_breaks_it(tmp_path):
    found = EVERY["middle_drop"].of(planted(tmp_path / "a", {("drop", i, "agreement"): 0.99 for i in range(1, 7)}))
    assert found.verdict == HOLDS
    found = EVERY["middle_drop"].of(planted(tmp_path / "b", {("drop", 4, "agreement"): 0.3}))
    assert (found.verdict, found.effect.mean) == (FAILS, 0.3)
    assert "layer 4 of 6 middle layers" in found.words
    found = EVERY["middle_drop"].of(planted(tmp_path / "c", {("drop", i, "agreement"): 0.75 for i in range(1, 7)}))
    assert found.verdict == OPEN  # the interval, ±10 %, reaches below 72 %
    assert (found.tokens, found.documents) == (1024, 7)


def test_what_is_catastrophic_loses_most_predictions(tmp_path):
    run = planted(tmp_path)
    assert EVERY["first_drop"].of(run).verdict == HOLDS
    assert EVERY["last_drop"].of(run).verdict == FAILS
    assert (
        EVERY["last_drop"].of(run).effect.mean
        == run.table("sweep").filter(edit="drop", layer=7, metric=AGREEMENT.name)["mean"].item()
    )


def lens_table(means):
    def value(key, metric):
        return means[key[0]] if metric is lens.KL else 1.0

    return estimates(lens.LENS_TABLE, [(depth,) for depth in range(9)], lens.METRICS, value=value)


def test_progress_is_not_read_from_a_lens_that_rises(tmp_path):
    falling = planted(tmp_path / "a", lens=lens_table([9, 8, 7.5, 7, 6.5, 6, 4, 2, 0]))
    assert EVERY["lens_falls"].of(falling).verdict == HOLDS
    assert EVERY["little_progress"].of(falling).verdict == HOLDS
    rising = planted(tmp_path / "b", lens=lens_table([9, 3, 4, 5, 6, 5, 4, 2, 0]))
    assert EVERY["lens_falls"].of(rising).verdict == FAILS
    assert "x_2" in EVERY["lens_falls"].of(rising).words
    assert EVERY["little_progress"].of(rising).verdict == OPEN


def test_neurons_are_counted_where_they_are(tmp_path):
    counts = all_tables(8)["neuron_counts"]

    def with_counts(prediction, suppression):
        import polars as pl

        by = {"prediction": prediction, "suppression": suppression}
        rows = [
            {**row, "count": by[row["kind"]][row["layer"]] if row["kind"] in by else 0}
            for row in counts.iter_rows(named=True)
        ]
        return pl.DataFrame(rows, schema=counts.schema)

    paper = planted(tmp_path / "a", neuron_counts=with_counts([0, 0, 0, 0, 9, 20, 40, 12], [0, 0, 0, 0, 0, 1, 9, 30]))
    other = planted(tmp_path / "b", neuron_counts=with_counts([0, 9, 0, 0, 0, 0, 4, 30], [5, 0, 0, 0, 0, 1, 2, 3]))
    for name in ("emerge", "peak", "suppression_leads", "suppression_last"):
        assert EVERY[name].of(paper).verdict == HOLDS, name
        assert EVERY[name].of(other).verdict == FAILS, name


def test_what_a_run_lacks_is_not_measured(tmp_path):
    run = make_run(tmp_path / "run", 6, sweep_table(6))
    found = page.judged([run])
    assert found["first_drop"]["run"].verdict == HOLDS
    assert {found[name]["run"].verdict for name in ("lens_falls", "peak", "merging_head", "ensemble_single")} == {
        ABSENT
    }
    assert "not measured" in page.render([run], {})


@pytest.fixture(scope="module")
def layers():
    model = ds.load("bookshelf-gpt2")
    windows = make_windows(ds.corpus("bookshelf", tokens=48), model, length=16)
    return model, windows, measure_layers(model, windows, [10])


def test_parts_of_a_layer_cost_what_the_engine_says_they_cost(layers):
    model, _, found = layers
    changes = found["layers"]["10"]["changes"]
    assert set(changes) == set(CHANGES)
    for change in ("drop", "drop_attn", "drop_mlp"):
        own = ds.measure(
            model, "bookshelf", [f"{change}(10)"], ["kl", "agreement"], tokens=48, window=16, progress=False
        )
        for metric in ("kl", "agreement"):
            row = own.filter(edit=f"{change}(10)", metric=metric).row(0, named=True)
            expected = [row["mean"], row["ci_low"], row["ci_high"]]
            assert changes[change][metric] == pytest.approx(expected, rel=1e-3, abs=1e-6), change


def test_positions_are_taken_apart(layers):
    model, windows, found = layers
    own = found["layers"]["10"]
    changes = own["changes"]
    # The model is causal: at the first position only what was done there counts.
    first = {change: one["kl_by_position"]["0-0"][0] for change, one in changes.items()}
    assert first["drop_rest"] == 0
    assert first["drop_first"] == first["drop"] > 0
    assert first["drop_mlp_first"] == first["drop_mlp"] > 0
    assert changes["drop_first"]["kl_by_position"]["1-15"][0] < changes["drop"]["kl_by_position"]["1-15"][0]
    ids = windows.batch()[0][:1]
    with torch.inference_mode():
        entry = model.stack.enter(ids)
        stream = entry.residual
        for block in range(10):
            stream = model.stack.call(block, stream, entry.arguments)
        with model.writers.watched(10) as written:
            model.stack.call(10, stream, entry.arguments)
    assert int(written[0].mlp[0, 0].abs().argmax()) == own["coordinate"] or len(windows) > 1
    attention = own["attention_on_first"]
    assert attention["drop"][:11] == attention["none"][:11]
    assert attention["drop"][11] != attention["none"][11]
    assert all(0 <= mean <= 1 for mean, _, _ in attention["none"])


def test_the_command_keeps_runs_by_name_and_refuses_others(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["findings", "runs/first"])
    with pytest.raises(SystemExit, match="expected NAME=RUN, such as"):
        command.main()
    with pytest.raises(ValueError, match="lacks the marks"):
        command.written("no marks", "text")
    kept = command.kept()
    assert replace(kept, layers={}).layers == {}


def test_the_picture_names_the_middle_layers_without_which_most_predictions_change(tmp_path):
    run = planted(tmp_path, {("drop", 4, "agreement"): 0.3, ("drop", 5, "agreement"): 0.02})
    figure = pictures.drops([run])
    assert [text.get_text() for axes in figure.axes for text in axes.texts][1:] == ["4", "5"]
    pictures.save(figure, tmp_path / "drops.png", pictures.drop_numbers([run]))
    assert pictures.recorded(tmp_path / "drops.png") == pictures.fingerprint(pictures.drop_numbers([run]))
    other = planted(tmp_path / "other")
    assert pictures.recorded(tmp_path / "drops.png") != pictures.fingerprint(pictures.drop_numbers([other]))
