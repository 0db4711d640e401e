"""Guess, then refine: shares of frequency bands among the lens's predictions by depth, and how often they are overturned."""

from collections.abc import Iterator
from dataclasses import replace

import polars as pl

from depthscope.report.charts import Curve, XAxis, lines
from depthscope.report.measured import Series, Value, read_table, series, spoken, with_unit
from depthscope.report.palette import BANDS as LOOKS
from depthscope.report.palette import OWN, Look
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.run.store import RunDirectory
from depthscope.schema.guess_refine import ALL, BANDS, GUESS_REFINE_TABLE, METRICS, NAME, OVERTURNED, SHARE
from depthscope.schema.lens import LENSES
from depthscope.schema.metric import Metric

HEAD = ("lens", "x_l", *BANDS, "overturned")
"""The share of each band, and how often predictions of any are overturned."""


def build(run: RunDirectory) -> Section:
    """Two panels per lens: what its most likely tokens are, and how often the model's prediction is another one."""
    table = read_table(run, NAME, GUESS_REFINE_TABLE)
    lenses = [name for name in table["lens"].unique(maintain_order=True) if name is not None]
    last = int(table["layer"].max() or 0)  # type: ignore[arg-type]
    panels = [
        _panel(table.filter(lens=name), name, metric, last, len(lenses) > 1) for name in lenses for metric in METRICS
    ]
    settings = run.settings.of(NAME)
    counted, distinct = (settings.get(name) for name in ("counted_tokens", "distinct_tokens"))
    about = (
        f"{counted:,} tokens, {distinct:,} different" if isinstance(counted, int) and isinstance(distinct, int) else ""
    )
    return Section(
        panels=[panel for panel in panels if panel.marks],
        sentences=[said for name in lenses for said in _sentences(table.filter(lens=name), name)],
        legend=[*(LOOKS[band] for band in BANDS), _all_bands()],
        notes=[
            f"Bands are ranks of tokens by frequency in the measured source{about and f' ({about})'}; tokens that do not "
            "occur there are in the rest. x_l is the residual stream before layer l."
        ],
        definitions=METRICS,
        across=2,
    )


def _all_bands() -> Look:
    return replace(OWN, title="All tokens", definition="tokens of every band")


def _panel(table: pl.DataFrame, lens: str, metric: Metric, last: int, named: bool) -> Panel:
    looks = {band: LOOKS[band] for band in BANDS} | ({ALL: _all_bands()} if metric is OVERTURNED else {})
    found = {band: series(table, metric, band=band) for band in looks}
    title = f"{metric.title} ({_lens(lens).lower()})" if named else metric.title
    return lines(
        f"{NAME}-{metric.name}-{lens}",
        title,
        metric,
        [
            Curve(look=looks[band], values=values, call=f"{looks[band].title}, x_{{}}")
            for band, values in found.items()
            if values
        ],
        XAxis(title="depth l of x_l", last=last),
    )


def _lens(name: str) -> str:
    return LENSES[name].title if name in LENSES else name


def table_rows(table: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of HEAD, for the terminal."""
    rows = []
    for lens in table["lens"].unique(maintain_order=True):
        of_lens = table.filter(lens=lens)
        columns: list[tuple[Series, Metric]] = [(series(of_lens, SHARE, band=band), SHARE) for band in BANDS]
        columns.append((series(of_lens, OVERTURNED, band=ALL), OVERTURNED))
        rows += [
            (_lens(lens), str(layer), *(_cell(found.get(layer), metric) for found, metric in columns))
            for layer in sorted(columns[0][0])
        ]
    return rows


def _cell(value: Value | None, metric: Metric) -> str:
    return "–" if value is None else with_unit(value, metric)


def _sentences(table: pl.DataFrame, lens: str) -> Iterator[str]:
    shares, overturned = (series(table, metric, band=BANDS[0]) for metric in METRICS)
    rest = series(table, SHARE, band=BANDS[-1])
    if len(shares) < 2:
        return
    last = max(shares)
    called = f"the {_lens(lens).lower()}’s most likely token"
    yield (
        f"At x_1 {called} is one of the ten most frequent ones at {spoken(shares[1], SHARE)} of positions, and of rank above "
        f"1,000 or not in the text at {spoken(rest[1], SHARE)}; of the model’s own predictions these are "
        f"{spoken(shares[last], SHARE)} and {spoken(rest[last], SHARE)}."
    )
    kept = [depth for depth in overturned if depth < last]
    first = next((depth for depth in kept if depth >= 1), None)
    if first is None:
        return
    half = next((depth for depth in kept if depth >= first and overturned[depth].mean < 0.5), None)
    until = f"; that falls below one half at x_{half}" if half is not None and half > first else ""
    yield (
        f"Of its guesses among the ten most frequent tokens at x_{first}, {spoken(overturned[first], OVERTURNED)} are not the "
        f"model’s prediction in the end{until}."
    )


KIND = Kind(
    name=NAME,
    title="Frequent tokens first, then refined",
    source="Gupta et al. 2025",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="whether the ten most frequent tokens are more common among early predictions than among the model’s own (the "
    "right end), and whether most of these guesses are overturned.",
)
