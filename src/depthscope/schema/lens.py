"""Lenses: what the unembedding predicts from the residual stream at every depth, as it is or after a trained map."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from typing import Any

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
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

TUNED, JACOBIAN = "tuned", "jacobian"
FITTED = (TUNED, JACOBIAN)
"""The lenses that are fitted to a model, in the order in which they are measured and shown."""
TABLE_OF_TUNED, TABLE_OF_JACOBIAN = TABLES = tuple(f"{name}_lens" for name in FITTED)
TABLE_OF: dict[str, str] = dict(zip(FITTED, TABLES, strict=True))
"""The table of a fitted lens, and the option with the directory of one that was fitted already."""
SMOOTHING = 10
"""Relative changes of a Jacobian lens that are averaged to see whether its fit may end."""
BIT = log(2)
"""In nats."""
GAIN = Metric(
    "kl_gain",
    "bits",
    "Bits gained",
    "KL(p‖lens) of the lens without a fitted map minus that of this lens, at the same tokens, in bits",
)
FITTED_METRICS = (*METRICS, GAIN)
"""What the tables of fitted lenses have."""


def columns_of(lens: str) -> tuple[Metric, ...]:
    """A fitted lens's metrics as columns of the shards of `lens`; in its table they have the names of METRICS."""
    return tuple(replace(metric, name=f"{lens}_{metric.name}") for metric in METRICS)


LENS_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/lens.parquet and, of fitted lenses, tables/tuned_lens.parquet and tables/jacobian_lens.parquet.

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
    called: str = ""
    """Its title within a sentence; by default the title in lower case."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "called", self.called or self.title.lower())

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
    (
        JACOBIAN,
        LensKind(
            name=JACOBIAN,
            title="Jacobian lens",
            definition="the logit lens after a linear map, one per depth: the mean over windows and positions of the Jacobian "
            "of the last residual stream, there and later, with respect to the stream (Gurnee et al. 2026)",
            make="depthscope.experiments.lenses:stored_jacobian_lens",
            called="Jacobian lens",
            trained=True,
        ),
    ),
)


def lens_names(text: str) -> tuple[str, ...]:
    """The lenses that a list separated by commas names: one that is not trained (logit if none is named), then the fitted
    ones.

    Raises DepthscopeError for an unknown lens, and for several that are not trained.
    """
    names = LENSES.known(
        list(dict.fromkeys(name.strip().replace("-", "_") for name in text.split(",") if name.strip()))
    )
    fitted = [name for name in LENSES if name in names and LENSES[name].trained]
    plain = [name for name in names if not LENSES[name].trained]
    if not names or len(plain) > 1:
        raise DepthscopeError(
            f"expected one of {', '.join(LENSES)}, or one of them and {' or '.join(FITTED)} separated by a comma, got {text!r}"
        )
    return (*(plain or ["logit"]), *fitted)


def check_fitted(name: str) -> None:
    """Raise DepthscopeError unless this is the name of a lens that can be fitted."""
    if name not in FITTED:
        raise DepthscopeError(f"{shown(name)} is no lens that is fitted: expected {' or '.join(FITTED)}")


LENS = Option(
    name="lens",
    type=str,
    default="logit",
    help="Which lens reads the residual stream: logit (the final norm and unembedding), frozen_scale (the norm's scale "
    "taken after the last block, as under the protocol lad2024), tuned (an affine map per depth before the final norm, "
    "trained on documents that are not measured) or jacobian (the mean Jacobian of the last residual stream before the final "
    "norm, over such documents), which are measured next to the logit lens; several are separated by commas.",
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
JACOBIAN_LENS = Option(
    name="jacobian_lens",
    type=str,
    default=None,
    help="With --lens jacobian: the directory of a lens that was fitted already (lenses/jacobian in a run, or written by "
    "`depthscope tune --lens jacobian`). It must have been fitted for this model and dtype.",
    shown_default="fitted in the run directory",
)
LENS_DATA = Option(
    name="lens_data",
    type=str,
    default=None,
    help="With --lens tuned or jacobian: the text the lens is trained on, named as for --data.",
    shown_default="the documents of --data after the last measured one",
)
LENS_OPTIONS = (LENS, TUNED_LENS, JACOBIAN_LENS, LENS_DATA)
"""Options of every experiment that reads lenses."""
EXPERIMENT = Experiment(
    name="lens",
    title="The logit lens at every depth, or on one prompt.",
    question="What would the model predict from the residual stream at each depth, decoded with its final norm and "
    "unembedding: KL divergence to the final distribution, entropy, loss?",
    make="depthscope.experiments.lens:make",
    tables={
        "lens": Table(columns=LENS_TABLE, metrics=METRICS),
        **{table: Table(columns=LENS_TABLE, metrics=FITTED_METRICS) for table in TABLES},
    },
    options=(PROTOCOL, *LENS_OPTIONS, BY_CLASS),
    source="Lad et al. 2024, figures 6 and 8; tuned lens: Belrose et al. 2023; Jacobian lens: Gurnee et al. 2026",
)


def register_lens(lens: LensKind) -> LensKind:
    """Register a custom lens under its name; one registered earlier under the same name is replaced.

    Raises DepthscopeError for the name of a built-in lens.
    """
    return LENSES.register(lens.name, lens)


def unregister_lens(name: str) -> None:
    """Remove a registered lens. Raises DepthscopeError if there is none of that name."""
    LENSES.unregister(name)
