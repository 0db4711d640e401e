"""What affects a study's numbers besides its settings: versions of packages, and how products and sums are computed."""

import platform
from importlib.metadata import version

from depthscope.engine.reductions import Reductions, reductions_for
from depthscope.engine.sizes import sizes_for
from depthscope.models.model import Model

VERSIONED = (
    "depthscope",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "polars",
    "scipy",
    "scikit-learn",
    "ruptures",
)


def versions() -> dict[str, str]:
    """Versions of the packages that affect numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}}


def chosen_form(model: Model, logits: float) -> tuple[Reductions, str]:
    """How sums over the vocabulary are computed for a study that reduces so many logits, and why not in another form."""
    preferred = sizes_for(model.device, model.unembedding.weight.shape[1]).reductions
    return reductions_for(model.device, logits, preferred)


def kernels(model: Model, form: Reductions, because: str) -> dict[str, str]:
    """How matrix products and the sums over the vocabulary are computed: results are the same up to rounding.

    `because`: why sums are not computed in the preferred form.
    """
    products = "packed" if not model.kernels.note else f"plain: {model.kernels.note}"
    if model.device.type != "cpu":
        products = "torch's own"
    elif model.facts.streamed:
        products = "packed outside the blocks, which are streamed"
    return {
        "products": products,
        "sums": f"{form.name}{because and ': '}{because}",
    }
