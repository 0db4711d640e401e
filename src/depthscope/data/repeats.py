"""Random tokens, repeated once: text without meaning or grammar, in which only the repetition can be attended to; and the same
without the repetition."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from depthscope.errors import DataError
from depthscope.models.model import Model

SEQUENCES, LENGTH = 64, 50
"""Sequences, and tokens of each before the repetition."""


def random_repeats(model: Model, bos: Sequence[int] = (), *, seed: int = 0) -> Int64[Tensor, "sequences seq"]:
    """64 sequences of `bos` and 50 different tokens, twice; fewer tokens where the context is shorter.

    The tokens are drawn at random from the tokenizer's ordinary ones: no special tokens, none that only the weights have.
    Raises DataError without a tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise DataError(f"{model.name} came without a tokenizer, so its special tokens are not known")
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
    ordinary = np.array([i for i in range(min(len(tokenizer), model.unembedding.vocabulary)) if i not in special])
    length = min(LENGTH, len(ordinary))
    if model.context is not None:
        length = min(length, (model.context - len(bos)) // 2)
    random = np.random.default_rng(seed)
    drawn = np.stack([random.choice(ordinary, length, replace=False) for _ in range(SEQUENCES)])
    before = np.tile(np.array(bos, dtype=np.int64), (SEQUENCES, 1))
    return torch.from_numpy(np.concatenate([before, drawn, drawn], 1).astype(np.int64))


def without_repetition(
    repeats: Int64[Tensor, "sequences seq"], bos: Sequence[int] = (), *, seed: int = 0
) -> Int64[Tensor, "sequences seq"]:
    """The sequences of `random_repeats` with other tokens in the first half, drawn from those of the other sequences.

    The second half and all positions stay, so that attention from the second half to the first is compared with attention from
    the same tokens to the same positions where nothing is repeated. With too few different tokens the first half is shifted by
    half its length instead: no token is then where its repetition expects it.
    """
    ids = repeats.numpy()
    length = (ids.shape[1] - len(bos)) // 2
    random = np.random.default_rng([seed, 1])
    controls = ids.copy()
    for control, own in zip(controls, ids[:, len(bos) : len(bos) + length], strict=True):
        others = np.setdiff1d(ids[:, len(bos) :], own)
        enough = len(others) >= length
        control[len(bos) : len(bos) + length] = (
            random.choice(others, length, replace=False) if enough else np.roll(own, length // 2)
        )
    return torch.from_numpy(controls)
