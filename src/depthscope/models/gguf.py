"""GGUF files: finding one, reading what it says of itself, and loading it through transformers, dequantised.

A GGUF file holds configuration, tokenizer and weights, most of them quantised in blocks. transformers' loader turns the
weights back into plain ones. It is asked to do that at once: otherwise it would fetch compiled kernels from the hub.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import transformers
from huggingface_hub import hf_hub_download, list_repo_files
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.available import SUFFIX, file_type
from depthscope.models.folder import LFS_POINTER
from depthscope.models.gguf_header import MAGIC, Header, end_of_data, read_header
from depthscope.models.quiet import quiet
from depthscope.schema.manifest import GgufEntry
from depthscope.untrusted import open_regular

NEEDED = ("gguf", "accelerate")
SCALED = ("gpt-oss", "gpt_oss")
"""Architectures of which transformers reads scaled rotary positions."""
EXPERTS = "_exps."
"""In names of tensors with all experts of a block, which transformers splits by rules of its own."""
RENAMED = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
"""Architectures that transformers' loader calls otherwise than the format does."""


def choose(folder: Path, name: str | None, source: str) -> Path | None:
    """The GGUF file `name` of a folder, or its only one; None where it holds safetensors or no GGUF file.

    Raises ModelError, listing the files, where there are several or none of that name.
    """
    files = sorted(file.name for file in folder.glob(f"*{SUFFIX}") if file.is_file())
    if name is not None:
        if not (folder / name).is_file():
            raise ModelError(f"{source} holds no file {name}: it has {', '.join(files) or 'no GGUF file'}")
        return folder / name
    if not files or any(folder.glob("*.safetensors")):
        return None
    return folder / _only(files, source)


def choose_on_hub(location: str, name: str | None, source: str, revision: str | None) -> Path | None:
    """As `choose`, for the place of a model of the hub: its id, or a folder in the cache. The file is downloaded.

    Raises ModelError too where the hub does not answer.
    """
    if Path(location).is_dir():
        return choose(Path(location), name, source)
    try:
        files = list_repo_files(location, revision=revision)
        ggufs = sorted(file for file in files if file.endswith(SUFFIX))
        if name is None:
            if not ggufs or any(file.endswith(".safetensors") for file in files):
                return None
            name = _only(ggufs, source)
        if name not in ggufs:
            raise ModelError(f"{source} holds no file {name}: it has {', '.join(ggufs) or 'no GGUF file'}")
        with quiet():
            return Path(hf_hub_download(location, name, revision=revision))
    except ModelError:
        raise
    except Exception as error:  # names, network, cache: every kind there is
        raise ModelError(f"the GGUF file of {source} cannot be downloaded: {error}") from error


def _only(files: Sequence[str], source: str) -> str:
    if len(files) > 1:
        raise ModelError(f"{source} holds {len(files)} GGUF files: choose one as {source}#FILE from {', '.join(files)}")
    return files[0]


def read_entry(path: Path) -> GgufEntry:
    """Hash and quantisation of a GGUF file, checked before transformers reads it.

    Raises ModelError for a file that is not GGUF or is truncated, for an architecture that transformers cannot load, and
    where the packages that reading it needs are not installed.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ModelError(
            f"reading {path.name} needs the package {' and '.join(missing)}: pip install 'depthscope[gguf]'"
        )
    digest = _digest(path)
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        header = read_header(path)
        end = end_of_data(header, {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()})
    except (ValueError, struct.error) as error:
        raise ModelError(f"{path} cannot be read, it may be truncated: {error}") from error
    architecture = str(header.metadata.get("general.architecture"))
    _check_architecture(path, architecture)
    _check_positions(path, architecture, header)
    if not header.tensors:
        raise ModelError(f"{path} holds no tensors: expected a model's weights")
    if end > path.stat().st_size:
        raise ModelError(f"{path} is truncated: its tensors end at byte {end:,}, but it has {path.stat().st_size:,}")
    types = Counter(GGMLQuantizationType(tensor.kind).name for tensor in header.tensors)
    name = file_type(header.metadata) or types.most_common(1)[0][0]
    return GgufEntry(file=path.name, sha256=digest, quantisation=name, tensor_types=dict(sorted(types.items())))


def _digest(path: Path) -> str:
    with open_regular(path, ModelError) as opened:
        start = opened.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ModelError(f"{path} is a Git LFS pointer, not the model: run git lfs pull in {path.parent}")
        if not start.startswith(MAGIC):
            raise ModelError(f"{path} is not a GGUF file: it begins with {start[:4]!r}, expected {MAGIC!r}")
        opened.seek(0)
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_architecture(path: Path, architecture: Any) -> None:
    try:
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
        from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    except ImportError as error:
        raise ModelError(
            f"reading {path.name} needs transformers 5.23 or newer, got {transformers.__version__}: "
            "pip install 'depthscope[gguf]'"
        ) from error
    supported = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_ARCHS} - {"general", "tokenizer"}  # groups of metadata
    if RENAMED.get(architecture, architecture) not in supported:
        raise ModelError(
            f"{path}: transformers {transformers.__version__} cannot load GGUF files of the architecture {architecture!r}. It "
            f"can load {', '.join(sorted(supported))}"
        )


def _check_positions(path: Path, architecture: str, header: Header) -> None:
    """Raise UnsupportedError for rotary positions that are scaled, which transformers' loader mostly does not read: the
    model would be another one."""
    kind = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    factors = [tensor.name for tensor in header.tensors if tensor.name.startswith(("rope_freqs", "rope_factors"))]
    if architecture not in SCALED and (kind != "none" or factors):
        raise UnsupportedError(
            f"{path}: its rotary positions are scaled ({factors[0] if factors else kind}), which transformers "
            f"{transformers.__version__} does not read from GGUF files of {architecture!r}, so the model would be another one"
        )


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a GGUF file, None where it has none. Raises whatever transformers and tokenizers raise.

    Not through AutoTokenizer, which would read the whole file for a configuration that the tokenizer does not need.
    """
    if not read_header(path).metadata.get("tokenizer.ggml.tokens"):
        return None
    return PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)


def check_not_streamed(stream: str, source: str) -> None:
    """Raise UnsupportedError where the user asks for streaming, which needs weights that can be read as they are."""
    if stream == "yes":
        raise UnsupportedError(
            f"{source} is a GGUF file, whose blocks must be dequantised first, so it cannot be streamed: load it whole "
            "(stream no), or save it as safetensors with save_pretrained"
        )


def load_gguf(made_by: Any, path: Path, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of class `made_by` with the dequantised weights of a GGUF file, and what transformers says of the loading."""
    from transformers import GgufConfig  # of recent versions only

    # Standard error: a progress bar that transformers' own switch does not reach.
    with redirect_stderr(StringIO()), _recorded_places() as places:
        hf, loading = made_by.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            **settings,
        )
    names = {tensor.name for tensor in read_header(path).tensors if EXPERTS not in tensor.name}
    ignored = names - places[-1].keys() if places else set()
    return hf, {**loading, "unexpected_keys": {*loading["unexpected_keys"], *ignored}}


@contextmanager
def _recorded_places() -> Iterator[list[dict[str, str]]]:
    """While open, transformers' maps from a file's tensors to a model's weights are kept, the whole model's last.

    Its loader drops tensors that have no place in the model (biases, say) without a word.
    """
    from transformers import modeling_gguf_pytorch_utils as loader

    original, found = loader.get_gguf_hf_weights_map, []

    def recorded(*args: Any, **kwargs: Any) -> dict[str, str]:
        found.append(original(*args, **kwargs))
        return found[-1]

    with patch.object(loader, "get_gguf_hf_weights_map", recorded):
        yield found
