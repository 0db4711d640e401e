"""Alternatives that run in an environment of their own: made once under build/peers, then a process that answers lines."""

import json
import subprocess
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.hooks import scaled
from benchmarks.speed.ours import drawn_pairs
from benchmarks.speed.rounds import Seconds
from benchmarks.speed.shapes import SPREAD, Shape

PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(__file__).parents[2] / "build" / "peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """A script of `peers` and the environment it runs in."""

    script: str
    environment: str
    dtype: str | None = None
    """The dtype it always runs in; by default that of the comparison."""


SCRIPTS = {
    "authors' loop": Peer("authors_loop.py", "transformer-lens"),
    "authors' loop in float32": Peer("authors_loop.py", "transformer-lens", "float32"),
    "nnsight": Peer("nnsight_loop.py", "nnsight"),
}


def peers_for(alternatives: Sequence[str], dtype: str) -> list[str]:
    """Those of the alternatives that are peers, without one that would be there twice."""
    return [name for name in alternatives if name in SCRIPTS and SCRIPTS[name].dtype != dtype]


class Unavailable(Exception):  # noqa: N818 - the table says it, nothing is broken
    """This alternative cannot run this model here; the message says why."""


def python_of(environment: str, tell: Callable[[str], None] = lambda line: None) -> Path:
    """The interpreter of an environment, which is made when it is missing or its requirements have changed.

    Raises Unavailable where the packages cannot be installed.
    """
    folder, wanted = ENVIRONMENTS / environment, (PEERS / f"{environment}.txt").read_text()
    installed = folder / "installed.txt"
    python = folder / "bin" / "python"
    if not (installed.exists() and installed.read_text() == wanted):
        tell(f"  installing {environment}")
        venv.create(folder, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", "--requirement", PEERS / f"{environment}.txt"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{environment} could not be installed: {_last_line(done.stderr)}")
        installed.write_text(wanted)
    return python


class Worker:
    """An alternative in a process of its own. Raises Unavailable where it cannot load the model."""

    def __init__(self, name: str, shape: Shape, dtype: str, sweeps: Mapping[str, Sequence[str]], python: Path) -> None:
        self.name, self.shape, self.sweeps = name, shape, sweeps
        self.kinds = list(dict.fromkeys(kind for kinds in sweeps.values() for kind in kinds))
        peer = SCRIPTS[name]
        self.log = (ENVIRONMENTS / f"{peer.environment}-{peer.dtype or dtype}.log").open("w")
        script = PEERS / peer.script
        self.kl: dict[tuple[str, int], float] = {}
        """Mean KL of each pair that was timed."""
        self.process = subprocess.Popen(
            [python, script, json.dumps(specification(shape, peer.dtype or dtype))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self._answer()

    def warm(self) -> None:
        """One pair of the first kind."""
        self._ask("baseline")
        self._ask(self.kinds[0], 0)

    def repetition(self, number: int) -> Seconds:
        """The baseline, where there is one, and one pair of each kind, scaled to each sweep."""
        base = self._ask("baseline")
        spent = {kind: self._ask(kind, layer) for kind, layer in drawn_pairs(self.kinds, self.shape.layers, number)}
        return scaled(base, spent, self.sweeps, self.shape.layers)

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()
        self.process.wait()
        self.log.close()

    def _ask(self, kind: str, layer: int = 0) -> float:
        assert self.process.stdin
        print(json.dumps({"kind": kind, "layer": layer}), file=self.process.stdin, flush=True)
        answer = self._answer()
        if answer["kl"] is not None:
            self.kl[kind, layer] = answer["kl"]
        return float(answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}
        if "error" in answer:
            self.close()
            raise Unavailable(_last_line(answer["error"]))
        return answer


def specification(shape: Shape, dtype: str) -> dict[str, Any]:
    """What a worker needs to know."""
    return {
        "family": shape.family,
        "config": shape.config(),
        "lens_config": shape.lens_config(),
        "spread": SPREAD,
        "dtype": dtype,
        "vocabulary": shape.vocabulary,
        "windows": shape.windows,
        "length": shape.length,
    }


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:200]
