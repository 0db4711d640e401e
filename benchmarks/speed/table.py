"""The lines of the benchmark, their targets, and the page they are written to."""

import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.speed.rounds import median

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours against one other on one model: tokens through the whole sweep per second, and the ratio round by round."""

    model: str
    dtype: str
    edits: str
    tokens: int
    against: str
    ours: float
    theirs: float
    """0 where it could not run; `note` says why."""
    ratios: tuple[float, ...]
    target: float | None = None
    share: bool = False
    """Whether the ratio is a share of the floor, to be read in per cent."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something measured that has no opponent: `seen` in words, and whether it meets the target if there is one."""

    what: str
    seen: str
    target: str = ""
    met: bool | None = None


def comparison_table(lines: Sequence[Comparison]) -> str:
    """Markdown: a row per model and sweep, a column per alternative."""
    columns = list(dict.fromkeys(line.against for line in lines))
    cells: dict[tuple[str, str], dict[str, Comparison]] = {}
    for line in lines:
        cells.setdefault((line.model, line.edits), {})[line.against] = line
    rows = [
        (model, edits, _number(next(iter(found.values())).ours), *(_ratio(found.get(one)) for one in columns))
        for (model, edits), found in cells.items()
    ]
    return _table(("model", "edits", "ours, tokens/s", *columns), rows, right=(2,))


def fact_table(facts: Sequence[Fact]) -> str:
    """Markdown."""
    return _table(("what", "seen", "target", ""), [(f.what, f.seen, f.target or "–", verdict(f.met)) for f in facts])


def verdict(met: bool | None) -> str:
    """`met`, `missed`, or nothing where there is no target."""
    return "" if met is None else "met" if met else "**missed**"


def met(line: Comparison) -> bool | None:
    """Whether the median ratio is at the target; None without one. What could not run has not met it."""
    if line.target is None:
        return None
    return bool(line.ratios) and median(line.ratios) >= line.target


def _ratio(line: Comparison | None) -> str:
    """Line by line: the median ratio, the lowest and the highest, what it is a share of, and the target, if there is one."""
    if line is None:
        return "–"
    show = _per_cent if line.share else _times
    if line.ratios:
        seen = [show(median(line.ratios))]
        if len(line.ratios) > 1:
            lowest, highest = (show(one).rstrip("×% ") for one in (min(line.ratios), max(line.ratios)))
            seen.append(_unbroken(f"({lowest} – {highest})"))
        if line.note:
            seen.append(_unbroken(f"of {line.note}"))
    else:
        seen = [f"not run: {line.note}"]
    if line.target is not None:
        seen.append(_unbroken(f"≥ {show(line.target)}: {verdict(met(line))}"))
    return "<br>".join(seen)


def _unbroken(text: str) -> str:
    """With spaces at which no line is broken."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:.3g}×" if ratio < 100 else f"{ratio:.0f}×"


def _per_cent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if place in right else "---" for place in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def machine() -> str:
    """What it ran on, without a name: processor, cores used, memory, versions."""
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gibibytes:.0f} GiB memory, "
        f"torch {torch.__version__}"
    )


def machine_block() -> str:
    """The block of the page for this processor: with AVX-512 or without."""
    return "results" if "avx512f" in _features() else "avx2"


def _features() -> list[str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{name}\b", text)]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    features = _features()
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    return f"{name} ({', '.join(features)})" if features else name


def results(comparisons: Sequence[Comparison], facts: Sequence[Fact], said: str) -> str:
    """The block between the markers: where, when and what was run, and both tables."""
    targets = [met(line) for line in comparisons] + [fact.met for fact in facts]
    counted = [one for one in targets if one is not None]
    parts = [said]
    for dtype in dict.fromkeys(line.dtype for line in comparisons):
        lines = [line for line in comparisons if line.dtype == dtype]
        parts += [f"Sweeps in {dtype}:", comparison_table(lines)]
    if facts:
        parts.append(fact_table(facts))
    if counted:
        parts.append(f"{sum(counted)} of {len(counted)} targets met.")
    return "\n\n".join(parts)


def written_into(page: str, block: str, name: str = "results") -> str:
    """The page with what is between the markers of that name replaced. Raises ValueError unless both are there once."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"expected {begin} and then {end}, once each")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"
