"""The sweep, the lens and maps by class of the predicted token: a small panel for each classing, a line for each class."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import polars as pl

from depthscope.edit_registry import title_of
from depthscope.errors import RunError
from depthscope.report.charts import Curve, XAxis, heat, layers, lines, with_y
from depthscope.report.measured import Series, Value, interval, number, read_table, series
from depthscope.report.palette import DROP as DROP_LOOK
from depthscope.report.palette import class_looks
from depthscope.report.panels import Heat, Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units, ends
from depthscope.run.store import RunDirectory
from depthscope.schema import layer_maps
from depthscope.schema.class_tables import (
    HIGHEST,
    KL_RATIO,
    LENS_CLASS_LAYERS_TABLE,
    LENS_CLASSES_TABLE,
    LOWEST,
    MAP_CLASSES_TABLE,
    SWEEP_CLASS_LAYERS_TABLE,
    SWEEP_CLASSES_TABLE,
)
from depthscope.schema.lens import AGREEMENT
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import BASELINE_EDIT
from depthscope.schema.token_classes import CLASSES, CLASSINGS, Classing, TokenClass

SWEEP, LENS, MAP = "sweep_classes", "lens_classes", "map_classes"
LAYERS_OF = {SWEEP: "sweep_class_layers", LENS: "lens_class_layers"}
DROP = "drop"
"""The edit of the sweep's figure; without it, the table's first."""
MAPPED = (("word_place", "begins"), ("word_place", "continues"), ("repeated", "new"), ("repeated", "3-gram"))
"""The classes with a heat map: a map has too many cells for all of them."""
MAP_END = 0.9
"""The share of cells within the colour scale, as in the maps of all tokens."""
ABOVE_ALL = Metric(
    "above_all",
    "share",
    "KL above that of all tokens",
    "how much larger the mean KL over the tokens of the class is than that over all tokens (kl_ratio − 1); below 0, smaller",
    -1.0,
)
WIDE = 5
"""The ratio of the ends of an axis beyond which its labels at every step would overlap."""
NAMED = 3
"""Classes in a sentence."""
HEAD = ("predictions", "highest ratio", "lowest ratio")
Picked = dict[tuple[str, str], dict[str, tuple[int, Value]]]
"""By (classing, class) and extreme: the layer, and its ratio with the interval of all ratios at once."""


def build_sweep(run: RunDirectory) -> Section:
    """The ratio of a class's KL to that of all tokens by dropped layer, and the layers at which it is extreme."""
    table = read_table(run, SWEEP, SWEEP_CLASSES_TABLE).filter(pl.col("edit") != BASELINE_EDIT)
    if table.is_empty():
        raise RunError(f"the {SWEEP} table of {run.path} has no edits: expected at least one")
    edit = DROP if DROP in set(table["edit"]) else str(table["edit"][0])
    depth = max(int(table["layer"].max() or 0) + 1, run.manifest.model.layers or 1)  # type: ignore[arg-type]
    panels = _panels(table.filter(edit=edit), SWEEP, KL_RATIO, layers(depth), f"{edit}({{}})")
    picked, cells = _picked(run.table(LAYERS_OF[SWEEP]).filter(edit=edit), SWEEP_CLASS_LAYERS_TABLE)
    return Section(
        panels=panels,
        sentences=[
            *_sentences(picked, "layer {}", ("depend more on a layer than others do", "depend less on one")),
            _varying(picked, "on some layers more than on others, relative to all tokens"),
        ],
        notes=[
            f"{title_of(edit)}, over {_units(run, table)}; other edits are in the table. 1 is the KL over all tokens.",
            ABOUT_CLASSES,
        ],
        missing=_missing(run, table),
        tables=_extremes(picked, cells, "layer {}"),
        definitions=[KL_RATIO, *_defined(table)],
    )


def build_lens(run: RunDirectory) -> Section:
    """Agreement of the lens with the model by depth on each class, and the depths of extreme KL relative to all tokens."""
    table = read_table(run, LENS, LENS_CLASSES_TABLE)
    x = XAxis(title="depth l of x_l", last=max(int(table["layer"].max() or 0), 1))  # type: ignore[arg-type]
    picked, cells = _picked(run.table(LAYERS_OF[LENS]), LENS_CLASS_LAYERS_TABLE)
    further = "are further from the final distribution under the lens than others are"
    return Section(
        panels=_panels(table, LENS, AGREEMENT, x, "x_{}"),
        sentences=_sentences(picked, "x_{}", (further, "are closer to it")),
        notes=[
            f"Top-1 agreement of the lens without training with the model’s own prediction, over {_units(run, table)}.",
            ABOUT_CLASSES,
        ],
        missing=_missing(run, table),
        tables=_extremes(picked, cells, "x_{}"),
        definitions=[AGREEMENT, KL_RATIO, *_defined(table)],
    )


def build_map(run: RunDirectory) -> Section:
    """Heat maps of how far the KL of a few classes is above that of all tokens, on the first map."""
    table = read_table(run, MAP, MAP_CLASSES_TABLE).filter(pl.col("kind").is_in([*layer_maps.KINDS]))
    if table.is_empty():
        raise RunError(f"the {MAP} table of {run.path} has no maps: expected at least one")
    kind = layer_maps.KINDS[str(table["kind"][0])]
    depth = max(int(table["other"].max() or 0) + 1, run.manifest.model.layers or 1)  # type: ignore[arg-type]
    return Section(
        panels=_map_panels(table, kind, depth),
        notes=[
            f"{kind.title}, over {_units(run, table)}: the KL of these predictions above that of all tokens. Colours end at "
            f"the value that {MAP_END:.0%} of the cells shown do not exceed. Intervals, shown on hover, are those of one "
            "cell. All classes and maps are in the table.",
            ABOUT_CLASSES,
        ],
        missing=_missing(run, table),
        definitions=[ABOVE_ALL, KL_RATIO, *_defined(table)],
        across=2,
    )


ABOUT_CLASSES = "The class is that of the token that is predicted. Rare classes have wide intervals."


def _panels(table: pl.DataFrame, name: str, metric: Metric, x: XAxis, call: str) -> list[Panel]:
    """A panel for each classing in the table."""
    panels = []
    for classing in CLASSINGS.values():
        looks = class_looks(classing)
        curves = [
            Curve(look=looks[one.name], values=values, call=f"{one.title}, {call}")
            for one in classing.classes
            if (values := _drawn(table, metric, classing.name, one.name))
        ]
        if curves:
            ratio = metric is KL_RATIO
            panel = lines(
                f"{name}-{classing.name}",
                classing.title,
                metric,
                curves,
                x,
                log=ratio,
                levels=((1.0, ""),) if ratio else (),
                unit="ratio" if ratio else "%",
            )
            seen = [end for curve in curves for value in curve.values.values() for end in ends(value) if end > 0]
            if ratio and seen and max(seen) > WIDE * min(seen):
                panel = with_y(panel, step="1-2-5")
            panels.append(replace(panel, key=tuple(curve.look for curve in curves)))
    return panels


def _drawn(table: pl.DataFrame, metric: Metric, classing: str, name: str) -> Series:
    """A class's values; none for a class in one document if others are in several: a line without intervals would mislead."""
    if name in _in_one_document(table, classing):
        return {}
    return series(table, metric, classing=classing, token_class=name)


def _in_one_document(table: pl.DataFrame, classing: str) -> list[str]:
    rows = table.filter(classing=classing)
    if rows["documents"].max() == 1:
        return []
    return rows.filter(pl.col("documents") == 1)["token_class"].unique(maintain_order=True).to_list()


def _above_all(rows: pl.DataFrame) -> dict[tuple[int, int], Value]:
    """Values of ABOVE_ALL by (later layer, earlier layer): ratios less 1."""
    there = rows.filter(
        pl.col("metric") == KL_RATIO.name, pl.col("mean").is_finite(), pl.col("layer") <= pl.col("other")
    )
    columns = there.select("other", "layer", *(pl.col(one) - 1 for one in ("mean", "ci_low", "ci_high")))
    return {(other, layer): Value(*value) for other, layer, *value in columns.iter_rows()}


def _map_panels(table: pl.DataFrame, kind: layer_maps.MapKind, depth: int) -> list[Panel]:
    """A heat map for each of MAPPED, all on one scale."""
    cells = {
        (classing, name): _above_all(table.filter(kind=kind.name, classing=classing, token_class=name))
        for classing, name in MAPPED
    }
    sizes = [abs(value.mean) for values in cells.values() for value in values.values()]
    end = float(np.quantile(sizes, MAP_END)) if sizes else 0.0
    axes = ("later layer", "earlier layer") if kind.pair else ("last layer", "first layer")
    panels = []
    for key in (key for key in MAPPED if cells[key]):
        title = CLASSES[key].title.capitalize()
        panel = heat(f"{MAP}-{'-'.join(key)}", title, ABOVE_ALL, cells[key], (depth, depth), axes, DROP_LOOK, 340)
        (mark,) = panel.marks
        assert isinstance(mark, Heat)
        panels.append(replace(panel, marks=(replace(mark, end=end or None),)))
    return panels


def _picked(table: pl.DataFrame, columns: Iterable[str]) -> tuple[Picked, int]:
    """The extreme layers of each known class, and how many ratios the intervals cover."""
    if any(column not in table.columns for column in columns):
        return {}, 0
    found: Picked = {}
    for one in table.filter(pl.col("mean").is_finite()).iter_rows(named=True):
        if (key := (one["classing"], one["token_class"])) in CLASSES and one["extreme"] in (HIGHEST, LOWEST):
            value = Value(one["mean"], one["ci_low"], one["ci_high"])
            found.setdefault(key, {})[one["extreme"]] = one["layer"], value
    return found, int(table["cells"].max() or 0) if len(table) else 0  # type: ignore[arg-type]


def _sentences(picked: Picked, where: str, said: tuple[str, str]) -> list[str]:
    """The classes whose ratio is shown to be above 1 somewhere, the surest first, and those below."""
    sides = (
        (HIGHEST, said[0], lambda value: value.low > 1, lambda value: -value.low),
        (LOWEST, said[1], lambda value: value.high < 1, lambda value: value.high),
    )
    sentences = []
    for extreme, what, beyond, order in sides:
        shown = [(key, *one[extreme]) for key, one in picked.items() if extreme in one and one[extreme][1].has_interval]
        shown = sorted((one for one in shown if beyond(one[2])), key=lambda one: order(one[2]))
        if shown:
            of = [
                f"{CLASSES[key].title} at {where.format(layer)}, {_ratio(value)}" for key, layer, value in shown[:NAMED]
            ]
            more = f"; {len(shown) - NAMED} more in the table below" if len(shown) > NAMED else ""
            sentences.append(f"Predictions that {what} (KL relative to all tokens): {'; '.join(of)}{more}.")
    if not sentences and any(value.has_interval for one in picked.values() for _, value in one.values()):
        sentences.append("For no class of predictions is the KL shown to differ from that of all tokens.")
    return sentences


def _varying(picked: Picked, what: str) -> str:
    """How many classes have a highest layer whose interval lies above that of their lowest."""
    both = [one for one in picked.values() if len(one) == 2 and all(value.has_interval for _, value in one.values())]
    apart = [one for one in both if (one[HIGHEST][1].low or 0) > (one[LOWEST][1].high or np.inf)]
    return f"{len(apart)} of {len(both)} classes are shown to depend {what}." if both else ""


def _extremes(picked: Picked, cells: int, where: str) -> list[TextTable]:
    """The extremes of every class as text."""
    rows = [
        (
            f"{CLASSINGS[classing].title}: {CLASSES[classing, name].title}",
            *(
                f"{where.format(one[extreme][0])}: {_ratio(one[extreme][1])}" if extreme in one else "–"
                for extreme in (HIGHEST, LOWEST)
            ),
        )
        for (classing, name), one in picked.items()
    ]
    title = f"Where the KL relative to all tokens is highest and lowest (intervals of {cells:,} ratios at once)"
    return [TextTable(title=title, head=HEAD, rows=rows, words=True)] if rows else []


def class_rows(table: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of HEAD for the terminal: of a sweep, its drops."""
    if "edit" in table.columns:
        there = set(table["edit"])
        table = table.filter(pl.col("edit") == (DROP if DROP in there else next(iter(sorted(there)), DROP)))
    picked, cells = _picked(table, LENS_CLASS_LAYERS_TABLE)
    return [tuple(row) for one in _extremes(picked, cells, "{}") for row in one.rows]  # type: ignore[arg-type]


def _ratio(value: Value) -> str:
    return number(value.mean, KL_RATIO) + (f" ({interval(value, KL_RATIO)})" if value.has_interval else "")


def _units(run: RunDirectory, table: pl.DataFrame) -> str:
    return counted_units(run.manifest.text, int(table["documents"].max() or 0))  # type: ignore[arg-type]


def _missing(run: RunDirectory, table: pl.DataFrame) -> list[str]:
    """Classings that the table lacks, with the reason if the run has one."""
    there = set(table["classing"])
    lacking = [
        f"{classing.title}: {run.manifest.not_done.get(name, 'not in the table')}."
        for name, classing in CLASSINGS.items()
        if name not in there
    ]
    single = [
        CLASSES[name, one].title
        for name in CLASSINGS
        for one in _in_one_document(table, name)
        if (name, one) in CLASSES
    ]
    return [*lacking, f"In one document only, so not drawn: {', '.join(single)}."] if single else lacking


def _defined(table: pl.DataFrame) -> Iterator[Classing | TokenClass]:
    there = set(table["classing"])
    for name, classing in CLASSINGS.items():
        if name in there:
            yield classing
            if not classing.ordered or name == "repeated":
                yield from classing.classes


def _kind(name: str, title: str, build: Callable[[RunDirectory], Section], look_for: str) -> Kind:
    more = (LAYERS_OF[name],) if name in LAYERS_OF else ()
    return Kind(
        name=name,
        title=title,
        source="frequency bands: Gupta et al. 2025",
        experiment=name,
        file=f"tables/{name}.parquet",
        build=build,
        look_for=look_for,
        more_tables=more,
    )


KINDS = (
    _kind(
        SWEEP,
        "Which predictions need which layers",
        build_sweep,
        "lines that are not level: a class above 1 in a few layers only is what these layers are for. A class that is above or "
        "below 1 everywhere is easier or harder to disturb in general.",
    ),
    _kind(
        LENS,
        "Which predictions are formed at which depth",
        build_lens,
        "classes whose lines rise early, long before the last layers, and classes that rise only at the end.",
    ),
    _kind(
        MAP,
        "Which predictions need which ranges of layers",
        build_map,
        "coloured areas: ranges of layers that these predictions need more than others do; grey ones: less.",
    ),
)
