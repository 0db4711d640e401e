"""Run directories for tests of the page: made-up tables with every column the schemas have, and made-up stages."""

from itertools import pairwise, product

import plotly.graph_objects as go
import polars as pl

from depthscope.report.traces import alone, traces
from depthscope.run.store import COMPLETE, RunDirectory
from depthscope.schema import (
    ablation,
    attention,
    class_tables,
    dependency,
    depth_probes,
    depth_regime,
    dimension,
    effective_depth,
    entropy_neurons,
    guess_refine,
    heads,
    layer_maps,
    lens,
    linearity,
    massive,
    neurons,
    norms,
    painters,
    patching,
    probes,
    similarity,
    sinks,
    tasks,
)
from depthscope.schema.manifest import ModelEntry, Settings, TextEntry
from depthscope.schema.stages import RESIDUAL_CALIBRATION, STAGES, SUPPORTED
from depthscope.schema.stored import sealed_json
from depthscope.schema.sweep import AGREEMENT, KL, METRICS, SWEEP_TABLE
from depthscope.schema.token_classes import CLASSINGS

EDITS = ("swap", "drop", "drop_attn", "drop_mlp")
FIRST_LAYER = {"kl": 5.0, "agreement": 0.01}
HOSTILE = "<script>alert(1)</script>"


def sweep_table(depth, edits=EDITS, documents=7, means=None):
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


def estimates(schema, keys, metrics, documents=7, value=None):
    """A table of estimates: a row per key and metric, every mean another one unless `value(key, metric)` says it."""
    rows = []
    for i, (key, metric) in enumerate(product(keys, metrics)):
        mean = (0.1 + 0.7 * (37 * i % 101) / 101) if value is None else value(key, metric)
        bounds = (None, None) if documents == 1 else (mean - 0.01, mean + 0.02)
        rows.append((*key, metric.name, metric.unit, mean, *bounds, 1024, documents))
    return pl.DataFrame(rows, schema=schema, orient="row")


def head_table(depth, count, documents):
    """heads.parquet: as its schema says, ranked by the means."""
    kind = (0.03, 0.3, 0.25, *((None, None) if documents == 1 else (0.01, True)))
    keys = [(layer, head, 0, 4, 0.02, 0.01, *kind) for layer in range(depth) for head in range(count)]
    table = estimates(heads.HEADS_TABLE, keys, heads.HEAD_METRICS.values(), documents)
    return table.with_columns(
        pl.col("mean").rank("ordinal", descending=True).over("metric").cast(pl.Int32).alias("rank")
    )


def probe_table(documents):
    """probes.parquet with three sizes of every group."""
    rows = []
    for group in probes.CHOSEN_GROUPS:
        compared = [*probes.METRICS.values()]
        rows += [(("ing", group, None, k, None), metric) for k in (1, 2, 3) for metric in compared]
        rows += [
            (("ing", probes.RANDOM[group], None, k, draw), probes.ACCURACY) for k in (1, 2, 3) for draw in (None, 0)
        ]
    without = (probes.MODEL_TOP1, probes.MODEL_THRESHOLD, probes.MAJORITY, probes.UNIGRAM, probes.BIGRAM)
    for group, k in ((probes.LAYER, 32), *((group, 0) for group in without)):
        rows.append((("ing", group, None, k, None), probes.ACCURACY))
    bounds = (lambda mean: (None, None)) if documents == 1 else (lambda mean: (mean - 0.01, mean + 0.02))
    means = [0.5 + 0.3 * (7 * i % 11) / 11 for i in range(len(rows))]
    filled = [
        (*key, metric.name, metric.unit, mean, *bounds(mean), 99, documents)
        for (key, metric), mean in zip(rows, means, strict=True)
    ]
    return pl.DataFrame(filled, schema=probes.PROBES_TABLE, orient="row")


def neuron_tables(depth):
    """Counts of each kind by layer, and one neuron of each kind with its tokens."""
    counts = [
        (layer, kind, layer * (place + 1), layer * (place + 1) / 100, 100, 5.0 + layer)
        for layer in range(depth)
        for place, kind in enumerate(neurons.KINDS)
    ]
    tokens = [
        (0, place, kind, 11.5, ["␣a", HOSTILE], [1, 2], [0.5, 0.4], ["b"], [3], [-0.2], "capitalised", 0.25, 1.0)
        for place, kind in enumerate(neurons.KINDS)
    ]
    return {
        "neuron_counts": pl.DataFrame(counts, schema=neurons.NEURON_COUNTS_TABLE, orient="row"),
        "neuron_tokens": pl.DataFrame(tokens, schema=neurons.NEURON_TOKENS_TABLE, orient="row"),
    }


def task_tables(depth, documents):
    """A task with one metric under a drop of every layer, the KL of the drops, and their correlation."""
    edits = ["none", *(f"drop({layer})" for layer in range(depth))]
    about = ("words", "none", "acc")
    bounds = (None, None) if documents == 1 else (-0.2, -0.1)
    rows = [
        (*about, edit, "0", 0.5, 0.01, -0.1 * place, *(bounds if place else (None, None)), place, 50, 50, True)
        for place, edit in enumerate(edits)
    ]
    values = [(*about, edit, example, example, 0.5) for edit in edits for example in range(2)]
    return {
        "tasks": pl.DataFrame(rows, schema=tasks.TASK_TABLE, orient="row"),
        "task_examples": pl.DataFrame(values, schema=tasks.EXAMPLE_TABLE, orient="row"),
        "edit_kl": estimates(tasks.KL_TABLE, [(edit,) for edit in edits], [KL], documents),
        "task_correlations": pl.DataFrame(
            [(*about, depth, -0.5, -0.9, 0.2)], schema=tasks.CORRELATION_TABLE, orient="row"
        ),
    }


def plotted(panel, x_is=None):
    """A panel's marks as plotly's traces, which refuse what plotly does not know."""
    return go.Figure(traces(panel, alone(panel), x_is=x_is)).data


def map_tables(depth, documents):
    """map.parquet with all kinds, and its best cells: the first of each map."""
    keys = [
        (kind.name, i, j)
        for kind in layer_maps.KINDS.values()
        for i in range(depth)
        for j in range(i + kind.pair, depth)
    ]
    table = estimates(layer_maps.MAP_TABLE, keys, layer_maps.METRICS, documents)
    best = [
        {"kind": one.kind, "layers": int(one.by_length), "extreme": one.extreme} | row | {"cells": 9}
        for one in layer_maps.BEST
        for row in table.filter(kind=one.kind, metric=one.metric.name).head(1).iter_rows(named=True)
    ]
    return {"map": table, "map_best": pl.DataFrame(best, schema=layer_maps.MAP_BEST_TABLE)}


def painters_tables(depth, documents):
    """painters.parquet with one range, and the steps of the claimed order."""
    keys = [(edit, 0, depth - 1, None) for edit in painters.EDITS]
    steps = [(*step, 0, depth - 1, 1) for step in pairwise(painters.CLAIMED_ORDER)]
    schema = {name: kind for name, kind in painters.PAINTERS_ORDER_TABLE.items() if name != "verdict"}
    order = estimates(schema, steps, [painters.KL_DIFFERENCE], documents)
    return {
        "painters": estimates(painters.PAINTERS_TABLE, keys, painters.METRICS, documents),
        "painters_order": order.with_columns(verdict=pl.lit(painters.NOT_RESOLVED)),
    }


def dependency_tables(depth, documents):
    """The three tables of dependency, with all variants."""
    pairs = [(variant, i, j) for variant in dependency.VARIANTS for i in range(depth) for j in range(i + 1, depth)]
    layers = [(variant, layer) for variant in dependency.VARIANTS for layer in range(depth - 1)]
    changes, effects = (
        estimates({name: kind for name, kind in schema.items() if name != "largest"}, keys, metrics, documents)
        for schema, keys, metrics in (
            (dependency.DEPENDENCY_TABLE, pairs, [dependency.CHANGE]),
            (dependency.DEPENDENCY_EFFECTS_TABLE, layers, dependency.EFFECTS),
        )
    )
    variants = [(variant,) for variant in dependency.VARIANTS]
    return {
        "dependency": changes.with_columns(largest=pl.col("mean") * 2),
        "dependency_effects": effects.with_columns(largest=pl.col("mean") * 2),
        "dependency_depth": estimates(dependency.DEPENDENCY_DEPTH_TABLE, variants, dependency.SCORES, documents),
    }


def class_tables_of(depth, documents):
    """The tables by class of the predicted token, with all classes, and their extreme layers."""
    classes = [(classing.name, one.name) for classing in CLASSINGS.values() for one in classing.classes]
    ratio, agreement = class_tables.KL_RATIO, lens.AGREEMENT
    drops = [("drop", layer, *one) for layer in range(depth) for one in classes]
    depths = [(layer, *one) for layer in range(depth + 1) for one in classes]
    cells = [("drop_range", i, j, *one) for i in range(depth) for j in range(i, depth) for one in classes]
    extremes = [(*one, extreme, 0) for one in classes for extreme in ("highest", "lowest")]
    picked = {name: kind for name, kind in class_tables.LENS_CLASS_LAYERS_TABLE.items() if name != "cells"}
    layers = estimates(picked, extremes, [ratio], documents).with_columns(cells=pl.lit(99, pl.Int64))
    columns = [*class_tables.SWEEP_CLASS_LAYERS_TABLE]
    return {
        "sweep_classes": estimates(class_tables.SWEEP_CLASSES_TABLE, drops, [ratio], documents),
        "sweep_class_layers": layers.with_columns(edit=pl.lit("drop")).select(columns),
        "lens_classes": estimates(class_tables.LENS_CLASSES_TABLE, depths, [agreement], documents),
        "lens_class_layers": layers,
        "map_classes": estimates(class_tables.MAP_CLASSES_TABLE, cells[: 28 * 300], [ratio], documents),
    }


def ablation_tables(depth, documents):
    """The tables of heads and neurons ablated, three of each layer, and the first of each as best and worst."""
    found = {}
    for name, kind in ablation.KINDS.items():
        columns = ablation.columns_of(kind)
        ranked = [()] if kind == "head" else [(1,)]
        keys = [
            (layer, index, mode, *rank)
            for layer, index, mode, rank in product(range(depth), range(3), ("zero", "mean"), ranked)
        ]
        table = estimates(columns, keys, ablation.METRICS, documents)
        best = [
            {"mode": mode, "extreme": one.extreme} | row | {"measured": 3 * depth}
            for mode in ("zero", "mean")
            for one in ablation.EXTREMES
            for row in table.filter(mode=mode, metric=one.metric.name).head(1).iter_rows(named=True)
        ]
        by_layer = [*product(range(depth), ("zero", "mean"))]
        layers = estimates(ablation.ABLATION_LAYERS_TABLE, by_layer, ablation.LAYER_METRICS, documents)
        chosen = ablation.best_columns_of(kind)
        found |= {
            name: table,
            name + ablation.LAYERS: layers,
            name + ablation.BEST: pl.DataFrame(best).select(*chosen).cast(pl.Schema(chosen)),
        }
    return found


def sinks_tables(depth, heads_per_layer, documents):
    """Attention sinks of every head, with the model's."""
    per_head = [(layer, head) for layer in range(depth) for head in range(heads_per_layer)]
    return {
        "sinks": estimates(sinks.SINKS_TABLE, [(layer,) for layer in range(depth)], sinks.METRICS, documents),
        "sink_heads": estimates(sinks.SINK_HEADS_TABLE, per_head, sinks.METRICS, documents),
        "sinks_model": estimates(sinks.SINKS_MODEL_TABLE, [()], (*sinks.METRICS, sinks.SINK_HEADS), documents),
    }


def massive_tables(depth, documents):
    """One massive dimension at the first position of x_1, at a token with markup."""
    depths, blocks = [(layer,) for layer in range(depth + 1)], list(product(range(depth), massive.POSITIONS))
    extremes = [(layer, -150.0, 0.1, 1500.0, 3, 0, 7, HOSTILE, 0, 16, 1024) for layer in range(depth + 1)]
    one = [(1, 3, massive.FIRST)]
    return {
        "massive": estimates(massive.MASSIVE_TABLE, depths, massive.METRICS, documents),
        "massive_blocks": estimates(massive.MASSIVE_BLOCKS_TABLE, blocks, massive.BLOCK_METRICS, documents),
        "massive_dimensions": estimates(massive.MASSIVE_DIMENSIONS_TABLE, one, massive.DIMENSION_METRICS, documents),
        "massive_extremes": pl.DataFrame(extremes, schema=massive.MASSIVE_EXTREMES_TABLE, orient="row"),
        "massive_tokens": pl.DataFrame(
            [(massive.FIRST, 1, 7, HOSTILE, 3, 2)], schema=massive.MASSIVE_TOKENS_TABLE, orient="row"
        ),
    }


def effective_depth_tables(depth, documents):
    """effective_depth.parquet with one reading that does not exist, and the curves."""
    curves = [(None, layer, metric) for layer in range(depth) for metric in effective_depth.COSINES]
    curves += [("logit", layer, metric) for layer in range(depth + 1) for metric in effective_depth.LENS_CURVES]
    rows = [
        (
            None if "cosine" in one.name else "logit",
            one.name,
            one.threshold,
            1,
            0,
            2,
            0.3,
            0.2,
            0.5,
            0.9,
            None,
            1024,
            documents,
        )
        for one in effective_depth.READINGS.values()
    ]
    rows[0] = (*rows[0][:3], *(None,) * 6, 0.0, "it never turns", 1024, documents)
    schema = effective_depth.EFFECTIVE_DEPTH_CURVES_TABLE
    return {
        "effective_depth": pl.DataFrame(rows, schema=effective_depth.EFFECTIVE_DEPTH_TABLE, orient="row"),
        "effective_depth_curves": pl.concat(
            [estimates(schema, [(lens, layer)], [metric], documents) for lens, layer, metric in curves]
        ),
    }


def linearity_tables(depth, documents):
    """linearity.parquet and its means and extremes: the first block's."""
    keys = [(layer, positions) for layer in range(depth) for positions in linearity.POSITIONS]
    places = [(positions,) for positions in linearity.POSITIONS]
    schema = {name: kind for name, kind in linearity.LINEARITY_EXTREMES_TABLE.items() if name != "blocks"}
    picks = [
        estimates(schema, [(positions, extreme, 0)], [metric], documents)
        for positions in linearity.POSITIONS
        for metric, extreme in linearity.EXTREMES
    ]
    scores = (*linearity.SCORES, *linearity.IN_SAMPLE)
    return {
        "linearity": estimates(linearity.LINEARITY_TABLE, keys, linearity.METRICS, documents),
        "linearity_mean": estimates(linearity.LINEARITY_MEAN_TABLE, places, scores, documents),
        "linearity_extremes": pl.concat(picks).with_columns(blocks=pl.lit(depth, pl.Int64)),
    }


def depth_probe_tables(depth, documents):
    """depth_probes.parquet with every property, where each is best, and classes with a hostile name."""
    keys = [(name, layer) for name in depth_probes.PROPERTIES for layer in range(depth + 1)]
    places = (None, None) if documents == 1 else (1, depth)
    best = [(name, 1, *places) for name in depth_probes.PROPERTIES]
    classes = [(name, label, 60, 30) for name in depth_probes.PROPERTIES for label in ("␣the", HOSTILE)]
    return {
        "depth_probes": estimates(depth_probes.DEPTH_PROBES_TABLE, keys, depth_probes.METRICS, documents),
        "depth_probes_best": estimates(depth_probes.DEPTH_PROBES_BEST_TABLE, best, depth_probes.BEST_OF, documents),
        "depth_probes_classes": pl.DataFrame(classes, schema=depth_probes.DEPTH_PROBES_CLASSES_TABLE, orient="row"),
    }


def patching_tables(depth, documents):
    """patching.parquet with every group, and where the word's effect moves."""
    keys = [(group, layer) for group in patching.GROUPS for layer in range(depth + 1)]
    halves = [(patching.WORD, 2), (patching.LAST, 1)]
    metrics = (patching.HALF_DEPTH, patching.LARGEST)
    depths = [
        estimates(patching.PATCHING_DEPTHS_TABLE, where, [metric], documents)
        for where, metric in zip((halves, [(patching.BETWEEN, 1)]), metrics, strict=True)
    ]
    corrupted = estimates(patching.PATCHING_TABLE, [(patching.NOTHING, 0)], [patching.KL], documents)
    return {
        "patching": pl.concat([estimates(patching.PATCHING_TABLE, keys, patching.METRICS, documents), corrupted]),
        "patching_depths": pl.concat(depths),
    }


def depth_regime_tables(depth, documents):
    """depth_regime.parquet, an ensemble over all positions, and not resolved without the first ones."""
    keys = [(layer, positions) for layer in range(depth) for positions in linearity.POSITIONS]
    places = [(positions,) for positions in linearity.POSITIONS]
    schema = {name: kind for name, kind in depth_regime.DEPTH_REGIME_READINGS_TABLE.items() if name != "side"}
    verdicts = [("all", depth_regime.ENSEMBLE, None), ("not_first", depth_regime.UNRESOLVED, "it is made up")]
    return {
        "depth_regime": estimates(depth_regime.DEPTH_REGIME_TABLE, keys, depth_regime.CURVES, documents),
        "depth_regime_readings": estimates(schema, places, depth_regime.METRICS, documents).with_columns(
            side=pl.lit(None, pl.String)
        ),
        "depth_regime_verdict": pl.DataFrame(
            [(*one, 1024, documents) for one in verdicts],
            schema=depth_regime.DEPTH_REGIME_VERDICT_TABLE,
            orient="row",
        ),
    }


def entropy_tables(depth, documents):
    """entropy_neurons.parquet with two candidates and two controls, the groups with their difference, and the extremes."""
    last, of = depth - 1, entropy_neurons
    chosen = [
        (last, 4 * rank + row, group, rank + 1, "other", 2.0 - rank, -1.0)
        for row, group in enumerate(of.NEURON_GROUPS)
        for rank in range(2)
    ]
    schema = {name: kind for name, kind in of.ENTROPY_NEURONS_BEST_TABLE.items() if name != "measured"}
    best = [estimates(schema, [(one.extreme, last, 4)], [one.metric], documents) for one in of.EXTREMES]
    groups = [
        estimates(of.ENTROPY_NEURONS_GROUPS_TABLE, [(group, 2) for group in of.NEURON_GROUPS], of.METRICS, documents),
        estimates(of.ENTROPY_NEURONS_GROUPS_TABLE, [(of.DIFFERENCE, 4)], of.SHARES, documents),
    ]
    return {
        of.NAME: estimates(of.ENTROPY_NEURONS_TABLE, chosen, of.METRICS, documents),
        of.GROUPS: pl.concat(groups),
        of.BEST: pl.concat(best).with_columns(measured=pl.lit(2, pl.Int64)),
    }


def all_tables(depth=6, heads_per_layer=3, documents=7):
    """Every table the page reads, by name."""
    layers = [(layer,) for layer in range(depth)]
    depths = [(layer,) for layer in range(depth + 1)]
    per_head = [(layer, head) for layer in range(depth) for head in range(heads_per_layer)]
    shares = [*attention.PREVIOUS.values(), attention.FIRST, attention.ITSELF]
    moves = list(product(range(depth - 1), similarity.COMPONENTS, (similarity.LATER, similarity.EARLIER)))
    pairs = [(a, b) for a in range(depth + 1) for b in range(a + 1, depth + 1)]
    offsets = [(*at, prompts, back, 4) for at, prompts, back in product(per_head, (heads.WORD, heads.PLAIN), range(16))]
    chosen = [
        ("ing", group, rank, 0, rank, 0.1, 3.0, 0.1, probes.BY_DIFFERENCE, 0.6)
        for group in (probes.PREDICTION, probes.SUPPRESSION)
        for rank in (1, 2, 3)
    ]
    scales = [(*at, n) for at in depths for n in dimension.NEIGHBOURS]
    return {
        "sweep": sweep_table(depth, documents=documents),
        "lens": estimates(lens.LENS_TABLE, depths, lens.METRICS, documents),
        "norms": estimates(norms.NORMS_TABLE, layers, norms.METRICS, documents),
        "attention": estimates(attention.ATTENTION_TABLE, layers, shares, documents),
        "attention_heads": estimates(attention.HEADS_TABLE, per_head, shares, documents),
        "similarity": estimates(similarity.SIMILARITY_TABLE, moves, similarity.SWAP_METRICS, documents),
        "influence": estimates(similarity.INFLUENCE_TABLE, layers, [similarity.BLOCK_INFLUENCE], documents),
        "geometry": estimates(
            similarity.GEOMETRY_TABLE, pairs, (similarity.ANGULAR_DISTANCE, similarity.CKA), documents
        ),
        "heads": head_table(depth, heads_per_layer, documents),
        "head_positions": estimates(heads.HEAD_POSITIONS_TABLE, offsets, [heads.ATTENTION], documents),
        "probes": probe_table(documents),
        "probe_neurons": estimates(probes.PROBE_NEURONS_TABLE, chosen, [probes.ACCURACY], documents),
        **neuron_tables(depth),
        **task_tables(depth, documents),
        **map_tables(depth, documents),
        **painters_tables(depth, documents),
        **dependency_tables(depth, documents),
        **class_tables_of(depth, documents),
        "dimension": estimates(dimension.DIMENSION_TABLE, depths, dimension.POINT_METRICS, documents),
        "dimension_scales": estimates(dimension.DIMENSION_SCALES_TABLE, scales, [dimension.GRIDE], documents),
        "trajectory": estimates(dimension.TRAJECTORY_TABLE, depths, dimension.TRAJECTORY_METRICS, documents),
        **ablation_tables(depth, documents),
        **sinks_tables(depth, heads_per_layer, documents),
        **massive_tables(depth, documents),
        **linearity_tables(depth, documents),
        **effective_depth_tables(depth, documents),
        "guess_refine": estimates(
            guess_refine.GUESS_REFINE_TABLE,
            [("logit", layer, band) for layer in range(depth + 1) for band in (*guess_refine.BANDS, guess_refine.ALL)],
            guess_refine.METRICS,
            documents,
        ),
        **depth_probe_tables(depth, documents),
        **patching_tables(depth, documents),
        **depth_regime_tables(depth, documents),
        **entropy_tables(depth, documents),
    }


def made_up_stages(depth=6, **changes):
    """stages.json as the stage finder writes it; not found by anything."""
    titles = list(STAGES.items())[:3]
    cuts = [0, depth // 3, 2 * depth // 3, depth]
    stages = [
        {"name": name, "title": title, "first": cuts[i], "last": cuts[i + 1] - 1, "signatures": 2, "supported": 1}
        for i, (name, title) in enumerate(titles)
    ]
    boundary = {"without_one": [1, 3], "votes": {"drop": cuts[1], "norm_ratio": None}}
    names = list(STAGES)
    signature = {"unit": "times", "threshold": 3.0, "reason": "", "stage": RESIDUAL_CALIBRATION}
    return {
        "format": 2,
        "found": True,
        "summary": "2 of the three transitions are found.",
        "layers": depth,
        "structure": {"p": 0.003, "level": 0.02, "layer": cuts[1], "beyond_smooth": True},
        "shapes": [
            {"title": "a straight line", "smooth": True, "error": 0.5, "worse": 0.3, "standard_error": 0.1},
            {"title": "3 segments", "smooth": False, "error": 0.2, "worse": 0.0, "standard_error": 0.0},
        ],
        "transitions": [
            {
                "before": names[i],
                "after": names[i + 1],
                "named": i < 2,
                "reason": "" if i < 2 else "the readings do not confirm a step",
                "layer": cuts[i + 1] if i < 2 else depth - 1,
                "low": 1,
                "high": depth - 1,
                "absent": 0.25,
                "places": [0.0] * (depth - 2) + [0.5, 0.25],
                "p_readings": 0.004,
                "p_hypotheses": 0.01,
                "defining": SUPPORTED,
            }
            for i in range(3)
        ],
        "edges": [{"end": "first", "layer": 0, "signal": "drop", "ratio": 17.0, "p": 0.0002, "exceptional": True}],
        "stages": stages,
        "boundaries": [
            {**boundary, "layer": cuts[1], "low": 1, "high": 3, "support": 0.93, "before": names[0], "after": names[1]},
            {
                **boundary,
                "layer": cuts[2],
                "low": None,
                "high": None,
                "support": None,
                "before": names[1],
                "after": names[2],
            },
        ],
        "unnamed_changes": [],
        "signals": [
            {
                "name": name,
                "title": f"Signal {name}",
                "unit": "nats",
                "sentence": "made up",
                "flat": False,
                "values": [(3 * layer + i) % 5 - 1.5 for layer in range(depth)],
                "standardised": [(3 * layer + i) % 5 - 2.0 for layer in range(depth)],
            }
            for i, name in enumerate(("drop", "norm_ratio"))
        ],
        "signatures": [
            {
                **signature,
                "name": "last_layer_sensitivity",
                "title": "The last layer is costly to lose",
                "test": "KL of dropping the last layer, at least 3 times",
                "effect": 3.5,
                "ci_low": 3.1,
                "ci_high": 3.9,
                "verdict": SUPPORTED,
            },
            {
                **signature,
                "name": "other",
                "title": "Another",
                "test": "nothing",
                "effect": None,
                "ci_low": None,
                "ci_high": None,
                "verdict": "cannot be told",
                "reason": "made up: no such signal",
            },
        ],
        "method": {},
        **changes,
    }


def make_run(
    path,
    depth=6,
    frame=None,
    model="tiny",
    complete=True,
    not_done=None,
    tables=None,
    stages=None,
    experiments=(),
    data="bookshelf",
    weights="ab" * 32,
):
    """A run directory with some tables; `frame` is the sweep's."""
    settings = {"model": model, "weights": weights, "dtype": "float32", "device": "cpu", "data": data}
    settings |= {"tokens": 1024, "window": 64, "bos": "none", "token_hash": "cd" * 32, "windows_per_unit": 4}
    tables = {**({} if frame is None else {"sweep": frame}), **(tables or {})}
    settings["experiments"] = {name: {} for name in (*tables, *experiments)}
    facts = {
        "model": {"layers": depth, "d_model": 8, "parameters": 1_234_567, "layout": "parallel", "norm": "RMSNorm"},
        "text": {"documents": 7, "too_short": 2},
        "not_done": not_done or {},
        "versions": {"depthscope": "0.0"},
    }
    facts["model"], facts["text"] = ModelEntry.from_json(facts["model"]), TextEntry.from_json(facts["text"])
    with RunDirectory.writing(path, Settings.from_json(settings), facts) as run:
        for name, table in tables.items():
            run.write_table(name, table)
        if stages is not None:
            (path / "stages.json").write_bytes(sealed_json(stages, run.seal("stages")))
        if complete:
            run.update(status=COMPLETE)
    return RunDirectory.reading(path)
