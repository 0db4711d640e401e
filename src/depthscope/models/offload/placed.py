"""Models in parts: blocks on several devices, in the host's memory or on disk, placed by accelerate.

accelerate's hooks move what a module is given to the module's device, and bring weights in that are kept elsewhere. Replay
calls the blocks themselves, so the hooks work on any route. Everything but the blocks is on one device, where the residual
stream returns after each block: what measures a model needs to know of no other.
"""

import copy
import re
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.offload.checkpoint import StoredTensor
from depthscope.models.offload.streaming import load_state
from depthscope.models.stack import find_blocks
from depthscope.untrusted import MIB, parse_json, read_bounded

CHOSEN = ("auto", "balanced", "balanced_low_0", "sequential")
"""Maps that accelerate chooses by the memory of the devices."""
DISK = "disk"
DEVICE = re.compile(r"cpu|disk|[a-z]+(:[0-9]{1,3})?")

DeviceMap = str | Path | Mapping[str, str | int]
"""One of CHOSEN, a JSON file, or a mapping from module paths to devices: `{"": "cpu", "model.layers.3": "disk"}`."""


def check_placing(device_map: DeviceMap | None, device: str, stream: str, adapter: object) -> None:
    """Raise UnsupportedError for options that a model in parts cannot be loaded with, ModelError without accelerate."""
    if device_map is None:
        return
    other = {"--device": device != "auto", "--stream yes": stream == "yes", "--adapter": adapter is not None}
    if clash := [name for name, given in other.items() if given]:
        why = {
            "--device": "the map names the devices",
            "--stream yes": "both decide where blocks are kept",
            "--adapter": "merge the adapter into the model and save it first",
        }[clash[0]]
        raise UnsupportedError(f"--device-map and {clash[0]} exclude each other ({why}): expected one of the two")
    if find_spec("accelerate") is None:
        raise ModelError("--device-map requires the package accelerate: pip install accelerate")


def read_map(device_map: DeviceMap) -> str | dict[str, str | int]:
    """One of CHOSEN, or the mapping itself, read from a file and checked. Raises ModelError."""
    if isinstance(device_map, str) and device_map in CHOSEN:
        return device_map
    where = "device_map"
    if isinstance(device_map, str | Path):
        where = str(device_map)
        if not Path(where).is_file():
            raise ModelError(f"no file {where}: expected {', '.join(CHOSEN)}, or a JSON file of devices by module")
        device_map = parse_json(read_bounded(Path(where), ModelError, MIB), where, ModelError)
    if not isinstance(device_map, Mapping) or not device_map:
        raise ModelError(f'{where} holds no map: expected {{"": "cpu", "model.layers.3": "disk"}}')
    for module, place in device_map.items():
        good = isinstance(place, int) and not isinstance(place, bool) and 0 <= place < 1000
        if not isinstance(module, str) or not (good or (isinstance(place, str) and DEVICE.fullmatch(place))):
            raise ModelError(
                f"{where}: {module!r:.80} is on {place!r:.40}, expected cpu, disk, cuda:N or the number of a GPU"
            )
    return dict(device_map)


def block_map(device_map: DeviceMap, made_by: Any, config: Any, dtype: torch.dtype, source: str) -> dict[str, Any]:
    """A device for every block, and one for each of the other modules: for all of them the same.

    A map that accelerate chooses is changed so that this holds. Raises ModelError for a map that names modules the model has
    not or leaves some out, UnsupportedError where the user's own map spreads other modules than blocks.
    """
    asked = read_map(device_map)
    with torch.device("meta"), no_init_weights():
        model = made_by(copy.deepcopy(config))
        model.tie_weights()
    path, blocks = find_blocks(model)
    chosen = _chosen(model, asked, dtype) if isinstance(asked, str) else asked
    names = dict(model.named_modules()) | dict(model.named_parameters())
    if unknown := [name for name in chosen if name and name not in names]:
        raise ModelError(f"the device map names {unknown[0]!r}, which {source} has not; its blocks are {path}.0 …")
    others = {name: _place_of(name, chosen, source) for name in _around(model, path)}
    placed = {f"{path}.{index}": _place_of(f"{path}.{index}", chosen, source) for index in range(len(blocks))}
    inner = [name for name in chosen if name.startswith(f"{path}.") and name.count(".") > path.count(".") + 1]
    if inner and not isinstance(asked, str):
        raise UnsupportedError(
            f"the device map splits a block ({inner[0]}): expected each of {path}.0 … whole on one device"
        )
    uses = Counter(id(parameter) for block in blocks for parameter in set(block.parameters()))
    if DISK in placed.values() and max(uses.values(), default=0) > 1:
        raise UnsupportedError(
            f"the blocks of {source} share weights, which accelerate cannot keep on disk: use --stream yes"
        )
    main = next((place for place in (*others.values(), *placed.values()) if place != DISK), "cpu")
    if not isinstance(asked, str) and (apart := [name for name, place in others.items() if place != main]):
        raise UnsupportedError(
            f"the device map has {apart[0]} on {others[apart[0]]}, and other modules on {main}: expected all modules but the "
            f"blocks on one device, and the blocks {path}.0 … on any or on disk"
        )
    return dict.fromkeys(others, main) | placed


def _chosen(model: PreTrainedModel, asked: str, dtype: torch.dtype) -> dict[str, Any]:
    from accelerate.utils import get_balanced_memory, infer_auto_device_map

    whole = list(model._no_split_modules or ())
    most = None
    if asked != "sequential":
        low = asked == "balanced_low_0"
        most = get_balanced_memory(model, dtype=dtype, no_split_module_classes=whole, low_zero=low)
    return infer_auto_device_map(model, max_memory=most, no_split_module_classes=whole, dtype=dtype)


def _place_of(name: str, chosen: Mapping[str, Any], source: str) -> Any:
    """The device of the longest part of a path that the map names."""
    ends = [name[: len(part)] for part in chosen if part == "" or name == part or name.startswith(f"{part}.")]
    if not ends:
        inside = [place for part, place in chosen.items() if part.startswith(f"{name}.")]
        if not inside:
            raise ModelError(
                f'the device map has no device for {name} of {source}: expected one, or "" for all other modules'
            )
        return inside[0]
    return chosen[max(ends, key=len)]


def _around(model: nn.Module, path: str, prefix: str = "") -> Iterator[str]:
    """Everything but the blocks: modules that do not hold them, and parameters of those that do."""
    for name, child in model.named_children():
        full = f"{prefix}{name}"
        if path.startswith(f"{full}."):
            yield from _around(child, path, f"{full}.")
        elif full != path:
            yield full
    yield from (f"{prefix}{name}" for name, _ in model.named_parameters(recurse=False))


def load_placed(
    made_by: Any, stored: Mapping[str, StoredTensor], placed: Mapping[str, Any], **settings: Any
) -> tuple[Any, Any]:
    """transformers' model and loading report, its modules placed. Blocks on disk are written to a temporary folder, which is
    removed with the model."""
    folder = tempfile.mkdtemp(prefix="depthscope-blocks-")
    try:
        hf, loading = load_state(made_by, stored, device_map=dict(placed), offload_folder=folder, **settings)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(hf, shutil.rmtree, folder, ignore_errors=True)
    return hf, loading
