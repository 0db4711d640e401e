"""Everything there is to know of a new card, in eight minutes: is it right, what sizes suit it, how fast is it.

    benchmarks/accelerator.sh                                       all parts, each in a process of its own, on CUDA
    benchmarks/accelerator.sh --device cpu --tiny                   only to see that it runs
    benchmarks/accelerator.sh --skip tuned                          without a part
    python benchmarks/accelerator.py --write RESULTS.json           results into docs/performance.md and the table of cards

Runs from a copy of the repository with torch, transformers, numpy, scipy, scikit-learn, pyarrow, jaxtyping and rich; nothing
needs a network. Results stand in $OUT/accelerator.json (build/accelerator by default) after every line.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402

from benchmarks.card.record import Line, Record  # noqa: E402
from benchmarks.speed.table import PAGE, Fact, fact_table, written_into  # noqa: E402
from depthscope.engine import sizes  # noqa: E402

SECONDS = {"right": 100.0, "tuned": 70.0, "figures": 130.0}
TITLES = {"right": "Right", "tuned": "Tuned", "figures": "Figures"}


def run_part(name: str, options: argparse.Namespace, record: Record) -> None:
    """One part, with the sizes that an earlier part of the same run found best."""
    from benchmarks.card import figures, right, tuned  # they take seconds to import; the last line needs none of them

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if name == "figures" and record.data["card"] and record.data["sizes"]:
        sizes.CARDS = record.path.with_name("cards.json")
        sizes.CARDS.write_text(json.dumps([_entry(record.data)]))
    steps = {
        "right": lambda: right.steps(options),
        "tuned": lambda: tuned.steps(options, record),
        "figures": lambda: figures.steps(options),
    }
    record.run(name, steps[name](), options.seconds or SECONDS[name])


def write(results: Path) -> None:
    """Put the results of a run into docs/performance.md, and what a card was tuned to into the table of cards."""
    data = json.loads(results.read_text())
    PAGE.write_text(written_into(PAGE.read_text(), block(data), "accelerator"))
    if data["card"] and data["sizes"]:
        others = [one for one in json.loads(sizes.CARDS.read_text()) if one["card"]["name"] != data["card"]["name"]]
        sizes.CARDS.write_text(json.dumps([*others, _entry(data)], indent=1) + "\n")


def block(data: dict[str, Any]) -> str:
    """The results as Markdown."""
    where = data["card"]["name"] if data["card"] else "no accelerator"
    versions = ", ".join(f"{name} {value}" for name, value in data["versions"].items() if value)
    parts = [f"{where}; {data['machine']}; {versions}; {data['date']}."]
    for name, part in data["parts"].items():
        lines = [Line(**{key: value for key, value in line.items() if key != "met"}) for line in part["lines"]]
        facts = [Fact(what=line.what, seen=line.seen, target=line.target, met=line.met) for line in lines]
        parts += [f"### {TITLES[name]} ({part['seconds']:.0f} s)", fact_table(facts)]
        parts += [f"Failed: {title} ({why})." for title, why in part["failed"].items()]
        parts += [f"Not reached: {', '.join(part['not_reached'])}."] if part["not_reached"] else []
    return "\n\n".join(parts)


def _entry(data: dict[str, Any]) -> dict[str, Any]:
    return {"card": data["card"], "date": data["date"], "sizes": data["sizes"]}


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Is a card right, what sizes suit it, and how fast is it?")
    add = parser.add_argument
    add("--part", choices=list(SECONDS), help="this part alone; by default all, one after the other in one process")
    add("--skip", nargs="+", default=[], choices=list(SECONDS))
    add("--device", default="cuda")
    add("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"], help="of Tuned and Figures")
    add(
        "--seconds",
        type=float,
        help="for each part; by default " + ", ".join(f"{n} {s:.0f}" for n, s in SECONDS.items()),
    )
    add("--tiny", action="store_true", help="tiny shapes: only to see that it runs")
    add("--summary", action="store_true", help="print the last line of what was run before")
    add(
        "--write",
        type=Path,
        metavar="RESULTS.json",
        help="put these results into the documentation and the table of cards",
    )
    options = parser.parse_args()
    if options.write is None and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --tiny shows that it runs")
    return options


def main() -> None:
    """Run, or write what was run. Exits with 1 where something was found to be wrong."""
    options = parsed()
    if options.write is not None:
        write(options.write)
        return
    record = Record(Path(os.environ.get("OUT", "build/accelerator")) / "accelerator.json", options.device)
    wanted = [name for name in SECONDS if name not in options.skip]
    if not options.summary:
        for name in [options.part] if options.part else wanted:
            if name in wanted:
                run_part(name, options, record)
    if not options.part:
        print(record.summary(wanted), flush=True)
        broken = record.data["parts"].get("right", {"failed": {}})["failed"]
        sys.exit(bool(broken) or any(line.met is False for line in record.lines("right")))


if __name__ == "__main__":
    main()
