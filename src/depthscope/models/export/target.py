"""The model that an exported checkpoint gives when transformers loads it: made from a configuration, without weights.

The configuration is changed for the layers of the route (`layer_entries`), and the model it gives is built on the meta device,
where tensors have shapes and no values. Each of its blocks must be what the block of the route is: the same modules, settings
and tensors. Where one is not, entries that count layers or say a period are tried with other values. A family whose blocks do
not come out right is refused.
"""

import copy
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from depthscope.errors import DepthscopeError, UnsupportedError
from depthscope.models.configuration import model_errors
from depthscope.models.export.layer_entries import DEPTHS, counts, rearranged, variations
from depthscope.models.model import Model
from depthscope.models.quiet import quiet
from depthscope.models.stack import find_blocks

PLACE = re.compile(r"(^|_)(layer_?)?(idx|index|id|number)$|^(num_hidden_layers|num_layers|n_layers?)$|^training$")
"""Names of a module's settings that say where it is, or how deep the model is: those change with the route."""
MOST_TRIED = 400
"""Configurations that are tried."""

Signature = tuple[Any, ...]


@dataclass(frozen=True)
class Target:
    """The exported model: its configuration, and the model on the meta device."""

    config: Any
    model: PreTrainedModel
    changed: dict[str, Any]
    """Entries of the text model's configuration that are not those of the model it was made from, other than its depth."""
    tables: dict[str, int]
    """Tensors outside the blocks with a part for each layer, and the axis of the parts."""

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor of its state_dict."""
        return {name: tensor.shape for name, tensor in self.model.state_dict().items()}


def make_target(model: Model, order: Sequence[int]) -> Target:
    """The model whose blocks are those of `order`, by their numbers. Raises UnsupportedError, naming the family, where
    transformers' configuration of the family cannot say that."""
    whole = json.loads(json.dumps(model.hf.config.to_dict(), default=_written))
    path = _text_path(model.hf.config)
    text = _at(whole, path)
    attempts = _Attempts(model, whole, path, order)
    best = attempts.make(rearranged(text, model.depth, order))
    while not attempts.complete(best) and (better := attempts.better(best)) is not None:
        best = better
    if best.model is None or not attempts.complete(best):
        raise UnsupportedError(attempts.refusal())
    changed = {name: value for name, value in best.entries.items() if text.get(name) != value and name not in DEPTHS}
    with suppress(DepthscopeError):  # a family without such tables may not take a layer more
        larger = attempts.built(rearranged(text, model.depth, [*order, order[-1]])).state_dict()
        return Target(
            best.model.config, best.model, changed, _tables(best.model.state_dict(), larger, model.stack.path)
        )
    return Target(best.model.config, best.model, changed, {})


def _tables(own: dict[str, Tensor], deeper: dict[str, Tensor], path: str) -> dict[str, int]:
    """What grows with the number of layers and is in none of them, found by comparing with a model of one layer more."""
    larger = {name: tensor.shape for name, tensor in deeper.items()}
    found = {}
    for name, tensor in own.items():
        shape = larger.get(name, tensor.shape)
        if not name.startswith(f"{path}.") and shape != tensor.shape and len(shape) == tensor.ndim:
            found[name] = next(
                axis for axis, (one, other) in enumerate(zip(tensor.shape, shape, strict=True)) if one != other
            )
    return found


def write_config(target: Target, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json, which says that the weights are in `dtype`."""
    config = copy.deepcopy(target.config)
    config.architectures = [type(target.model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    with quiet():
        config.save_pretrained(str(folder))


def check_written(model: Model, order: Sequence[int], folder: Path) -> None:
    """Raise UnsupportedError unless config.json in `folder` gives the blocks of `order` when it is read."""
    own = [_signature(block) for block in model.stack.blocks]
    with (
        model_errors(f"{model.name} ({model.family}) cannot be exported on this route", kind=UnsupportedError),
        quiet(),
    ):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        built = [_signature(block) for block in find_blocks(build(model, config))[1]]
    if built != [own[block] for block in order]:
        raise UnsupportedError(
            f"{model.name} ({model.family}) cannot be exported on this route: its configuration changes when it is written and "
            "read again"
        )


@dataclass(frozen=True, slots=True)
class _Built:
    """One attempt: the entries of the text model, the model they give, and how many of its blocks are as wanted."""

    entries: dict[str, Any]
    model: PreTrainedModel | None
    right: int


class _Attempts:
    """Builds models from entries."""

    def __init__(self, model: Model, whole: dict[str, Any], path: Sequence[str], order: Sequence[int]) -> None:
        self.model, self.whole, self.path, self.order = model, whole, path, order
        own = [_signature(block) for block in model.stack.blocks]
        self.wanted = [own[block] for block in order]
        self.tried = 0
        self.wrong: str | None = None
        """What was not right in the first attempt."""

    def complete(self, built: _Built) -> bool:
        """Whether every block is as wanted."""
        return built.right == len(self.wanted)

    def better(self, best: _Built) -> _Built | None:
        """Of the models with one count changed, one with more blocks as wanted."""
        found = best
        for name in counts(best.entries):
            for entries in variations(best.entries, name):
                if self.tried >= MOST_TRIED or self.complete(found):
                    break
                found = max(found, self.make(entries), key=lambda one: one.right)
        return None if found is best else found

    def make(self, entries: dict[str, Any]) -> _Built:
        """The model that these entries give."""
        self.tried += 1
        try:
            built = self.built(entries)
            blocks = [_signature(block) for block in find_blocks(built)[1]]
        except DepthscopeError as error:
            self.wrong = self.wrong or str(error)
            return _Built(entries, None, -1)
        pairs = list(zip(blocks, self.wanted, strict=True))
        right = sum(one == other for one, other in pairs)
        if right < len(pairs) and self.wrong is None:
            place = next(place for place, (one, other) in enumerate(pairs) if one != other)
            self.wrong = f"layer {place} would be block {self.order[place]}, but {_difference(*pairs[place])}"
        return _Built(entries, built, right)

    def built(self, entries: dict[str, Any]) -> PreTrainedModel:
        """A model of these entries on the meta device. Raises DepthscopeError where transformers does not take them."""
        whole = copy.deepcopy(self.whole)
        _at(whole, self.path).update(copy.deepcopy(entries))
        with model_errors("no configuration of the family describes it"), quiet():
            return build(self.model, type(self.model.hf.config).from_dict(whole))

    def refusal(self) -> str:
        """Why no attempt is right."""
        return (
            f"{self.model.name} ({self.model.family}) cannot be exported on this route, because its configuration cannot say "
            f"which layers these are: {self.wrong}. Expected a route that keeps the pattern of the family's layers"
        )


def build(model: Model, config: Any) -> PreTrainedModel:
    """A model of the same class on the meta device."""
    made_by: Any = type(model.hf)
    attention = getattr(model.hf.config, "_attn_implementation", None)
    with torch.device("meta"), no_init_weights():
        built = made_by._from_config(config, dtype=model.hf.dtype, attn_implementation=attention)
        built.tie_weights()
        return built


def _signature(block: nn.Module) -> Signature:
    """What a block is, apart from its weights and its place: modules by name and class, their settings, names and shapes of
    their tensors."""
    return tuple(
        (
            name,
            type(module).__name__,
            tuple(sorted((key, repr(value)) for key, value in vars(module).items() if _is_setting(key, value))),
            tuple((key, tuple(tensor.shape)) for key, tensor in module.named_parameters(recurse=False)),
            tuple((key, tuple(tensor.shape)) for key, tensor in module.named_buffers(recurse=False)),
        )
        for name, module in block.named_modules()
    )


def _is_setting(key: str, value: Any) -> bool:
    return not key.startswith("_") and not PLACE.search(key) and isinstance(value, int | float | str | bool | None)


def _difference(one: Signature, other: Signature) -> str:
    """The first thing that two signatures differ in, for messages."""
    for built, wanted in zip(one, other, strict=False):
        if built[:2] != wanted[:2]:
            given, expected = (f"{found[1]} {found[0]}".strip() for found in (built, wanted))
            return f"it has {given} in place of {expected}"
        for given, expected in zip(map(dict, built[2:]), map(dict, wanted[2:]), strict=True):
            for key in (*expected, *given):
                if given.get(key) != expected.get(key):
                    name = built[0] or "the block itself"
                    return f"{name} has {key} {given.get(key)}, expected {expected.get(key)}"
    return "it has other modules"


def _text_path(config: Any) -> list[str]:
    """Where in a configuration that of the text model is, as keys."""
    text = config.get_text_config(decoder=True)
    if text is config:
        return []
    for name in getattr(config, "sub_configs", {}):
        member = getattr(config, name, None)
        if member is text:
            return [name]
        if member is not None and hasattr(member, "sub_configs") and (inner := _text_path(member)):
            return [name, *inner]
    return []


def _at(entries: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    for key in path:
        entries = entries[key]
    return entries


def _written(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)
