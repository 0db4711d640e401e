"""Tiny GGUF files of random models, and the models that the gguf package alone makes of such a file again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import LLAMA, PLAIN, tiny_model
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, get_tensor_name_map, quants
from gguf.constants import MODEL_ARCH_NAMES
from transformers import PreTrainedModel

WIDTH, CONTEXT, VOCABULARY = 64, 64, 260
"""The vocabulary: a token for each byte, three merges and one special token."""
WIDE = {"hidden_size": WIDTH, "head_dim": 16, "intermediate_size": 96}
GEMMA = LLAMA | WIDE | {"sliding_window": 4, "layer_types": None}  # which layers slide is no part of a file
Change = Callable[[str, np.ndarray, PreTrainedModel], np.ndarray]


def as_is(name: str, weight: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    return weight


def interleaved(name: str, weight: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    """Rotary halves of each head side by side, as llama.cpp has queries and keys of Llama."""
    if (heads := _heads(name, model)) is None:
        return weight
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def halves(name: str, weight: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    """The reverse of `interleaved`."""
    if (heads := _heads(name, model)) is None:
        return weight
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _heads(name: str, model: PreTrainedModel) -> int | None:
    config = model.config
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])


def norms_plus(amount: float) -> Change:
    return lambda name, weight, model: weight + np.float32(amount) if name.endswith("norm.weight") else weight


def transposed(name: str, weight: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    """GPT-2's maps are stored as [inputs, outputs]."""
    return weight.T if ".c_" in name and weight.ndim == 2 else weight


def apart(name: str, weight: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    """BLOOM's heads have their query, key and value together; a file has all queries first."""
    if "query_key_value" not in name:
        return weight
    return weight.reshape(model.config.n_head, 3, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)


def together(name: str, weight: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    if "query_key_value" not in name:
        return weight
    return weight.reshape(3, model.config.n_head, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)


@dataclass(frozen=True)
class Architecture:
    """How a family is stored: its name in the format, its configuration, and what is done to its weights and undone."""

    family: str
    name: str
    config: dict = field(default_factory=dict)
    change: Change = as_is
    undo: Change = as_is


ARCHITECTURES = {
    one.family: one
    for one in (
        Architecture("llama", "llama", LLAMA | WIDE, interleaved, halves),
        Architecture("qwen2", "qwen2", LLAMA | WIDE),
        Architecture("gemma2", "gemma2", GEMMA | {"final_logit_softcapping": 30.0}, norms_plus(1), norms_plus(-1)),
        Architecture("gemma3_text", "gemma3", GEMMA, norms_plus(1), norms_plus(-1)),
        Architecture("gpt2", "gpt2", {"n_embd": WIDTH, "n_positions": 1024}, transposed, transposed),
        Architecture("bloom", "bloom", {"hidden_size": WIDTH}, apart, together),
        Architecture("phi3", "phi3", PLAIN | {"hidden_size": WIDTH, "num_key_value_heads": 4}),
        Architecture("starcoder2", "starcoder2", LLAMA | WIDE),
        Architecture("stablelm", "stablelm", PLAIN | {"hidden_size": WIDTH, "num_key_value_heads": 4}),
    )
}


def tiny(family: str, **changes: object) -> PreTrainedModel:
    """A random model of a family whose rows are long enough to be quantised in blocks of 32."""
    config: dict[str, Any] = ARCHITECTURES[family].config | {"tie_word_embeddings": True} | changes
    return tiny_model(family, vocab_size=VOCABULARY, **config)


def write(
    path: Path,
    family: str,
    kind: str = "F32",
    model: PreTrainedModel | None = None,
    tokenizer: bool = True,
    **extra: object,
) -> Path:
    """A GGUF file of a tiny random model, its matrices quantised as `kind`. `extra`: further metadata."""
    model = tiny(family) if model is None else model
    architecture, config = ARCHITECTURES[family], model.config
    writer = GGUFWriter(path, architecture.name)
    writer.add_file_type(LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])
    writer.add_context_length(getattr(config, "max_position_embeddings", CONTEXT))
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * WIDTH)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    writer.add_rope_dimension_count(WIDTH // config.num_attention_heads)
    writer.add_key_length(WIDTH // config.num_attention_heads)
    for name in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if value := getattr(config, name, None):
            writer.add_layer_norm_eps(value)
    if value := getattr(config, "rms_norm_eps", None):
        writer.add_layer_norm_rms_eps(value)
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer:
        _add_tokenizer(writer, config.vocab_size)
    for name, value in extra.items():
        writer.add_string(name.replace("__", "."), str(value))
    for name, stored in names(model, architecture).items():
        weight = architecture.change(name, model.state_dict()[name].numpy(), model)
        matrix = weight.ndim == 2 and kind != "F32" and weight.shape[1] % 32 == 0
        quantised = GGMLQuantizationType[kind if matrix else "F32"]
        writer.add_tensor(stored, quants.quantize(np.ascontiguousarray(weight), quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(path: Path, family: str, **changes: object) -> PreTrainedModel:
    """The model in a GGUF file, made with the gguf package alone: dequantised, and what the format changes undone."""
    model, architecture = tiny(family, **changes), ARCHITECTURES[family]
    there = {tensor.name: quants.dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}
    weights = {
        name: torch.from_numpy(np.array(architecture.undo(name, there[stored], model)))
        for name, stored in names(model, architecture).items()
    }
    lacking = model.load_state_dict(weights, strict=False)
    assert not lacking.unexpected_keys
    assert all(name == "lm_head.weight" for name in lacking.missing_keys)  # tied
    return model


def names(model: PreTrainedModel, architecture: Architecture) -> dict[str, str]:
    """The name of each weight in the format, by its name in transformers; a tied unembedding is not stored."""
    key = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture.name)
    table = get_tensor_name_map(key, model.config.num_hidden_layers)
    found = {}
    for name in model.state_dict():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        module, _, end = name.rpartition(".")
        stored = table.get_name(module) or table.get_name(module.removeprefix("transformer."))
        assert stored is not None, name
        found[name] = f"{stored}.{end}"
    return found


def _add_tokenizer(writer: GGUFWriter, size: int) -> None:
    alphabet = list(_byte_characters())
    merges = ["t h", "th e", "Ġ the"]
    tokens = ["<|end|>", *alphabet, *(merge.replace(" ", "") for merge in merges)]
    assert len(tokens) == size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)


def _byte_characters() -> list[str]:
    """GPT-2's character of each byte: printable ones are their own."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
