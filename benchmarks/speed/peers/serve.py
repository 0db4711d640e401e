"""The worker's side of the conversation: load once, then one repetition per line of stdin. Only torch."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Sweeper(Protocol):
    """What a worker can be asked for."""

    def baseline(self) -> None:
        """The model's own run on all text, if it is done once."""
        ...

    def pair(self, kind: str, layer: int) -> float:
        """All text with one edit; the mean KL."""
        ...


def serve(make: Callable[[dict[str, Any], torch.Tensor, torch.Tensor], Sweeper]) -> None:
    """Make the sweeper from the specification in the first argument and answer lines of JSON with lines of JSON.

    A line is `{"kind": …, "layer": …}`, or `{"kind": "baseline"}`; the answer
    `{"seconds": …, "kl": …}`, or `{"error": …}`.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    spec = json.loads(sys.argv[1])
    torch.manual_seed(0)
    try:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, spec["vocabulary"], (spec["windows"], spec["length"] + 1), generator=generator)
        sweeper = make(spec, drawn[:, :-1], drawn[:, 1:])
        print(json.dumps({"threads": torch.get_num_threads()}), file=answers)
        for line in sys.stdin:
            asked = json.loads(line)
            start = time.perf_counter()
            kl = None
            if asked["kind"] == "baseline":
                sweeper.baseline()
            else:
                kl = sweeper.pair(asked["kind"], asked["layer"])
            print(json.dumps({"seconds": time.perf_counter() - start, "kl": kl}), file=answers)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {str(error).strip()}"}), file=answers)
        raise
