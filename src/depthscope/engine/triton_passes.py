"""The passes over the vocabulary as Triton kernels that read each number from memory once.

One program per row. `benchmarks/accelerator.py` compares them with the other forms on a card; the tests compare them with
their definitions in Triton's interpreter. Only `reductions` imports this module, if triton is installed.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from depthscope.shapes import Hidden, LogitSlice, PerTokenIndex

# pyright: reportCallIssue=false
# A launch accepts options (num_warps) that are not parameters of the kernel.

BLOCK = 2048
"""Entries of a row in registers at once."""
WARPS = 8


@triton.jit
def _slice_sums(logits, highest, total, weighted, place, stride, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    lane_highest = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_place = tl.zeros([BLOCK], tl.int32)
    lane_total = tl.zeros([BLOCK], tl.float32)
    lane_weighted = tl.zeros([BLOCK], tl.float32)
    maximum = tl.max(lane_highest, 0)
    for start in range(0, COLUMNS, BLOCK):
        at = start + lanes
        there = at < COLUMNS
        z = tl.load(logits + row * stride + at, mask=there, other=float("-inf")).to(tl.float32)
        larger = z > lane_highest
        lane_place = tl.where(larger, at, lane_place)
        lane_highest = tl.where(larger, z, lane_highest)
        new = tl.maximum(maximum, tl.max(z, 0))
        # Sums so far are relative to the old maximum. Before the first block there are none, and 0 · −inf would be NaN.
        change = tl.where(maximum == float("-inf"), 0.0, maximum - new)
        scale = tl.exp(change)
        below = z - new
        weights = tl.where(there, tl.exp(below), 0.0)
        lane_weighted = (lane_weighted + lane_total * change) * scale + tl.where(there, weights * below, 0.0)
        lane_total = lane_total * scale + weights
        maximum = new
    tl.store(highest + row, maximum)
    tl.store(total + row, tl.sum(lane_total, 0))
    tl.store(weighted + row, tl.sum(lane_weighted, 0))
    # A lane visits its columns in order and keeps the first maximum; the lowest index over lanes is the row's first.
    tl.store(place + row, tl.min(tl.where(lane_highest == maximum, lane_place, COLUMNS), 0).to(tl.int64))


@triton.jit
def _row_products(
    own, hidden, mean_weight, weight, targets, cross, following, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    base = row % rows
    target = tl.load(targets + base)
    lanes = tl.arange(0, BLOCK)
    lane_cross = tl.zeros([BLOCK], tl.float64)
    lane_following = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + lanes
        there = at < WIDTH
        q = tl.load(hidden + row * WIDTH + at, mask=there, other=0.0).to(tl.float32)
        p = tl.load(own + base * WIDTH + at, mask=there, other=0.0).to(tl.float32)
        mean = tl.load(mean_weight + base * WIDTH + at, mask=there, other=0.0)
        towards = tl.load(weight + target * stride + at, mask=there, other=0.0).to(tl.float32)
        lane_cross += (p.to(tl.float64) - q.to(tl.float64)) * mean
        lane_following += q * towards
    tl.store(cross + row, tl.sum(lane_cross, 0))
    tl.store(following + row, tl.sum(lane_following, 0))


@triton.jit
def _capped_cross(own_logits, logits, high, low, cross, own_stride, stride, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    normaliser_high = tl.load(high + row)
    normaliser_low = tl.load(low + row)
    lane_cross = tl.zeros([BLOCK], tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        at = start + lanes
        there = at < COLUMNS
        p = tl.load(own_logits + row * own_stride + at, mask=there, other=0.0).to(tl.float32)
        q = tl.load(logits + row * stride + at, mask=there, other=0.0).to(tl.float32)
        weights = tl.exp((p - normaliser_high) - normaliser_low)
        lane_cross += tl.where(there, weights * (p - q), 0.0)
    tl.store(cross + row, tl.sum(lane_cross, 0))


def slice_sums(
    logits: LogitSlice,
) -> tuple[
    Float32[Tensor, " tokens"], Float32[Tensor, " tokens"], Float32[Tensor, " tokens"], Int64[Tensor, " tokens"]
]:
    """Maximum m, Σ exp(z − m), Σ (z − m) exp(z − m) and the index of the first maximum of each row."""
    rows, columns = logits.shape
    highest, total, weighted = torch.empty(3, rows, device=logits.device)
    place = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _slice_sums[(rows,)](
        logits, highest, total, weighted, place, logits.stride(0), columns, _block(columns), num_warps=WARPS
    )
    return highest, total, weighted, place


def row_products(
    own: Hidden, hidden: Hidden, mean_weight: Tensor, weight: Tensor, targets: PerTokenIndex
) -> tuple[Float64[Tensor, " edited"], Float32[Tensor, " edited"]]:
    """(h_p − h_q) · Wᵀp in float64 and h_q · W[target] in float32; `hidden` repeats the rows of `own`, edited."""
    rows, width = hidden.shape
    cross = torch.empty(rows, dtype=torch.float64, device=hidden.device)
    following = torch.empty(rows, device=hidden.device)
    _row_products[(rows,)](
        own.contiguous(),
        hidden.contiguous(),
        mean_weight.contiguous(),
        weight,
        targets.contiguous(),
        cross,
        following,
        len(own),
        weight.stride(0),
        width,
        _block(width),
        num_warps=WARPS // 2,
    )
    return cross, following


def capped_cross(
    own_logits: LogitSlice, logits: LogitSlice, log_normaliser: Float64[Tensor, " tokens"]
) -> Float32[Tensor, " tokens"]:
    """Σ p (z_p − z_q) of each row; the normaliser is subtracted in two float32 parts so that no digits are lost."""
    rows, columns = logits.shape
    high = log_normaliser.float()
    low = (log_normaliser - high.double()).float()
    cross = torch.empty(rows, device=logits.device)
    strides = own_logits.stride(0), logits.stride(0)
    _capped_cross[(rows,)](own_logits, logits, high, low, cross, *strides, columns, _block(columns), num_warps=WARPS)
    return cross


def _block(columns: int) -> int:
    return min(BLOCK, 1 << (columns - 1).bit_length())  # a power of two, as Triton requires
