"""Try every fault and attack many times, and write the table of docs/reliability.md: `make torture`.

    python -m benchmarks.torture [--few] [--write] [-k EXPRESSION]

Runs the tests marked `fault` with `--torture` (`--few`: as `make test` does) and lists what was done, how often, and what had
to follow. Exits with 1 if any failed; nothing is written then.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from xml.etree.ElementTree import Element, parse

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by python -m benchmarks.torture -->", "<!-- end -->"


@dataclass(slots=True)
class Fault:
    """A fault or an attack, over all the cases that try it."""

    what: str
    follows: str
    test: str
    tries: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: int = 0


def faults(cases: Iterable[Element]) -> list[Fault]:
    """The faults that test cases of a JUnit file tried, in order of their tests."""
    found: dict[tuple[str, str], Fault] = {}
    for case in cases:
        own = {one.get("name"): one.get("value", "") for one in case.iter("property")}
        if "fault" not in own:
            continue
        test = f"{case.get('classname', '').removeprefix('tests.')}.{case.get('name', '').partition('[')[0]}"
        fault = found.setdefault((own["fault"], test), Fault(own["fault"], own["follows"], test))
        if case.find("skipped") is not None:
            fault.skipped += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            fault.failed.append(case.get("name", ""))
        else:
            fault.tries += int(own.get("tries", 1))
    return sorted(found.values(), key=lambda fault: fault.test)


def table(found: Sequence[Fault], minutes: float, command: str) -> str:
    """The table in Markdown, with date, machine and the command that makes it."""
    rows = []
    for fault in found:
        skipped = f" ({fault.skipped} skipped)" if fault.skipped else ""
        rows.append(f"| {fault.what} | {fault.tries:,}{skipped} | {fault.follows} | `{fault.test}` |")
    total, failed = sum(fault.tries for fault in found), sum(len(fault.failed) for fault in found)
    return "\n".join(
        [
            f"{total:,} tries, {failed or 'none'} failed. {date.today():%-d %B %Y}, {os.cpu_count()} cores "
            f"({platform.machine()}), Python {platform.python_version()}, {minutes:.0f} minutes: `{command}`.",
            "",
            "| What is done | Tries | What follows | Test |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def main() -> None:
    """Run the tests and write or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    parser.add_argument("--few", action="store_true", help="try each as often as make test does")
    parser.add_argument("-k", default="", help="only the tests that pytest selects with this expression")
    asked = parser.parse_args()
    if asked.write and asked.k:
        parser.error("--write needs all tests: leave -k out")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "fault", f"--junitxml={report}"]
        chosen = [*([] if asked.few else ["--torture"]), *(["-k", asked.k] if asked.k else [])]
        ended = subprocess.run([*command, *chosen], cwd=ROOT, check=False)
        found = faults(parse(report).iter("testcase"))
    command_of = "python -m benchmarks.torture --few" if asked.few else "make torture"
    written = table(found, (time.monotonic() - start) / 60, command_of)
    print(written)
    if ended.returncode:
        print("failed:", *(name for fault in found for name in fault.failed), file=sys.stderr)
        sys.exit(1)
    if asked.write:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
