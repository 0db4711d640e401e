"""What a run on a card has found, on disk after every line: a stop at any moment keeps what was measured."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.table import machine
from depthscope.engine.sizes import card


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing measured. `bound` is what the value must stay under (or over, where `over`); None where there is no target."""

    what: str
    value: float
    unit: str = ""
    bound: float | None = None
    over: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.bound is None:
            return None
        return self.value >= self.bound if self.over else self.value <= self.bound

    @property
    def target(self) -> str:
        """The bound in words."""
        return "" if self.bound is None else f"{'≥' if self.over else '≤'} {self.bound:.4g} {self.unit}".rstrip()

    @property
    def seen(self) -> str:
        """The value in words."""
        value = f"{self.value:,.0f}" if 1e4 <= abs(self.value) < 1e9 else f"{self.value:.4g}"
        return f"{value} {self.unit}".rstrip() + (f" ({self.note})" if self.note else "")


class Deadline:
    """When a part has to end."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds; negative when it is past."""
        return self._end - time.perf_counter()


Step = Callable[[Deadline], Iterator[Line]]


class Record:
    """The results file: where it ran, and per part its lines, what failed, and what was not reached."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        on_cuda = torch.device(device).type == "cuda"
        self.data |= {
            "card": asdict(card(torch.device(device))) if on_cuda else None,
            "machine": machine(),
            "versions": {
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "transformers": version("transformers"),
            },
            "date": date.today().isoformat(),
        }
        self.data.setdefault("parts", {})
        self.data.setdefault("sizes", [])

    def run(self, name: str, steps: Mapping[str, Step], seconds: float) -> None:
        """Do the steps of a part until its time is over. What raises is recorded, and the next step begins."""
        part: dict[str, Any] = {"lines": [], "failed": {}, "not_reached": list(steps), "seconds": 0.0}
        self.data["parts"][name] = part
        began, deadline = time.perf_counter(), Deadline(seconds)
        for title, step in steps.items():
            if deadline.left <= 0:
                break
            print(f"[{name}] {title}", flush=True)
            try:
                for line in step(deadline):
                    part["lines"].append(asdict(line) | {"met": line.met})
                    print(f"  {line.what}: {line.seen}{_verdict(line)}", flush=True)
                    self.save()
            except Exception as error:  # one broken measurement must not cost the others
                traceback.print_exc()
                part["failed"][title] = f"{type(error).__name__}: {error}"[:400]
            part["not_reached"].remove(title)
            part["seconds"] = round(time.perf_counter() - began, 1)
            self.save()
        for title in part["not_reached"]:
            print(f"[{name}] not reached: {title}", flush=True)
        self.save()

    def save(self) -> None:
        """Write the file; it is whole at any moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.data, indent=1, ensure_ascii=False))
        os.replace(unfinished, self.path)  # noqa: PTH105 - replaces what is there on every system

    def lines(self, part: str) -> list[Line]:
        """The lines of a part."""
        stored = self.data["parts"].get(part, {}).get("lines", [])
        return [Line(**{key: value for key, value in line.items() if key != "met"}) for line in stored]

    def summary(self, parts: list[str]) -> str:
        """The last line: what was met, what was missed, what failed, what was not reached."""
        every = [line for part in parts for line in self.lines(part) if line.met is not None]
        done = [self.data["parts"].get(part) for part in parts]
        failed = [title for part in done if part for title in part["failed"]]
        waiting = [title for part in done if part for title in part["not_reached"]]
        waiting += [part for part, found in zip(parts, done, strict=True) if found is None]
        missed = [f"{line.what} ({line.seen}, target {line.target})" for line in every if not line.met]
        return "; ".join(
            (
                f"met: {sum(bool(line.met) for line in every)} of {len(every)} targets",
                f"missed: {'; '.join(missed) or 'none'}",
                f"failed: {', '.join(failed) or 'none'}",
                f"not reached: {', '.join(waiting) or 'none'}",
            )
        )


def _verdict(line: Line) -> str:
    return "" if line.met is None else f" [{'met' if line.met else 'MISSED'}, target {line.target}]"
