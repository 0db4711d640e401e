"""Model cards: what a study found stands in them as it is, and only that of the model they describe."""

import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from report_runs import all_tables, made_up_stages, make_run, sweep_table

from depthscope.api.study import Study
from depthscope.errors import RunError
from depthscope.experiments.neurons import Neurons
from depthscope.models.located import EMBEDDED
from depthscope.schema.found_stages import Stages
from depthscope.schema.stages import NOT_SUPPORTED, SUPPORTED

sys.path.insert(0, str(Path(__file__).parents[1]))  # the recipe lies beside the package, not in it

from training import findings


def study_of(path: Path, model=None, depth: int = 4, stages=None, **tables: pl.DataFrame) -> Study:
    """A finished study with made-up tables, of `model`'s weights."""
    run = make_run(path, depth, tables=all_tables(depth) | tables, stages=stages or made_up_stages(depth))
    if model is not None:
        run.update(settings=replace(run.settings, weights=model.weight_hash()))
    return Study(path)


def test_card_takes_only_a_finished_study_of_these_weights_on_the_embedded_text(tiny_of, tmp_path: Path) -> None:
    model = tiny_of("gpt2")
    study = study_of(tmp_path / "run", model)
    assert findings.read_study(study.path, model).run.settings == study.run.settings
    with pytest.raises(ValueError, match="other weights"):
        findings.read_study(study.path, tiny_of("llama"))
    study.run.update(settings=replace(study.run.settings, data="mine.txt"))
    with pytest.raises(ValueError, match=r"mine\.txt: expected the text bookshelf"):
        findings.read_study(study.path, model)
    study.run.update(status="running")
    with pytest.raises(ValueError, match="unfinished"):
        findings.read_study(study.path, model)
    with pytest.raises(RunError, match="holds no run"):
        findings.read_study(tmp_path, model)


def test_card_shows_the_sweep(tmp_path: Path) -> None:
    means = {("swap", 1, "kl"): 1.5, ("drop", 2, "entropy_change"): -0.25}
    study = study_of(tmp_path / "run", sweep=sweep_table(4, means=means))
    text, costs = findings.sweep_costs(study)
    table = study.table("sweep").filter(pl.col("edit") != "none")
    assert costs["drop", "kl", 0] == 5.0
    assert len(costs) == len(study.table("sweep"))
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and line[2].isdecimal()]
    assert [row[1].strip() for row in rows] == ["0", "1", "2", "3"]
    assert rows[1][2].strip() == "1.500 [1.350, 1.650]"
    assert rows[2][6].strip() == "−0.250 [−0.275, −0.225]"
    assert rows[3][2].strip() == ""
    lines = findings.robustness(costs, 4)
    kept = table.filter((pl.col("edit") == "drop") & (pl.col("metric") == "agreement"))
    middle = kept.filter(pl.col("layer").is_between(1, 2))["mean"]
    assert f"drops of {middle.min():.3f} to {middle.max():.3f}" in lines
    assert "1 to 1: a mean KL of 1.500 against" in lines


def test_an_estimate_of_one_document_has_no_interval() -> None:
    assert findings.interval({"mean": 0.5, "ci_low": None, "ci_high": None}) == "0.500"
    assert findings.interval({"mean": -0.5, "ci_low": -1, "ci_high": 0.25}) == "−0.500 [−1.000, 0.250]"


def test_card_shows_attention_and_its_largest_layer(tmp_path: Path) -> None:
    study = study_of(tmp_path / "run")
    shares = study.table("attention").filter(pl.col("metric") == "previous_5").sort("layer")["mean"].to_list()
    text = findings.local_attention(study)
    assert " ".join(f"{share:.2f}" for share in shares) in text
    assert f"largest in layer {shares.index(max(shares))};" in text
    assert "at least 16 tokens" in text


@pytest.mark.parametrize(
    ("kl", "begun"),
    [([9.0, 2.0, 1.7, 0.5, 0.0], 1), ([0.0, 2.0, 1.9, 1.85, 0.0], 3), ([9.0, 2.0, 2.5, 1.0, 0.5], 2)],
)
def test_card_says_after_which_layer_a_tenth_of_the_fall_of_lens_kl_is_done(tmp_path, kl, begun) -> None:
    """Of the fall from x_1 on, whatever a lens reads from the embedding x_0."""
    made = all_tables(4)["lens"]
    own = made.filter(pl.col("metric") == "kl").sort("layer").with_columns(mean=pl.Series(kl))
    text = findings.lens(study_of(tmp_path / "run", lens=pl.concat([made.filter(pl.col("metric") != "kl"), own])))
    assert f"after layers 0 to 3: {' '.join(f'{value:.2f}' for value in kl[1:])} nats" in text
    assert f"done only after layer {begun}." in text


def test_card_names_the_strongest_heads(tmp_path: Path) -> None:
    study = study_of(tmp_path / "run")
    text = findings.heads(study)
    merging = study.table("heads").filter(pl.col("metric") == "merge_first").sort("mean", descending=True)
    names = [f"layer {row['layer']} head {row['head']} {row['mean']:.3f}" for row in merging.iter_rows(named=True)]
    assert [text.find(name) for name in names[:3]] == sorted(text.find(name) for name in names[:3])
    assert -1 not in [text.find(name) for name in names[:3]]
    assert names[3] not in text
    assert "12 of 12 heads are above 0" in text


def test_card_shows_probes_of_all_chosen_neurons_beside_random_ones_and_the_model(tmp_path: Path) -> None:
    study = study_of(tmp_path / "run")
    text = findings.probes(study)
    table = study.table("probes").filter(pl.col("draw").is_null())
    for group, metric, k in (
        ("prediction", "accuracy", 3),
        ("both", "accuracy_over_random", 3),
        ("layer", "accuracy", 32),
        ("model_threshold", "accuracy", 0),
    ):
        row = table.filter((pl.col("group") == group) & (pl.col("metric") == metric) & (pl.col("k") == k))
        assert len(row) == 1
        assert f"{100 * row['mean'][0]:.1f} [" in text
    assert "chosen by what they write alone" in text


def test_card_says_which_stages_and_signatures_show() -> None:
    content = made_up_stages(6)
    content["signatures"][0]["verdict"] = NOT_SUPPORTED
    content["unnamed_changes"] = [{**content["boundaries"][1], "layer": 5}]
    text = findings.stages(Stages.from_json(content))
    assert content["summary"] in text
    firm = "resampling documents: 1 to 3; without any one signal: 1 to 3; 1 of the 2 signals"
    assert f"Detokenization ends before layer 2 ({firm}" in text
    assert text.count("Signals that disagree so may follow a slope") == 1  # at layer 4, where none of the two changes
    content["boundaries"][0]["votes"] = {"drop": 2, "swap": None, "local_attention": None}
    assert findings.stages(Stages.from_json(content)).count("Signals that disagree so may follow a slope") == 2
    assert "resampling documents: too few for an interval" in text
    assert "change before layer 5 too" in text
    assert "Signatures not supported, 1 of 2: the last layer is costly to lose (3.5× [3.1×, 3.9×]; needed 3×" in text
    assert "Signatures cannot be told, 1 of 2: another (made up: no such signal)" in text
    assert f"Signatures {SUPPORTED}" not in text


def test_shipped_cards_give_the_counts_of_neurons_that_the_package_gives(shelf) -> None:
    counts = []
    for processed in (True, False):
        neurons = Neurons(shelf, processed=processed)
        counts.append(neurons.tables(neurons.work(unit) for unit in range(neurons.units))["neuron_counts"])
    assert findings.neurons(*counts, 10.0) in (EMBEDDED / shelf.name / "README.md").read_text()
