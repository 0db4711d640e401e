"""Does the stage finder see stages where there are none? Controls, and how often pure noise passes.

    python benchmarks/stages.py [--tokens 4096] [--simulations 200]

Controls are made from the embedded models: as they are, with fresh weights, with the middle blocks in a random order, and
cut to their first and last block. Noise is independent standard normal signals over layers.
"""

import argparse
import platform
import tempfile
from collections.abc import Iterator
from datetime import date

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import depthscope as ds
from depthscope.models.model import Model
from depthscope.schema.stages import SUPPORTED
from depthscope.statistics.change_points import choose

EXPERIMENTS = ("sweep", "lens", "norms", "attention", "neurons", "stages")


def controls(name: str) -> Iterator[tuple[str, Model]]:
    """The embedded model and its controls, each with what it is."""
    whole = ds.load(name)
    yield "as it is", whole
    yield "fresh weights", ds.load(fresh(whole.hf), tokenizer=whole.tokenizer)
    order = np.random.default_rng(0).permutation(np.arange(1, whole.depth - 1))
    yield "middle shuffled", ds.load(reordered(whole.hf, [0, *order, whole.depth - 1]), tokenizer=whole.tokenizer)
    yield "two layers", ds.load(reordered(whole.hf, [0, whole.depth - 1]), tokenizer=whole.tokenizer)


def fresh(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The same architecture with the weights it would begin training with."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(model.config).eval()


def reordered(model: PreTrainedModel, order: list[int]) -> PreTrainedModel:
    """The model with its blocks in another order, or only some of them."""
    again = AutoModelForCausalLM.from_config(model.config).eval()
    again.load_state_dict(model.state_dict())
    path = ds.load(again, verify=False).stack.path
    parent, _, name = path.rpartition(".")
    blocks = again.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    again.get_submodule(parent)._modules[name] = nn.ModuleList([blocks[int(i)] for i in order])
    again.config.num_hidden_layers = len(order)
    return again


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Controls of the stage finder.")
    parser.add_argument("--models", nargs="+", default=["bookshelf-gpt2", "bookshelf-neox"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--simulations", type=int, default=200)
    options = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}, {options.tokens} tokens")
    for name in options.models:
        for what, model in controls(name):
            with tempfile.TemporaryDirectory() as folder:
                study = ds.study(
                    model, ds.corpus(tokens=options.tokens), out=folder, experiments=EXPERIMENTS, progress=False
                )
                found = study.stages
            assert found is not None
            supported = [one.name for one in found.signatures if one.verdict == SUPPORTED]
            print(f"\n{name}, {what}: {found.summary}\n  supported: {', '.join(supported) or 'none'}", flush=True)
    print("\nchanges seen in noise, share of simulations with none, one, two, three")
    for layers, signals in ((6, 10), (12, 10), (24, 10), (48, 10)):
        seen = np.zeros(4)
        for seed in range(options.simulations):
            noise = np.random.default_rng(seed).standard_normal((layers, signals))
            seen[choose(noise, 3, seed=seed).changes] += 1
        shares = " ".join(f"{share:.3f}" for share in seen / options.simulations)
        print(f"{layers:3} layers, {signals} signals: {shares}", flush=True)


if __name__ == "__main__":
    main()
