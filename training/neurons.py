"""Count prediction and suppression neurons by their output weights, as the paper does, and write the counts as JSON.

    python -m training.neurons FOLDER --out training/runs/neurons.json

Each neuron's output weight has a cosine with every token's unembedding vector. A raw (not excess) kurtosis of these
cosines over 10 marks a prediction neuron where their skewness is positive, a suppression neuron where it is negative.
Counted twice: on the weights as they are, and processed as in the paper's appendix D, which changes no output of the
model: the final norm's scale folded into the unembedding, the unembedding centred over the residual stream and over
the vocabulary, the output weights centred over the residual stream.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from training.atomic import sha256, write_json

THRESHOLD = 10.0

LAYOUTS = {
    "gpt2": ("transformer.h.{}.mlp.c_proj.weight", True, "transformer.wte.weight", "transformer.ln_f.weight"),
    "gpt_neox": (
        "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
        False,
        "lm_head.weight",
        "gpt_neox.final_layer_norm.weight",
    ),
}
"""Per model type: MLP output weight, whether its rows are neurons, unembedding [vocabulary, d_model], final scale."""


def shape_of_cosines(w_out: Tensor, unembedding: Tensor) -> tuple[Tensor, Tensor]:
    """Raw kurtosis and skewness, [neurons], of each neuron's cosines with the vocabulary.

    `w_out`: [neurons, d_model]; `unembedding`: [vocabulary, d_model]. Computed in float64.
    """
    directions = unembedding.double() / unembedding.double().norm(dim=1, keepdim=True)
    cosines = (w_out.double() / w_out.double().norm(dim=1, keepdim=True)) @ directions.T
    centred = cosines - cosines.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1)
    return centred.pow(4).mean(dim=1) / variance.square(), centred.pow(3).mean(dim=1) / variance.pow(1.5)


def layer_counts(weights: dict[str, Tensor], model_type: str, layers: int, processed: bool) -> list[dict[str, Any]]:
    """Counts of one model's neurons, a mapping per layer."""
    pattern, rows_are_neurons, unembedding_name, scale_name = LAYOUTS[model_type]
    unembedding = weights[unembedding_name]
    if processed:
        unembedding = unembedding * weights[scale_name]
        unembedding = unembedding - unembedding.mean(dim=1, keepdim=True)
        unembedding = unembedding - unembedding.mean(dim=0, keepdim=True)
    counts: list[dict[str, Any]] = []
    for layer in range(layers):
        w_out = weights[pattern.format(layer)]
        w_out = w_out if rows_are_neurons else w_out.T
        if processed:
            w_out = w_out - w_out.mean(dim=1, keepdim=True)
        kurtosis, skewness = shape_of_cosines(w_out, unembedding)
        sharp = kurtosis > THRESHOLD
        counts.append(
            {
                "layer": layer,
                "neurons": len(kurtosis),
                "prediction": int((sharp & (skewness > 0)).sum()),
                "suppression": int((sharp & (skewness < 0)).sum()),
                "largest_kurtosis": float(kurtosis.max()),
            }
        )
    return counts


def count_neurons(folder: Path) -> dict[str, Any]:
    """The counts of a transformers folder, on its weights as they are and processed.

    Raises ValueError for a model type other than the embedded ones.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model_type, layers = model.config.model_type, model.config.num_hidden_layers
    if model_type not in LAYOUTS:
        raise ValueError(f"neurons of {model_type!r} models are not counted here, only of {', '.join(LAYOUTS)}")
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return {
        "weights_sha256": sha256(folder / "model.safetensors"),
        "kurtosis_threshold": THRESHOLD,
        "as_they_are": layer_counts(weights, model_type, layers, processed=False),
        "processed": layer_counts(weights, model_type, layers, processed=True),
    }


def main() -> None:
    """Count the neurons of the model the command line names, print and write the counts."""
    parser = argparse.ArgumentParser(description="Count prediction and suppression neurons by their output weights.")
    parser.add_argument("folder", type=Path, help="transformers folder of an embedded model")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    result = count_neurons(arguments.folder)
    write_json(arguments.out, result)
    for kind in ("as_they_are", "processed"):
        for name in ("prediction", "suppression", "largest_kurtosis"):
            print(f"{kind:12} {name:17}", " ".join(f"{row[name]:.4g}" for row in result[kind]))


if __name__ == "__main__":
    main()
