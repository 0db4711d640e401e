"""Does the stage finder see stages where there are none, and does it find those that are there?

    python -m benchmarks.stages [--parts nulls power models] [--sets 60] [--tokens 2048] [--write]

`nulls`: simulated signals without stages, at five depths. `power`: planted transitions, with the coverage of their intervals.
`models`: real networks without stages. Each part's results are kept in benchmarks/stages/results.json, from which `--write`
makes the tables of docs/stages.md.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import torch

from benchmarks.speed.table import written_into
from benchmarks.stages import models, simulations
from benchmarks.stages.tables import tables

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs" / "stages.md"
PARTS = ("nulls", "power", "models")


def main() -> None:
    """Measure the parts, and write the page."""
    parser = argparse.ArgumentParser(description="Controls of the stage finder.")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="None with --write: write only.")
    parser.add_argument("--sets", type=int, default=60, help="Simulated sets per cell.")
    parser.add_argument("--tokens", type=int, default=2048, help="Tokens per real network.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="Write the tables into docs/stages.md.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in options.parts:
        results[part] = {"made": f"{date.today()}", "machine": machine(), "cells": measured(part, options)}
        results[part] |= {"tokens": options.tokens} if part == "models" else {"sets": options.sets}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if options.write:
        PAGE.write_text(written_into(PAGE.read_text(), tables(results), "controls"))


def machine() -> str:
    """The machine and the versions that decide the numbers."""
    return f"{platform.machine()}, torch {torch.__version__.split('+')[0]}"


def measured(part: str, options: argparse.Namespace):
    """The cells of a part."""
    if part == "nulls":
        return simulations.nulls(options.sets, workers=options.workers)
    if part == "power":
        return simulations.power(options.sets, workers=options.workers)
    cells = {}
    for name, model in models.networks():
        found, waived = models.found_in(model, options.tokens)
        cells[name] = {
            "layers": found.layers,
            "summary": found.summary,
            "named": [boundary.after for boundary in found.boundaries],
            "named, prediction waived": waived,
        }
        print(name, cells[name], flush=True)
    return cells


if __name__ == "__main__":
    main()
