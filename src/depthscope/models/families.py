"""Names as data: where attention and MLP write to the residual stream, per family.

A name is a module path inside a block: the module whose output, zeroed, ablates the component. Mostly that is the component
itself; it is its last linear layer where the component adds the residual stream inside (BLOOM's, MPT's MLP) or has no module
of its own (OPT's MLP). Families not listed are searched by structure, block by block; listed or found,
names are checked on the loaded model before they are used (`components.find`).
"""

from typing import NamedTuple


class Names(NamedTuple):
    """Module paths inside a block."""

    attention: str
    mlp: str


MODERN = Names("self_attn", "mlp")

FAMILIES: dict[str, Names] = {
    "bloom": Names("self_attention.dense", "mlp.dense_4h_to_h"),
    "cohere": MODERN,
    "falcon": Names("self_attention", "mlp"),
    "gemma2": MODERN,
    "gemma3_text": MODERN,
    "gpt2": Names("attn", "mlp"),
    "gpt_neo": Names("attn", "mlp"),
    "gpt_neox": Names("attention", "mlp"),
    "gpt_oss": MODERN,
    "gptj": Names("attn", "mlp"),
    "granite": MODERN,
    "llama": MODERN,
    "mistral": MODERN,
    "mixtral": MODERN,
    "mpt": Names("attn", "ffn.down_proj"),
    "olmo2": MODERN,
    "opt": Names("self_attn", "fc2"),
    "phi": MODERN,
    "phi3": MODERN,
    "qwen2": MODERN,
    "qwen3": MODERN,
    "qwen3_moe": MODERN,
    "smollm3": MODERN,
    "stablelm": MODERN,
    "starcoder2": MODERN,
}
