"""Are random probes a cheaper way to fit a Jacobian lens? On bookshelf-gpt2, at equal seconds.

    OMP_NUM_THREADS=1 python benchmarks/jacobian_probes.py [--windows 96] [--budgets 30 120 480] [--repeats 20]

One backward pass gives u^T J_w, for any direction u of the last stream and one window w. Ways to spend passes:

    exact        all d coordinates of a window, then the next window
    coordinates  r coordinates a window, in turn; the mean of a row is over the windows that have it
    rotated      the same in a basis drawn at random
    rademacher   u u^T J_w averaged over r vectors of independent signs a window: E[u u^T] = 1, so unbiased

The exact Jacobians of all windows are computed once; every way reads from them what its passes would have given. The mean over
all windows is the truth, and windows are drawn from them with replacement. A way's seconds are those of a forward pass and r
backward passes, measured here, so that fewer passes a window pay for more forward passes. Prints the relative error
|J - truth| / |truth| in the Frobenius norm, averaged over depths, and held-out KL averaged over depths: medians over repeats.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.data.corpus import Corpus
from depthscope.engine.stream_jacobians import stream_jacobians
from depthscope.experiments.lens_text import LensText, lens_text
from depthscope.experiments.tune_lens import HeldOut
from depthscope.models.load import load
from depthscope.models.model import Model

MODEL, LENGTH, SKIP = "bookshelf-gpt2", 64, 16

Pool = Float[Tensor, "windows depth d_model d_model"]
Lens = Float[Tensor, "depth d_model d_model"]


def pool_of(model: Model, text: LensText, windows: int) -> tuple[Pool, float]:
    """Exact Jacobians of windows of the text, in a drawn order, and the seconds of one."""
    order = np.random.default_rng(0).permutation(len(text.training))[:windows]
    begun = time.perf_counter()
    found = [
        stream_jacobians(model, text.training.take(order[place : place + 1]).batch()[0], SKIP).float()
        for place in range(len(order))
    ]
    return torch.stack(found), (time.perf_counter() - begun) / len(found)


def seconds_of(model: Model, text: LensText, choices: tuple[int, ...], rounds: int = 7) -> dict[int, float]:
    """Of one window by its backward passes, copies of it at once as in a fit: medians of rounds in which each has its turn."""
    ids = text.training.part(0, 1).batch()[0]
    taken: dict[int, list[float]] = {passes: [] for passes in choices}
    for _ in range(rounds):
        for passes in choices:
            begun = time.perf_counter()
            stream_jacobians(model, ids, SKIP, coordinates=range(passes))
            taken[passes].append(time.perf_counter() - begun)
    return {passes: statistics.median(times) for passes, times in taken.items()}


def exact(pool: Pool, drawn: Tensor, passes: int, generator: torch.Generator) -> Lens:
    """The mean of whole Jacobians."""
    return pool[drawn].mean(0)


def coordinates(pool: Pool, drawn: Tensor, passes: int, generator: torch.Generator) -> Lens:
    """Each row's mean over the windows that have it; every `width / passes` windows have all rows once."""
    width = pool.shape[-1]
    sums, counts = torch.zeros_like(pool[0]), torch.zeros(width)
    parts = torch.randperm(width, generator=generator).split(passes)
    for place, window in enumerate(drawn.tolist()):
        rows = parts[place % len(parts)]
        sums[:, rows] += pool[window][:, rows]
        counts[rows] += 1
    return sums / counts.clamp(min=1)[:, None]


def rotated(pool: Pool, drawn: Tensor, passes: int, generator: torch.Generator) -> Lens:
    """The same in an orthonormal basis drawn at random."""
    width = pool.shape[-1]
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    sums, counts = torch.zeros_like(pool[0]), torch.zeros(width)
    parts = torch.arange(width).split(passes)
    for place, window in enumerate(drawn.tolist()):
        rows = parts[place % len(parts)]
        sums[:, rows] += basis[rows] @ pool[window]
        counts[rows] += 1
    return basis.T @ (sums / counts.clamp(min=1)[:, None])


def rademacher(pool: Pool, drawn: Tensor, passes: int, generator: torch.Generator) -> Lens:
    """The mean of u u^T J_w."""
    width, total = pool.shape[-1], torch.zeros_like(pool[0])
    for window in drawn.tolist():
        signs = torch.randint(2, (passes, width), generator=generator).float().mul_(2).sub_(1)
        total += signs.T @ (signs @ pool[window]) / passes
    return total / len(drawn)


WAYS: dict[str, tuple[Callable[..., Lens], tuple[int, ...]]] = {
    "exact": (exact, (192,)),
    "coordinates": (coordinates, (48, 16)),
    "rotated": (rotated, (48, 16)),
    "rademacher": (rademacher, (192, 48, 16)),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Random probes against exact Jacobians at equal seconds.")
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--budgets", type=float, nargs="+", default=[30, 120, 480])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    model = load(MODEL)
    text = lens_text(Corpus(source="bookshelf", tokens=32_768), model, length=LENGTH, bos="auto")
    pool, each = pool_of(model, text, options.windows)
    truth, held_out = pool.mean(0), HeldOut(model, text.held_out, 0)
    size = truth.flatten(1).norm(dim=1)
    spread = ((pool - truth).flatten(2).norm(dim=2) / size).square().mean(0).sqrt().mean()

    def kl(lens: Lens) -> float:
        return float(held_out.kl_of(lambda depth, stream: stream @ lens[depth].T).mean())

    print(f"{MODEL}, {len(pool)} windows of {LENGTH} tokens, {each:.2f} s each", end="; ")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {date.today()}")
    print(
        f"a window's distance from the mean {spread:.3f} of its norm; held-out KL of the mean {kl(truth):.4f} nats",
        end="",
    )
    print(f", of the logit lens {float(held_out.kl_of(lambda depth, stream: stream).mean()):.4f}")
    spent = seconds_of(model, text, (192, 48, 16))
    print("seconds of a window by passes: " + ", ".join(f"{passes}: {value:.3f}" for passes, value in spent.items()))
    for budget in options.budgets:
        for name, (way, choices) in WAYS.items():
            for passes in choices:
                count = max(1, round(budget / spent[passes]))
                errors, divergences = [], []
                for repeat in range(options.repeats):
                    generator = torch.Generator().manual_seed(repeat)
                    drawn = torch.randint(len(pool), (count,), generator=generator)
                    lens = way(pool, drawn, passes, generator)
                    errors.append(float(((lens - truth).flatten(1).norm(dim=1) / size).mean()))
                    if repeat < 3:
                        divergences.append(kl(lens))
                error, divergence = statistics.median(errors), statistics.median(divergences)
                print(
                    f"{budget:5g} s  {name:12} {passes:4} passes × {count:4} windows  error {error:.3f}  KL {divergence:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
