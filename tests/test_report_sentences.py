"""The page's sentences say what the tables hold, with intervals, and no more."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from report_runs import EDITS, estimates, make_run, neuron_tables, sweep_table
from scipy import stats

from depthscope.cli.console import console
from depthscope.cli.summary import SHOWN
from depthscope.report import findings, measured, wording
from depthscope.report.charts import layer_step
from depthscope.report.figures import FIGURES
from depthscope.report.sections.influence import rank_correlation
from depthscope.schema import attention, heads, lens, neurons, norms, probes, similarity
from depthscope.schema.manifest import NeuronRows
from depthscope.schema.sweep import AGREEMENT, KL, METRICS


def said_of(name, tmp_path, **tables):
    """The sentences of a section, with plain spaces."""
    section = FIGURES[name].build(make_run(tmp_path / name, 4, tables=tables))
    return " ".join(section.sentences).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("metric", "numbers", "terminal", "page"),
    [
        (KL, (0.324, 0.298, 0.35), "0.324 ± 0.026", "0.324 nats (0.298 to 0.350)"),
        (KL, (0.0012, 0.0011, 0.0014), "0.00120 ± 0.00020", "0.00120 nats (0.00110 to 0.00140)"),
        (KL, (3.1e-9, 2e-9, 4e-9), "3.10 × 10⁻⁹ ± 1.10 × 10⁻⁹", "3.10 × 10⁻⁹ nats (2.00 × 10⁻⁹ to 4.00 × 10⁻⁹)"),
        (KL, (0.5, 0.4997, 0.5003), "0.5000 ± 0.0003", "0.500 nats (0.500 to 0.500)"),
        (KL, (0.5, 0.5 - 1e-7, 0.5 + 1e-7), "0.500 ± 1.00 × 10⁻⁷", "0.500 nats (0.500 to 0.500)"),
        (KL, (0.0, 0.0, 0.0), "0", "0.00 nats (0.00 to 0.00)"),
        (KL, (4e-7, None, None), "4.00 × 10⁻⁷", "4.00 × 10⁻⁷ nats"),
        (AGREEMENT, (0.324, 0.298, 0.35), "32.4 ± 2.6", "32.4% (29.8 to 35.0)"),
        (AGREEMENT, (0.0003, 0.0002, 0.0004), "0.0300 ± 0.0100", "0.0300% (0.0200 to 0.0400)"),
    ],
)
def test_a_number_that_is_not_nought_is_not_written_as_nought(metric, numbers, terminal, page):
    value = measured.Value(*numbers)
    assert measured.give_or_take(value, metric).replace("\u00a0", " ") == terminal
    assert measured.spoken(value, metric).replace("\u00a0", " ") == page


def test_the_answer_says_what_the_table_holds(tmp_path):
    frame = sweep_table(6, means={("drop", 2, "kl"): 0.001, ("swap", 4, "kl"): 3.0})
    read = measured.read_sweep(make_run(tmp_path / "run", frame=frame))
    plain = findings.headline(read).replace("\u00a0", " ")
    assert plain == (
        "Dropping layer 0 changes the predictions most: KL 5.00 nats (4.50 to 5.50), and the most likely token stays the "
        "same at 1.0% (0.9 to 1.1) of positions."
    )
    said = " ".join(findings.further(read)).replace("\u00a0", " ")
    assert "less certain: their entropy rises by 0.0230 nats (0.0207 to 0.0253)." in said
    assert "Dropping layer 2 costs least: KL 0.00100 nats (0.00090 to 0.00110)." in said
    assert "Dropping any one of the middle layers, 1 to 4" in said
    assert "between 89.7% (layer 4;" in said
    assert "and 95.7% (layer 1;" in said
    assert "(layers 3 and 4;" in said, "a swap with the last layer is not one of middle layers"
    assert (
        "Dropping a layer costs less KL than swapping it with the next at layers 2 and 4; too close to call at" in said
    )


def test_sentences_of_the_other_experiments_say_what_their_tables_hold(tmp_path):
    layers = [(layer,) for layer in range(4)]
    ratio = {0: 0.2, 1: 1.5, 2: 1.0, 3: 0.5}
    norm = estimates(norms.NORMS_TABLE, layers, norms.METRICS, value=lambda key, _: ratio[key[0]])
    influence = estimates(
        similarity.INFLUENCE_TABLE, layers, [similarity.BLOCK_INFLUENCE], value=lambda key, _: 0.4 - 0.1 * key[0]
    )
    dropped = sweep_table(4, means={("drop", layer, "kl"): 1.0 + layer for layer in range(4)})
    run = make_run(tmp_path / "run", 4, tables={"norms": norm, "influence": influence, "sweep": dropped})
    said = " ".join(FIGURES["norms"].build(run).sentences).replace("\u00a0", " ")
    assert (
        "Attention writes more than the MLP in layer 1; the MLP writes more than attention in layers 0 and 3;" in said
    )
    assert "too close to call in layer 2." in said
    said = " ".join(FIGURES["influence"].build(run).sentences).replace("\u00a0", " ")
    assert "Influence is smallest in layer 3, 0.100 (0.090 to 0.120); dropping that layer costs KL 4.00 nats" in said
    assert "rank correlation of influence with the measured KL of dropping the layer is −1.00" in said


def test_rank_correlation_is_spearman_s():
    first, second = [0.3, 0.1, 0.1, 0.9, 0.5], [2.0, 1.0, 3.0, 4.0, 4.0]
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_layers_are_told_apart_only_where_intervals_are():
    value = measured.Value
    first = {0: value(3.0, 2.5, 3.5), 1: value(1.0, 0.5, 1.5), 2: value(2.0, 1.0, 3.0), 4: value(1.0, None, None)}
    second = {0: value(2.0, 1.6, 2.4), 1: value(2.0, 1.6, 2.4), 2: value(2.1, 1.7, 2.5), 4: value(0.5, None, None)}
    assert wording.compared(first, second) == ([0, 4], [1], [2])
    assert wording.ranges([0, 1, 2, 5, 6, 9]) == "0–2, 5, 6 and 9"


def test_sentences_stand_alone_where_nothing_is_settled_and_in_a_model_of_one_layer(tmp_path):
    level = {(edit, i, "kl"): 0.5 for edit in EDITS for i in range(4)} | {("drop", 0, "entropy_change"): -0.2}
    read = measured.read_sweep(make_run(tmp_path / "run", frame=sweep_table(4, means=level)))
    said = " ".join(findings.further(read) + findings.components(read)).replace("\u00a0", " ")
    assert (
        "Whether swapping a layer with the next costs less KL than dropping it is too close to call at layers 0–2."
        in said
    )
    assert "Which costs more KL, ablating the MLP or the attention, is too close to call at layers 0–3." in said
    assert "more certain: their entropy falls by 0.200 nats (0.180 to 0.220)." in said
    alone = findings.headline(measured.read_sweep(make_run(tmp_path / "one", 1, sweep_table(1))))
    assert alone.replace("\u00a0", " ").startswith("Dropping layer 0 changes the predictions by KL 5.00 nats")


def test_an_uncertain_headline_says_so(tmp_path):
    frame = sweep_table(4, means={("drop", 3, "kl"): 4.9})
    read = measured.read_sweep(make_run(tmp_path / "run", frame=frame))
    said = " ".join(findings.further(read))
    assert "too close to call between layers 0 and 3: their intervals overlap." in said
    near = sweep_table(5, means={("drop", 2, "kl"): 0.02, ("drop", 3, "kl"): 0.021})
    said = " ".join(findings.further(measured.read_sweep(make_run(tmp_path / "near", frame=near))))
    assert "Dropping layer 2 costs least: KL" in said
    assert ", too close to call against layer 3." in said


def test_numbers_as_text():
    assert measured.number(0.7, AGREEMENT) == "70.0"
    assert measured.number(-0.04348, METRICS["entropy_change"]) == "−0.0435"
    assert measured.number(-0.0000001, METRICS["entropy_change"], 3) == "−1.00\u00a0×\u00a010⁻⁷"
    assert measured.interval(measured.Value(0.5, -0.0000001, 1.0), METRICS["entropy_change"], 3).startswith(
        "0.000\u00a0"
    )
    assert measured.number(5.30258, KL) == "5.30"
    assert measured.number(123.4, KL) == "123.40"
    assert [layer_step(depth) for depth in (1, 9, 12, 48, 80)] == [1, 1, 2, 10, 10]


def test_the_lens_says_how_kl_falls_and_from_where_on_it_agrees(tmp_path):
    kl, agreement, entropy = [4.0, 3.0, 2.0, 1.0, 0.0], [0.1, 0.6, 0.505, 0.7, 0.98], [2.0, 1.0, 3.0, 5.0, 4.0]
    by_metric = {lens.KL: kl, lens.AGREEMENT: agreement, lens.ENTROPY: entropy}
    table = estimates(
        lens.LENS_TABLE,
        [(depth,) for depth in range(5)],
        by_metric,
        value=lambda key, metric: by_metric[metric][key[0]],
    )
    said = said_of("lens", tmp_path, lens=table)
    assert "is 4.00 nats (3.99 to 4.02) before the first layer, 2.00 nats (1.99 to 2.02) at x_2 and 1.00 nats" in said
    assert "From x_3 on, the lens’s most likely token is the model’s own at more than half of positions: 70.0%" in said
    assert "lowest at x_1, 1.00 nats (0.99 to 1.02), and highest at x_3, 5.00 nats (4.99 to 5.02)" in said
    assert "at the end it is the model’s own, 4.00 nats" in said


def test_attention_and_geometry_name_their_extremes(tmp_path):
    shares = {0: 0.2, 1: 0.5, 2: 0.3, 3: 0.1}
    table = estimates(
        attention.ATTENTION_TABLE,
        [(layer,) for layer in shares],
        [attention.PREVIOUS[5], attention.FIRST, attention.ITSELF],
        value=lambda key, _: shares[key[0]],
    )
    said = said_of("attention", tmp_path, attention=table)
    assert (
        "Attention to the 5 previous tokens is highest in layer 1, 50.0% (49.0 to 52.0), and lowest in layer 3, 10.0%"
        in said
    )
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 5)]
    apart = {(0, 1): 0.5, (1, 2): 0.1, (2, 3): 0.2, (3, 4): 0.3}
    table = estimates(
        similarity.GEOMETRY_TABLE,
        pairs,
        [similarity.ANGULAR_DISTANCE, similarity.CKA],
        value=lambda key, _: apart.get(key, 0.05),
    )
    said = said_of("geometry", tmp_path, geometry=table)
    assert (
        "Layer 1 rotates the residual stream least, by 0.100 (0.090 to 0.120) of π, and layer 0 most, by 0.500" in said
    )
    assert "Between the first depth and the last CKA is 0.0500 (0.0400 to 0.0700)." in said


def test_similarity_says_where_what_moved_is_more_like_itself(tmp_path):
    own, displaced = {0: 0.1, 1: 0.9, 2: 0.51}, {0: 0.6, 1: 0.2, 2: 0.5}
    values = {similarity.SELF: own, similarity.INDEX: displaced, similarity.ADJACENT: own}
    keys = [(layer, "mlp", similarity.LATER) for layer in own]
    table = estimates(similarity.SIMILARITY_TABLE, keys, values, value=lambda key, metric: values[metric][key[0]])
    assert said_of("similarity", tmp_path, similarity=table) == (
        "MLP, its block runs one later: more similar to itself in place than to the layer it displaces in swaps at layer "
        "1; more similar to the layer it displaces at layer 0; too close to call at layer 2; least similar to itself at layer "
        "0, cosine 0.100 (0.090 to 0.120)."
    )


def test_neurons_say_how_many_and_where_or_how_far_from_any(tmp_path):
    rows = [
        (layer, kind, count, count / 50, 50, 8.0 + layer)
        for layer, prediction in enumerate((0, 1, 4, 2))
        for kind, count in (("prediction", prediction), ("suppression", 0))
    ]
    table = pl.DataFrame(rows, schema=neurons.NEURON_COUNTS_TABLE, orient="row")
    said = said_of("neurons", tmp_path, neuron_counts=table)
    assert "7 prediction neurons among 200; the most, 4, in layer 2 (67% of the depth)." in said
    assert "No suppression neurons (kurtosis above 10) among 200." in said
    few = table.with_columns(pl.lit(0).cast(pl.Int64).alias("count"), pl.col("largest_kurtosis") - 3)
    said = said_of("neurons", tmp_path / "few", neuron_counts=few)
    assert "No prediction neurons (kurtosis above 10) among 200; the largest kurtosis is 8.0, in layer 3." in said


def test_neurons_say_how_those_of_experts_are_counted(tmp_path):
    run = make_run(tmp_path / "run", 4, tables=neuron_tables(4))
    assert len(FIGURES["neurons"].build(run).notes) == 1
    rows = NeuronRows(rows="made up", experts=4, neurons_of_an_expert=24, neurons_of_shared_experts=48)
    run.manifest = replace(run.manifest, neurons=rows)
    note = FIGURES["neurons"].build(run).notes[1]
    assert "a layer has 4 routed experts of 24 neurons, in order, then 48 of shared experts" in note
    assert "neuron n of the routed ones is neuron n mod 24 of expert ⌊n / 24⌋" in note


def test_heads_name_the_best_and_count_the_sure(tmp_path):
    keys = [
        (1, head, head + 1, 4, 0.0, 0.03 if head < 2 else 0.4, 0.0, 0.3, 0.25, 0.01, head == 0) for head in range(3)
    ]
    table = estimates(heads.HEADS_TABLE, keys, [heads.MERGE], value=lambda key, _: 0.3 - 0.1 * key[1])
    said = said_of("heads", tmp_path, heads=table)
    assert "The strongest sub-word merging head is L1H0: the last token of a word of 4 tokens attends" in said
    assert "by 30.0% (29.0 to 32.0) of its attention." in said
    assert "2 of 3 heads attend more" in said
    assert "1 of them is a merging head: its difference is reliably 25% or more." in said


def test_heads_below_the_threshold_are_none_and_the_strongest_is_said(tmp_path):
    score = {heads.PREVIOUS_TOKEN: 0.6, heads.DUPLICATE_TOKEN: 0.25, heads.INDUCTION: 0.047}
    score |= {heads.INDUCTION_NATURAL: 0.5, heads.PREVIOUS_TOKEN_NATURAL: 0.1, heads.MERGE: 0.01}
    keys = [(11, head, head + 1, 4, 0.014, 0.2, 0.014, 0.3, 0.25, 0.01, True) for head in range(4)]
    table = estimates(
        heads.HEADS_TABLE, keys, score, value=lambda key, metric: score[metric] - 0.02 * key[1] * (score[metric] > 0.25)
    ).with_columns(of_kind=pl.col("metric").is_in(["previous_token", "duplicate_token", "induction_natural"]))
    section = FIGURES["heads"].build(make_run(tmp_path / "heads", 12, tables={"heads": table}))
    said = " ".join(section.sentences).replace("\u00a0", " ")
    share = "25% of its attention more than position alone gives, on a repeated sequence of random tokens"
    assert "No sub-word merging heads were found; the strongest is L11H0, 1.0% (0.0 to 3.0)." in said
    strongest = "The strongest is L11H0, 60.0% (59.0 to 62.0), of which position alone gives 1.4%."
    assert f"4 previous-token heads were found: each puts there at least {share}. {strongest}" in said
    assert f"4 duplicate-token heads were found: each puts there at least {share}." in said
    assert f"No induction heads were found: none puts there {share}. The strongest is L11H0, 4.7% (3.7 to 6.7)" in said
    rows = {row[0]: row[1:] for row in section.tables[0].rows}
    for name in ("Induction", "Induction, text"):
        assert rows[name][0] == "none found", "on text too: the kind is known by the random tokens"
        assert rows[name][1][0].startswith("strongest: L11H0")
    assert rows["Previous token, text"][0][0].startswith("L11H0")
    with console.capture() as captured:
        SHOWN["heads"](table)
    assert [" ".join(line.split()) for line in captured.get().splitlines() if line.startswith("Induction ")] == [
        "Induction none; strongest 11.0 4.7 ± 2.0 0 of 4"
    ]


def test_probes_say_each_difference_and_whether_it_is_one(tmp_path):
    means = {probes.ACCURACY: 0.7, probes.OVER_SINGLE: 0.1, probes.OVER_RANDOM: 0.005, probes.OVER_MODEL: -0.2}
    keys = [("ing", probes.BOTH, None, k, None) for k in (1, 2)]
    table = estimates(probes.PROBES_TABLE, keys, means, value=lambda _, metric: means[metric])
    said = said_of("probes", tmp_path, probes=table)
    assert "The best 2 of both groups together classify 70.0% (69.0 to 72.0) of examples correctly." in said
    assert "Compared with the best one alone: +10.0 points (+9.0 to +12.0)." in said
    assert "Compared with the same number of random neurons: +0.5 points (−0.5 to +2.5), too close to call." in said
    assert "Compared with the model’s own most likely token: −20.0 points (−21.0 to −18.0)." in said
    assert "n-gram" not in said, "a table of an earlier version has none"
    assert "control tasks" not in said


def test_probes_say_plainly_whether_they_beat_ngrams(tmp_path):
    means = {
        probes.ACCURACY: 0.7,
        probes.CONTROL_ACCURACY: 0.6,
        probes.SELECTIVITY: 0.1,
        probes.OVER_UNIGRAM: 0.005,
        probes.OVER_BIGRAM: -0.2,
    }
    keys = [("ing", group, None, k, None) for group, k in ((probes.BOTH, 2), (probes.UNIGRAM, 0), (probes.BIGRAM, 0))]
    table = estimates(probes.PROBES_TABLE, keys, means, value=lambda _, metric: means[metric])
    said = said_of("probes", tmp_path, probes=table)
    baseline = "the n-gram baseline that knows only the last"
    of = "of the context (70.0% (69.0 to 72.0)):"
    assert f"The 2 neurons do not beat {baseline} token {of} +0.5 points (−0.5 to +2.5), too close to call." in said
    assert f"The 2 neurons are worse than {baseline} two tokens {of} −20.0 points (−21.0 to −18.0)." in said
    better = table.with_columns(pl.when(metric="accuracy_over_unigram").then(0.1).otherwise("ci_low").alias("ci_low"))
    other = tmp_path / "better"
    other.mkdir()
    assert f"The 2 neurons beat {baseline} token" in said_of("probes", other, probes=better)
    assert said.endswith("its selectivity is +10.0 points (+9.0 to +12.0).")
