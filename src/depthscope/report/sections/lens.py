"""The logit lens by depth (the paper's figures 6 and 8), fitted lenses if measured, and counts of prediction neurons."""

import math
from collections.abc import Mapping
from dataclasses import replace

from depthscope.report.charts import Curve, XAxis, lines, with_y
from depthscope.report.measured import Series, protocol_note, read_table, series, spoken
from depthscope.report.palette import FITTED, NEURONS, OWN, Look
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.sections import neurons
from depthscope.report.wording import ends
from depthscope.run.store import RunDirectory
from depthscope.schema.lens import AGREEMENT, ENTROPY, GAIN, JACOBIAN, KL, LENS_TABLE, LENSES, TABLE_OF, TABLES, TUNED
from depthscope.schema.metric import Metric

NAME = "lens"
WIDE = 2.5
"""Number of decades beyond which ticks at 2 and 5 would crowd an axis."""
MEANING = {
    TUNED: "the difference is what the stream contains in another basis than the unembedding’s.",
    JACOBIAN: "its map carries the stream to the end by the later layers’ mean first-order effect.",
}
LAD2024 = (
    "Protocol lad2024: every residual stream is divided by the last one’s scale, as in the paper’s first script, which its "
    "authors later retracted as an error."
)


def build(run: RunDirectory) -> Section:
    """KL to the final distribution and entropy of the lens at x_0 … x_L, with counts of neurons if available."""
    table = read_table(run, NAME, LENS_TABLE)
    by_metric = {metric: series(table, metric) for metric in (KL, ENTROPY, AGREEMENT)}
    fitted = _fitted(run)
    x = XAxis(title="depth l of x_l", last=max(by_metric[KL], default=1))
    own = OWN if not fitted else _named(run)

    def panel(metric: Metric) -> Panel:
        curves = [Curve(look=own, values=by_metric[metric], call="x_{}")]
        for name, values in fitted.items():
            curves.append(Curve(look=FITTED[name], values=values[metric], call=f"{name}, x_{{}}"))
        return lines(f"{NAME}-{metric.name}", metric.title, metric, curves, x, log=metric is KL)

    panels = [panel(KL), panel(ENTROPY)]
    panels[0] = _without_the_end(panels[0], *(values[KL] for values in (by_metric, *fitted.values())))
    legend = [own, *(FITTED[name] for name in fitted)] if fitted else []
    if counted := _neurons_beside(run, x):
        panels.append(counted)
        legend += [NEURONS["prediction"], NEURONS["suppression"]]
    else:
        panels.append(panel(AGREEMENT))
    return Section(
        panels=panels,
        sentences=[
            *_sentences(by_metric[KL], by_metric[AGREEMENT], by_metric[ENTROPY]),
            *(said for name, values in fitted.items() for said in _fitted_sentences(name, by_metric[KL], values)),
        ],
        notes=[
            "x_l is the residual stream before layer l, and after the last layer for l = L.",
            *protocol_note(run, NAME, LAD2024),
        ],
        definitions=(KL, ENTROPY, AGREEMENT, *([GAIN] if fitted else [])),
        legend=legend,
        log_note="At x_L the lens is the model’s own head: KL is 0 there up to rounding, so not shown on the logarithmic axis.",
    )


def _fitted(run: RunDirectory) -> dict[str, dict[Metric, Series]]:
    """The values of the fitted lenses that were measured, by the lens's name."""
    tables = {name: read_table(run, table, LENS_TABLE) for name, table in TABLE_OF.items() if table in run.tables()}
    metrics = (KL, ENTROPY, AGREEMENT, GAIN)  # runs of earlier versions have no gain
    return {name: {metric: series(table, metric) for metric in metrics} for name, table in tables.items()}


def _named(run: RunDirectory) -> Look:
    """The look of the lens without training, next to a fitted one: under the name of its kind."""
    name = str(run.settings.of(NAME).get("lens", "logit")).split(",")[0]
    kind = LENSES.get(name)  # a lens that a reader of the run need not have registered
    return replace(OWN, title=kind.title if kind else name, definition=kind.definition if kind else OWN.definition)


def _fitted_sentences(name: str, kl: Series, values: Mapping[Metric, Series]) -> list[str]:
    fitted, gain = values[KL], values[GAIN]
    both = [depth for depth in fitted if depth in kl and depth < max(kl)]
    if not both or max(both) < 1:
        return []
    middle, lens = max(both) // 2 + 1, LENSES[name].called
    said = (
        f"At x_{middle} KL is {spoken(fitted[middle], KL)} under the {lens}, {spoken(kl[middle], KL)} without its map"
    )
    if middle in gain:
        said += f", a gain of {spoken(gain[middle], GAIN)} bits"
    return [f"{said}: {MEANING[name]}"]


def _without_the_end(panel: Panel, *curves: Series) -> Panel:
    """Exclude x_L from the y range: its KL is 0 up to rounding, which would add many empty decades."""
    seen = [end for kl in curves for depth, value in kl.items() if depth < max(kl) for end in ends(value) if end > 0]
    if not seen:
        return panel
    low, high = math.log10(min(seen)), math.log10(max(seen))
    room = 0.06 * (high - low or 1.0)
    step = "1-2-5" if high - low < WIDE else 1.0
    return with_y(panel, step=step, range=(10 ** (low - room), 10 ** (high + room)))


def _neurons_beside(run: RunDirectory, x: XAxis) -> Panel | None:
    """Prediction and suppression neurons by layer on the lens's x axis, as in the paper."""
    if neurons.COUNTS not in run.tables():
        return None
    return neurons.count_panel(run, f"{NAME}-neurons", ("prediction", "suppression"), x, "Neurons in layer l")


def _sentences(kl: Series, agreement: Series, entropy: Series) -> list[str]:
    if len(kl) < 3:
        return []
    last = max(kl)
    middle = (last + 1) // 2
    said = [
        f"KL to the final distribution is {spoken(kl[0], KL)} before the first layer, {spoken(kl[middle], KL)} at x_{middle} "
        f"and {spoken(kl[last - 1], KL)} before the last layer."
    ]
    kept = [depth for depth in agreement if all(ends(agreement[d])[0] > 0.5 for d in agreement if d >= depth)]
    if kept and kept[0] < last:
        said.append(
            f"From x_{kept[0]} on, the lens’s most likely token is the model’s own at more than half of positions: "
            f"{spoken(agreement[kept[0]], AGREEMENT)} there."
        )
    high, low = (best(entropy, key=lambda depth: entropy[depth].mean) for best in (max, min))
    said.append(
        f"The lens’s entropy is lowest at x_{low}, {spoken(entropy[low], ENTROPY)}, and highest at x_{high}, "
        f"{spoken(entropy[high], ENTROPY)}; at the end it is the model’s own, {spoken(entropy[last], ENTROPY)}."
    )
    return said


KIND = Kind(
    name=NAME,
    title="Logit lens: the prediction by depth",
    source="Lad et al. 2024, figures 6 and 8",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="when KL begins to fall steadily, and whether entropy falls with it: a long plateau and a late fall mean "
    "that predictions form late; entropy that rises at the very end means that the last layers flatten them.",
    more_tables=TABLES,
)
