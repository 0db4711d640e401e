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
from depthscope.engine.stream_jacobians import require_gradients
from depthscope.engine.top_tokens import TopTokens, top_tokens
from depthscope.errors import DamageWarning, NumericError, UnsupportedError
from depthscope.experiments.experiment import Subject
from depthscope.experiments.fit_jacobian import fit_jacobian_lens
from depthscope.experiments.lens_text import LensText, lens_text
from depthscope.experiments.lenses import FROZEN_SCALE, LOGIT, Lens, depths_without, make_lens
from depthscope.experiments.tune_lens import tune_lens
from depthscope.experiments.tuned_lens import CONFIG, FittedLens
from depthscope.models.model import Model
from depthscope.schema.lens import FITTED, JACOBIAN, METRICS, TABLE_OF, TOP_TOKENS, TUNED, lens_names
from depthscope.schema.protocol import LAD2024, TEXT

PLACES = {name: Path("lenses") / name for name in FITTED}
"""Fitted lenses in a run directory."""
WHERE = PLACES[TUNED]
FIT: dict[str, Callable[..., FittedLens]] = {TUNED: tune_lens, JACOBIAN: fit_jacobian_lens}


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a lens predicts at x_0 … x_L, and the model itself, on the tokens of a baseline run."""

    values: Float[np.ndarray, "metrics depths tokens"]
    """In the order of `schema.lens.METRICS`."""
    top: Int64[Tensor, "depths tokens k"] | None
    """The lens's TOP_TOKENS most likely tokens, the most likely first; None unless the run keeps them (Keep.TOP_TOKENS)."""


class ReadLenses:
    """The lens without training and, if asked for, fitted lenses, which `prepare` fits or copies into the run.

    `tuned` and `jacobian` are a lens of that kind, or the text to fit one on. `settings` determine what the lenses give. Raises
    UnsupportedError if the model does not support a lens.
    """

    def __init__(
        self,
        model: Model,
        protocol: str = TEXT,
        lens: str = LOGIT,
        tuned: FittedLens | LensText | None = None,
        jacobian: FittedLens | LensText | None = None,
    ) -> None:
        self.settings: dict[str, Any] = {"protocol": protocol} | ({} if lens == LOGIT else {"lens": lens})
        asked = {TUNED: tuned, JACOBIAN: jacobian}
        self.fitted = {name: one for name, one in asked.items() if one is not None}
        for name, one in self.fitted.items():
            if isinstance(one, FittedLens):
                require_readable(model, one)
            given = {"params_sha256": one.sha256} if isinstance(one, FittedLens) else one.record()
            self.settings |= {"lens": f"{self.settings.get('lens', lens)},{name}", TABLE_OF[name]: given}
        if isinstance(jacobian, LensText):
            require_gradients(model)
        self.model = model
        # The protocol lad2024 determines which logit lens is used.
        self.name = FROZEN_SCALE if (protocol, lens) == (LAD2024, LOGIT) else lens
        self.lens = make_lens(self.name, model)
        self.names = (self.name, *self.fitted)
        self.readouts = (model.depth + 1) * len(self.names)
        """Next-token distributions per token; computed once, however many readings use them."""

    @classmethod
    def of(cls, subject: Subject) -> "ReadLenses":
        """The requested lenses, the same object for all experiments of a study: a fitted lens is large, and fitted once.

        Raises DataError if there is too little text to fit a lens on.
        """
        if "lenses" not in subject.shared:
            subject.shared["lenses"] = cls._asked(subject)
        return subject.shared["lenses"]

    @classmethod
    def _asked(cls, subject: Subject) -> "ReadLenses":
        asked = subject.options
        lens, *trained = lens_names(asked["lens"])
        fitted: dict[str, Any] = {}
        text: LensText | None = None
        for name in trained:
            if asked[TABLE_OF[name]] is not None:
                fitted[name] = make_lens(name, subject.model, asked[TABLE_OF[name]])
                continue
            windows = subject.windows
            how = {"length": windows.length, "bos": subject.bos, "lens_data": asked["lens_data"]}
            fitted[name] = text = text or lens_text(subject.corpus, subject.model, measured=windows, **how)
        return cls(subject.model, asked["protocol"], lens, **fitted)

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Have the fitted lenses in the run directory: fitted there, or copies of the given ones."""
        for name, one in self.fitted.items():
            place = directory / PLACES[name]
            if isinstance(one, LensText):
                self.fitted[name] = FIT[name](self.model, one, place, tell=tell)
            elif not one.is_stored(place):
                if (place / CONFIG).exists():
                    warnings.warn(f"the lens in {place} is damaged. It is copied again", DamageWarning, stacklevel=2)
                one.write(place)

    def decoded(self, baseline: Baseline) -> dict[str, Decoded]:
        """By the lens's name. Raises NumericError where a lens gives NaN or infinity."""
        lenses: dict[str, Lens] = {self.name: self.lens}
        for name, one in self.fitted.items():
            assert not isinstance(one, LensText), "prepare fits the lens"
            lenses[name] = one
        for name, lens in lenses.items():
            if ("lens", name) not in baseline.shared:
                baseline.shared["lens", name] = _decoded(lens, baseline)
        return {name: baseline.shared["lens", name] for name in lenses}


def require_readable(model: Model, lens: FittedLens) -> None:
    """Raise UnsupportedError unless a lens has a map for every depth from x_1 on: curves over depth would have holes.

    At x_0, the embedding, a published lens has none, and readings leave it out.
    """
    if lacking := [depth for depth in lens.missing if depth]:
        raise UnsupportedError(
            f"this {lens.called} has no map for {len(lacking)} of the depths x_1 to x_{model.depth - 1}: a study reads all of "
            "them. ds.lens, depthscope lens --prompt and the explorer read the depths that it has"
        )


def require_every_depth(lenses: "ReadLenses", what: str) -> None:
    """Raise UnsupportedError if a lens has no map at some depth, for experiments that compare all of them."""
    for one in lenses.fitted.values():
        if isinstance(one, FittedLens) and one.missing:
            raise UnsupportedError(
                f"{what} compares all depths, and this {one.called} has no map at x_{one.missing[0]}"
            )


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
    missing = depths_without(lens)
    for depth, residual in enumerate(baseline.residuals):
        if depth in missing:
            nothing = torch.full((last.shape[0] * last.shape[1],), torch.nan, device=last.device)
            columns.append([nothing] * len(METRICS))
            if Keep.TOP_TOKENS in baseline.keep:
                tops.append(torch.full((len(nothing), TOP_TOKENS), -1, device=last.device))
            continue
        hidden = lens.decode(residual, depth, last)
        top = TopTokens(TOP_TOKENS) if Keep.TOP_TOKENS in baseline.keep else None
        measured = compare(head, baseline.reference, hidden, baseline.flat_targets, top)
        columns.append([measured[metric.name].float() for metric in METRICS])
        if top is not None:
            tops.append(top.found)
            if depth == baseline.model.depth and torch.equal(hidden, baseline.hidden):
                baseline.shared.setdefault("own_top_tokens", top.found)  # the lens is the model's own head there
    values = np.stack([torch.stack(column).cpu().numpy() for column in zip(*columns, strict=True)])
    read = [depth for depth in range(values.shape[1]) if depth not in missing]
    if not np.isfinite(values[:, read]).all():
        place, token = np.argwhere(~np.isfinite(values[:, read]).all(0))[0]
        depth = read[place]
        raise NumericError(
            f"the lens gives NaN or infinity at depth {depth} of {baseline.model.name}, in "
            f"{baseline.named(int(token) // baseline.ids.shape[1])}, although the residual streams are finite: expected "
            "another --lens, another --dtype, or a text without that document"
        )
    return Decoded(values, torch.stack(tops) if tops else None)
