"""Tiny random models, one per family, made from transformers' configurations. No network."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

DEPTH, WIDTH, VOCABULARY, CONTEXT = 4, 32, 97, 64

GPT = {"n_layer": DEPTH, "n_embd": WIDTH, "n_head": 4, "n_positions": CONTEXT}
LLAMA = {
    "num_hidden_layers": DEPTH,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "head_dim": 8,
}
PLAIN = {k: v for k, v in LLAMA.items() if k not in ("head_dim", "num_key_value_heads")}
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 24}
SLIDING = {"sliding_window": 4}

SHAPES: dict[str, dict] = {
    "gpt2": GPT,
    "gpt_neox": PLAIN,
    "phi": PLAIN,
    "phi3": {**PLAIN, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0},
    "llama": LLAMA,
    "mistral": LLAMA | SLIDING,
    "mixtral": LLAMA | EXPERTS,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen3_moe": LLAMA | EXPERTS,
    "gemma2": LLAMA
    | SLIDING
    | {"layer_types": ["sliding_attention", "full_attention"] * 2, "final_logit_softcapping": 3.0},
    "gemma3_text": LLAMA | SLIDING | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "opt": {
        "num_hidden_layers": DEPTH,
        "hidden_size": WIDTH,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": WIDTH,
    },
    "bloom": {"n_layer": DEPTH, "hidden_size": WIDTH, "n_head": 4},
    "falcon": {"num_hidden_layers": DEPTH, "hidden_size": WIDTH, "num_attention_heads": 4, "alibi": False},
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_neo": {
        "num_layers": DEPTH,
        "hidden_size": WIDTH,
        "num_heads": 4,
        "attention_types": [[["global", "local"], DEPTH // 2]],
        "window_size": 4,
        "max_position_embeddings": CONTEXT,
    },
    "olmo2": LLAMA,
    "stablelm": PLAIN | {"num_key_value_heads": 4},
    "cohere": LLAMA,
    "granite": LLAMA | {"logits_scaling": 3.0, "residual_multiplier": 0.5},
    "smollm3": LLAMA,
    "starcoder2": LLAMA,
    "mpt": {"n_layers": DEPTH, "d_model": WIDTH, "n_heads": 4, "max_seq_len": CONTEXT},
    "gpt_oss": LLAMA | EXPERTS | SLIDING,
    "mamba": {"num_hidden_layers": DEPTH, "hidden_size": WIDTH, "state_size": 8},
}
"""model type -> configuration; sliding windows are shorter than the test windows, so that they matter."""

MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
HYBRIDS: dict[str, dict] = {
    "falcon_h1": LLAMA | MAMBA | {"mamba_d_ssm": 64},
    "granitemoehybrid": LLAMA
    | MAMBA
    | {
        "layer_types": ["mamba", "attention"] * 2,
        "shared_intermediate_size": 24,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "nemotron_h": {key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}
    | {
        "layers_block_type": ["mamba", "attention", "mamba", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "expand": 2,
        "chunk_size": 8,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "moe_shared_expert_intermediate_size": 24,
    },
    "gemma4_text": LLAMA
    | SLIDING
    | {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 8,
        "num_kv_shared_layers": 0,
    },
    "minimax": LLAMA
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "zamba2": LLAMA
    | {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "mamba_expand": 2,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "adapter_rank": 4,
        "use_mem_rope": True,
    },
}
"""Families whose blocks are not all an attention and an MLP."""

WITHOUT_COMPONENTS = ("mamba",)
FAMILIES = list(SHAPES)
RECURRENT = ("A_log", "conv1d", "x_proj", "dt_proj")
"""Parts of recurrent layers that are multiplied with each other: each spread out, they would make residual streams of 10⁸."""


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of the family, spread widely enough that its predictions differ and edits matter."""
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(
        family, **(special | {"vocab_size": VOCABULARY} | (HYBRIDS | SHAPES)[family] | changes)
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention_backend(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(
                ("bias", "sinks")
            ):  # from_config leaves biases at zero: then silencing them would go unseen
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.ndim > 1 and not any(part in name for part in RECURRENT):
                parameter.mul_(5)
    return model.eval()


def attention_backend(config: object) -> str:
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
