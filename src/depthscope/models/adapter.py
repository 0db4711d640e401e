"""Adapters (LoRA and its relatives): put into a model by PEFT where they are asked for, and identified by their hash."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.configuration import reason
from depthscope.models.quiet import quiet

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
    try:
        with quiet():
            config = peft.PeftConfig.from_pretrained(str(folder))
            if config.is_prompt_learning:
                raise UnsupportedError(
                    f"{source} is a {_kind(config)} adapter, which adds tokens before the text: expected one that changes "
                    "the model's own modules, such as LoRA"
                )
            wrapped = peft.PeftModel.from_pretrained(hf, str(folder), config=config)
    except ModelError:
        raise
    except Exception as error:  # shapes, names of modules, versions: PEFT raises what torch raises
        raise ModelError(f"the adapter {source} cannot be put into {hf.name_or_path}: {reason(error)}") from error
    _check_whole(wrapped, folder, source)
    digest = hashlib.sha256((folder / CONFIG).read_bytes() + (folder / WEIGHTS).read_bytes())
    base: Any = wrapped.get_base_model()
    return base, Adapter(str(source), _kind(config), digest.hexdigest())


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
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
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
