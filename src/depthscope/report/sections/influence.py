"""Block influence compared with the measured cost of dropping the block (Men et al. 2024)."""

import math

import polars as pl

from depthscope.report.charts import Curve, layers, lines, scatter
from depthscope.report.measured import SWEEP, Series, depth_of, ranked, read_sweep, read_table, series, spoken
from depthscope.report.palette import DROP, OWN
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.wording import layer_list
from depthscope.run.store import RunDirectory
from depthscope.schema.similarity import BLOCK_INFLUENCE, INFLUENCE_TABLE
from depthscope.schema.sweep import KL

NAME = "influence"


def build(run: RunDirectory) -> Section:
    """Influence by layer, the measured KL of dropping the layer, and a scatter plot of the two."""
    influence = series(read_table(run, NAME, INFLUENCE_TABLE), BLOCK_INFLUENCE)
    dropped = read_sweep(run).series("drop", KL) if SWEEP in run.tables() else {}
    x = layers(depth_of(run.manifest, max(influence, default=0) + 1))
    panels = [
        lines(
            "influence-layers",
            BLOCK_INFLUENCE.title,
            BLOCK_INFLUENCE,
            [Curve(look=OWN, values=influence, call="layer {}")],
            x,
            log=True,
        )
    ]
    if dropped:
        drop = [Curve(look=DROP, values=dropped, call="drop({})")]
        panels.append(lines("influence-drop", "Measured KL of the drop", KL, drop, x, log=True))
        panels.append(_both(influence, dropped))
    return Section(
        panels=panels,
        sentences=_sentences(influence, dropped),
        legend=(DROP,) if dropped else (),
        missing=()
        if dropped
        else ("Layer drops were not part of this run, so influence cannot be compared with measured damage.",),
        definitions=(BLOCK_INFLUENCE, KL),
    )


def _both(influence: Series, dropped: Series) -> Panel:
    places = sorted(influence.keys() & dropped.keys())
    return scatter(
        "influence-both",
        "KL of the drop against influence",
        (BLOCK_INFLUENCE, KL),
        DROP,
        [(f"layer {layer}", influence[layer], dropped[layer]) for layer in places],
    )


def _sentences(influence: Series, dropped: Series) -> list[str]:
    both = sorted(influence.keys() & dropped.keys())
    if len(both) < 3:
        return []
    few = max(1, len(both) // 4)
    guessed, real = (set(ranked({layer: v[layer] for layer in both})[-few:]) for v in (influence, dropped))
    correlation = rank_correlation([influence[n].mean for n in both], [dropped[n].mean for n in both])
    least, missed = ranked(influence)[-1], ranked(dropped)[-1]
    ranks = f"Over {len(both)} layers the rank correlation of influence with the measured KL of dropping the layer is "
    return [
        f"Influence is smallest in layer {least}, {spoken(influence[least], BLOCK_INFLUENCE)}; dropping that layer costs KL "
        f"{spoken(dropped[least], KL)}. The layer whose drop costs least is {missed}: KL {spoken(dropped[missed], KL)}, "
        f"influence {spoken(influence[missed], BLOCK_INFLUENCE)}.",
        f"{ranks}{f'{correlation:.2f}'.replace('-', '−')} (Spearman; from the means)."
        if not math.isnan(correlation)
        else "",
        f"Of the {few} layers that influence would drop first, {layer_list(sorted(guessed))}, {len(guessed & real)} are among "
        f"the {few} that cost least."
        if few > 1
        else "",
    ]


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation with mean ranks for ties; NaN if either input is constant."""
    ranks = pl.DataFrame({"a": first, "b": second}).select(pl.all().rank("average"))
    found = ranks.select(pl.corr("a", "b")).item()
    return math.nan if found is None else found


KIND = Kind(
    name=NAME,
    title="Block influence and the damage it estimates",
    source="Men et al. 2024 (ShortGPT), with our measured drops",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="whether the two rise together: only then does influence, which is cheap, predict which layer can be dropped.",
)
