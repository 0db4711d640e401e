"""Published shapes too large for a CPU's benchmark; weights are random."""

from typing import Any

from benchmarks.speed.shapes import SHAPES, Shape

_NEOX: dict[str, Any] = {"family": "gpt_neox", "rotary": 0.25, "context": 2048}

SMALL = SHAPES["gpt2-small"]
PYTHIA_1B = Shape(name="pythia-1.4b", layers=24, width=2048, heads=16, vocabulary=50_304, mlp=8192, windows=64, **_NEOX)
PYTHIA_7B = Shape(name="pythia-6.9b", layers=32, width=4096, heads=32, vocabulary=50_432, mlp=16_384, **_NEOX)
LLAMA_8B = Shape(
    name="Llama-3.1-8B", family="llama", layers=32, width=4096, heads=32, key_value_heads=8, vocabulary=128_256,
    mlp=14_336, context=4096, windows=32,
)  # fmt: skip
