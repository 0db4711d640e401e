"""The models that are timed: real shapes with random, seeded weights; the embedded models with their own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from depthscope.models.from_files import DTYPES
from depthscope.models.load import load
from depthscope.models.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model to be timed, and on how much text."""

    name: str
    family: str
    """transformers' model type."""
    layers: int
    width: int
    heads: int
    vocabulary: int
    mlp: int
    key_value_heads: int | None = None
    rotary: float = 1.0
    """The share of a head that is rotated."""
    context: int = 1024
    length: int = 512
    """Tokens of a window."""
    windows: int = 1
    embedded: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one repetition."""
        return self.windows * self.length

    def config(self) -> dict[str, Any]:
        """The configuration's values under the names transformers gives them in this family."""
        special = {"bos_token_id": 0, "eos_token_id": 0}
        if self.family == "gpt2":
            names = {"n_layer": self.layers, "n_embd": self.width, "n_head": self.heads, "n_positions": self.context}
            return special | names | {"n_inner": self.mlp, "vocab_size": self.vocabulary}
        rope = {"rope_type": "default", "rope_theta": 10_000.0}
        names = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp,
            "max_position_embeddings": self.context,
            "vocab_size": self.vocabulary,
            "rope_parameters": rope if self.rotary == 1 else rope | {"partial_rotary_factor": self.rotary},
        }
        return special | names | ({"num_key_value_heads": self.key_value_heads} if self.key_value_heads else {})

    def lens_config(self) -> dict[str, Any]:
        """The same model as TransformerLens configures it, norms folded into the weights as in the authors' script."""
        common = {
            "n_layers": self.layers,
            "d_model": self.width,
            "n_heads": self.heads,
            "d_head": self.width // self.heads,
            "d_mlp": self.mlp,
            "d_vocab": self.vocabulary,
            "n_ctx": self.context,
        }
        if self.family == "gpt2":
            return common | {"act_fn": "gelu_new", "normalization_type": "LNPre"}
        rotary = round(self.rotary * self.width // self.heads)
        common |= {"positional_embedding_type": "rotary", "rotary_dim": rotary, "rotary_adjacent_pairs": False}
        if self.family == "gpt_neox":
            return common | {"act_fn": "gelu", "normalization_type": "LNPre", "parallel_attn_mlp": True}
        gated = {"act_fn": "silu", "normalization_type": "RMSPre", "gated_mlp": True}
        return common | gated | ({"n_key_value_heads": self.key_value_heads} if self.key_value_heads else {})


_BOOKSHELF: dict[str, Any] = {
    "layers": 12, "width": 192, "heads": 6, "vocabulary": 4096, "mlp": 768, "context": 256,
    "length": 256, "windows": 4, "embedded": True,
}  # fmt: skip

SHAPES: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            name="gpt2-small", family="gpt2", layers=12, width=768, heads=12, vocabulary=50_257, mlp=3072
        ),
        Shape(
            name="pythia-410m", family="gpt_neox", layers=24, width=1024, heads=16, vocabulary=50_304, mlp=4096,
            rotary=0.25, context=2048,
        ),
        Shape(
            name="llama-16", family="llama", layers=16, width=1024, heads=16, key_value_heads=4, vocabulary=32_000,
            mlp=4096, context=2048, length=256,
        ),
        Shape(
            name="smollm2-135m", family="llama", layers=30, width=576, heads=9, key_value_heads=3, vocabulary=49_152,
            mlp=1536, context=8192, length=256,
        ),
        Shape(name="bookshelf-gpt2", family="gpt2", **_BOOKSHELF),
        Shape(name="bookshelf-neox", family="gpt_neox", rotary=0.25, **_BOOKSHELF),
        Shape(
            name="tiny", family="gpt2", layers=3, width=32, heads=4, vocabulary=211, mlp=64, context=64,
            length=32, windows=2,
        ),
    )
}  # fmt: skip
"""`llama-16` has 16 blocks with grouped queries and a gated MLP, 0.3 B parameters; `smollm2-135m` the shape of that model, with
random weights; `tiny` is for trying the benchmark."""

SPREAD = 3.0
"""Random matrices are this much wider than their families draw them: predictions then differ, and edits matter."""
MODELS = tuple(name for name in SHAPES if name != "tiny")


def transformers_model(shape: Shape, dtype: str, device: str = "cpu") -> PreTrainedModel:
    """The shape with random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.family, **shape.config())
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SPREAD)
    return model


def loaded(shape: Shape, dtype: str, device: str = "cpu") -> Model:
    """The shape as depthscope loads it, checks at loading included."""
    if shape.embedded:
        return load(shape.name, dtype=dtype, device=device)
    return load(transformers_model(shape, dtype, device))


def windows(shape: Shape, count: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(ids, targets), both shaped [windows, length]: random token ids, and those that follow them."""
    generator = torch.Generator().manual_seed(seed)
    number = shape.windows if count is None else count
    drawn = torch.randint(0, shape.vocabulary, (number, shape.length + 1), generator=generator)
    return drawn[:, :-1], drawn[:, 1:]


def deepened(shape: Shape, layers: int) -> Shape:
    """The shape with another number of layers."""
    return replace(shape, name=f"{shape.name} with {layers} layers", layers=layers)
