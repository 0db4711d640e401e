"""The picture of concepts/estimates.md: the loss of bookshelf-gpt2 by document, and its mean with two intervals.

    python docs/interval_picture.py

Measures the model on the 16,384 tokens of a default study, writes docs/diagrams/estimates.svg and prints the numbers.
"""

from pathlib import Path

import numpy as np

import depthscope as ds
from depthscope.data.windows import make_windows
from depthscope.engine.measure_routes import RouteMeter
from depthscope.statistics.estimate import ClusterMoments

OUT = Path(__file__).parent / "diagrams" / "estimates.svg"
LEFT, PER_NAT, LOWEST = 130, 230, 3.0
STYLE = 'fill="currentColor" font-family="system-ui, sans-serif" font-size="12"'


def main() -> None:
    """Measure, draw, print."""
    model = ds.load("bookshelf-gpt2")
    windows = make_windows(ds.corpus("bookshelf"), model)
    loss = RouteMeter(model, []).measure(*windows.batch()).loss[0].double().numpy()
    groups = [loss[windows.document == document] for document in np.unique(windows.document)]
    over_documents, over_tokens = ClusterMoments(1), ClusterMoments(1)
    for group in groups:
        over_documents.add(group.size, np.array([group.sum()]))
        for token in group.flat:
            over_tokens.add(1, np.array([token]))
    rows = [("over documents", over_documents.estimate(), 4), ("over tokens: too sure", over_tokens.estimate(), 2)]
    words = [(44, "mean loss of each"), (60, f"of {len(groups)} documents")]
    parts = [f'<text x="4" y="{y}" {STYLE}>{said}</text>' for y, said in words]
    for number, group in enumerate(groups):
        y = 22 + number * 37 % 60  # spread, so that dots do not hide each other
        parts.append(f'<circle cx="{_x(group.mean()):.0f}" cy="{y}" r="4" fill="currentColor" fill-opacity="0.4"/>')
    for place, (name, found, width) in enumerate(rows):
        y, low, high, mean = 112 + 30 * place, found.low[0], found.high[0], found.mean[0]
        line = f'x1="{_x(low):.1f}" y1="{y}" x2="{_x(high):.1f}" y2="{y}" stroke-width="{width}"'
        parts += [
            f'<line {line} stroke="currentColor"/><circle cx="{_x(mean):.0f}" cy="{y}" r="4" fill="currentColor"/>',
            f'<text x="4" y="{y + 4}" {STYLE}>95 % interval</text>',
            f'<text x="{_x(4.15):.0f}" y="{y + 4}" {STYLE}>{name}: {low:.2f} to {high:.2f}</text>',
        ]
        print(f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}]")
    for nats in (3.0, 3.5, 4.0, 4.5, 5.0):
        parts.append(
            f'<text x="{_x(nats):.0f}" y="172" text-anchor="middle" {STYLE}>{nats:.1f}{" nats" * (nats == 5)}</text>'
        )
    means = [group.mean() for group in groups]
    print(f"documents: {len(groups)}, means {min(means):.2f} to {max(means):.2f}, tokens {loss.size}")
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 182" width="660" height="182" color="#6b7785">'
    OUT.write_text("\n".join([drawing, *parts, "</svg>"]) + "\n", encoding="utf-8")


def _x(nats: float) -> float:
    return LEFT + (nats - LOWEST) * PER_NAT


if __name__ == "__main__":
    main()
