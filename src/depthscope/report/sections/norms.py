"""How much attention and the MLP write to the residual stream (the paper's figures 5 and 7)."""

from depthscope.report.charts import Curve, layers, lines
from depthscope.report.measured import Series, Value, depth_of, ranked, read_table, series, spoken
from depthscope.report.palette import ATTENTION, MLP, OWN
from depthscope.report.section import Kind, Section
from depthscope.report.wording import compared, layer_list, sentence
from depthscope.run.store import RunDirectory
from depthscope.schema.norms import ATTENTION_NORM, METRICS, MLP_NORM, NORM_RATIO, NORMS_TABLE, RESIDUAL_NORM

NAME = "norms"


def build(run: RunDirectory) -> Section:
    """The ratio of the two norms with a line at 1, both norms, and the norm of the residual stream."""
    table = read_table(run, NAME, NORMS_TABLE)
    ratio, attention, mlp, residual = (series(table, m) for m in (NORM_RATIO, ATTENTION_NORM, MLP_NORM, RESIDUAL_NORM))
    x = layers(depth_of(run.manifest, max(ratio, default=0) + 1))
    writes = [
        Curve(look=ATTENTION, values=attention, call="attention of layer {}"),
        Curve(look=MLP, values=mlp, call="MLP of layer {}"),
    ]
    return Section(
        panels=[
            lines(
                "norms-ratio",
                NORM_RATIO.title,
                NORM_RATIO,
                [Curve(look=OWN, values=ratio, call="layer {}")],
                x,
                levels=[(1.0, "")],
                unit="ratio",
            ),
            lines("norms-writes", "Norms of the outputs", MLP_NORM, writes, x),
            lines(
                "norms-residual",
                "Norm of the residual stream",
                RESIDUAL_NORM,
                [Curve(look=OWN, values=residual, call="before layer {}")],
                x,
            ),
        ],
        legend=(ATTENTION, MLP),
        sentences=_sentences(ratio, mlp, attention),
        definitions=METRICS,
        notes=["At the dotted line, attention and the MLP write outputs of equal norm."],
    )


def _sentences(ratio: Series, mlp: Series, attention: Series) -> list[str]:
    if not ratio:
        return []
    more, less, open_ = compared(ratio, dict.fromkeys(ratio, Value(1.0)))
    said = [
        sentence(
            [
                f"attention writes more than the MLP in {layer_list(more)}" if more else "",
                f"the MLP writes more than attention in {layer_list(less)}" if less else "",
                f"too close to call in {layer_list(open_)}" if open_ else "",
            ]
        ),
        f"Their ratio goes from {spoken(ratio[ranked(ratio)[-1]], NORM_RATIO)} in layer {ranked(ratio)[-1]} to "
        f"{spoken(ratio[ranked(ratio)[0]], NORM_RATIO)} in layer {ranked(ratio)[0]}.",
    ]
    for values, what, metric in ((mlp, "MLP", MLP_NORM), (attention, "attention", ATTENTION_NORM)):
        if values:
            largest = ranked(values)[0]
            said.append(f"The largest {what} output is layer {largest}’s: norm {spoken(values[largest], metric)}.")
    return said


KIND = Kind(
    name=NAME,
    title="How much attention and MLP write",
    source="Lad et al. 2024, figures 5 and 7",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="a ratio that falls below 1 with depth, where the MLP takes over from attention, and an MLP norm that peaks "
    "in the last layers.",
)
