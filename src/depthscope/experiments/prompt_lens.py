"""A lens on one prompt: the most likely next tokens at every position and depth."""

import polars as pl
import torch

from depthscope.data.token_classes import vocabulary_of
from depthscope.engine.baseline import Baseline
from depthscope.engine.divergence import compare
from depthscope.errors import DataError, NumericError
from depthscope.experiments.lenses import LOGIT, Lens, depths_without, make_lens
from depthscope.models.finite import all_finite
from depthscope.models.model import Model
from depthscope.shapes import TokenIds

PROMPT_LENS = {
    "position": pl.Int32,
    "token": pl.String,
    "layer": pl.Int32,
    "kl": pl.Float64,
    "entropy": pl.Float64,
    "rank": pl.Int32,
    "predicted": pl.String,
    "predicted_id": pl.Int32,
    "probability": pl.Float64,
}
"""One row per position of the prompt, depth and rank. `layer` l is before block l, L after the last; `token` is the prompt's
token, `predicted` a next token that the lens predicts; kl and entropy are in nats."""


ROWS = 256
"""Positions whose full logits are in memory at once."""


@torch.inference_mode()
def prompt_lens(model: Model, ids: TokenIds, top: int = 5, lens: str | Lens = LOGIT) -> pl.DataFrame:
    """PROMPT_LENS of token ids shaped [1, seq], at the depths that the lens can decode.

    Raises DataError for another shape or for `top` outside 1 … vocabulary, and NumericError for NaN or infinity, from the model
    or from the lens.
    """
    if ids.shape[0] != 1 or not 1 <= top <= model.unembedding.vocabulary:
        raise DataError(
            f"expected one prompt and top of 1 to {model.unembedding.vocabulary}, got {ids.shape[0]} prompts and {top}"
        )
    texts = vocabulary_of(model)
    baseline, read = Baseline(model, ids, ids, named=lambda _row: "the prompt"), make_lens(lens, model)
    positions = range(ids.shape[1])
    frames = []
    missing = depths_without(read)
    for layer, residual in enumerate(baseline.residuals):
        if layer in missing:
            continue
        hidden = read.decode(residual, layer, baseline.residuals[-1])
        measured = compare(model.unembedding, baseline.reference, hidden, baseline.flat_targets)
        if not all_finite([measured.kl, measured.entropy]):
            raise NumericError(
                f"the lens gives NaN or infinity at depth {layer} of {model.name}, although the residual streams are finite: "
                "expected another lens or another dtype"
            )
        best = [model.unembedding.logits(rows).float().softmax(-1).topk(top) for rows in hidden.split(ROWS)]
        predicted = torch.cat([part.indices for part in best]).flatten().tolist()
        frames.append(
            pl.DataFrame(
                {
                    "position": [position for position in positions for _ in range(top)],
                    "token": [texts.shown(token) for token in ids[0].tolist() for _ in range(top)],
                    "layer": [layer] * (len(positions) * top),
                    "kl": measured.kl.repeat_interleave(top).tolist(),
                    "entropy": measured.entropy.repeat_interleave(top).tolist(),
                    "rank": list(range(1, top + 1)) * len(positions),
                    "predicted": [texts.shown(token) for token in predicted],
                    "predicted_id": predicted,
                    "probability": torch.cat([part.values for part in best]).flatten().tolist(),
                },
                schema=PROMPT_LENS,
            )
        )
    return pl.concat(frames).sort("position", "layer", "rank")
