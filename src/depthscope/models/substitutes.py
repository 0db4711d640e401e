"""What heads and neurons give instead where they are mean- or resample-ablated: numbers from a fixed reference text.

The reference text is the first REFERENCE_LENGTH tokens (or as many as the context holds) of REFERENCE_DOCUMENTS documents of
the embedded text, every fifth one, with the tokenizer's BOS token before each where the tokenizer puts it there. So a route
means the same in every run, whatever text it is measured on and however that is cut into pieces. A model without a tokenizer
has spread token ids instead.

Mean ablation: the mean over all of its positions. Resample ablation: at position t, what the model gave at position t of a
document drawn for that position; beyond the reference's last position they are repeated from the second on, because a window's
first position (which attends to itself alone) is like no other. Documents are drawn independently for each position with a
fixed seed, the same ones for every head, so that heads ablated together come from one document, and the same ones in every
window.
"""

import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from depthscope.errors import NumericError
from depthscope.models.components import first_tensor
from depthscope.models.hooks import hooked
from depthscope.models.projections import Projection
from depthscope.models.stack import BlockStack
from depthscope.models.state import copied
from depthscope.shapes import TokenIds

TEXT = Path(__file__).parent.parent / "data" / "bookshelf.jsonl.xz"
REFERENCE_DOCUMENTS, REFERENCE_LENGTH, APART = 32, 128, 5
SEED = 0
AT_ONCE = 8
"""Documents in one batch."""


@dataclass(frozen=True, slots=True)
class Substitute:
    """Inputs of an output projection on the reference text."""

    mean: Float[Tensor, " inputs"]
    drawn: Float[Tensor, "positions inputs"]
    """Those of the document drawn for each position."""
    squares: Float[Tensor, " inputs"]
    """Means of the squares."""

    def resampled(self, length: int) -> Float[Tensor, "length inputs"]:
        """For windows of `length` tokens."""
        last = len(self.drawn)
        places = torch.arange(length)
        return self.drawn[torch.where(places < last, places, 1 + (places - 1) % max(1, last - 1)).clamp_max(last - 1)]


def reference_texts() -> Iterator[str]:
    """The documents of the reference text, whole."""
    with lzma.open(TEXT, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in islice(lines, 0, APART * REFERENCE_DOCUMENTS, APART))


def reference_ids(
    tokenizer: Any, vocabulary: int, context: int | None, tokenize: Callable[[str], list[int]]
) -> TokenIds:
    """The reference text in tokens, shaped [documents, positions]; spread ids where the tokenizer gives none that fit."""
    length = min(REFERENCE_LENGTH, context or REFERENCE_LENGTH)
    if tokenizer is not None:
        bos = tokenizer.bos_token_id
        begins = [] if bos is None or list(tokenizer("a")["input_ids"][:1]) != [bos] else [int(bos)]
        rows = [[*begins, *tokenize(text)][:length] for text in reference_texts()]
        rows = [row for row in rows if len(row) == length and max(row) < vocabulary]
        if rows:
            return torch.tensor(rows)
    step = 7919 if vocabulary % 7919 else 1
    return torch.arange(REFERENCE_DOCUMENTS * length).view(-1, length) * step % vocabulary


def find_substitutes(
    name: str, stack: BlockStack, projections: dict[int, Projection], ids: TokenIds
) -> dict[int, Substitute]:
    """By block, from one run of the model on the reference text. Raises NumericError, with the model's name, for NaN or
    infinity."""
    chosen = drawn_documents(*ids.shape)
    sums = {block: _Sums(one.inputs, ids.shape[1], ids.device) for block, one in projections.items()}
    with torch.inference_mode():
        for start in range(0, len(ids), AT_ONCE):
            batch = ids[start : start + AT_ONCE]
            entry = stack.enter(batch)
            residual, state = entry.residual, copied(entry.state)
            stack.expect(range(max(projections) + 1))
            for block in range(max(projections) + 1):
                seen: list[Tensor] = []
                watched = [(projections[block].module, _keep(seen, batch.device))] if block in projections else []
                with hooked(before=watched):
                    residual = stack.call(block, residual, entry.arguments, state)
                if watched:
                    sums[block].add(seen[0].reshape(*batch.shape, -1), start, chosen)
    found = {block: one.substitute(ids.numel()) for block, one in sums.items()}
    for block, one in found.items():
        if not bool(one.squares.isfinite().all() & one.drawn.isfinite().all()):
            raise NumericError(
                f"{name} has NaN or infinity in what block {block} gives to an output projection, on the reference text of "
                "mean and resample ablation. Expected finite numbers: use another --dtype (float16 overflows above 65,504), or "
                "zero ablation"
            )
    return found


def drawn_documents(documents: int, positions: int) -> Int64[Tensor, " positions"]:
    """The document drawn for each position."""
    return torch.randint(documents, (positions,), generator=torch.Generator().manual_seed(SEED))


class _Sums:
    def __init__(self, inputs: int, positions: int, device: torch.device) -> None:
        self.total = torch.zeros(
            2, inputs, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device
        )
        self.drawn: Tensor | None = None
        self.shape = (positions, inputs)

    def add(self, given: Float[Tensor, "batch seq inputs"], start: int, chosen: Int64[Tensor, " seq"]) -> None:
        exact = given.to(self.total.dtype)
        self.total += torch.stack([exact.sum((0, 1)), exact.square().sum((0, 1))])
        drawn = given.new_empty(self.shape) if self.drawn is None else self.drawn
        here = ((chosen >= start) & (chosen < start + len(given))).nonzero().flatten()
        drawn[here] = given[chosen[here] - start, here]
        self.drawn = drawn

    def substitute(self, positions: int) -> Substitute:
        assert self.drawn is not None
        mean, squares = self.total / positions
        return Substitute(mean.to(self.drawn.dtype), self.drawn, squares.float())


def _keep(seen: list[Tensor], device: torch.device) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(first_tensor(args, kwargs).to(device))

    return hook
