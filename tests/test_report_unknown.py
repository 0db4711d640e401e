"""The page of a run whose numbers are missing, NaN or infinite: written all the same, without them."""

import math

import polars as pl
import pytest
from report_runs import all_tables, make_run

from depthscope.cli.summary import print_summary
from depthscope.report.measured import decimals_for, scientific
from depthscope.report.page import write_page
from depthscope.schema.experiments import EXPERIMENTS

TABLES = all_tables()
UNKNOWN = [None, math.nan, math.inf]


def without(table: pl.DataFrame, value: float | None, rows: str) -> pl.DataFrame:
    """The table with all of its numbers at `value`, in all rows or in every second."""
    numbers = [name for name, kind in table.schema.items() if kind.is_float()]
    there = pl.lit(rows == "all") | (pl.int_range(pl.len()) % 2 == 1)
    changed = [pl.when(there).then(pl.lit(value, dtype=pl.Float64)).otherwise(name).alias(name) for name in numbers]
    return table.with_columns(changed).cast(table.schema)


@pytest.mark.fault("numbers of a table are null, NaN or infinite", "the page and the summary are written without them")
@pytest.mark.parametrize("rows", ["all", "some"])
@pytest.mark.parametrize("name", TABLES)
def test_the_page_of_numbers_that_are_unknown(tmp_path, name, rows, tries):
    for seed in range(tries(1, of=len(UNKNOWN))):
        value = UNKNOWN[(list(TABLES).index(name) + seed) % len(UNKNOWN)]
        run = make_run(tmp_path / str(value), tables={name: without(TABLES[name], value, rows)})
        run.update(noise_floor=value)
        page = write_page(run, tmp_path / "page.html").read_text(encoding="utf-8")
        assert ">nan" not in page.lower()
        print_summary(run, [*EXPERIMENTS])


@pytest.mark.parametrize("value", UNKNOWN)
def test_unknown_numbers_as_text(value):
    assert scientific(value) == "unknown"
    assert decimals_for([math.nan, 0.5]) == decimals_for([0.5])
