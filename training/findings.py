"""What a study of the package (`depthscope study`) found on a model, in the words of its card.

Every number is read from the study's tables and stages.json, or is the paper's; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.api.study import Study
from depthscope.data.corpus import BOOKSHELF
from depthscope.models.model import Model
from depthscope.schema.found_stages import SignatureVerdict, Stages
from depthscope.schema.probes import BY_CLASS, BY_DIFFERENCE
from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, STAGES, SUPPORTED, votes_near, written

Row = dict[str, Any]
Means = dict[tuple[str, str, int], float]

PREVIOUS = 5
"""Previous tokens that attention is counted on, as in the paper's figures 1 and 4."""

PUBLISHED_LOCAL_PEAK = 2
"""The layer of the paper's gpt2 with most attention on the previous tokens (its figure 4)."""

PUBLISHED_GPT2_NEURONS, PUBLISHED_GPT2_TOTAL = 226 + 136, 12 * 3072
"""The paper's prediction and suppression neurons of gpt2, and all its MLP neurons."""

SWEEP_COLUMNS = [
    ("swap", "kl"),
    ("swap", "agreement"),
    ("drop", "kl"),
    ("drop", "agreement"),
    ("drop", "entropy_change"),
]
METRIC_TITLES = {"kl": "KL", "agreement": "agreement", "entropy_change": "entropy change"}

PROBED = {
    "prediction": "{} neurons that write most towards them",
    "suppression": "{} that write most away from them",
    "both": "best {} of both",
}
CHOSEN_BY = {
    BY_CLASS: "kurtosis and what they write",
    BY_DIFFERENCE: "what they write alone, as too few have the kurtosis",
}


def read_study(run: Path, model: Model) -> Study:
    """A finished study of this very model on the embedded text.

    Raises ValueError for one that is unfinished, of other weights or of other text; RunError where there is none.
    """
    study = Study(run)
    if not study.run.complete:
        raise ValueError(f"the study in {run} is unfinished: the same depthscope study goes on with it")
    there, asked = study.run.settings.weights or "unknown", model.weight_hash()
    if there != asked:
        raise ValueError(f"the study in {run} is of other weights ({there[:12]}) than {model.name} ({asked[:12]})")
    if study.run.settings.data != BOOKSHELF:
        raise ValueError(f"the study in {run} is of {study.run.settings.data}: expected the text {BOOKSHELF}")
    return study


def interval(estimate: Mapping[str, Any]) -> str:
    """A mean and its interval, to three decimals; the mean alone where there is no interval."""
    return _number(estimate["mean"], estimate["ci_low"], estimate["ci_high"], ".3f")


def _number(mean: float, low: float | None, high: float | None, digits: str, scale: float = 1.0) -> str:
    values = [format(value * scale, digits).replace("-", "−") for value in (mean, low, high) if value is not None]
    return values[0] if len(values) < 3 else f"{values[0]} [{values[1]}, {values[2]}]"


def sweep_costs(study: Study) -> tuple[str, Means]:
    """The sweep as a Markdown table, a row per layer, and its means by (edit, metric, layer)."""
    table = study.table("sweep")
    rows = {(r["edit"], r["metric"], r["layer"]): r for r in table.iter_rows(named=True)}
    layers = sorted({layer for edit, _, layer in rows if edit in ("swap", "drop")})
    units = {metric: next(r["unit"] for r in rows.values() if r["metric"] == metric) for _, metric in SWEEP_COLUMNS}
    titles = [f"{edit} {METRIC_TITLES[metric]} ({units[metric]})" for edit, metric in SWEEP_COLUMNS]
    lines = ["| layer | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for layer in layers:
        cells = [rows.get((edit, metric, layer)) for edit, metric in SWEEP_COLUMNS]
        lines.append(f"| {layer} | " + " | ".join(interval(cell) if cell else "" for cell in cells) + " |")
    heading = (
        f"**What the sweep shows** ({table['tokens'].max():,} predictions in {table['documents'].max()} documents of the "
        "evaluation text, 95 % intervals over documents; the layer of a swap is the first of the two):\n\n"
    )
    return heading + "\n".join(lines) + "\n", {key: row["mean"] for key, row in rows.items()}


def robustness(costs: Means, layers: int) -> str:
    """What swaps and drops of the first and the middle layers cost."""
    drops, swaps = range(1, layers - 1), range(1, layers - 2)
    return (
        f"- First layer: dropping it costs a KL of {costs['drop', 'kl', 0]:.2f} nats and keeps "
        f"{100 * costs['drop', 'agreement', 0]:.1f} % of the most likely tokens, against "
        f"{_range(costs, 'drop', 'kl', drops)} nats in layers 1 to {layers - 2}.\n"
        f"- Middle layers: swaps keep a share of {_range(costs, 'swap', 'agreement', swaps)}, drops of "
        f"{_range(costs, 'drop', 'agreement', drops)}. The paper's range on its models is 0.72 to 0.95.\n"
        f"- Swaps against drops in layers 1 to {layers - 3}: a mean KL of "
        f"{sum(costs['swap', 'kl', k] for k in swaps) / len(swaps):.3f} against "
        f"{sum(costs['drop', 'kl', k] for k in swaps) / len(swaps):.3f} nats.\n"
    )


def _range(costs: Means, edit: str, metric: str, layers: range) -> str:
    values = [costs[edit, metric, layer] for layer in layers]
    return f"{min(values):.3f} to {max(values):.3f}"


def local_attention(study: Study) -> str:
    """The share of attention on the tokens just before, per layer, and the layer where it is largest."""
    table = study.table("attention")
    rows = table.filter(pl.col("metric") == f"previous_{PREVIOUS}").sort("layer")
    longest = max(int(name.removeprefix("previous_")) for name in table["metric"] if name.startswith("previous_"))
    peak = rows["layer"][int(rows["mean"].arg_max() or 0)]
    return (
        f"- Attention to the previous {PREVIOUS} tokens, share per layer (itself excluded; mean over heads and over the "
        f"{rows['tokens'][0]:,} queries that have at least {longest} tokens before them): "
        f"{' '.join(f'{share:.2f}' for share in rows['mean'])}. It is largest in layer {peak}; in the paper's gpt2, in "
        f"layer {PUBLISHED_LOCAL_PEAK} of 12.\n"
    )


def neurons(processed: pl.DataFrame, as_they_are: pl.DataFrame, kurtosis: float) -> str:
    """Counts of prediction and suppression neurons in two tables NEURON_COUNTS_TABLE, beside the paper's share."""
    lines = []
    for table, title in ((processed, "weights processed as in the paper"), (as_they_are, "weights as they are")):
        counts = [f"{kind} {' '.join(map(str, _counts(table, kind)))}" for kind in ("prediction", "suppression")]
        largest = table.sort("largest_kurtosis", descending=True).row(0, named=True)
        lines.append(
            f"- Neurons with kurtosis over {kurtosis:g} by layer, {title}: {'; '.join(counts)} (of "
            f"{table['neurons'][0]} each; the largest kurtosis is {largest['largest_kurtosis']:.2f}, in layer "
            f"{largest['layer']}).\n"
        )
    found = sum(_counts(processed, "prediction")) + sum(_counts(processed, "suppression"))
    total = processed.filter(pl.col("kind") == "prediction")["neurons"].sum()
    share, published = found / total, PUBLISHED_GPT2_NEURONS / PUBLISHED_GPT2_TOTAL
    verdict = "does not show" if not found else "hardly shows" if share < published / 10 else "shows"
    lines.append(
        f"- That is {found} of {total:,} processed neurons, {100 * share:.2f} %, where the paper's gpt2 has "
        f"{100 * published:.2f} %: its rise of prediction and suppression neurons {verdict}.\n"
    )
    return "".join(lines)


def _counts(table: pl.DataFrame, kind: str) -> list[int]:
    return table.filter(pl.col("kind") == kind).sort("layer")["count"].to_list()


def stages(found: Stages) -> str:
    """The transitions found, with how firm they are, and the verdict on each signature of the paper's table 1.

    How `found` comes about stands in docs/stages.md.
    """
    lines = [f"- {found.summary}"]
    for one in found.boundaries:
        assert one.before is not None, "a boundary has the stages it divides"
        documents = "too few for an interval" if one.low is None else f"{one.low} to {one.high}"
        near, (lowest, highest) = votes_near(one.layer, one.votes), one.without_one or (one.layer, one.layer)
        lines.append(
            f" {STAGES[one.before]} ends before layer {one.layer} (resampling documents: {documents}; without any "
            f"one signal: {lowest} to {highest}; {near} of the {len(one.votes)} signals that speak "
            "for it change there, give or take a layer, by themselves)."
        )
        if 2 * near < len(one.votes):
            lines.append(" Signals that disagree so may follow a slope rather than a boundary.")
    lines += [f" The signals change before layer {c.layer} too, in no expected way." for c in found.unnamed_changes]
    lines.append("\n")
    tested = found.signatures
    for verdict in (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL):
        those = [_signature(one) for one in tested if one.verdict == verdict]
        if those:
            lines.append(f"- Signatures {verdict}, {len(those)} of {len(tested)}: {'; '.join(those)}.\n")
    return "".join(lines)


def _signature(one: SignatureVerdict) -> str:
    """A signature's title and effect, with what it had to reach."""
    title = one.title
    title = title[0].lower() + title[1:] if title[1].islower() else title
    if one.effect is None:
        return f"{title} ({one.reason})"
    effect = written(one.effect, one.unit)
    if one.ci_low is not None and one.ci_high is not None:
        effect += f" [{written(one.ci_low, one.unit)}, {written(one.ci_high, one.unit)}]"
    return f"{title} ({effect}; needed {written(one.threshold, one.unit)})"


def lens(study: Study) -> str:
    """Where the logit lens's distance from the final prediction begins to fall."""
    rows = study.table("lens").filter((pl.col("metric") == "kl") & (pl.col("layer") > 0)).sort("layer")
    kl = rows["mean"].to_list()
    begun = next(after for after, value in enumerate(kl) if kl[0] - value >= (kl[0] - kl[-1]) / 10)
    return (
        f"- Logit lens, KL to the final prediction after layers 0 to {len(kl) - 1}: "
        f"{' '.join(f'{value:.2f}' for value in kl)} nats. A tenth of this fall is done only after layer {begun}.\n"
    )


def heads(study: Study) -> str:
    """The strongest sub-word merging heads, and the strongest induction head."""
    table = study.table("heads")
    merging = table.filter(pl.col("metric") == "merge_first").sort("rank")
    best, above = merging.rows(named=True), int((merging["p_adjusted"] < 0.05).sum())
    induction = table.filter((pl.col("metric") == "induction") & (pl.col("rank") == 1)).row(0, named=True)
    return (
        f"- Sub-word merging heads (attention of the last token of a word of {best[0]['word_tokens']} tokens to its first, "
        f"less that of a one-token word to the same place; {best[0]['tokens']} pairs from {best[0]['documents']} "
        f"documents): {'; '.join(_head(row) for row in best[:3])}. {above} of {len(best)} heads are above 0 (t tests over "
        "documents, about 5 % of these by chance at most).\n"
        f"- Induction, in random tokens said twice: at most {_head(induction)}, where even attention gives "
        f"{induction['chance']:.3f}.\n"
    )


def _head(row: Row) -> str:
    return f"layer {row['layer']} head {row['head']} {interval(row)}"


def probes(study: Study) -> str:
    """What the chosen neurons tell of the suffix, beside random ones, a whole layer and the model itself."""
    table = study.table("probes").filter(pl.col("draw").is_null())
    rows = {(r["group"], r["metric"], r["k"]): r for r in table.iter_rows(named=True)}
    sizes = {group: max(k for other, _, k in rows if other == group) for group, _, _ in rows}

    def accuracy(group: str, metric: str = "accuracy") -> str:
        row = rows[group, metric, sizes[group]]
        return _number(row["mean"], row["ci_low"], row["ci_high"], ".1f", 100)

    told = [
        f"the {words.format(sizes[group])} tell {accuracy(group)} %, {accuracy(group, 'accuracy_over_random')} points more "
        "than random neurons of the same layers"
        for group, words in PROBED.items()
    ]
    layer = next(r for (group, _, _), r in rows.items() if group == "layer")
    chosen = sorted(set(study.table("probe_neurons")["selected_by"]))
    return (
        f"- Probes for a next token in -{layer['suffix']} ({layer['tokens']} test examples of {layer['documents']} documents, "
        f"half of them such; neurons chosen by {' and '.join(CHOSEN_BY[one] for one in chosen)}): {'; '.join(told)}. "
        f"All {layer['k']} neurons of layer {layer['layer']} tell {accuracy('layer')} %, the model's most likely token "
        f"{accuracy('model_top1')} %, its probability of the suffix {accuracy('model_threshold')} %.\n"
    )


def not_done(study: Study) -> Sequence[str]:
    """What the study could not do on this model, and why."""
    return [f"- Not done: {what}, {why}.\n" for what, why in study.run.manifest.not_done.items()]
