"""Choosing blocks to remove: what is tried, by which criteria, and the tables. Torch-free."""

import re
from fractions import Fraction
from typing import Any

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.schema.declaration import Experiment, Option, Table, check_text
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.measures import AGREEMENT, KL, LOSS
from depthscope.schema.metric import Metric
from depthscope.schema.similarity import ANGULAR_DISTANCE, BLOCK_INFLUENCE

NAME = "prune"
SEARCH, HELD_OUT, FEW = "search", "held_out", "few"
"""The texts: the search's documents, those that it does not see, and the part of the search's on which offspring are scored."""
MEASURED = (KL, AGREEMENT, LOSS)

GREEDY, BEAM, EVOLUTION, SINGLE, INFLUENCE, ANGULAR, RANDOM, GIVEN, UNMODIFIED = (
    "greedy",
    "beam",
    "evolution",
    "single",
    "influence",
    "angular",
    "random",
    "given",
    "none",
)
METHODS = {
    GREEDY: "remove the block whose removal costs the lowest KL, measure all remaining ones again, and so on",
    BEAM: "greedy with the best few sets of every size kept, instead of one",
    EVOLUTION: "mutate the set, score offspring on little text and the best of them on all of it (EvoPress, Sieberling et al. "
    "2024)",
    SINGLE: "remove the blocks whose single removal costs the lowest KL, without measuring again",
    INFLUENCE: "remove the blocks with the lowest block influence (ShortGPT, Men et al. 2024)",
    ANGULAR: "remove the contiguous blocks, never the last, between whose ends the residual stream turns least (Gromov et al. "
    "2024)",
    RANDOM: "remove a random choice, several times",
}
"""The criteria, each with what it does."""
TITLES = {
    GREEDY: "Greedy",
    BEAM: "Beam",
    EVOLUTION: "Evolution",
    SINGLE: "Single drops",
    INFLUENCE: "Block influence",
    ANGULAR: "Angular distance",
    RANDOM: "Random",
    GIVEN: "As requested",
    UNMODIFIED: "Unmodified model",
}
"""What a reader sees of a method in the tables."""
DEFAULT_METHODS = (GREEDY, SINGLE, INFLUENCE, ANGULAR, RANDOM)
OF_BLOCKS = (INFLUENCE, ANGULAR)
"""Criteria that rank whole blocks only."""

LOSS_CHANGE = LOSS.metrics[1]
PERPLEXITY = Metric("perplexity", "perplexity", "Perplexity", "exp(mean loss), its interval that of the mean loss", 1.0)
KL_DIFFERENCE = Metric(
    "kl_difference", "nats", "KL above the chosen set’s", "KL minus that of the chosen set, paired by document"
)
LOSS_DIFFERENCE = Metric(
    "loss_difference", "nats", "Loss above the chosen set’s", "loss minus that of the chosen set, paired by document"
)
METRICS = (KL, AGREEMENT, LOSS, LOSS_CHANGE, PERPLEXITY, KL_DIFFERENCE, LOSS_DIFFERENCE)

PRUNE_STEPS_TABLE = {
    "method": pl.String,
    "step": pl.Int32,
    "text": pl.String,
    "blocks": pl.String,
    "chosen": pl.Boolean,
    "measured": pl.Boolean,
    "above_best": pl.Float64,
    "above_best_low": pl.Float64,
    "above_best_high": pl.Float64,
    **ESTIMATE,
}
"""tables/prune_steps.parquet: every set of blocks that a search tried, step by step, with its KL on the search's documents."""

PRUNE_METHODS_TABLE = {
    "method": pl.String,
    "draw": pl.Int32,
    "removed": pl.Int32,
    "blocks": pl.String,
    "text": pl.String,
    **ESTIMATE,
}
"""tables/prune_methods.parquet: the set of each criterion, on the held-out documents for every number of blocks removed and on
the search's for the requested number. The unmodified model is method `none`. Of `random` there is a row for each draw, and one
without `draw` and `blocks`: the mean over draws, with an interval over draws and documents."""

PRUNE_SHARD = {
    "text": pl.String,
    "blocks": pl.String,
    "document": pl.Int64,
    "tokens": pl.Int64,
    **{metric.name: pl.Float64 for metric in (*MEASURED, BLOCK_INFLUENCE, ANGULAR_DISTANCE)},
}
"""shards/prune: what a step of the search measured; one row per document and set of blocks, or per document and the block or
the range of blocks that a criterion is about, metrics summed over the document's tokens (angular distance over its windows)."""

_ITEM = re.compile(r"\s*(?:(\d{1,6})\s*-\s*(\d{1,6})|(\d{1,6})(~attn|~mlp)?)\s*")
MOST_BLOCKS, MOST_GENERATIONS, MOST_CANDIDATES, MOST_DRAWS = 4096, 10_000, 1024, 100


def share_kept(text: str) -> Fraction:
    """The share that `75%` stands for. Raises DepthscopeError unless it is above 0 and below 100 %."""
    found = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*", text)
    share = None if found is None else Fraction(found[1]) / 100
    if share is None:
        raise DepthscopeError(f"--keep is {shown(text)}: expected a percentage such as 75%")
    if share == 0:
        raise DepthscopeError(
            "--keep 0% leaves nothing to keep: expected a percentage above 0 and below 100, such as 75%"
        )
    if share >= 1:
        removed = "removes nothing" if share == 1 else "is more than the model has"
        raise DepthscopeError(
            f"--keep {text.strip()} {removed}: expected a percentage above 0 and below 100, such as 75%"
        )
    return share


def dropped(text: str) -> list[tuple[int, str | None]]:
    """The blocks of `3, 7-9`, each with None, or of `5~mlp` with the component. Raises DepthscopeError."""
    check_text("--drop", text)
    found: list[tuple[int, str | None]] = []
    for part in text.split(","):
        item = _ITEM.fullmatch(part)
        if item is None:
            raise DepthscopeError(
                f"--drop is {shown(text)}: expected blocks such as 21-24, or 3,7-9, or components of blocks such as 5~mlp"
            )
        if item[1] is None:
            found.append((int(item[3]), item[4][1:] if item[4] else None))
            continue
        first, last = int(item[1]), int(item[2])
        if last < first or last - first >= MOST_BLOCKS:
            raise DepthscopeError(f"--drop is {shown(text)}: expected the first block of a range not above its last")
        found += [(block, None) for block in range(first, last + 1)]
    whole = {block for block, component in found if component is None}
    if twice := [block for block, component in found if found.count((block, component)) > 1]:
        raise DepthscopeError(f"--drop is {shown(text)}: block {twice[0]} is there twice")
    if both := [block for block, component in found if component is not None and block in whole]:
        raise DepthscopeError(f"--drop is {shown(text)}: block {both[0]} is there whole and by component")
    return found


def _bounded(name: str, most: int, least: int = 1) -> Any:
    def check(value: int) -> None:
        if not least <= value <= most:
            raise DepthscopeError(f"--{name} is {shown(value)}: expected {least} to {most:,}")

    return check


def check_methods(names: Any) -> None:
    """Raise DepthscopeError for a criterion that does not exist, or none."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise DepthscopeError(
            f"unknown criterion {', '.join(unknown) or '(none given)'}: expected some of {', '.join(METHODS)}"
        )


KEEP = Option(
    name="keep",
    type=str,
    default=None,
    help="How much to keep, such as 75%: that share of the blocks, rounded up.",
    check=share_kept,
)
REMOVE = Option(
    name="remove", type=int, default=None, help="How many blocks to remove.", check=_bounded("remove", MOST_BLOCKS)
)
DROP = Option(
    name="drop",
    type=str,
    default=None,
    help="Remove these blocks without a search: 21-24, or 3,7-9; 5~mlp or 5~attn is a component of a block. They are measured "
    "on the whole text.",
    check=dropped,
)
COMPONENTS = Option(
    name="components",
    type=bool,
    default=False,
    help="Choose among the attentions and MLPs of all blocks instead of among blocks; --keep and --remove then count those.",
)
METHOD = Option(
    name="method",
    type=tuple,
    default=DEFAULT_METHODS,
    help=f"Criteria to compare, separated by commas: {', '.join(METHODS)}. The chosen set is that with the lowest KL on the "
    "search's documents.",
    check=check_methods,
)
WIDTH = Option(
    name="width", type=int, default=4, help="Sets that beam keeps of every size.", check=_bounded("width", 256)
)
GENERATIONS = Option(
    name="generations",
    type=int,
    default=20,
    help="Generations of evolution.",
    check=_bounded("generations", MOST_GENERATIONS),
)
OFFSPRING = Option(
    name="offspring",
    type=int,
    default=16,
    help="Offspring of a generation, scored on a quarter of the search's documents, other ones each time.",
    check=_bounded("offspring", MOST_CANDIDATES),
)
SURVIVORS = Option(
    name="survivors",
    type=int,
    default=4,
    help="Offspring that are scored on all of the search's documents.",
    check=_bounded("survivors", MOST_CANDIDATES),
)
DRAWS = Option(
    name="draws", type=int, default=8, help="Random choices to compare with.", check=_bounded("draws", MOST_DRAWS, 2)
)
SEED = Option(
    name="seed",
    type=int,
    default=0,
    help="Seed of evolution and of the random choices.",
    check=_bounded("seed", 1 << 32, 0),
)
GOALS = (KEEP, REMOVE, DROP)
OF_METHODS = {BEAM: (WIDTH,), EVOLUTION: (GENERATIONS, OFFSPRING, SURVIVORS, SEED), RANDOM: (DRAWS, SEED)}
"""The settings that only some criteria use."""
OF_SEARCH = (COMPONENTS, METHOD, WIDTH, GENERATIONS, OFFSPRING, SURVIVORS, DRAWS, SEED)

EXPERIMENT = Experiment(
    name=NAME,
    title="Choose blocks to remove by measured KL, compare criteria, write the model.",
    question="Which blocks can be removed at the lowest cost, and which criterion for choosing them misleads?",
    make="depthscope.experiments.prune:make",
    tables={
        "prune_steps": Table(columns=PRUNE_STEPS_TABLE, metrics=(KL,)),
        "prune_methods": Table(columns=PRUNE_METHODS_TABLE, metrics=METRICS),
    },
    options=(*GOALS, *OF_SEARCH),
    source="Men et al. 2024; Gromov et al. 2024; Sieberling et al. 2024",
)
"""It has its own command and is no part of a study."""
