"""Why is it so costly to drop one layer? Which of its parts, which positions, which coordinate of the residual stream.

    python -m benchmarks.findings.costly_layers MODEL --layers 11 [--tokens 4096] [--window 256] --out FILE.json

A block adds what its attention and its MLP write to the residual stream: x_{l+1} = x_l + a + m. Each change below takes part
of that sum away, runs the following blocks of the model on the result, and compares the predictions with those of the
unmodified model. "The coordinate" is the largest coordinate of m at the first position of the windows: the massive activation
of Sun et al. 2024 (Massive Activations in Large Language Models) where it is much larger than the rest.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

import depthscope as ds
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.engine.divergence import TokenMeasures, compare
from depthscope.models.activations import output_map
from depthscope.models.hooks import hooked
from depthscope.models.model import Model
from depthscope.models.patterns import attention_patterns
from depthscope.routes import ATTN, Step
from depthscope.run.files import atomic_file
from depthscope.schema.measures import BUILT_IN
from depthscope.shapes import Residual
from depthscope.statistics.estimate import Estimate, estimate_of

POSITIONS = (0, 1, 16, 64, 128)
"""Where ranges of positions begin, for the KL by position."""
LOOKED_AT = ("none", "drop", "without_coordinate", "only_coordinate")
"""Changes after which attention to the first token is read."""
CHANGES = {
    "drop": "the whole layer",
    "drop_first": "the whole layer, at the first position only",
    "drop_rest": "the whole layer, at all other positions",
    "drop_attn": "its attention",
    "drop_mlp": "its MLP",
    "drop_mlp_first": "its MLP, at the first position only",
    "without_coordinate": "one coordinate of the MLP’s output, at the first position only",
    "without_neuron": "one neuron of the MLP, at the first position only",
    "only_coordinate": "the whole layer, except that coordinate at the first position",
}
"""Everything that is taken away, in words."""


@dataclass(slots=True)
class Place:
    """The layer's largest write at the first position: coordinate, and the neuron that contributes most to it."""

    layer: int
    coordinate: int
    neuron: int
    neuron_share: float
    """The neuron's share of the coordinate before the MLP's output is normed, median over windows."""


def measure_layers(model: Model, windows: Windows, layers: list[int]) -> dict[str, Any]:
    """Everything the page says of these layers, as JSON; intervals (mean, low, high) are over documents."""
    places = {layer: _place(model, windows.part(0, 4), layer) for layer in layers}
    stream, found = [], {layer: {change: [] for change in CHANGES} for layer in layers}
    attention = {layer: {change: [] for change in LOOKED_AT} for layer in layers}
    for window in range(len(windows)):
        ids, targets = windows.part(window, window + 1).batch()
        with model.measuring():
            baseline = Baseline(model, ids, targets, keep=Keep.WRITES)
            stream.append(_stream(baseline, [place.coordinate for place in places.values()]))
            for layer, place in places.items():
                ends = dict(_ends(baseline, place))
                for change, streams in ends.items():
                    found[layer][change].append(_compared(baseline, streams[-1]))
                for change in LOOKED_AT:
                    after = [] if change == "none" else ends[change]
                    kept = [*baseline.residuals[: model.depth + 1 - len(after)], *after]
                    attention[layer][change].append(_on_first(baseline, kept))
        print(f"{model.name}: {window + 1} of {len(windows)} windows", flush=True)
    document = windows.document
    return {
        "model": model.name,
        "dtype": model.facts.dtype,
        "tokens": windows.tokens,
        "documents": windows.documents,
        "window": windows.length,
        "bos": windows.bos,
        "date": f"{date.today()}",
        "depthscope": version("depthscope"),
        "stream": _summed_stream(stream, document, list(places.values())),
        "layers": {
            str(layer): {
                "coordinate": place.coordinate,
                "neuron": place.neuron,
                "neuron_share": round(place.neuron_share, 4),
                "changes": {
                    change: _summary(measured, document, windows.length) for change, measured in found[layer].items()
                },
                "attention_on_first": {
                    change: [_rounded(one) for one in _columns(np.array(values).T, document)]
                    for change, values in attention[layer].items()
                },
            }
            for layer, place in places.items()
        },
    }


def _place(model: Model, windows: Windows, layer: int) -> Place:
    """Where the MLP of a layer writes most at the first position, over the first windows."""
    ids, targets = windows.batch()
    down = output_map(model, layer)
    neurons: list[torch.Tensor] = []
    keep = [(down, lambda _module, args, _kwargs: neurons.append(args[0].detach().clone()))]
    with model.measuring():
        baseline = Baseline(model, ids, targets, keep=Keep.WRITES)
        coordinate = int(baseline.writes[layer].mlp[:, 0].abs().mean(0).argmax())
        with hooked(before=keep):
            model.visit(Step(layer), baseline.residuals[layer], baseline.entry.arguments)
        at_first = neurons[0].view(len(ids), ids.shape[1], -1)[:, 0]
        # Through the map itself, one neuron at a time: families store its weight either way round.
        none = down(torch.zeros_like(at_first[:1]))[0, coordinate]
        parts = torch.stack([(down(one.diag())[:, coordinate] - none).float() for one in at_first])
        neuron = int(parts.abs().mean(0).argmax())
        share = (parts[:, neuron] / parts.sum(-1)).median()
    return Place(layer, coordinate, neuron, float(share))


def _ends(baseline: Baseline, place: Place) -> Iterator[tuple[str, list[Residual]]]:
    """Each change with the residual streams from behind the layer to the end of the model."""
    model, layer = baseline.model, place.layer
    before, after = baseline.residuals[layer : layer + 2]
    mlp = baseline.writes[layer].mlp
    first = torch.zeros(1, before.shape[1], 1, dtype=torch.bool, device=before.device)
    first[:, 0] = True
    coordinate = torch.zeros_like(mlp)
    coordinate[:, 0, place.coordinate] = mlp[:, 0, place.coordinate]

    def visited(change: Callable[[], Any], step: Step) -> Residual:
        with change():
            return model.visit(step, before, baseline.entry.arguments)

    def silence(_module: Any, args: Any, kwargs: Any) -> Any:
        neurons = args[0].clone()
        neurons.view(*before.shape[:2], -1)[:, 0, place.neuron] = 0
        return (neurons, *args[1:]), kwargs

    changed = {
        "drop": before,
        "drop_first": torch.where(first, before, after),
        "drop_rest": torch.where(first, after, before),
        "drop_attn": visited(nullcontext, Step(layer, (ATTN,))),
        "drop_mlp": after - mlp,
        "drop_mlp_first": torch.where(first, after - mlp, after),
        "without_coordinate": after - coordinate,
        "without_neuron": visited(lambda: hooked(before=[(output_map(model, layer), silence)]), Step(layer)),
        "only_coordinate": before + coordinate,
    }
    for change, stream in changed.items():
        streams = [stream]
        for block in range(layer + 1, model.depth):
            streams.append(model.visit(Step(block), streams[-1], baseline.entry.arguments))
        yield change, streams


def _compared(baseline: Baseline, stream: Residual) -> TokenMeasures:
    hidden = baseline.model.unembedding.hidden(stream)
    return compare(baseline.model.unembedding, baseline.reference, hidden, baseline.flat_targets)


def _on_first(baseline: Baseline, streams: list[Residual]) -> list[float]:
    """Per block the share of attention on the first token, mean over heads and the queries after it."""
    patterns = attention_patterns(baseline.model, baseline.ids, streams)
    return [float("nan") if one is None else float(one[:, :, 1:, 0].mean()) for one in patterns]


def _stream(baseline: Baseline, coordinates: list[int]) -> dict[str, Any]:
    """Sizes in the residual stream at every depth, and what each component writes into the coordinates at the first
    position."""
    return {
        "first": [float(x[0, 0].float().abs().max()) for x in baseline.residuals],
        "rest": [float(x[0, 1:].float().abs().amax(-1).median()) for x in baseline.residuals],
        "largest_rest": [float(x[0, 1:].float().abs().max()) for x in baseline.residuals],
        "written": {
            kind: [[float(one.parts[kind][0, 0, at]) for at in coordinates] for one in baseline.writes]
            for kind in ("attn", "mlp")
        },
    }


def _summed_stream(stream: list[dict[str, Any]], document: Int64[np.ndarray, " windows"], places: list[Place]) -> Any:
    """Means over windows with intervals; of the largest coordinate at the first position also its range over windows."""
    first = np.array([one["first"] for one in stream])
    written = {
        kind: {
            str(place.coordinate): [
                _rounded(one) for one in _columns(np.array([s["written"][kind] for s in stream])[:, :, i].T, document)
            ]
            for i, place in enumerate(places)
        }
        for kind in ("attn", "mlp")
    }
    return {
        "first": [_rounded(one) for one in _columns(first.T, document)],
        "first_range": [[float(f"{end:.4g}") for end in ends] for ends in zip(first.min(0), first.max(0), strict=True)],
        "rest": [
            float(f"{value:.4g}") for value in np.median(np.array([one["rest"] for one in stream]), axis=0).tolist()
        ],
        "largest_rest": [
            float(f"{value:.4g}") for value in np.array([one["largest_rest"] for one in stream]).max(0).tolist()
        ],
        "written": written,
    }


def _summary(measured: list[TokenMeasures], document: Int64[np.ndarray, " windows"], length: int) -> dict[str, Any]:
    """Estimates over all tokens, and the KL by range of positions."""
    tokens = np.repeat(document, length)
    every = {
        name: np.concatenate([one[name].double().numpy() for one in measured]) for name in ("kl", "agreement", "loss")
    }
    position = np.tile(np.arange(length), len(measured))
    ranges = [start for start in POSITIONS if start < length]
    by_position = {}
    for start, stop in zip(ranges, [*ranges[1:], length], strict=True):
        chosen = (position >= start) & (position < stop)
        by_position[f"{start}-{stop - 1}"] = _rounded(
            _within(_one(estimate_of(every["kl"][None, chosen], tokens[chosen])), "kl")
        )
    return {
        **{name: _rounded(_within(_one(estimate_of(values[None], tokens)), name)) for name, values in every.items()},
        "kl_by_position": by_position,
    }


def _columns(values: Float64[np.ndarray, "columns windows"], document: Int64[np.ndarray, " windows"]) -> list[Any]:
    found = estimate_of(np.asarray(values, dtype=np.float64), document)
    return [[*ends] for ends in zip(found.mean.tolist(), found.low.tolist(), found.high.tolist(), strict=True)]


def _one(found: Estimate) -> list[float]:
    return [float(found.mean[0]), float(found.low[0]), float(found.high[0])]


def _within(ends: list[float], measure: str) -> list[float]:
    """The interval cut to the measure's range, as in tables."""
    metric = BUILT_IN[measure]
    lowest = -np.inf if metric.lowest is None else metric.lowest
    highest = np.inf if metric.highest is None else metric.highest
    return [min(max(end, lowest), highest) for end in ends]


def _rounded(ends: list[float]) -> list[float | None]:
    """To five digits: more than the intervals need, and the file stays small."""
    return [None if np.isnan(value) else float(f"{value:.5g}") for value in ends]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="What makes dropping a layer costly.")
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", help="The model's name in the file, instead of a path.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = ds.load(options.model, dtype=options.dtype)
    windows = make_windows(ds.corpus("bookshelf", tokens=options.tokens), model, length=options.window)
    found = measure_layers(model, windows, options.layers)
    with atomic_file(options.out) as stream:
        stream.write((json.dumps({**found, "model": options.name or found["model"]}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
