"""A model's configuration, read by transformers; the transformers class it asks for; and readable errors.

transformers raises many kinds of exception for one mistake in a file. `reason` puts what they say into one line that names
the entry of config.json that is at fault.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from depthscope.errors import PANIC, DepthscopeError, ModelError
from depthscope.models.admitted import ADAPTER_CONFIG, CONFIG, INDEX, TOKENIZER_FILES, WEIGHTS, shard_names
from depthscope.models.folder import check_trust
from depthscope.models.memory import short_of_memory
from depthscope.models.quiet import quiet

HUB_SECONDS = 5.0
"""How long the hub has to answer whether it knows a model."""


def read_config(place: Path, source: str, gguf: str | None = None) -> Any:
    """The configuration in a private folder (`admitted.private_folder`), or in the GGUF file `gguf` there; the user calls it
    `source`.

    Raises ModelError where it cannot be used, asks for code, or declares a quantisation that transformers does not know.
    """
    raw: dict[str, Any] = {}
    file = f"{source} config.json" if gguf is None else source
    where = {} if gguf is None else {"gguf_file": gguf}
    with model_errors(f"{file} cannot be used", raw, place, source), quiet():
        found, _ = transformers.PretrainedConfig.get_config_dict(str(place), **where)
        raw.update(found)
        check_trust(raw, file)
        check_quantisation(raw, source)
        # A GGUF file is not read again: that takes seconds where it holds a large vocabulary.
        config: Any = (
            AutoConfig.from_pretrained(str(place), trust_remote_code=False)
            if gguf is None
            else CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
        )
        depth = config.get_text_config(decoder=True).num_hidden_layers
        if depth < 1:
            raise ModelError(f"{file}: num_hidden_layers is {depth}, expected at least 1")
        config.name_or_path = source
    return config


@contextmanager
def model_errors(
    what: str,
    config: Any = None,
    place: Path | None = None,
    source: str = "",
    *,
    kind: type[ModelError] = ModelError,
    name_kind: bool = False,
) -> Iterator[None]:
    """While open, whatever is raised becomes a ModelError (`kind`) of one line that begins with `what`.

    transformers, tokenizers, PEFT and torch raise what they like at a file they do not expect, tokenizers even a panic that
    is no Exception. Errors of depthscope's own pass. In messages, the private folder `place` is called `source`; `name_kind`
    names the class of what was raised, which says something to those who know the model's code.
    """
    try:
        yield
    except DepthscopeError:
        raise
    except BaseException as error:
        if (not isinstance(error, Exception) and type(error).__name__ != PANIC) or short_of_memory(error):
            raise
        why = reason(error, config)
        why = why if place is None else why.replace(str(place), source)
        raise kind(f"{what} with {type(error).__name__}: {why}" if name_kind else f"{what}: {why}") from error


def model_class(config: Any, source: str) -> Any:
    """The class of transformers whose text model predicts the next token: a causal language model, or one that takes images
    or sound too and is studied on text alone.

    Raises ModelError where the configuration asks for neither.
    """
    with model_errors(f"{source} config.json cannot be used"):
        return _model_class(config, source)


def _model_class(config: Any, source: str) -> Any:
    classes: list[Any] = [
        found[0] if isinstance(found, tuple) else found
        for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING)
        if type(config) in mapping and (found := mapping[type(config)])
    ]
    written = getattr(config, "architectures", None) or []
    written = [written] if isinstance(written, str) else [str(name) for name in written]
    encodes = bool(getattr(config, "is_encoder_decoder", False))
    for found in classes:
        if not encodes and (not written or found.__name__ in written):
            return found
    expected = " or ".join(dict.fromkeys(found.__name__ for found in classes if not encodes))
    raise ModelError(
        f"{source} is not a causal language model: it is a {', '.join(written) or config.model_type}, "
        f"expected {expected or 'an architecture that predicts the next token'}"
    )


def hub_folder(source: str, revision: str | None, known: list[str]) -> tuple[str, str | None]:
    """Where transformers should look for a model that is neither embedded nor a folder, and its commit where known.

    The hub is asked once, for HUB_SECONDS at most. Where it does not answer, a copy in the cache is used. Raises ModelError
    with near names, among `known`, cached models and folders, where there is neither.
    """
    try:
        HfApi().model_info(source, revision=revision, timeout=HUB_SECONDS)
    except HfHubHTTPError as error:
        raise ModelError(
            f"no model {source!r} on the Hugging Face hub{_at(revision)}: {reason(error)}{_near(source, known)}"
        ) from error
    except Exception as error:  # no network, a proxy's answer, an impossible id: each has a kind of its own
        return _cached(source, revision, known, error)
    return source, None


def fetch(source: str, revision: str | None) -> Path:
    """The folder in the cache with the files of a hub's model that may be opened, downloaded where they are not there."""
    small = [CONFIG, INDEX, ADAPTER_CONFIG, *TOKENIZER_FILES]
    with model_errors(f"the files of {source} cannot be downloaded"), quiet():
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=small))
        names = shard_names(folder) or [WEIGHTS]
        # The folder's name is the commit: weights and configuration are of one state of the repository.
        return Path(snapshot_download(source, revision=folder.name, allow_patterns=names))


def _cached(source: str, revision: str | None, known: list[str], unreachable: Exception) -> tuple[str, str | None]:
    try:
        folder = snapshot_download(source, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model {source!r}: expected a model by name ({', '.join(known)}; depthscope models lists those that are here "
            "and gets others with --get NAME), a folder with config.json, a GGUF file, or a Hugging Face id. The hub cannot be "
            f"reached ({reason(unreachable)}) and the cache has no copy{_at(revision)}{_near(source, known)}"
        ) from error
    return folder, Path(folder).name


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at revision {revision}"


def _near(source: str, known: list[str]) -> str:
    """`. Did you mean …?`, or nothing."""
    cache = Path(constants.HF_HUB_CACHE)
    cached = ["/".join(found.name.split("--")[1:]) for found in cache.glob("models--*")] if cache.is_dir() else []
    folders = [f"./{found.parent.name}" for found in Path().glob("*/config.json")]
    names = {name.removeprefix("./").lower(): name for name in [*folders, *cached, *known]}
    names |= {name.lower().rpartition("/")[2]: name for name in cached}
    near = difflib.get_close_matches(source.lower(), names, n=3, cutoff=0.6)
    found = list(dict.fromkeys(names[name] for name in near))
    return f". Did you mean {' or '.join(found)}?" if found else ""


def check_quantisation(raw: dict[str, Any], source: str) -> None:
    """Raise ModelError for a quantization_config that names no method which transformers knows."""
    settings = raw.get("quantization_config")
    if not isinstance(settings, dict | NoneType):
        raise ModelError(
            f"{source} config.json: quantization_config is {settings!r:.60}, expected an object that names the method"
        )
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if (
        isinstance(settings, dict)
        and settings
        and (not isinstance(method, str) or method not in AUTO_QUANTIZER_MAPPING)
        and "load_in_8bit" not in settings
    ):
        named = f"the method {method!r}" if method else "no quant_method"
        raise ModelError(
            f"{source} config.json: quantization_config names {named}, so its weights cannot be read as they are meant; "
            f"transformers {transformers.__version__} knows {', '.join(sorted(AUTO_QUANTIZER_MAPPING))}"
        )


def reason(error: BaseException, config: Any = None) -> str:
    """One line that says what went wrong, for a user who did not write the code that raised.

    A KeyError or a missing attribute of torch names a word that the library does not know: where `config` has it, its entry
    is named.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    word = _unknown_word(error)
    if word is not None:
        where = next((path for path, value in _entries(config) if value == word), None)
        entry = f"{where} is {word!r}" if where else repr(word)
        return f"{entry}, which transformers {transformers.__version__} and torch {torch.__version__} do not know"
    if len(lines) > 1 and lines[0].lower().startswith(("class validation error", "validation error")):
        return lines[1].partition(": ")[2] or lines[1]  # the kind of exception stands in front
    if "did not match any variant" in lines[0]:
        return f"{lines[0]} (a newer version of its library wrote it: update tokenizers and transformers)"
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _unknown_word(error: BaseException) -> str | None:
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str) and " " not in error.args[0]:
        return error.args[0]
    if isinstance(error, AttributeError) and error.obj is torch:
        return error.name
    return None


def _entries(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of a configuration that is no mapping itself, with its path."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _entries(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
