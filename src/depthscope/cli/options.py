"""Arguments and options shared by several commands; the documentation uses their help texts too."""

import inspect
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from depthscope.errors import DepthscopeError
from depthscope.models.formats import QUANTIZE, check_quantize
from depthscope.printable import shown
from depthscope.schema.declaration import Option, check_text

if TYPE_CHECKING:
    from depthscope.models.model import Model

RUN_PLACE = (
    "The run directory, or a URL that fsspec opens (s3://bucket/run). The same command resumes an incomplete run; with a URL "
    "on another machine too."
)
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An embedded model (bookshelf-gpt2, bookshelf-neox), a named one (see depthscope models), a folder with "
        "config.json and safetensors, a GGUF file, a folder with one, FOLDER#FILE, or a Hugging Face id.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Text: bookshelf (embedded); a file, pattern or folder of .txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or "
        ".parquet (all but the last also .gz, .xz, .bz2, .zst); a folder written by save_to_disk; or "
        r"hf:NAME\[:CONFIG\[:SPLIT]]. #FIELD names the field with the text, #A.B a nested one; a # in a pattern is \[#].",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of tokens to measure, rounded up to whole windows; with a precision goal, the maximum to read.",
        show_default="16,384; 1,000,000 with a precision goal",
    ),
]
Out = Annotated[
    str | None,
    typer.Option(metavar="DIR|URL", help=RUN_PLACE, show_default="runs/MODEL-DATA"),
]
Dtype = Annotated[str, typer.Option(help="auto (float32; bfloat16 for GGUF), float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda or cuda:N.")]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hugging Face model.", show_default="main")
]

Stream = Annotated[
    str,
    typer.Option(
        help="Whether to keep the blocks' weights on disk and read each when it runs: yes, no, or auto (if the weights would "
        "take more than 70% of available memory). Results agree up to rounding."
    ),
]

DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="auto|balanced|FILE",
        help="Put the blocks on several devices or on disk with accelerate: auto, balanced, or a JSON file of devices by "
        'module like {"": "cpu", "model.layers.3": "disk"}. Not together with --device or --stream yes.',
        show_default=False,
    ),
]

Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(QUANTIZE),
        help="Quantise plain weights while they are loaded: to 4 bits (nf4, fp4) or to 8 bits with bitsandbytes (int8, which "
        "rounds what layers are given too), or to 8-bit weights with torchao. Extra quant.",
        show_default=False,
    ),
]

UnusedTensors = Annotated[
    str,
    typer.Option(help="What to do if a checkpoint has tensors the model does not use: refuse it, or ignore them."),
]

Adapter = Annotated[
    str | None,
    typer.Option(
        help="A PEFT adapter to apply to the model: a folder with adapter_config.json and safetensors, or a Hugging Face id.",
        show_default=False,
    ),
]

SpecialTokens = Annotated[
    str,
    typer.Option(
        help="How to tokenize a special token's name in the text: text (as characters) or keep (as the token)."
    ),
]

Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Documents are lists of messages (role and content), in the field messages or #FIELD, formatted by the "
        "tokenizer's chat template.",
    ),
]

Pack = Annotated[
    bool,
    typer.Option(
        "--pack",
        help="Join documents shorter than a window until they fill one, with a separator (EOS, or else BOS) after each. A "
        "window of joined documents counts as one document in intervals.",
    ),
]

Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="Documents with the same value of this field of the data (book, author; title or author for bookshelf) count as "
        "one in every interval, and probes are tested on other values than they are trained on.",
        show_default="each document on its own",
    ),
]

Engine = Annotated[
    str,
    typer.Option(
        help="Where work units are computed: local (this process), or ray (replicas of the model on a Ray cluster; extra "
        "cluster). Tables are the same."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="With --engine ray: a running cluster, or auto on one of its machines.",
        show_default="Ray is started on this machine",
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        help="With --engine ray: how many processes load the model.", show_default="as many as there is room for"
    ),
]
CpusPerReplica = Annotated[
    int | None,
    typer.Option(
        help="With --engine ray: cores that each replica reserves, and threads that it computes with.",
        show_default="the threads of this process, or fewer if --replicas would not fit on this machine",
    ),
]
GpusPerReplica = Annotated[
    float | None,
    typer.Option(
        help="With --engine ray: GPUs that each replica reserves, or a share of one, such as 0.5.",
        show_default="1 with --device cuda, else 0",
    ),
]

DEFAULT_MODEL = "bookshelf-gpt2"
DEFAULT_DATA = "bookshelf"
DEFAULT_DTYPE = "auto"


def parameter(option: Option) -> inspect.Parameter:
    """A command-line parameter for a declared option, with the declaration's type, default and help."""
    kind: Any = str if option.type is tuple else option.type
    default = ",".join(option.default) if isinstance(option.default, tuple) else option.default
    names = [f"--{option.name.replace('_', '-')}"] if option.type is bool else []
    shown: Any = option.shown_default or default not in (None, "")
    typed = typer.Option(*names, help=escape(option.text), show_default=shown)
    annotation = Annotated[kind | None if default is None else kind, typed]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def require_room_to_import() -> None:
    """Raise MemoryShortError unless torch and transformers can be imported; they are what takes most of a small study."""
    from depthscope.models.memory import IMPORTING, require_headroom

    if "torch" not in sys.modules:
        require_headroom("importing torch and transformers", IMPORTING)


DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
CHOICES = {"--stream": ("auto", "yes", "no"), "--unused-tensors": ("refuse", "ignore")}
LONGEST_PATH, LONGEST_PART, LONGEST_REVISION = 4096, 255, 255
"""Bytes of a path, of a name in it, and of the name of a branch, tag or commit."""


def check_loading(
    name: str,
    dtype: str,
    device: str,
    revision: str | None,
    stream: str,
    unused_tensors: str,
    device_map: str | None = None,
    quantize: str | None = None,
    adapter: str | None = None,
) -> None:
    """Raise DepthscopeError for a value that is invalid for every model. Imports no torch, opens no file."""
    check_text("MODEL", name, LONGEST_PATH)
    if dtype not in DTYPES:
        raise DepthscopeError(f"unknown dtype {shown(dtype)}: expected one of {', '.join(DTYPES)}")
    if not re.fullmatch(r"[a-z]+(:[0-9]{1,3})?", device):
        raise DepthscopeError(f"device {shown(device)} cannot be used: expected auto, cpu, cuda or cuda:N")
    for option, value in (("--stream", stream), ("--unused-tensors", unused_tensors)):
        if value not in CHOICES[option]:
            raise DepthscopeError(f"{option} is {shown(value)}: expected one of {', '.join(CHOICES[option])}")
    if quantize is not None:
        check_quantize(quantize)
    if revision is not None:
        check_text("--revision", revision, LONGEST_REVISION)
    if device_map is not None:
        check_text("--device-map", device_map, LONGEST_PATH)
    if adapter is not None:
        check_text("--adapter", adapter, LONGEST_PATH)


def check_path(option: str, path: Path) -> None:
    """Raise DepthscopeError for a path that no system can open. Bytes that are not UTF-8 are allowed in it."""
    written = os.fsencode(path) if _on_disk(path) else None
    if (
        written is None
        or b"\0" in written
        or len(written) > LONGEST_PATH
        or any(len(one) > LONGEST_PART for one in written.split(b"/"))
    ):
        raise DepthscopeError(
            f"{option} is {shown(str(path))}: expected a path of at most {LONGEST_PATH} bytes, {LONGEST_PART} for each name in "
            "it, without null characters"
        )


def check_place(option: str, place: str | Path) -> None:
    """Raise DepthscopeError for a path as `check_path` does, or for a URL that cannot be opened with what is installed."""
    from depthscope.run.remote import check_url, is_url

    if is_url(place):
        check_text(option, str(place), LONGEST_PATH)
        check_url(str(place))
    else:
        check_path(option, Path(place))


def run_path(option: str, place: str) -> Path:
    """The directory of a run or series to read: the place itself, or a copy of what is at a URL. Raises DepthscopeError for
    one that cannot be read."""
    check_place(option, place)
    from depthscope.run.mirror import local_copy

    return local_copy(place)


def _on_disk(path: Path) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def as_written(words: Sequence[str], given: Mapping[str, object]) -> str:
    """A command line with the options that have a value, for model cards. True is an option without one."""
    said: list[str] = []
    for name, value in given.items():
        if value is not None and value is not False and value != "":  # 0 is a value
            said += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(["depthscope", *words, *said])


def silence_advice() -> None:
    """Turn off what transformers and the hub's client say to programmers, for a command's process."""
    import huggingface_hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()


def load_quietly(
    name: str,
    dtype: str,
    device: str,
    revision: str | None,
    stream: str = "no",
    unused_tensors: str = "refuse",
    device_map: str | None = None,
    quantize: str | None = None,
    adapter: str | None = None,
    verify: bool = True,
) -> "Model":
    """Load a model for a command, with a status line and without transformers' developer warnings.

    Raises DepthscopeError for an option that no model can be loaded with, before torch is imported.
    """
    check_loading(name, dtype, device, revision, stream, unused_tensors, device_map, quantize, adapter)
    from depthscope.cli.console import busy

    require_room_to_import()
    with busy(f"loading {name}"):
        from depthscope.models.load import load

        silence_advice()
        settings = {"dtype": dtype, "device": device, "revision": revision, "stream": stream, "adapter": adapter}
        settings |= {"unused_tensors": unused_tensors, "device_map": device_map, "quantize": quantize}
        model = load(name, **settings, verify=verify)
    _note_slow_precision(model)
    return model


def _note_slow_precision(model: "Model") -> None:
    """Say so where the processor takes much longer in the model's half precision than it would in float32."""
    from depthscope.cli.console import print_note
    from depthscope.models.half_precision import SLOWER, time_of_products

    weight = model.unembedding.weight
    if model.device.type != "cpu" or weight.dtype.itemsize > 2:
        return
    if (times := time_of_products(weight.dtype)) >= SLOWER:
        print_note(
            f"products in {model.facts.dtype} take {times:.0f} times as long as in float32 on this processor: "
            "--dtype float32 is faster, with twice the memory for weights"
        )
