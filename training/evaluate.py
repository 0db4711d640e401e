"""Held-out loss of a model beside unigram and bigram baselines, and a sample of its text.

    python -m training.evaluate FOLDER --text src/depthscope/data/bookshelf.jsonl.xz \\
        --tokens-map training/runs/tokens.bin --out training/runs/evaluation.json

All losses are means in nats per token over the very same predicted tokens, with 95 % intervals from resampling
documents: the tokens of one document are not independent.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import PreTrainedModel

from training.architectures import trained_model
from training.atomic import sha256, write_json
from training.baselines import PRIOR_STRENGTH, fit
from training.corpus import books, open_token_map, read_text

WINDOWS_AT_ONCE = 16
RESAMPLES = 2_000
SAMPLE_TOKENS = 120
TEMPERATURE = 0.8

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of held-out text, int64 [windows, window + 1], and the document each comes from, [windows]."""

    tokens: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]

    @property
    def inputs(self) -> npt.NDArray[np.int64]:
        """All tokens of each window but the last, [windows, window]."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """The token after each input, [windows, window]."""
        return self.tokens[:, 1:]


def documents(path: Path) -> list[str]:
    """The texts of a .jsonl(.xz) file, in its order, or the books of a .txt(.xz) file."""
    if ".jsonl" not in path.suffixes:
        return books(path)
    return [json.loads(line)["text"] for line in read_text(path).split("\n") if line]


def held_out_windows(texts: list[str], tokenizer: Tokenizer, window: int, tokens: int) -> Windows:
    """Non-overlapping windows, document by document, until at least `tokens` tokens are predicted or the text ends.

    A window's last token is the next one's first input, so each token is predicted once; the rest of a document
    which fills no window is left out. Raises ValueError where there is not one whole window.
    """
    rows: list[npt.NDArray[np.int64]] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        for first in range(0, len(ids) - window, window):
            if len(rows) * window >= tokens:
                break
            rows.append(ids[first : first + window + 1])
            owners.append(number)
    if not rows:
        raise ValueError(f"no document has the {window + 1} tokens of one window")
    return Windows(np.stack(rows), np.array(owners))


@torch.inference_mode()
def model_loss(model: PreTrainedModel, windows: Windows) -> Losses:
    """Loss of each target in nats, float32 arithmetic, [windows, window]."""
    pieces: list[Losses] = []
    for first in range(0, len(windows.tokens), WINDOWS_AT_ONCE):
        ids = torch.from_numpy(windows.tokens[first : first + WINDOWS_AT_ONCE]).to(model.device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        pieces.append(loss.reshape(len(ids), -1).double().cpu().numpy())
    return np.concatenate(pieces)


def estimate(losses: Losses, owners: npt.NDArray[np.int64], seed: int = 0) -> dict[str, float]:
    """Mean loss, and its 95 % percentile interval from `RESAMPLES` resamplings of whole documents."""
    _, index = np.unique(owners, return_inverse=True)
    sums = np.bincount(index, losses.sum(axis=1))
    sizes = np.bincount(index) * losses.shape[1]
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(losses.mean()), "ci_low": float(low), "ci_high": float(high)}


@torch.inference_mode()
def text_sample(model: PreTrainedModel, tokenizer: Tokenizer, prompt: str, seed: int) -> dict[str, Any]:
    """Text which the model writes after `prompt`, drawn at a stated temperature from a stated seed."""
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids], device=model.device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(SAMPLE_TOKENS):
        seen = ids[:, -model.config.max_position_embeddings :]
        logits = model(input_ids=seen, use_cache=False).logits[0, -1].float().cpu()
        drawn = torch.multinomial(functional.softmax(logits / TEMPERATURE, dim=-1), 1, generator=generator)
        ids = torch.cat([ids, drawn.to(ids.device)[None]], dim=1)
    text = tokenizer.decode(ids[0].tolist())
    return {"prompt": prompt, "text": text, "tokens": SAMPLE_TOKENS, "temperature": TEMPERATURE, "seed": seed}


def evaluate(
    folder: Path, text: Path, token_map: Path, tokens: int, prompt: str, seed: int, device: str
) -> dict[str, Any]:
    """Everything this command measures, as JSON-ready values.

    Raises ValueError where the token map was made with another tokenizer than the folder's.
    """
    stream, facts = open_token_map(token_map)
    tokenizer_file = folder / "tokenizer.json"
    if sha256(tokenizer_file) != facts["tokenizer_sha256"]:
        raise ValueError(f"{token_map} was made with another tokenizer than {tokenizer_file}: its counts do not apply")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    model = trained_model(folder).eval()
    model.to(device)  # pyright: ignore[reportArgumentType]
    windows = held_out_windows(documents(text), tokenizer, model.config.max_position_embeddings, tokens)
    baselines = fit(stream, model.config.vocab_size)
    losses = {
        "model": model_loss(model, windows),
        "unigram": baselines.unigram_loss(windows.targets),
        "bigram": baselines.bigram_loss(windows.inputs, windows.targets),
    }
    return {
        "weights_sha256": sha256(folder / "model.safetensors"),
        "text": text.name,
        "text_sha256": sha256(text),
        "predicted_tokens": int(windows.targets.size),
        "documents": len(np.unique(windows.documents)),
        "window": int(windows.targets.shape[1]),
        "unit": "nats per token",
        "bigram_prior_strength": PRIOR_STRENGTH,
        "baseline_tokens": facts["tokens"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": {name: estimate(values, windows.documents) for name, values in losses.items()},
        "sample": text_sample(model, tokenizer, prompt, seed),
    }


def main() -> None:
    """Evaluate the model the command line names, print its losses, write them as JSON."""
    parser = argparse.ArgumentParser(description="Held-out loss beside unigram and bigram baselines, and a sample.")
    parser.add_argument("folder", type=Path, help="transformers folder of the model")
    parser.add_argument("--text", type=Path, required=True, help=".jsonl(.xz) of documents or .txt(.xz) of books")
    parser.add_argument("--tokens-map", type=Path, required=True, help="training tokens, for the baselines")
    parser.add_argument("--tokens", type=int, default=1 << 17, help="predict at least so many tokens")
    parser.add_argument("--prompt", default="The old house stood", help="beginning of the sample")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    a = parser.parse_args()
    result = evaluate(a.folder, a.text, a.tokens_map, a.tokens, a.prompt, a.seed, a.device)
    write_json(a.out, result)
    for name, loss in result["loss"].items():
        print(f"{name:8} {loss['mean']:.4f} nats per token  [{loss['ci_low']:.4f}, {loss['ci_high']:.4f}]")
    print(f"on {result['predicted_tokens']:,} tokens of {result['documents']} documents")


if __name__ == "__main__":
    main()
