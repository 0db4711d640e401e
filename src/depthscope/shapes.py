"""Names of tensor dimensions. Shapes at tensor boundaries use these names, and the test run enforces them.

batch    windows computed together (routes × windows where several routes share a call)
seq      positions in a window
tokens   batch and seq flattened into one axis
d_model  width of the residual stream
vocab    entries of the unembedding; `slice` is a contiguous range of them
"""

from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

TokenIds = Int[Tensor, "batch seq"]
Generated = Int[Tensor, "rows length"]
"""Prompts with the tokens generated after them; a prompt may have several rows."""
Residual = Float[Tensor, "batch seq d_model"]
Hidden = Float[Tensor, "tokens d_model"]
"""What the unembedding reads: the residual stream after the final norm."""
Pattern = Float[Tensor, "batch heads seq seq"]
"""Attention of each query (second to last axis) to each key. A row sums to 1, or to less where a head has a sink."""
Logits = Float[Tensor, "tokens vocab"]
LogitSlice = Float[Tensor, "tokens slice"]
PerToken = Float32[Tensor, " tokens"]
PerTokenExact = Float64[Tensor, " tokens"]
PerTokenIndex = Int64[Tensor, " tokens"]
PerTokenFlag = Bool[Tensor, " tokens"]
