"""Tiny random models that take images too, one per family; their text models are as deep as their image encoders."""

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

DEPTH = 4
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
TEXT = SPECIAL | {
    "num_hidden_layers": DEPTH,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "vocab_size": 97,
}
VISION = {
    "num_hidden_layers": DEPTH,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
QWEN_VISION = {"depth": DEPTH, "hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "out_hidden_size": 32}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
IMAGE_TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}

SHAPES: dict[str, dict] = {
    "llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
    "llava_onevision": {
        "text_config": TEXT | {"model_type": "qwen2"},
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
    },
    "qwen2_vl": {
        "text_config": TEXT | MROPE,
        "vision_config": {"depth": DEPTH, "embed_dim": 64, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
    },
    "qwen2_5_vl": {"text_config": TEXT | MROPE, "vision_config": QWEN_VISION},
    "qwen3_vl": {"text_config": TEXT | MROPE, "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]}},
    "qwen3_5": {
        "text_config": TEXT | LINEAR | {"rope_parameters": MROPE["rope_parameters"] | {"partial_rotary_factor": 1.0}},
        "vision_config": QWEN_VISION,
    },
    "llama4": {
        "text_config": TEXT | {"num_local_experts": 2, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
        "vision_config": VISION | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "smolvlm": {"text_config": TEXT | {"model_type": "llama"}, "vision_config": VISION},
    "idefics3": {"text_config": TEXT | {"model_type": "llama"}, "vision_config": VISION},
    "gemma3": {
        "text_config": TEXT | {"sliding_window": 4},
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
    },
    "gemma4": {
        "text_config": TEXT
        | {"sliding_window": 4, "hidden_size_per_layer_input": 0, "global_head_dim": 8, "num_kv_shared_layers": 0},
        "vision_config": VISION | {"head_dim": 16, "num_key_value_heads": 4, "global_head_dim": 16},
    },
    "mistral3": {"text_config": TEXT | {"model_type": "mistral"}, "vision_config": VISION | {"model_type": "pixtral"}},
    "internvl": {"text_config": TEXT | {"model_type": "qwen2"}, "vision_config": VISION},
    "aya_vision": {
        "text_config": TEXT | {"model_type": "cohere2"},
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
    },
}
WRAPPERS = list(SHAPES)
PREFIX = {
    "text_config": TEXT | {"model_type": "gemma"},
    "vision_config": VISION | {"model_type": "siglip_vision_model"},
    "projection_dim": 32,
}
"""PaliGemma: the text before the answer sees what follows it, so it is no causal model."""


def tiny_wrapper(family: str, shape: dict | None = None) -> PreTrainedModel:
    """A random model of the family, spread widely enough that its predictions differ."""
    config = AutoConfig.for_model(family, **(IMAGE_TOKENS | (shape or SHAPES[family])))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval()
