"""Adapters (LoRA and its relatives): put into a model by PEFT where they are asked for, and identified by their hash."""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.admitted import admitted, private_folder, read_object
from depthscope.models.configuration import model_errors, reason
from depthscope.models.limits import MOST_ELEMENTS, numbers
from depthscope.models.offload.checkpoint import FileState, Header, read_headers
from depthscope.models.quiet import quiet
from depthscope.untrusted import MIB, open_regular, read_bounded

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it was found: the folder or hub id, PEFT's name of its kind, SHA-256 of its configuration and weights."""

    source: str
    kind: str
    sha256: str


def put_adapter(hf: PreTrainedModel, source: str | Path) -> tuple[PreTrainedModel, Adapter]:
    """The model with an adapter in place, its other weights as they were, and what was put there.

    `source`: a folder with adapter_config.json and adapter_model.safetensors, or a Hugging Face id. Raises ModelError where
    it cannot be found, does not fit the model or PEFT is not installed, UnsupportedError for an adapter that is not made of
    changes to the model's own modules (soft prompts).
    """
    if find_spec("peft") is None:
        raise ModelError("adapters need the peft package: install depthscope[adapters]")
    import peft

    folder = _folder(str(source))
    config = read_object(folder, CONFIG)
    weights = admitted(folder, WEIGHTS)
    assert config is not None
    assert weights is not None
    (header,) = read_headers([weights])
    _check_config(config, header, str(folder / CONFIG))
    digest = hashlib.sha256(read_bounded(folder / CONFIG, ModelError))
    with open_regular(weights, ModelError) as opened:
        while piece := opened.read(MIB):
            digest.update(piece)
    failed = f"the adapter {source} cannot be put into {hf.name_or_path}"
    kept = {key: value for key, value in config.items() if key != "auto_mapping"}
    with (
        private_folder({CONFIG: json.dumps(kept).encode()}, [(WEIGHTS, weights)]) as private,
        model_errors(failed, None, private, str(source)),
        quiet(),
    ):
        read = peft.PeftConfig.from_pretrained(str(private))
        if read.is_prompt_learning:
            raise UnsupportedError(
                f"{source} is a {_kind(read)} adapter, which adds tokens before the text: expected one that changes "
                "the model's own modules, such as LoRA"
            )
        wrapped = peft.PeftModel.from_pretrained(hf, str(private), config=read)
        _check_whole(wrapped, private, source)
    with open_regular(weights, ModelError) as opened:
        if FileState.of(opened) != header.state:
            raise ModelError(f"{weights} was changed while it was read: load the model again")
    base: Any = wrapped.get_base_model()
    return base, Adapter(str(source), _kind(read), digest.hexdigest())


READS_FILES = ("megatron_config", "corda_config", "lora_ga_config")
"""Entries of adapter_config.json with which PEFT imports modules or reads pickles."""


def _check_config(config: dict[str, Any], header: Header, where: str) -> None:
    """Raise ModelError for an adapter that would have other files read, or is larger than its own weights."""
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise ModelError(f"{where} names no peft_type: expected the configuration of a PEFT adapter")
    if kind == "XLORA":
        raise ModelError(
            f"{where}: an XLORA adapter names other adapters, which are not read: expected one of a single file"
        )
    for key in READS_FILES:
        if config.get(key):
            raise ModelError(
                f"{where}: {key} would have PEFT read other files or modules, which is never done. Remove it"
            )
    widest = max((max(shape, default=0) for shape in header.shapes), default=0)
    for path, value in numbers(config):
        rank = path.partition(".")[0] in ("r", "rank_pattern")
        if value > (widest if rank else MOST_ELEMENTS):
            raise ModelError(
                f"{where}: {path} is {value:,}, but no dimension of the adapter's weights exceeds {widest:,}"
            )


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            with quiet():
                folder = Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS]))
        except Exception as error:  # names, network, cache: every kind there is
            raise ModelError(
                f"no adapter {source!r}: expected a folder with {CONFIG} and {WEIGHTS}, or a Hugging Face id that can be "
                f"reached. {reason(error)}"
            ) from error
    if missing := [name for name in (CONFIG, WEIGHTS) if admitted(folder, name) is None]:
        raise ModelError(f"{source} is no adapter that can be read: it has no {' and no '.join(missing)}")
    return folder


def _check_whole(wrapped: Any, folder: Path, source: str | Path) -> None:
    """Raise ModelError unless every tensor of the adapter is in the model, and every one the model has for it was read."""
    import peft

    stored = set(peft.load_peft_weights(str(folder), device="cpu"))
    there = set(peft.get_peft_model_state_dict(wrapped))
    if stored != there:
        odd = sorted(stored ^ there)
        raise ModelError(
            f"the adapter {source} does not fit the model: {len(stored - there)} of its {len(stored)} tensors have no place "
            f"there, and {len(there - stored)} places have no tensor ({', '.join(odd[:3])}{' …' if len(odd) > 3 else ''})"
        )


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))
