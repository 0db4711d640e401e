"""Real nulls: networks with fresh weights, the embedded models with their middle blocks shuffled or averaged."""

import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import depthscope as ds
from depthscope.models.model import Model
from depthscope.schema.found_stages import Stages
from depthscope.stages import find
from depthscope.stages.signals import ResampledLayers, read_measured

EXPERIMENTS = ("sweep", "lens", "norms", "attention", "neurons", "stages")
EMBEDDED = ("bookshelf-gpt2", "bookshelf-neox")
SHUFFLES = 4
FRESH_DEPTHS = (16, 24, 32)
WIDTH = 64
SHAPE = {
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 4 * WIDTH,
    "max_position_embeddings": 256,
}
FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma3_text", "olmo2", "phi", "stablelm")


def networks() -> Iterator[tuple[str, Model]]:
    """Every real null with what it is."""
    for name in EMBEDDED:
        whole = ds.load(name)
        for seed in range(SHUFFLES):
            order = np.random.default_rng(seed).permutation(np.arange(1, whole.depth - 1))
            again = reordered(whole.hf, [0, *order, whole.depth - 1])
            yield f"{name}, middle shuffled ({seed})", ds.load(again, tokenizer=whole.tokenizer)
            # The same blocks twice over: deep enough for stages to be named.
            longer = [0, *order, *np.random.default_rng(seed + 100).permutation(order), whole.depth - 1]
            yield (
                f"{name}, middle twice, shuffled ({seed})",
                ds.load(reordered(whole.hf, longer), tokenizer=whole.tokenizer),
            )
        yield f"{name}, middle averaged", ds.load(averaged(whole.hf), tokenizer=whole.tokenizer)
    tokens = ds.load("bookshelf-gpt2").tokenizer
    assert tokens is not None
    for family in FAMILIES:
        for depth in FRESH_DEPTHS:
            yield (
                f"{family}, {depth} layers, fresh weights",
                ds.load(fresh(family, depth, len(tokens)), tokenizer=tokens),
            )


def fresh(family: str, depth: int, vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """A network with the weights it would begin training with."""
    torch.manual_seed(seed)
    shape = (
        {"n_layer": depth, "n_embd": WIDTH, "n_head": 4} if family == "gpt2" else SHAPE | {"num_hidden_layers": depth}
    )
    config = AutoConfig.for_model(
        family, vocab_size=vocabulary, pad_token_id=0, bos_token_id=0, eos_token_id=0, **shape
    )
    return AutoModelForCausalLM.from_config(config).eval()


def reordered(model: PreTrainedModel, order: list[int]) -> PreTrainedModel:
    """The model with its blocks in another order, some of them left out or repeated."""
    again = AutoModelForCausalLM.from_config(deepcopy(model.config)).eval()
    again.load_state_dict(model.state_dict())
    blocks, parent, name = _blocks(again)
    setattr(parent, name, nn.ModuleList([deepcopy(blocks[int(i)]) for i in order]))
    again.config.num_hidden_layers = len(order)
    return again


def averaged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the mean of its middle blocks' weights in each of them: all layers but the ends compute the same."""
    again = AutoModelForCausalLM.from_config(deepcopy(model.config)).eval()
    again.load_state_dict(model.state_dict())
    blocks, _, _ = _blocks(again)
    middle = list(blocks)[1:-1]
    with torch.no_grad():
        for together in zip(*(block.parameters() for block in middle), strict=True):
            mean = torch.stack(list(together)).mean(0)
            for weight in together:
                weight.copy_(mean)
    return again


def _blocks(model: PreTrainedModel) -> tuple[nn.ModuleList, nn.Module, str]:
    parent, _, name = ds.load(model, verify=False).stack.path.rpartition(".")
    blocks = model.get_submodule(f"{parent}.{name}")
    assert isinstance(blocks, nn.ModuleList)
    return blocks, model.get_submodule(parent), name


def found_in(model: Model, tokens: int) -> tuple[Stages, bool]:
    """What the finder says of a network, and whether it names anything when the condition that the model predicts is waived."""
    with tempfile.TemporaryDirectory() as folder:
        study = ds.study(model, ds.corpus(tokens=tokens), out=folder, experiments=EXPERIMENTS, progress=False)
        found = study.stages
        assert found is not None
        return found, bool(find.find_stages(_waived(study)).boundaries)


def _waived(study: ds.Study) -> ResampledLayers:
    """The measurements as if the text's token frequencies predicted nothing."""
    run = study.run
    depth = int(run.table("lens")["layer"].max())  # type: ignore[arg-type]
    units = {
        name: len(list((run.path / "shards" / name).glob("*.parquet"))) for name in EXPERIMENTS if name != "stages"
    }
    measured = read_measured(run, lambda name: run.shards(name, units[name]), depth)
    return replace(measured, token_entropy=float("inf"))
