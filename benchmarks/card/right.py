"""Right: does a model on this device give the numbers of the model rebuilt by hand, and those of the CPU?

Tolerances: a logit in float32 (TF32 off) may differ by 1e-4 and in other dtypes by a fiftieth of the largest logit; a mean
over tokens by 1e-3 of itself.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.card.record import Deadline, Line, Step
from benchmarks.speed.rounds import seconds
from benchmarks.speed.routes import KINDS, pairs, sweep_routes
from benchmarks.speed.shapes import SHAPES, loaded, windows
from depthscope.data.corpus import Corpus
from depthscope.data.windows import make_windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.engine.divergence import compare
from depthscope.engine.execute import execute
from depthscope.engine.measure_routes import Pieces, RouteMeasures, RouteMeter
from depthscope.engine.plan import make_plan
from depthscope.engine.reductions import DEFINITION_WITH_PLACE, PLAIN_WITH_PLACE, Reductions, compiled, fused
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.models.weights import mlp_output_weights, unembedding
from depthscope.routes import Route
from depthscope.statistics.moments import VocabularyDirections

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
families: Any = import_module("families")
rebuilt: Any = import_module("rebuilt")
"""The tests' tiny models, and models rebuilt by hand. (Another `families` lies among the benchmarks.)"""

FEW = ("gpt2", "gpt_neox", "llama", "gemma2")
LOGIT = 1e-4
SHARE_OF_LARGEST = 0.02
RELATIVE = 1e-3
WAITS = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense",
    "aten::nonzero", "aten::is_nonzero", "aten::masked_select",
)  # fmt: skip
"""What a profile calls the moments in which a program waits for the device; the last four show on a CPU too."""


def steps(options: argparse.Namespace) -> dict[str, Step]:
    """The steps of this part, in order."""
    chosen = FEW if options.tiny else tuple(families.FAMILIES)
    return {
        "replay and edits, float32": lambda d: _families(d, chosen, options.device, torch.float32),
        "replay and edits, bfloat16": lambda d: _families(d, chosen, options.device, torch.bfloat16),
        "a sweep against the CPU's": lambda d: _against_cpu(options.device, 2 if options.tiny else 8),
        "forms of the passes over the vocabulary": lambda d: _forms(options.device, options.tiny),
        "waiting for the device": lambda d: _waits(options.device),
        "streamed blocks": lambda d: _streamed(options.device, options.tiny),
    }


def _families(deadline: Deadline, names: tuple[str, ...], device: str, dtype: torch.dtype) -> Iterator[Line]:
    """Every swap, drop, drop_attn and drop_mlp of tiny random models against models rebuilt by hand, run by transformers."""
    name = str(dtype).removeprefix("torch.")
    worst: dict[str, float] = {}
    exact = 0
    for family in names:
        if deadline.left <= 0:
            break
        try:
            hf = families.tiny_model(family, dtype=dtype).to(device)
            if not _runs(hf):
                print(f"  {family}: transformers' own forward fails in {name} here", flush=True)
                continue
            differences = _replayed(load(hf))
        except Exception as error:  # named in the line; the other families go on
            print(f"  {family}: {type(error).__name__}: {error}", flush=True)
            worst[family] = float("inf")
            continue
        worst[family] = max(differences)
        exact += worst[family] == 0
    bad = [f"{family} {found:.2g}" for family, found in worst.items() if found > 1]
    note = f"{exact} of {len(worst)} families bit for bit" + (f"; over: {', '.join(bad)}" if bad else "")
    what = f"{name}: largest difference of a logit from the rebuilt model's, as a share of the tolerance"
    yield Line(what=what, value=max(worst.values()), bound=1.0, note=note)
    yield Line(what=f"{name}: families compared", value=len(worst), bound=min(12, len(names)), over=True)


@torch.inference_mode()
def _runs(hf: Any) -> bool:
    try:
        hf(input_ids=torch.arange(3, device=hf.device)[None], use_cache=False)
    except RuntimeError:
        return False
    return True


@torch.inference_mode()
def _replayed(model: Model) -> list[float]:
    """For the model and every edit the largest difference of a logit, as a share of what is allowed."""
    ids = torch.arange(1, 29, device=model.device).reshape(2, 14) * 31 % 97
    own = Route.own(model.depth)
    kinds = [kind for kind in KINDS if model.components is not None or not kind.startswith("drop_")]
    found = [_difference(_logits(model, ids, own), rebuilt.logits_of(model.hf, ids))]
    for (kind, layer), route in zip(pairs(kinds, model.depth), sweep_routes(kinds, model.depth), strict=True):
        if kind in ("swap", "drop"):
            order = list(range(model.depth))
            order[layer : layer + 2] = (
                order[layer : layer + 2][::-1] if kind == "swap" else order[layer + 1 : layer + 2]
            )
            hf = rebuilt.with_order(model.hf, order)
        else:
            hf = rebuilt.without_component(model.hf, layer, "attention" if kind == "drop_attn" else "mlp")
        found.append(_difference(_logits(model, ids, route), rebuilt.logits_of(hf, ids)))
    return found


def _logits(model: Model, ids: Tensor, route: Route) -> Tensor:
    ((_, residual),) = execute(model, make_plan([route]), ids)
    return model.unembedding.logits(model.unembedding.hidden(residual)).unflatten(0, ids.shape)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    allowed = LOGIT if theirs.dtype == torch.float32 else SHARE_OF_LARGEST * float(theirs.abs().max())
    return float((ours.double() - theirs.double()).abs().max()) / allowed


def _against_cpu(device: str, count: int) -> Iterator[Line]:
    """bookshelf-gpt2 in float32 on held-out text, here and on the CPU."""
    here, cpu = (load("bookshelf-gpt2", device=where) for where in (device, "cpu"))
    text = make_windows(Corpus(source="bookshelf", tokens=count * 128), cpu, length=128)
    ids, targets = text.batch()
    routes = sweep_routes(tuple(KINDS), cpu.depth)
    ours, theirs = (RouteMeter(model, routes).measure(ids, targets) for model in (here, cpu))
    yield from _compared(ours, theirs)
    one, other = (_readings(model, ids, targets) for model in (here, cpu))
    for name, values in other.items():
        yield _relative(f"{name}, from the CPU's", one[name], values)
    found = here.require_components()
    same = (found.paths, found.layout) == ((own := cpu.require_components()).paths, own.layout)
    yield Line(what="components found as on the CPU", value=float(same), bound=1.0, over=True)


def _compared(ours: RouteMeasures, theirs: RouteMeasures) -> Iterator[Line]:
    for name in ("kl", "entropy", "loss"):
        a, b = getattr(ours, name).mean((1, 2))[1:], getattr(theirs, name).mean((1, 2))[1:]
        yield _relative(f"sweep of bookshelf-gpt2: mean {name} of an edit, from the CPU's", a, b)
    differ = float((ours.agreement != theirs.agreement).float().mean())
    yield Line(
        what="sweep of bookshelf-gpt2: tokens whose agreement differs from the CPU's", value=differ, bound=RELATIVE
    )


def _relative(what: str, ours: Tensor, theirs: Tensor) -> Line:
    away = (ours.double().cpu() - theirs.double().cpu()).abs() / theirs.double().cpu().abs().clamp(min=1e-3)
    return Line(what=what, value=float(away.max()), bound=RELATIVE)


def _readings(model: Model, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Lens, norms, patterns and neuron moments, each as means per layer."""
    _ = model.writers
    with model.measuring():
        baseline = Baseline(model, ids, targets, keep=Keep.WRITES)
        lens = [
            compare(model.unembedding, baseline.reference, model.unembedding.hidden(x), baseline.flat_targets).kl.mean()
            for x in baseline.residuals
        ]
        norms = [part.float().norm(dim=-1).mean() for w in baseline.writes for part in (w.attention, w.mlp)]
        patterns = [p.diagonal(-1, -2, -1).mean() for p in baseline.patterns() if p is not None]
        directions = VocabularyDirections(unembedding(model)[0])
        moments = directions.moments(mlp_output_weights(model, model.depth - 1))
    return {
        "lens KL of a depth": torch.stack(lens),
        "norm of what a component writes": torch.stack(norms),
        "attention to the previous token": torch.stack(patterns),
        "kurtosis of a neuron": moments.kurtosis,
        "variance of a neuron's cosines": moments.variance / moments.variance.mean(),
    }


def available_forms(device: str, tiny: bool = False) -> list[Reductions]:
    """The forms that can be had on a device. For a tiny run the definition stands for what takes seconds to compile."""
    forms = [PLAIN_WITH_PLACE]
    if tiny:
        return [*forms, DEFINITION_WITH_PLACE]
    found, why = fused(device) if device.startswith("cuda") else (None, "no CUDA device")
    made, problem = compiled(device)
    for form, reason in ((found, why), (None if problem else made, problem)):
        if form is None:
            print(f"  {reason}", flush=True)
        else:
            forms.append(form)
    return forms


def _forms(device: str, tiny: bool) -> Iterator[Line]:
    """Every form against the plain one, through the whole of a measurement: linear and capped logits, both dtypes."""
    for form in available_forms(device, tiny)[1:]:
        for family, dtype in (("llama", torch.float32), ("llama", torch.bfloat16), ("gemma2", torch.bfloat16)):
            model = load(families.tiny_model(family, dtype=dtype).to(device))
            drawn = torch.randint(0, 97, (3, 17), generator=torch.Generator().manual_seed(1))
            routes = sweep_routes(tuple(KINDS), model.depth)
            plain, other = (
                RouteMeter(model, routes, Pieces(reductions=one, slice_width=40)).measure(drawn[:, :-1], drawn[:, 1:])
                for one in (PLAIN_WITH_PLACE, form)
            )
            away = max(float((getattr(plain, n) - getattr(other, n)).abs().max()) for n in ("kl", "entropy", "loss"))
            name = f"{form.name} sums, {family}, {str(dtype).removeprefix('torch.')}"
            yield Line(what=f"{name}: largest difference from the plain form", value=away, unit="nats", bound=1e-4)


def _streamed(device: str, tiny: bool) -> Iterator[Line]:
    """Blocks that are copied to the device while others compute there, against the same model kept on the device."""
    shape = SHAPES["tiny" if tiny else "gpt2-small"]
    ids, targets = windows(shape, 4)
    with TemporaryDirectory() as folder:
        loaded(shape, "float32", "cpu").hf.save_pretrained(folder)
        streamed, kept = (load(folder, device=device, stream=how) for how in ("yes", "no"))
        meters = [RouteMeter(model, sweep_routes(("swap", "drop"), model.depth)) for model in (streamed, kept)]
        for attempt in ("first", "second"):  # the second finds the blocks in the host's memory
            ours, theirs = (meter.measure(ids, targets) for meter in meters)
            away = float((ours.kl - theirs.kl).abs().max())
            what = f"streamed {shape.name}: largest difference of KL from the model kept on the device, {attempt} time"
            yield Line(what=what, value=away, unit="nats", bound=1e-5)
        spent = [seconds(lambda meter=meter: meter.measure(ids, targets), device) for meter in meters]
    note = f"{spent[0]:.3g} s for {ids.numel():,} tokens and {len(meters[0].routes)} routes"
    yield Line(what=f"streamed {shape.name}: times as long as kept", value=spent[0] / spent[1], unit="×", note=note)


def _waits(device: str) -> Iterator[Line]:
    """How often measuring waits for the device: it must not be more for more routes or more tokens."""
    model = load("bookshelf-gpt2", device=device)
    few, many = sweep_routes(("drop",), model.depth)[:2], sweep_routes(tuple(KINDS), model.depth)
    counted = {
        f"{len(routes)} routes, {windows} windows": _count_waits(model, routes, windows)
        for routes in (few, many)
        for windows in (1, 4)
    }
    note = ", ".join(f"{what}: {count}" for what, count in counted.items())
    yield Line(what="waits for the device while routes are measured", value=max(counted.values()), bound=0.0, note=note)


def _count_waits(model: Model, routes: list[Route], windows: int) -> int:
    ids = torch.arange(windows * 32).reshape(windows, 32) * 31 % model.unembedding.vocabulary
    meter = RouteMeter(model, routes, Pieces(reductions=None if model.device.type == "cuda" else PLAIN_WITH_PLACE))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (model.device.type == "cuda")
    seen: Counter[str] = Counter()
    with model.measuring():
        for _ in range(2):  # once for what only a first time does
            form = meter.pieces.reductions
            baseline = Baseline(model, ids, ids.roll(-1, 1), keep=meter.keep, reductions=form)
            _ = baseline.reference
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            with profile(activities=activities) as profiled:
                meter.on_device(baseline)
            seen = Counter(event.name for event in profiled.events() or () if event.name in WAITS)
    # The profiler itself waits for the device once when it ends.
    return sum(max(0, count - (name == "cudaDeviceSynchronize")) for name, count in seen.items())
