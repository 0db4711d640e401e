"""Timing two checkpoints in turns, each in a process of its own: what a cut brings.

Both processes load their checkpoint and wait. One round of each is not counted: it allocates memory and fills caches. Then
they generate in turns, never at the same time, so that whatever else slows the machine slows both. In each round
transformers' own `generate` reads a prompt in one pass (prefill) and then makes one token a pass from its key/value cache
(decoding); the clock is read when it hands out the prompt, the first new token and the last. Prompts are random tokens of the
vocabulary. The peak of memory is that of the process from the first counted round on: Python and torch are in it, loading is
not.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from depthscope.errors import DepthscopeError, ModelError
from depthscope.models.model import Model
from depthscope.schema.speed import Speed, Timed

ROUNDS, PROMPT, NEW, BATCH = 7, 128, 64, 1
LEAST = {"prompt": 1, "new": 2, "batch": 1, "rounds": 1}
MOST = 1_000_000
"""Tokens, sequences or rounds."""

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What is generated, and how often. Raises DepthscopeError for lengths that cannot be timed."""

    prompt: int = PROMPT
    new: int = NEW
    batch: int = BATCH
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
                raise DepthscopeError(f"{name} is {value!r}: expected a whole number from {least} to {MOST:,}")

    def check(self, model: Model) -> None:
        """Raise DepthscopeError where prompt and new tokens do not fit into the model's context."""
        if model.context is not None and self.prompt + self.new > model.context:
            raise DepthscopeError(
                f"{self.prompt} prompt tokens and {self.new} new ones are more than the context of {model.name}, "
                f"{model.context}: expected fewer"
            )


def fitting(model: Model) -> Lengths:
    """The usual lengths, shorter where the model's context is."""
    if model.context is None or model.context >= PROMPT + NEW:
        return Lengths()
    new = max(2, model.context // 3)
    return Lengths(prompt=max(1, model.context - new), new=new)


def time_checkpoints(
    model: Model, after: str, lengths: Lengths | None = None, *, threads: int | None = None, tell: Tell | None = None
) -> Speed:
    """Time `model` and the checkpoint in the folder `after` in turns, both in the model's dtype and on its device.

    `lengths`: by default 128 prompt tokens and 64 new ones, or as many as the context allows. Raises ModelError for a model
    that was handed in, which no other process can load, and DepthscopeError where generation fails.
    """
    if model.folder is None:
        raise ModelError(
            f"{model.name} was handed in as an object, so it cannot be timed in a process of its own: save it and give the "
            "folder"
        )
    lengths = lengths or fitting(model)
    lengths.check(model)
    asked = {
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": threads or torch.get_num_threads(),
        "prompt": lengths.prompt,
        "new": lengths.new,
        "batch": lengths.batch,
    }
    sources = [(model.name, model.revision), (after, None)]
    rounds: list[list[dict[str, Any]]] = [[], []]
    (name, revision), (cut, none) = sources
    with _worker(name, revision, asked) as first, _worker(cut, none, asked) as second:
        workers = (first, second)
        started = [worker.started() for worker in workers]
        for number in range(-1, lengths.rounds):
            for worker, seen in zip(workers, rounds, strict=True):
                given = worker.ask({"first": number == 0})
                if number >= 0:
                    seen.append(given)
            if tell is not None:
                tell("timing", number + 1, lengths.rounds)
        peaks = [worker.ask({"end": True})["peak"] for worker in workers]
    before, cut = (
        Timed(
            name=name,
            prefill=tuple(one["prefill"] for one in seen),
            decode=tuple(one["decode"] for one in seen),
            weights=begun["weights"],
            peak=peak,
        )
        for (name, _), seen, begun, peak in zip(sources, rounds, started, peaks, strict=True)
    )
    return Speed(
        before=before,
        after=cut,
        prompt=lengths.prompt,
        new=lengths.new,
        batch=lengths.batch,
        threads=asked["threads"],
        dtype=asked["dtype"],
        device=asked["device"],
        machine=_machine(model.device),
    )


class _Worker:
    """A process that was started, and the lines that go to and fro."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        self.name, self.process = name, process

    def started(self) -> dict[str, Any]:
        """The answer to what was asked when the process was started."""
        return self._answer()

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises DepthscopeError where there is none."""
        self.send(asked)
        return self._answer()

    def send(self, asked: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise DepthscopeError(f"timing {self.name} failed: its process has ended") from error

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            why = (
                f"it was ended by signal {-status}; the memory may be too small"
                if status < 0
                else f"it ended with status {status}"
            )
            raise DepthscopeError(f"timing {self.name} failed: {why}")
        given = json.loads(line)
        if "error" in given:
            raise DepthscopeError(f"timing {self.name} failed: {given['error']}")
        return given


@contextmanager
def _worker(source: str, revision: str | None, asked: dict[str, Any]) -> Iterator[_Worker]:
    process = subprocess.Popen(
        [sys.executable, "-m", "depthscope.exports.speed_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": str(asked["threads"])},
    )
    try:
        worker = _Worker(source, process)
        worker.send({**asked, "source": source, "revision": revision})
        yield worker
    finally:
        process.kill()
        process.communicate()


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPUs, {platform.machine()}"
