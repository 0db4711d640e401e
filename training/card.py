"""Write the model card of an embedded model from what the other commands measured; no measurement is typed by hand.

    python -m training.card FOLDER --evaluation NEW.json --source-evaluation OLD.json \\
        --neurons NEURONS.json --attention ATTENTION.json --sweep RUN

FOLDER is the exported model, with its training.json; RUN is a run directory of `depthscope sweep`, whose
tables/sweep.parquet is read. The card is FOLDER/README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl

from training.atomic import atomic_writer, sha256

Facts = dict[str, Any]

ARCHITECTURE = {
    "gpt2": "GPT-2: attention, then MLP; learned positions; tied embeddings",
    "gpt_neox": "GPT-NeoX: attention and MLP in parallel; rotary positions on a quarter of a head; untied embeddings",
}

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

Means = dict[tuple[str, str, int], float]


def read_measured(file: Path, folder: Path) -> Facts:
    """A JSON file of measurements, after checking that it is about the weights in `folder`."""
    facts = json.loads(file.read_text())
    weights = sha256(folder / "model.safetensors")
    if facts["weights_sha256"] != weights:
        raise ValueError(f"{file} was measured on other weights ({facts['weights_sha256'][:12]}) than {weights[:12]}")
    return facts


def shape_of(folder: Path) -> Facts:
    """Layers, width, heads, context, vocabulary and model type of a folder's config."""
    config = json.loads((folder / "config.json").read_text())
    return {
        "type": config["model_type"],
        "layers": config.get("n_layer") or config["num_hidden_layers"],
        "width": config.get("n_embd") or config["hidden_size"],
        "heads": config.get("n_head") or config["num_attention_heads"],
        "context": config.get("n_positions") or config["max_position_embeddings"],
        "vocabulary": config["vocab_size"],
    }


def interval(loss: dict[str, float]) -> str:
    """A mean and its interval, to three decimals."""
    return f"{loss['mean']:.3f} [{loss['ci_low']:.3f}, {loss['ci_high']:.3f}]"


def made_of(folder: Path, evaluation: Facts) -> str:
    """What the model is and what it was trained on."""
    shape = shape_of(folder)
    return (
        f"{evaluation['parameters'] / 1e6:.2f} M parameters. {ARCHITECTURE[shape['type']]}. {shape['layers']} blocks, "
        f"d_model {shape['width']}, {shape['heads']} heads, context {shape['context']}, byte-level BPE of "
        f"{shape['vocabulary']:,} tokens. float16 weights; load them with `dtype=torch.float32`.\n\n"
        "**Data.** English prose in the public domain in the United States (Project Gutenberg texts): "
        f"{evaluation['baseline_tokens'] / 1e6:.1f} M tokens of books, one after the other with an end-of-text token "
        "before each. Nine further books are held out; the evaluation text is cut from them. It writes the English of "
        "nineteenth-century novels, knows no facts worth having, and is for experiments on layers, not for use.\n"
    )


def recipe(training: Facts) -> str:
    """How the weights came to be."""
    s = training["settings"]
    begun = "From fresh weights"
    if s["source"]:
        begun = (
            f"First stage: `{s['source']}`, as it was given to this project, about {s['seen_before'] / 1e6:.1f} M "
            "tokens (as its card said). Second stage, a warm restart with a fresh optimizer"
        )
    arithmetic = "bfloat16 autocast" if s["dtype"] == "bfloat16" else s["dtype"]
    length = f"{s['minutes']:g} minutes" if s["minutes"] is not None else f"{s['tokens']:,} tokens"
    return (
        f"**Recipe.** {begun}: {training['steps']:,} steps of {s['batch']} × {s['window']} tokens at random places, "
        f"{training['tokens'] / 1e6:.2f} M tokens, set to last {length} and taking {training['seconds'] / 60:.0f} on "
        f"{'a GPU' if s['device'] == 'cuda' else 'two shared CPU cores'}. "
        f"About {training['tokens_total'] / 1e6:.1f} M tokens in all. AdamW (0.9, 0.95), weight decay "
        f"{s['weight_decay']:g} on matrices, learning rate {s['learning_rate']:g} after {s['warmup_steps']} steps of "
        f"warm-up, flat for {s['flat']:.0%} of the run, then linear to {s['final']:.0%} of it; gradient norm clipped "
        f"at {s['clip']:g}; no dropout; {arithmetic}; seed {s['seed']}. "
        f"Training loss {training['last_training_loss']:.3f}, the mean of the log's last "
        f"{training['last_training_loss_lines']} lines. `training/README.md` has the commands.\n"
    )


def held_out(evaluation: Facts, source: Facts | None) -> str:
    """The held-out losses beside the baselines, and the sample."""
    rows = [("this model", evaluation["loss"]["model"])]
    if source:
        if (source["text_sha256"], source["predicted_tokens"]) != (
            evaluation["text_sha256"],
            evaluation["predicted_tokens"],
        ):
            raise ValueError("the two evaluations are of different held-out tokens: their losses cannot be compared")
        rows.append(("the first stage's weights", source["loss"]["model"]))
    rows += [("bigram baseline", evaluation["loss"]["bigram"]), ("unigram baseline", evaluation["loss"]["unigram"])]
    table = "\n".join(f"| {name} | {interval(loss)} |" for name, loss in rows)
    sample = evaluation["sample"]
    quoted = "\n".join(f"> {line}" for line in sample["text"].splitlines())
    return (
        f"**Held-out loss**, nats per token, on {evaluation['predicted_tokens']:,} tokens of {evaluation['documents']} "
        f"passages of the evaluation text, windows of {evaluation['window']}; 95 % intervals over passages:\n\n"
        f"| | loss |\n|---|---|\n{table}\n\n"
        f"The baselines are counts over the {evaluation['baseline_tokens'] / 1e6:.1f} M training tokens: the unigram "
        f"with one occurrence added to each token, the bigram with a prior of {evaluation['bigram_prior_strength']:g} "
        "occurrences distributed as the unigram.\n\n"
        f'**A sample** ({sample["tokens"]} tokens after "{sample["prompt"]}", temperature {sample["temperature"]:g}, '
        f"seed {sample['seed']}):\n\n{quoted}\n"
    )


def sweep_costs(run: Path) -> tuple[str, Means]:
    """The sweep as a Markdown table, a row per layer, and its means by (edit, metric, layer).

    Raises FileNotFoundError where the run has no sweep table.
    """
    file = run / "tables" / "sweep.parquet"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: run depthscope sweep with --out {run} first")
    table = pl.read_parquet(file)
    rows = {(r["edit"], r["metric"], r["layer"]): r for r in table.iter_rows(named=True)}
    layers = sorted({layer for edit, _, layer in rows if edit in ("swap", "drop")})
    units = {metric: next(r["unit"] for r in rows.values() if r["metric"] == metric) for _, metric in SWEEP_COLUMNS}
    titles = [f"{edit} {METRIC_TITLES[metric]} ({units[metric]})" for edit, metric in SWEEP_COLUMNS]
    lines = ["| layer | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for layer in layers:
        cells = [rows.get((edit, metric, layer)) for edit, metric in SWEEP_COLUMNS]
        lines.append(f"| {layer} | " + " | ".join(interval(renamed(cell)) if cell else "" for cell in cells) + " |")
    tokens = max(r["tokens"] for r in rows.values())
    measured_on = max(r["documents"] for r in rows.values())
    heading = (
        f"**What the sweep shows** (`depthscope sweep`, {tokens:,} predictions in {measured_on} documents of the "
        "evaluation text, 95 % intervals over documents; the layer of a swap is the first of the two):\n\n"
    )
    return heading + "\n".join(lines) + "\n", {key: row["mean"] for key, row in rows.items()}


def renamed(row: dict[str, Any]) -> dict[str, float]:
    """A table row's estimate; where one document gave no interval, the mean stands for its bounds."""
    mean = row["mean"]
    low, high = row["ci_low"], row["ci_high"]
    return {"mean": mean, "ci_low": mean if low is None else low, "ci_high": mean if high is None else high}


def ranges(costs: Means, edit: str, metric: str, layers: range) -> str:
    """The least and the largest mean of some layers."""
    values = [costs[edit, metric, layer] for layer in layers]
    return f"{min(values):.3f} to {max(values):.3f}"


def verdicts(costs: Means, neurons: Facts, attention: Facts, layers: int) -> str:
    """What of the paper's signatures shows in the measurements and what does not, each with its numbers."""
    middle = range(1, layers - 1)
    swaps, drops = range(1, layers - 2), middle
    robust = (
        f"- First layer: dropping it costs a KL of {costs['drop', 'kl', 0]:.2f} nats and keeps "
        f"{costs['drop', 'agreement', 0]:.1%} of the most likely tokens, against "
        f"{ranges(costs, 'drop', 'kl', drops)} nats in layers 1 to {layers - 2}.\n"
        f"- Middle layers: swaps keep a share of {ranges(costs, 'swap', 'agreement', swaps)}, drops of "
        f"{ranges(costs, 'drop', 'agreement', drops)}. The paper's range on its models is 0.72 to 0.95.\n"
        f"- Swaps against drops in layers 1 to {layers - 3}: a mean KL of "
        f"{sum(costs['swap', 'kl', k] for k in swaps) / len(swaps):.3f} against "
        f"{sum(costs['drop', 'kl', k] for k in swaps) / len(swaps):.3f} nats.\n"
    )
    share = attention["share"]
    peak = max(range(layers), key=share.__getitem__)
    local = (
        f"- Attention to the previous {attention['previous']} tokens, share per layer: "
        f"{' '.join(f'{value:.2f}' for value in share)}. It peaks in layer {peak}; the paper's peaks at the start, "
        f"so this {'shows' if peak < layers // 4 else 'does not show'}.\n"
    )
    return robust + local + neuron_verdict(neurons, layers)


def neuron_verdict(neurons: Facts, layers: int) -> str:
    """The counts of prediction and suppression neurons, and whether the paper's rise with depth is among them."""
    lines: list[str] = []
    for kind, title in (("processed", "weights processed as in the paper"), ("as_they_are", "weights as they are")):
        rows = neurons[kind]
        counts = "; ".join(
            f"{name} {' '.join(str(row[name]) for row in rows)}" for name in ("prediction", "suppression")
        )
        largest = max(rows, key=lambda row: row["largest_kurtosis"])
        lines.append(
            f"- Neurons with kurtosis over {neurons['kurtosis_threshold']:g} by layer, {title}: {counts} (of "
            f"{rows[0]['neurons']} each; the largest kurtosis is {largest['largest_kurtosis']:.2f}, in layer "
            f"{largest['layer']}).\n"
        )
    found = sum(row["prediction"] + row["suppression"] for row in neurons["processed"])
    total = sum(row["neurons"] for row in neurons["processed"])
    share, published = found / total, PUBLISHED_GPT2_NEURONS / PUBLISHED_GPT2_TOTAL
    verdict = "does not show" if not found else "hardly shows" if share < published / 10 else "shows"
    lines.append(
        f"- That is {found} of {total:,} processed neurons, {share:.2%}, where the paper's gpt2 has {published:.2%}: "
        f"its rise of prediction and suppression neurons {verdict}.\n"
    )
    return "".join(lines)


def card(folder: Path, evaluation: Path, source: Path | None, neurons: Path, attention: Path, sweep: Path) -> str:
    """The text of the model card."""
    training = json.loads((folder / "training.json").read_text())
    measured = read_measured(evaluation, folder)
    table, costs = sweep_costs(sweep)
    layers = shape_of(folder)["layers"]
    parts = [
        f"# {training['settings']['preset']}\n",
        made_of(folder, measured),
        recipe(training),
        held_out(measured, json.loads(source.read_text()) if source else None),
        table,
        "**Beside the paper's signatures:**\n",
        verdicts(costs, read_measured(neurons, folder), read_measured(attention, folder), layers),
    ]
    return "\n".join(parts)


def main() -> None:
    """Write the card the command line asks for."""
    parser = argparse.ArgumentParser(description="Write a model card from what the other commands measured.")
    parser.add_argument("folder", type=Path, help="exported model, with training.json")
    parser.add_argument("--evaluation", type=Path, required=True, help="JSON of training.evaluate")
    parser.add_argument("--source-evaluation", type=Path, help="the same for the weights continued from")
    parser.add_argument("--neurons", type=Path, required=True, help="JSON of training.neurons")
    parser.add_argument("--attention", type=Path, required=True, help="JSON of training.attention")
    parser.add_argument("--sweep", type=Path, required=True, help="run directory with tables/sweep.parquet")
    a = parser.parse_args()
    text = card(a.folder, a.evaluation, a.source_evaluation, a.neurons, a.attention, a.sweep)
    with atomic_writer(a.folder / "README.md") as file:
        file.write(text.encode())
    print(f"wrote {a.folder / 'README.md'}")


if __name__ == "__main__":
    main()
