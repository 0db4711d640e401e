"""Exporting a route: checked, written next to its place, loaded again and compared, described, and then put in its place."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from depthscope.errors import RouteError, UnsupportedError
from depthscope.exports.card import Card, Exported, write_card
from depthscope.exports.place import check_out, check_room, new_directory
from depthscope.exports.shards import write_weights
from depthscope.models.admitted import weight_files
from depthscope.models.export.companions import companions, licence, save_others
from depthscope.models.export.reload import compared_ids, difference, reloaded_logits, route_logits
from depthscope.models.export.target import Target, check_written, make_target, write_config
from depthscope.models.export.tensors import Part, parts_of
from depthscope.models.facts import parameters
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.models.offload.checkpoint import DTYPES, read_headers
from depthscope.routes import Parallel, Route, Step

__all__ = ["Card", "Exported", "check_export", "export_route", "write_card", "written_dtype"]

Tell = Callable[[str, int, int], None]


def check_export(model: Model, route: Route, out: str | Path) -> None:
    """Refuse before any work what can be refused then.

    Raises RouteError for a route that the model cannot run or that visits nothing, UnsupportedError for parallel visits and
    for a model with an adapter or quantised weights, RunError where `out` is not new or empty or the disk is too small.
    """
    model.check_route(route)
    steps = _steps(model, route)
    if model.adapter is not None or any(type(module).__module__.startswith("peft.") for module in model.hf.modules()):
        which = "" if model.adapter is None else f" ({model.adapter.source})"
        raise UnsupportedError(
            f"{model.name} has an adapter in it{which}, which an export cannot hold: merge and save it first (PEFT's "
            "merge_and_unload, then save_pretrained), and export what was saved"
        )
    if model.gguf is None and model.facts.quantisation is not None:
        raise UnsupportedError(
            f"the weights of {model.name} are quantised ({model.facts.quantisation}), and an export is in plain weights: "
            "export the model that was quantised, and quantise the export"
        )
    check_room(check_out(out), _needed(model, steps))


@memory_errors("export the model", "Load it with --stream yes, or in another dtype")
def export_route(
    model: Model,
    route: Route,
    out: str | Path,
    card: Card | None = None,
    *,
    fresh: bool = True,
    tell: Tell | None = None,
) -> Exported:
    """Write a route as a plain transformers checkpoint in the directory `out`, which must be new or empty.

    The checkpoint is loaded again with transformers (`fresh`: in a new process, else in this one) and its logits compared with
    the route's; nothing is left at `out` unless they are the same up to rounding. Weights are in the dtype of the original
    checkpoint where that loses nothing, and in the model's own otherwise. Raises what `check_export` raises, UnsupportedError
    for a family that cannot be exported on this route, RunError where something cannot be written.
    """
    tell = tell or (lambda what, done, units: None)
    out = Path(out)
    check_export(model, route, out)
    steps = _steps(model, route)
    order = [step.block for step in steps]
    target = make_target(model, order)
    parts = parts_of(model, target, steps)
    files = companions(model)
    dtype = written_dtype(model)
    with new_directory(check_out(out)) as folder:
        write_config(target, folder, dtype)
        check_written(model, order, folder)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        save_others(model, folder, files)
        written = write_weights(model, target, parts, order, folder, dtype, tell)
        tell("loading the export", 0, 1)
        ids = compared_ids(model)
        own = route_logits(model, route, ids)
        model.require_finite(own)
        largest = difference(model, own, reloaded_logits(model, folder, ids, fresh))
        tell("loading the export", 1, 1)
        exported = Exported(
            path=out,
            model=shown_name(model),
            family=model.family,
            route=route,
            layers=(model.depth, len(order)),
            parameters=(parameters(model.hf), parameters(target.model)),
            bytes=(bytes_before(model, dtype), written.bytes),
            dtype=str(dtype).removeprefix("torch."),
            copied_bytes=_copied(parts, written.bytes),
            zeroed=_zeroed(parts, whole=True),
            partly_zeroed=_zeroed(parts, whole=False),
            difference=largest,
            tokens=ids.shape[1],
            fresh=fresh and not model.stack.streamed,
            licence=licence(model),
            notes=tuple(_notes(model, target, files)),
        )
        write_card(exported, card or Card(), folder)
    return exported


def _zeroed(parts: Sequence[Part], whole: bool) -> tuple[str, ...]:
    """The parameters that are zero in the export, entirely or in part."""
    return tuple(sorted(name for part in parts for name, zeros in part.zeroed.items() if (zeros is None) == whole))


def shown_name(model: Model) -> str:
    """The model's name for its card: of a folder or file the last part, since its place is nobody's business."""
    place = Path(model.name)
    return place.name if model.folder is not None and (place.is_dir() or place.is_file()) else model.name


def _steps(model: Model, route: Route) -> list[Step]:
    steps: list[Step] = []
    for visit in route.visits:
        if isinstance(visit, Parallel):
            raise UnsupportedError(
                f"{visit.name} cannot be exported: in a transformers model blocks run one after the other, and the mean of "
                "several blocks' outputs is none of them. Expected a route without parallel visits"
            )
        steps.append(visit)
    if not steps:
        raise RouteError(f"nothing is left of {model.name}: expected a route that visits at least one block")
    return steps


def written_dtype(model: Model) -> torch.dtype:
    """The dtype of most of the original checkpoint's numbers, or the model's own where it is smaller."""
    own = model.hf.dtype
    if model.folder is None or model.gguf is not None:
        return own
    sizes: Counter[torch.dtype] = Counter()
    for header in read_headers(weight_files(model.folder)):
        for entry in header.entries.values():
            dtype = DTYPES.get(entry["dtype"])
            if dtype is not None and dtype.is_floating_point:
                sizes[dtype] += entry["data_offsets"][1] - entry["data_offsets"][0]
    stored = sizes.most_common(1)[0][0] if sizes else own
    return stored if stored.itemsize < own.itemsize else own


def _needed(model: Model, steps: Sequence[Step]) -> int:
    """Bytes that the export takes, at most: its tensors in the dtype they are written in."""
    tensors = list(model.hf.state_dict().items())
    visits = Counter(step.block for step in steps)
    total = 0
    for name, tensor in tensors:
        number = (
            name.removeprefix(f"{model.stack.path}.").partition(".")[0]
            if name.startswith(f"{model.stack.path}.")
            else ""
        )
        total += tensor.numel() * (visits[int(number)] if number.isdecimal() else 1)
    return total * written_dtype(model).itemsize


def bytes_before(model: Model, dtype: torch.dtype) -> int:
    """Bytes that the model's own weights take when they are written in the same way."""
    tied = getattr(model.hf, "all_tied_weights_keys", {})
    own = [tensor for name, tensor in model.hf.state_dict().items() if name not in tied]
    return sum(
        tensor.numel()
        * (min(tensor.dtype.itemsize, dtype.itemsize) if tensor.is_floating_point() else tensor.dtype.itemsize)
        for tensor in own
    )


def _copied(parts: Sequence[Part], written: int) -> int:
    """Bytes, as written, of parts whose block was written before."""
    here = sum(part.size for part in parts)
    seen: set[int | None] = set()
    copied = 0
    for part in parts:
        copied += part.size if part.block in seen else 0
        seen.add(part.block)
    return round(copied * written / here)


def _notes(model: Model, target: Target, files: dict[str, bytes]) -> list[str]:
    """What a reader of the card should know."""
    notes = []
    if model.gguf is not None:
        notes.append(
            f"Made from the GGUF file {model.gguf}: its quantised weights were turned into plain ones, so the original's "
            "precision is that of the quantised file."
        )
    if target.changed:
        notes.append(f"Entries of config.json that changed with the layers: {', '.join(sorted(target.changed))}.")
    if not any(name.lower().startswith(("licen", "notice", "copying", "terms", "use_policy")) for name in files):
        notes.append("No licence file lay with the original: its own page says what is allowed.")
    return notes
