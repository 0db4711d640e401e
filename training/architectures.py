"""The architectures of the embedded models, and loading either fresh or trained weights into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, PretrainedConfig, PreTrainedModel

VOCABULARY = 4096
CONTEXT = 256


def bookshelf_gpt2(**changes: Any) -> PretrainedConfig:
    """A small GPT-2: blocks of attention, then MLP; learned positions; tied embeddings; no dropout."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "n_positions": CONTEXT,
        "n_embd": 192,
        "n_layer": 12,
        "n_head": 6,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPT2Config(**(settings | changes))


def bookshelf_neox(**changes: Any) -> PretrainedConfig:
    """A small GPT-NeoX: attention and MLP in parallel; rotary positions on a quarter of a head; untied embeddings."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPTNeoXConfig(**(settings | changes))


PRESETS = {"bookshelf-gpt2": bookshelf_gpt2, "bookshelf-neox": bookshelf_neox}


def fresh_model(preset: str, seed: int, **changes: Any) -> PreTrainedModel:
    """A model of this preset with weights drawn from `seed`, in float32. `changes` override fields of its config."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(PRESETS[preset](**changes), dtype=torch.float32)
    return model.train()


def trained_model(folder: Path) -> PreTrainedModel:
    """The model of a transformers folder, in float32 and in training mode; never fetches anything."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: a transformers folder is needed")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.train()
