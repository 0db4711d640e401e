"""One checkpoint in a process of its own, timed on request: `python -m depthscope.exports.speed_worker`.

Reads a JSON object a line from standard input and answers each with one on standard output: first what to load, then `{}` for a
round, then `{"end": true}` for the peak of memory, after which it ends. An error is answered as `{"error": …}`.
"""

import json
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from depthscope.errors import DepthscopeError

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"
"""What Linux is written to make it forget the peak of memory so far (proc(5))."""


class Clock:
    """A streamer that notes when tokens come: transformers hands it the prompt as it begins, then every new token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Tokens, on the host: computing them is over."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Generation is over."""


class Worker:
    """A loaded checkpoint and its prompt."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import torch

        from depthscope.models.load import load

        torch.set_num_threads(asked["threads"])
        self.torch = torch
        self.asked = asked
        loaded = load(
            asked["source"],
            revision=asked["revision"],
            dtype=asked["dtype"],
            device=asked["device"],
            stream="no",
            unused_tensors="ignore",
            verify=False,
        )
        self.hf: Any = loaded.hf
        shape = (asked["batch"], asked["prompt"])
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, loaded.known_tokens, shape, generator=generator).to(loaded.device)

    def started(self) -> dict[str, Any]:
        """What is known before the first round: bytes of the weights, each once."""
        weights = {id(one): one for one in self.hf.parameters()}.values()
        return {"weights": sum(one.numel() * one.dtype.itemsize for one in weights)}

    def forget_peak(self) -> None:
        """Measure the peak of memory from here on, so that loading does not count."""
        if self.hf.device.type == "cuda":
            self.torch.cuda.reset_peak_memory_stats(self.hf.device)
        with suppress(OSError):
            CLEAR_REFS.write_text(RESET_PEAK)

    def round(self) -> dict[str, Any]:
        """Generate once. Rates are tokens per second of the whole batch."""
        clock, new = Clock(), self.asked["new"]
        # Both lengths, so that no end-of-text token ends it early.
        self.hf.generate(
            input_ids=self.ids,
            attention_mask=self.torch.ones_like(self.ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            streamer=clock,
        )
        begin, first, last = clock.times[0], clock.times[1], clock.times[new]
        batch, prompt = self.asked["batch"], self.asked["prompt"]
        return {"prefill": batch * prompt / (first - begin), "decode": batch * (new - 1) / (last - first)}

    def peak(self) -> dict[str, Any]:
        """The peak of memory: of CUDA what torch allocated, otherwise of the whole process."""
        if self.hf.device.type == "cuda":
            return {"peak": self.torch.cuda.max_memory_allocated(self.hf.device)}
        with suppress(OSError, ValueError, StopIteration):
            lines = STATUS.read_text(encoding="ascii").splitlines()
            return {"peak": int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024}
        return {"peak": None}


def main() -> None:
    """Answer requests until told to end."""
    answers = sys.stdout
    worker: Worker | None = None
    with redirect_stdout(sys.stderr):  # whatever libraries print
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                if worker is None:
                    worker = Worker(asked)
                    given = worker.started()
                elif asked.get("end"):
                    given = worker.peak()
                else:
                    if asked.get("first"):
                        worker.forget_peak()
                    given = worker.round()
            except DepthscopeError as error:
                given = {"error": str(error)}
            except Exception as error:  # transformers' generate raises what it likes
                given = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
            answers.write(json.dumps(given) + "\n")
            answers.flush()
            if asked.get("end") or "error" in given:
                return


if __name__ == "__main__":
    main()
