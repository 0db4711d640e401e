"""Lenses: what the unembedding predicts from the residual stream at every depth, as it is or after a trained map."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.schema.declaration import Experiment, Option, Registry, Table, loaded
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.schema.protocol import PROTOCOL
from depthscope.schema.token_classes import BY_CLASS

KL = Metric(
    "kl",
    "nats",
    "KL to the final distribution",
    "KL(p‖lens) of the lens's next-token distribution from the unmodified model's p",
    0.0,
)
AGREEMENT = Metric(
    "agreement",
    "share",
    "Top-1 agreement",
    "share of positions where lens and p have the same most likely token",
    0.0,
    1.0,
)
ENTROPY = Metric("entropy", "nats", "Lens entropy", "entropy of the lens's next-token distribution", 0.0)
LOSS = Metric("loss", "nats", "Lens loss", "−log lens(next token)", 0.0)
METRICS = (KL, AGREEMENT, ENTROPY, LOSS)
TOP_TOKENS = 5
"""How many of the most likely tokens are kept where readings need them."""

TUNED = "tuned"
TABLE_OF_TUNED = "tuned_lens"
TUNED_METRICS = tuple(replace(metric, name=f"{TUNED}_{metric.name}") for metric in METRICS)
"""The tuned lens's metrics as columns of the shards of `lens`; in its table they have the names of METRICS."""

LENS_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/lens.parquet and, of the tuned lens, tables/tuned_lens.parquet.

`layer` l is the residual stream before block l; L, the number of blocks, is after the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LensKind:
    """A way to decode the residual stream at a depth: see `depthscope.experiments.lenses.Lens`."""

    name: str
    title: str
    definition: str
    make: str | Callable[..., Any]
    """`module:function` or the function: it takes a Model (and the directory, if trained) and returns a Lens."""
    trained: bool = False
    """Whether it is trained and stored in a directory; its values are in a table of their own, next to the other lens's."""

    def maker(self) -> Callable[..., Any]:
        """The function that creates it for a model."""
        return loaded(self.make)


LENSES: Registry[LensKind] = Registry(
    "a lens",
    (
        "logit",
        LensKind(
            name="logit",
            title="Logit lens",
            definition="the model's final norm and unembedding applied to the residual stream at each depth "
            "(nostalgebraist 2020)",
            make="depthscope.experiments.lenses:LogitLens",
        ),
    ),
    (
        "frozen_scale",
        LensKind(
            name="frozen_scale",
            title="Logit lens with the last scale",
            definition="as the logit lens, with the final norm's scale computed once, from the residual stream after the last "
            "block (the script of Lad et al. 2024; its authors withdrew that as an error)",
            make="depthscope.experiments.lenses:FrozenScaleLens",
        ),
    ),
    (
        TUNED,
        LensKind(
            name=TUNED,
            title="Tuned lens",
            definition="the logit lens after an affine map, one per depth, that is trained to minimise KL(p‖lens) on other "
            "documents than those measured (Belrose et al. 2023)",
            make="depthscope.experiments.lenses:stored_lens",
            trained=True,
        ),
    ),
)


def lens_names(text: str) -> tuple[str, ...]:
    """The lenses that a list separated by commas names: one that is not trained (logit if none is named), then the tuned one.

    Raises DepthscopeError for an unknown lens, and for several that are not trained.
    """
    names = LENSES.known(
        list(dict.fromkeys(name.strip().replace("-", "_") for name in text.split(",") if name.strip()))
    )
    plain = [name for name in names if not LENSES[name].trained]
    if not names or len(plain) > 1:
        raise DepthscopeError(
            f"expected one of {', '.join(LENSES)}, or one of them and {TUNED} separated by a comma, got {text!r}"
        )
    return (*(plain or ["logit"]), *(name for name in names if LENSES[name].trained))


LENS = Option(
    name="lens",
    type=str,
    default="logit",
    help="Which lens reads the residual stream: logit (the final norm and unembedding), frozen_scale (the norm's scale "
    "taken after the last block, as under the protocol lad2024), or tuned (an affine map per depth before the final norm, "
    "trained on documents that are not measured), which is measured next to the logit lens.",
    check=lens_names,
)
TUNED_LENS = Option(
    name="tuned_lens",
    type=str,
    default=None,
    help="With --lens tuned: the directory of a lens that was trained already (lenses/tuned in a run, or written by "
    "`depthscope tune`). It must have been trained for this model and dtype.",
    shown_default="trained in the run directory",
)
LENS_DATA = Option(
    name="lens_data",
    type=str,
    default=None,
    help="With --lens tuned: the text the lens is trained on, named as for --data.",
    shown_default="the documents of --data after the last measured one",
)
EXPERIMENT = Experiment(
    name="lens",
    title="The logit lens at every depth, or on one prompt.",
    question="What would the model predict from the residual stream at each depth, decoded with its final norm and "
    "unembedding: KL divergence to the final distribution, entropy, loss?",
    make="depthscope.experiments.lens:make",
    tables={
        "lens": Table(columns=LENS_TABLE, metrics=METRICS),
        TABLE_OF_TUNED: Table(columns=LENS_TABLE, metrics=METRICS),
    },
    options=(PROTOCOL, LENS, TUNED_LENS, LENS_DATA, BY_CLASS),
    source="Lad et al. 2024, figures 6 and 8; tuned lens: Belrose et al. 2023",
)


def register_lens(lens: LensKind) -> LensKind:
    """Register a custom lens under its name; one registered earlier under the same name is replaced.

    Raises DepthscopeError for the name of a built-in lens.
    """
    return LENSES.register(lens.name, lens)


def unregister_lens(name: str) -> None:
    """Remove a registered lens. Raises DepthscopeError if there is none of that name."""
    LENSES.unregister(name)
