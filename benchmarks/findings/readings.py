"""Tests of the paper's claims about what each depth does (section 5 and 6): lens, norms, attention, neurons, heads, probes."""

from collections.abc import Callable

import polars as pl

from benchmarks.findings.evidence import FAILS, HOLDS, OPEN, Curve, Finding, above, largest, minus, over, read
from depthscope.errors import RunError
from depthscope.report.measured import Value, read_table
from depthscope.report.wording import joined, listed
from depthscope.run.store import RunDirectory
from depthscope.schema import attention, heads, lens, norms, probes, similarity
from depthscope.schema.metric import Metric
from depthscope.schema.neurons import NEURON_COUNTS_TABLE

EMERGE, PEAK = 0.1, (0.75, 0.95)
"""At most this share of prediction neurons in the first half; the relative depths that count as about 85 %."""
FINAL = 0.8
"""Relative depth from which layers count as the final ones."""


def falls(table: str, metric: Metric, early: tuple[float, float], late: tuple[float, float]) -> Callable:
    """Whether the mean of a quantity over early layers is above that over late ones."""

    def judge(run: RunDirectory) -> Finding:
        curve = read(run, table, metric)
        before, after = curve.mean(curve.part(*early)), curve.mean(curve.part(*late))
        effect = minus(before, after)
        return curve.found(above(effect), effect, f"from {before.mean:.3g} to {after.mean:.3g}")

    return judge


def attention_leads(run: RunDirectory) -> Finding:
    """Whether attention writes more than the MLP in the first quarter of layers."""
    curve = read(run, "norms", norms.NORM_RATIO)
    effect = curve.mean(curve.part(0.0, 0.25))
    return curve.found(above(effect, 1.0), effect)


def mlp_norm_peaks(run: RunDirectory) -> Finding:
    """Whether the largest MLP norm is among the final layers."""
    curve = read(run, "norms", norms.MLP_NORM)
    every = curve.together(curve.values)
    late = set(curve.part(FINAL, 1.01))
    effect = over(
        largest({layer: value for layer, value in every.items() if layer in late}),
        largest({layer: value for layer, value in every.items() if layer not in late}),
    )
    peak = max(every, key=lambda layer: every[layer].mean)
    return curve.found(above(effect, 1.0), effect, f"largest at layer {peak}")


def lens_falls_everywhere(run: RunDirectory) -> Finding:
    """Whether the logit lens's KL never rises from one depth to the next, from x_1 on. Says the same of a tuned lens."""
    curve = _from_first(run, lens.KL)
    every = curve.together(curve.values)
    depths, steps, up = _rises(every)
    maybe = [depth for depth, step in steps.items() if above(step) == OPEN]
    top = max(every, key=lambda depth: every[depth].mean)
    rise = None if top == depths[0] else minus(every[top], every[depths[0]])
    words = f"rises surely at {listed([f'x_{d}' for d in up])}; " if up else ""
    words += f"largest at x_{top}, {every[top].mean:.3g} nats against {every[depths[0]].mean:.3g} at x_{depths[0]}"
    words += _tuned_lens(run)
    return curve.found(FAILS if up else OPEN if maybe else HOLDS, rise, words)


def _rises(every: dict[int, Value]) -> tuple[list[int], dict[int, Value], list[int]]:
    """Depths in order, the step to each from the one before, and the depths to which the curve surely rises."""
    depths = sorted(every)
    steps = {depth: minus(every[depth], every[depth - 1]) for depth in depths[1:]}
    return depths, steps, [depth for depth, step in steps.items() if above(step) == HOLDS]


def _tuned_lens(run: RunDirectory) -> str:
    """What the tuned lens's KL does over depth, where the run has one."""
    if lens.TABLE_OF_TUNED not in run.tables():
        return ""
    curve = _from_first(run, lens.KL, lens.TABLE_OF_TUNED)
    every = curve.together(curve.values)
    depths, _, up = _rises(every)
    values = [f"{every[depth].mean:.3g} at x_{depth}" for depth in (depths[0], depths[len(depths) // 2], depths[-2])]
    course = f"rises surely at {listed([f'x_{depth}' for depth in up])}" if up else "no sure rise"
    return f"; tuned lens: {joined(values)}, {course}"


def little_progress_early(run: RunDirectory) -> Finding:
    """Whether less than half of the way from x_1 to the prediction is made by mid-depth, where the lens can be read so."""
    curve = _from_first(run, lens.KL)
    if lens_falls_everywhere(run).verdict == FAILS:
        return curve.found(OPEN, None, "the lens’s KL rises, so a share of progress cannot be read from it")
    start, middle = curve.values[1], curve.values[(curve.depth + 1) // 2]
    left = over(middle, start)
    effect = Value(1 - left.mean, 1 - (left.high or 0), 1 - (left.low or 0))
    verdict = above(Value(0.5 - effect.mean, 0.5 - (effect.high or 0), 0.5 - (effect.low or 0)))
    return curve.found(verdict, effect, f"{start.mean:.3g} nats at x_1, {middle.mean:.3g} at mid-depth")


def entropy_falls(run: RunDirectory) -> Finding:
    """Whether the lens's entropy is lower at the end than at mid-depth."""
    curve = _from_first(run, lens.ENTROPY)
    effect = minus(curve.values[(curve.depth + 1) // 2], curve.values[curve.depth])
    return curve.found(above(effect), effect)


def emerge_late(run: RunDirectory) -> Finding:
    """Whether at most 10 % of prediction neurons are in the first half. From weights alone: exact."""
    counts = _counts(run, "prediction")
    total = sum(counts.values())
    if total == 0:
        return Finding(verdict=FAILS, words="the model has none")
    last = max(max(counts), 1)
    share = sum(count for layer, count in counts.items() if layer / last < 0.5) / total
    return Finding(verdict=HOLDS if share <= EMERGE else FAILS, effect=Value(share), words=f"of {total:,}")


def peak_at_85(run: RunDirectory) -> Finding:
    """Whether the layer with most prediction neurons is at about 85 % of depth, and not the last."""
    counts = _counts(run, "prediction")
    if not sum(counts.values()):
        return Finding(verdict=FAILS, words="the model has none")
    peak = max(counts, key=lambda layer: counts[layer])
    depth = peak / max(max(counts), 1)
    verdict = HOLDS if PEAK[0] <= depth <= PEAK[1] else FAILS
    return Finding(verdict=verdict, effect=Value(depth), words=f"{counts[peak]:,} in layer {peak} of 0–{max(counts)}")


def suppression_leads(run: RunDirectory) -> Finding:
    """Whether the last layer has more suppression than prediction neurons."""
    prediction, suppression = _counts(run, "prediction"), _counts(run, "suppression")
    last = max(prediction)
    words = f"{suppression[last]:,} suppression, {prediction[last]:,} prediction"
    if prediction[last] == suppression[last] == 0:
        return Finding(verdict=FAILS, words="the last layer has neither")
    holds = suppression[last] > prediction[last]
    return Finding(
        verdict=HOLDS if holds else FAILS, effect=Value(float(suppression[last] - prediction[last])), words=words
    )


def suppression_last(run: RunDirectory) -> Finding:
    """Whether the layer with most suppression neurons is among the final ones."""
    counts = _counts(run, "suppression")
    if not sum(counts.values()):
        return Finding(verdict=FAILS, words="the model has none")
    peak = max(counts, key=lambda layer: counts[layer])
    depth = peak / max(max(counts), 1)
    return Finding(
        verdict=HOLDS if depth >= FINAL else FAILS, effect=Value(depth), words=f"{counts[peak]:,} in layer {peak}"
    )


def index_similarity_falls(run: RunDirectory) -> Finding:
    """Whether an MLP that is moved a layer earlier resembles the one it replaces less in the second half."""
    curve = read(run, "similarity", similarity.INDEX, component="mlp", moved=similarity.EARLIER)
    before, after = curve.mean(curve.part(0.0, 0.5)), curve.mean(curve.part(0.5, 1.01))
    effect = minus(before, after)
    return curve.found(above(effect), effect, f"from {before.mean:.2f} to {after.mean:.2f}")


def stays_itself(component: str) -> Callable[[RunDirectory], Finding]:
    """Whether what a moved component writes resembles what it wrote in place more than what it replaces wrote."""

    def judge(run: RunDirectory) -> Finding:
        own = read(run, "similarity", similarity.SELF, component=component, moved=similarity.EARLIER)
        index = read(run, "similarity", similarity.INDEX, component=component, moved=similarity.EARLIER)
        a, b = own.mean(own.values), index.mean(index.values)
        effect = minus(a, b)
        return own.found(above(effect), effect, f"self {a.mean:.2f}, index {b.mean:.2f}")

    return judge


def merging_head_early(run: RunDirectory) -> Finding:
    """Whether the head that ranks first for merging the tokens of words is in the first half, with a score above 0."""
    table = read_table(run, "heads", ("layer", "head", "rank", "metric", "mean", "ci_low", "ci_high"))
    rows = table.filter(pl.col("metric") == heads.MERGE_FIRST.name).sort("rank")
    if rows.is_empty():
        raise RunError("no scores of sub-word merging heads")
    best = rows.row(0, named=True)
    depth = best["layer"] / max((run.manifest.model.layers or best["layer"] + 1) - 1, 1)
    score = Value(best["mean"], best["ci_low"], best["ci_high"])
    verdict = above(score) if depth < 0.5 else FAILS
    return Finding(
        verdict=verdict,
        effect=Value(depth),
        words=f"layer {best['layer']}, head {best['head']}; score {score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]"
        if score.has_interval
        else f"layer {best['layer']}, head {best['head']}",
        tokens=best["tokens"],
        documents=best["documents"],
    )


def probe(metric: Metric, group: str) -> Callable[[RunDirectory], Finding]:
    """Whether a comparison of probes on the most neurons together is above 0."""

    def judge(run: RunDirectory) -> Finding:
        table = read_table(run, "probes", probes.PROBES_TABLE)
        rows = table.filter(pl.col("metric") == metric.name, pl.col("group") == group, pl.col("draw").is_null())
        if rows.is_empty():
            raise RunError(f"no probes on {group} neurons")
        most = rows.sort("k").row(-1, named=True)
        effect = Value(most["mean"], most["ci_low"], most["ci_high"])
        return Finding(
            verdict=above(effect),
            effect=effect,
            words=f"{most['k']} neurons",
            tokens=most["tokens"],
            documents=most["documents"],
        )

    return judge


def _from_first(run: RunDirectory, metric: Metric, table: str = "lens") -> Curve:
    """A lens curve without x_0, which is the embedding: a lens can read it only because of weight tying."""
    curve = read(run, table, metric)
    values = {depth: value for depth, value in curve.values.items() if depth > 0}
    return Curve(values=values, tokens=curve.tokens, documents=curve.documents, depth=curve.depth)


def _counts(run: RunDirectory, kind: str) -> dict[int, int]:
    table = read_table(run, "neuron_counts", NEURON_COUNTS_TABLE).filter(kind=kind)
    if table.is_empty():
        raise RunError(f"no counts of {kind} neurons")
    return dict(table.sort("layer").select("layer", "count").iter_rows())


LOCAL = attention.PREVIOUS[5]
"""Attention to the previous five tokens, as in the paper's figure 4."""
