"""Does quantisation change what a sweep says? One model in several formats: noise floor, KL from the float model, and each
layer's drop against the float model's.

    python -m benchmarks.quantised --model smollm2-135m --tokens 512
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

import depthscope as ds
from depthscope.errors import DepthscopeError
from depthscope.models.model import Model
from depthscope.models.noise_floor import noise_floor


def formats() -> dict[str, Any]:
    """Settings of transformers by the name of the format."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    four = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, "int4"),  # noqa: B009  newer than its type stubs
        granularity=PerGroup(64),
    )
    return {
        "bitsandbytes nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "bitsandbytes fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        "bitsandbytes int8, threshold 6": BitsAndBytesConfig(load_in_8bit=True),
        "bitsandbytes int8, threshold 0": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
        "torchao int8 weights": TorchAoConfig(Int8WeightOnlyConfig()),
        "torchao int4 weights, groups of 64": TorchAoConfig(four),
        "torchao int8 weights and inputs": TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
    }


def drops(model: Model, text: Any, out: Path) -> dict[str, dict[int, float]]:
    """KL and change in loss of leaving out each layer, and the model's own loss at layer −1."""
    study = ds.study(model, text, out=out, experiments=("sweep",), edits=("drop",), window=128, progress=False)
    table = study.table("sweep")
    return {
        metric: dict(table.filter(table["metric"] == metric).select("layer", "mean").iter_rows())
        for metric in ("kl", "loss_change", "loss")
    }


def main() -> None:
    """Print a row for each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=512)
    asked = parser.parse_args()
    text = ds.corpus("bookshelf", tokens=asked.tokens)
    whole = ds.load(asked.model, dtype="float32")
    ids = whole.probe_ids()
    own = ds.logits(whole, ids).log_softmax(-1)
    print(f"{asked.model}, {asked.tokens} tokens of bookshelf, float32, {torch.get_num_threads()} threads")
    print(
        "format | noise floor | KL from float | Spearman of drops | largest |ratio − 1| of a drop's KL | three smallest | s"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole.hf.save_pretrained(folder / "float")
        if whole.tokenizer is not None:
            whole.tokenizer.save_pretrained(folder / "float")
        began = time.perf_counter()
        base = drops(whole, text, folder / "run")["kl"]
        print("float32 |", *_row(base, base, 0.0, noise_floor(whole, ids), began), flush=True)
        for name, settings in formats().items():
            place = folder / name.replace(" ", "-").replace(",", "")
            began = time.perf_counter()
            hf = AutoModelForCausalLM.from_pretrained(
                folder / "float", quantization_config=settings, dtype=torch.float32
            )
            hf.save_pretrained(place)
            if whole.tokenizer is not None:
                whole.tokenizer.save_pretrained(place)
            try:
                model = ds.load(place, dtype="float32")
            except DepthscopeError as error:
                print(name, "| refused:", str(error).replace("\n", " "), flush=True)
                continue
            away = own.exp() * (own - ds.logits(model, ids).log_softmax(-1))
            found = drops(model, text, place / "run")["kl"]
            print(name, "|", *_row(base, found, float(away.sum(-1).mean()), noise_floor(model, ids), began), flush=True)


def _row(base: dict[int, float], found: dict[int, float], kl: float, floor: Any, began: float) -> list[str]:
    layers = sorted(layer for layer in base if layer >= 0)
    correlated: Any = spearmanr([base[layer] for layer in layers], [found[layer] for layer in layers])
    ranks = correlated.statistic
    worst = max(abs(found[layer] / base[layer] - 1) for layer in layers)
    smallest = sorted(layers, key=found.__getitem__)[:3]
    floor_said = "none" if floor is None else f"{floor.kl:.2g}"
    return [f"{floor_said} | {kl:.3g} | {ranks:.3f} | {worst:.2f} | {smallest} | {time.perf_counter() - began:.0f}"]


if __name__ == "__main__":
    main()
