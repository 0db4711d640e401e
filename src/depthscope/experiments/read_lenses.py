"""The lenses that a study asks for, each decoded once for all readings of a baseline run.

What a lens decodes at all depths costs as many next-token distributions as there are depths, so readings that need it (the
lens's own tables, what is derived from them) take it from here: the first one computes it, the others find it with the run.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from depthscope.engine.baseline import Baseline, Keep
from depthscope.engine.divergence import compare
from depthscope.engine.sizes import sizes_for
from depthscope.engine.top_tokens import TopTokens, top_tokens
from depthscope.errors import DamageWarning, NumericError
from depthscope.experiments.experiment import Subject
from depthscope.experiments.lens_text import LensText, lens_text
from depthscope.experiments.lenses import FROZEN_SCALE, LOGIT, Lens, make_lens, stored_lens
from depthscope.experiments.tune_lens import tune_lens
from depthscope.experiments.tuned_lens import CONFIG, TunedLens
from depthscope.models.model import Model
from depthscope.schema.lens import METRICS, TOP_TOKENS, TUNED, lens_names
from depthscope.schema.protocol import LAD2024, TEXT

WHERE = Path("lenses") / TUNED
"""The tuned lens in a run directory."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a lens predicts at x_0 … x_L, and the model itself, on the tokens of a baseline run."""

    values: Float[np.ndarray, "metrics depths tokens"]
    """In the order of `schema.lens.METRICS`."""
    top: Int64[Tensor, "depths tokens k"] | None
    """The lens's TOP_TOKENS most likely tokens, the most likely first; None unless the run keeps them (Keep.TOP_TOKENS)."""


class ReadLenses:
    """The lens without training and, if asked for, the tuned lens, which `prepare` trains or copies into the run.

    `tuned` is a tuned lens, or the text to train one on. `settings` determine what the lenses give. Raises UnsupportedError
    if the model does not support the lens.
    """

    def __init__(
        self, model: Model, protocol: str = TEXT, lens: str = LOGIT, tuned: TunedLens | LensText | None = None
    ) -> None:
        self.settings: dict[str, Any] = {"protocol": protocol} | ({} if lens == LOGIT else {"lens": lens})
        if tuned is not None:
            given = {"params_sha256": tuned.sha256} if isinstance(tuned, TunedLens) else tuned.record()
            self.settings |= {"lens": f"{lens},{TUNED}", "tuned_lens": given}
        self.model, self.tuned = model, tuned
        # The protocol lad2024 determines which logit lens is used.
        self.name = FROZEN_SCALE if (protocol, lens) == (LAD2024, LOGIT) else lens
        self.lens = make_lens(self.name, model)
        self.names = (self.name, *([] if tuned is None else [TUNED]))
        self.readouts = (model.depth + 1) * len(self.names)
        """Next-token distributions per token; computed once, however many readings use them."""

    @classmethod
    def of(cls, subject: Subject) -> "ReadLenses":
        """The requested lenses, the same object for all experiments of a study: a tuned lens is large, and trained once.

        Raises DataError if there is too little text to train the tuned lens on.
        """
        if "lenses" not in subject.shared:
            subject.shared["lenses"] = cls._asked(subject)
        return subject.shared["lenses"]

    @classmethod
    def _asked(cls, subject: Subject) -> "ReadLenses":
        asked = subject.options
        lens, *trained = lens_names(asked["lens"])
        if not trained:
            return cls(subject.model, asked["protocol"], lens)
        if asked["tuned_lens"] is not None:
            tuned: TunedLens | LensText = stored_lens(subject.model, asked["tuned_lens"])
        else:
            windows = subject.windows
            text = {"length": windows.length, "bos": subject.bos, "lens_data": asked["lens_data"]}
            tuned = lens_text(subject.corpus, subject.model, measured=windows, **text)
        return cls(subject.model, asked["protocol"], lens, tuned)

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Have the tuned lens in the run directory: trained there, or a copy of the given one."""
        if isinstance(self.tuned, LensText):
            self.tuned = tune_lens(self.model, self.tuned, directory / WHERE, tell=tell)
        elif self.tuned is not None and not self.tuned.is_stored(directory / WHERE):
            if (directory / WHERE / CONFIG).exists():
                message = f"the lens in {directory / WHERE} is damaged. It is copied again"
                warnings.warn(message, DamageWarning, stacklevel=2)
            self.tuned.save(directory / WHERE)

    def decoded(self, baseline: Baseline) -> dict[str, Decoded]:
        """By the lens's name. Raises NumericError where a lens gives NaN or infinity."""
        assert not isinstance(self.tuned, LensText), "prepare trains the lens"
        lenses: dict[str, Lens] = {self.name: self.lens} | ({} if self.tuned is None else {TUNED: self.tuned})
        for name, lens in lenses.items():
            if ("lens", name) not in baseline.shared:
                baseline.shared["lens", name] = _decoded(lens, baseline)
        return {name: baseline.shared["lens", name] for name in lenses}


def own_top_tokens(baseline: Baseline) -> Int64[Tensor, "tokens k"]:
    """The TOP_TOKENS most likely tokens of the unmodified model."""
    if "own_top_tokens" not in baseline.shared:
        hidden, width = baseline.hidden, baseline.reference.slice_width
        rows = sizes_for(hidden.device, hidden.shape[1]).rows
        found = top_tokens(baseline.model.unembedding, hidden, TOP_TOKENS, width, rows)
        baseline.shared["own_top_tokens"] = found
    return baseline.shared["own_top_tokens"]


def _decoded(lens: Lens, baseline: Baseline) -> Decoded:
    head, last = baseline.model.unembedding, baseline.residuals[-1]
    columns, tops = [], []
    for depth, residual in enumerate(baseline.residuals):
        hidden = lens.decode(residual, depth, last)
        top = TopTokens(TOP_TOKENS) if Keep.TOP_TOKENS in baseline.keep else None
        measured = compare(head, baseline.reference, hidden, baseline.flat_targets, top)
        columns.append([measured[metric.name].float() for metric in METRICS])
        if top is not None:
            tops.append(top.found)
            if depth == baseline.model.depth and torch.equal(hidden, baseline.hidden):
                baseline.shared.setdefault("own_top_tokens", top.found)  # the lens is the model's own head there
    values = np.stack([torch.stack(column).cpu().numpy() for column in zip(*columns, strict=True)])
    if not np.isfinite(values).all():
        depth, token = np.argwhere(~np.isfinite(values).all(0))[0]
        raise NumericError(
            f"the lens gives NaN or infinity at depth {depth} of {baseline.model.name}, in "
            f"{baseline.named(int(token) // baseline.ids.shape[1])}, although the residual streams are finite: expected "
            "another --lens, another --dtype, or a text without that document"
        )
    return Decoded(values, torch.stack(tops) if tops else None)
