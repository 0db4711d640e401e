"""Write the model card of an embedded model from what was measured; no measurement is typed by hand.

    python -m training.card FOLDER --evaluation NEW.json --source-evaluation OLD.json --study RUN

FOLDER is the exported model, with its training.json; RUN is the run directory of `depthscope study` on it. The card is
FOLDER/README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from depthscope.experiments.neurons import Neurons
from depthscope.models.load import load
from training import findings
from training.atomic import atomic_writer, sha256
from training.findings import interval

Facts = dict[str, Any]

ARCHITECTURE = {
    "gpt2": "GPT-2: attention, then MLP; learned positions; tied embeddings",
    "gpt_neox": "GPT-NeoX: attention and MLP in parallel; rotary positions on a quarter of a head; untied embeddings",
}


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
        f"warm-up, flat for {100 * s['flat']:g} % of the run, then linear to {100 * s['final']:g} % of it; gradient norm "
        f"clipped at {s['clip']:g}; no dropout; {arithmetic}; seed {s['seed']}. "
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


def shown(folder: Path, run: Path) -> str:
    """What the study in `run` found on the model in `folder`; neurons are counted on the weights as they are, too."""
    model = load(folder, device="cpu")
    study = findings.read_study(run, model)
    table, costs = findings.sweep_costs(study)
    plain = Neurons(model, processed=False)
    as_they_are = plain.tables(plain.work(unit) for unit in range(plain.units))["neuron_counts"]
    parts = [
        table,
        "\n**Beside the paper's signatures:**\n\n",
        findings.robustness(costs, model.depth),
        findings.local_attention(study),
        findings.neurons(study.table("neuron_counts"), as_they_are, plain.thresholds.kurtosis),
        "\n**The stages, and what else the study finds** (95 % intervals over documents; `docs/stages.md` of the repository "
        "says how stages are found and signatures tested):\n\n",
        *([findings.stages(study.stages)] if study.stages else []),
        findings.lens(study),
        findings.heads(study),
        findings.probes(study),
        *findings.not_done(study),
    ]
    return "".join(parts)


def card(folder: Path, evaluation: Path, source: Path | None, study: Path) -> str:
    """The text of the model card."""
    training = json.loads((folder / "training.json").read_text())
    measured = read_measured(evaluation, folder)
    name = training["settings"]["preset"]
    parts = [
        f"# {name}\n",
        made_of(folder, measured),
        recipe(training),
        held_out(measured, json.loads(source.read_text()) if source else None),
        f"All that follows is what `depthscope study {name}` measures, but for the neurons of weights as they are "
        "(`Neurons(model, processed=False)` of `depthscope.experiments.neurons`).\n",
        shown(folder, study),
    ]
    return "\n".join(parts)


def main() -> None:
    """Write the card the command line asks for."""
    parser = argparse.ArgumentParser(description="Write a model card from what the other commands measured.")
    parser.add_argument("folder", type=Path, help="exported model, with training.json")
    parser.add_argument("--evaluation", type=Path, required=True, help="JSON of training.evaluate")
    parser.add_argument("--source-evaluation", type=Path, help="the same for the weights continued from")
    parser.add_argument("--study", type=Path, required=True, help="run directory of depthscope study")
    a = parser.parse_args()
    text = card(a.folder, a.evaluation, a.source_evaluation, a.study)
    with atomic_writer(a.folder / "README.md") as file:
        file.write(text.encode())
    print(f"wrote {a.folder / 'README.md'}")


if __name__ == "__main__":
    main()
