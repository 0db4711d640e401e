"""The logit lens: what the unembedding predicts from the residual stream at every depth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from depthscope.schema.declaration import Experiment, Option, Registry, Table, loaded
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.schema.protocol import PROTOCOL

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

LENS_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/lens.parquet. `layer` l is the residual stream before block l; L, the number of blocks, is after the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LensKind:
    """A way to decode the residual stream at a depth: see `depthscope.experiments.lenses.Lens`."""

    name: str
    title: str
    definition: str
    make: str | Callable[..., Any]
    """`module:function` or the function: it takes a Model and returns a Lens."""

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
)


def check_lens(name: str) -> None:
    """Raise DepthscopeError for an unknown lens."""
    LENSES.known([name])


LENS = Option(
    name="lens",
    type=str,
    default="logit",
    help="Which lens reads the residual stream: logit (the final norm and unembedding) or frozen_scale (the norm's scale "
    "taken after the last block, as under the protocol lad2024).",
    check=check_lens,
)
EXPERIMENT = Experiment(
    name="lens",
    title="The logit lens at every depth, or on one prompt.",
    question="What would the model predict from the residual stream at each depth, decoded with its final norm and "
    "unembedding: KL divergence to the final distribution, entropy, loss?",
    make="depthscope.experiments.lens:make",
    tables={"lens": Table(columns=LENS_TABLE, metrics=METRICS)},
    options=(PROTOCOL, LENS),
    source="Lad et al. 2024, figures 6 and 8",
)


def register_lens(lens: LensKind) -> LensKind:
    """Register a custom lens under its name; one registered earlier under the same name is replaced.

    Raises DepthscopeError for the name of a built-in lens.
    """
    return LENSES.register(lens.name, lens)


def unregister_lens(name: str) -> None:
    """Remove a registered lens. Raises DepthscopeError if there is none of that name."""
    LENSES.unregister(name)
