"""Which families of transformers can be studied? A tiny random model of each causal one is loaded and verified.

    python benchmarks/families.py [FAMILY ...]

Prints a line per family: what was found, or why it is refused, or that no tiny model of it could be made here (its
configuration needs values this script does not know). Replay is compared with the model's own logits at every load.
"""

import signal
import sys
import warnings
from collections import Counter
from types import FrameType
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from depthscope.errors import DepthscopeError
from depthscope.models.load import load

LAYERS, WIDTH, HEADS, HEAD, CONTEXT = 4, 32, 4, 8, 64
SMALL: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "attention_hidden_size"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "state_size"), HEAD),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state", "kv_lora_rank", "q_lora_rank"), HEAD),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "sliding_window"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "mamba_expand", "linear_num_key_heads"), 2),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "vocab_size": 97,
}
LARGEST = 30_000_000
SECONDS = 40


def tiny_model(family: str) -> PreTrainedModel:
    """A random model of the family as small as its configuration allows. Raises whatever the family's code raises."""
    config = AutoConfig.for_model(family)
    text = config.get_text_config(decoder=True)
    if text is not config and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        config = text
    config = type(config)(**{name: value for name, value in SMALL.items() if hasattr(config, name)})
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > LARGEST:
        raise ValueError(f"{parameters:,} parameters, which this script cannot make smaller")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def outcome(family: str) -> tuple[str, str]:
    """(`studied`, `refused` or `not made`, and what was found or why)."""
    try:
        hf = tiny_model(family)
        hf(input_ids=torch.arange(3)[None], use_cache=False)
    except Exception as error:
        return "not made", first_line(error)
    try:
        facts = load(hf).facts
    except DepthscopeError as error:
        return "refused", first_line(error)
    return "studied", f"{facts.layout}, {facts.norm}, attention {facts.attention_module}, MLP {facts.mlp_module}"


def first_line(error: Exception) -> str:
    """The error in a line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]


def too_slow(_signal: int, _frame: FrameType | None) -> None:
    """Ends a family that takes too long."""
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> None:
    """Print the survey."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(50)
    signal.signal(signal.SIGALRM, too_slow)
    counts: Counter[str] = Counter()
    for family in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        signal.alarm(SECONDS)
        verdict, detail = outcome(family)
        signal.alarm(0)
        counts[verdict] += 1
        print(f"{family:24} {verdict:9} {detail}", flush=True)
    print(f"transformers {transformers.__version__}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")


if __name__ == "__main__":
    main()
