"""The one legend of tensor dimensions. Shapes at tensor boundaries use these names, and the test run enforces them.

batch    windows computed together (routes × windows where several routes share a call)
seq      positions in a window
tokens   batch and seq laid end to end
d_model  width of the residual stream
vocab    entries of the unembedding; `slice` is a run of them
"""

from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

TokenIds = Int[Tensor, "batch seq"]
Residual = Float[Tensor, "batch seq d_model"]
Hidden = Float[Tensor, "tokens d_model"]
"""What the unembedding reads: the residual stream after the final norm."""
Pattern = Float[Tensor, "batch heads seq seq"]
"""Attention of each query (second to last axis) to each key. A row adds up to 1, or less where a head has a sink."""
Logits = Float[Tensor, "tokens vocab"]
LogitSlice = Float[Tensor, "tokens slice"]
PerToken = Float32[Tensor, " tokens"]
PerTokenExact = Float64[Tensor, " tokens"]
PerTokenIndex = Int64[Tensor, " tokens"]
PerTokenFlag = Bool[Tensor, " tokens"]
