"""Measure how local a model's attention is, layer by layer, and write it as JSON.

    python -m training.attention FOLDER --text src/depthscope/data/bookshelf.jsonl.xz --out training/runs/attention.json

Per layer: the share of a query's attention that falls on the five tokens before it (itself excluded), the mean over
heads and over the queries which have five tokens before them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.architectures import trained_model
from training.atomic import sha256, write_json
from training.evaluate import documents, held_out_windows

PREVIOUS = 5
WINDOWS_AT_ONCE = 4


def local_share(attention: Tensor) -> float:
    """Mean share of attention [..., query, key] on the `PREVIOUS` keys before each query."""
    bands = [attention.diagonal(-k, dim1=-2, dim2=-1)[..., PREVIOUS - k :] for k in range(1, PREVIOUS + 1)]
    return torch.stack(bands).sum(dim=0).mean().item()


@torch.inference_mode()
def local_attention(folder: Path, text: Path, tokens: int) -> dict[str, Any]:
    """The share of every layer on about `tokens` held-out tokens, as JSON-ready values."""
    model = trained_model(folder).eval()
    model.set_attn_implementation("eager")  # the other implementations do not return the attention
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    windows = held_out_windows(documents(text), tokenizer, model.config.max_position_embeddings, tokens)
    totals = [0.0] * model.config.num_hidden_layers
    for first in range(0, len(windows.inputs), WINDOWS_AT_ONCE):
        ids = torch.from_numpy(windows.inputs[first : first + WINDOWS_AT_ONCE].copy())
        for layer, attention in enumerate(model(input_ids=ids, output_attentions=True).attentions):
            totals[layer] += local_share(attention) * len(ids)
    return {
        "weights_sha256": sha256(folder / "model.safetensors"),
        "text": text.name,
        "tokens": int(windows.inputs.size),
        "previous": PREVIOUS,
        "share": [total / len(windows.inputs) for total in totals],
    }


def main() -> None:
    """Measure the model the command line names, print and write the shares."""
    parser = argparse.ArgumentParser(description="Share of attention on the five previous tokens, per layer.")
    parser.add_argument("folder", type=Path, help="transformers folder of the model")
    parser.add_argument("--text", type=Path, required=True, help=".jsonl(.xz) of documents or .txt(.xz) of books")
    parser.add_argument("--tokens", type=int, default=1 << 14, help="read at least so many tokens")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    a = parser.parse_args()
    result = local_attention(a.folder, a.text, a.tokens)
    write_json(a.out, result)
    print(" ".join(f"{share:.3f}" for share in result["share"]))


if __name__ == "__main__":
    main()
