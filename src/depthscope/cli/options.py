"""Arguments and options that several commands share; their help is the documentation's too."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from depthscope.models.model import Model

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An embedded model (bookshelf-gpt2, bookshelf-neox), a folder with config.json and safetensors, or a "
        "Hugging Face id.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Text: bookshelf (embedded); a file, pattern or folder of .txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or "
        ".parquet (all but the last also .gz, .xz, .bz2, .zst); a folder written by save_to_disk; or "
        r"hf:NAME\[:CONFIG\[:SPLIT]]. #FIELD names the field with the text, #A.B one within another.",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many tokens to measure on, rounded up to whole windows; the most to read where a precision is the goal.",
        show_default="16,384; 1,000,000 with a precision as the goal",
    ),
]
Precision = Annotated[
    float | None,
    typer.Option(
        help="Instead of a number of tokens: read until every mean KL of the sweep has an interval within this share of it "
        "(0.05 for ±5%), or lies under the dtype's noise floor. A finer one on the same --out goes on where it was.",
        show_default=False,
    ),
]
Window = Annotated[
    int | None, typer.Option(min=2, help="Tokens in a window.", show_default="the model's context, at most 512")
]
Bos = Annotated[
    str,
    typer.Option(help="BOS token before each window: auto (as the tokenizer does by itself), none or window (always)."),
]
Protocol = Annotated[
    str,
    typer.Option(
        help="Where the paper's text and its first script differ: text, or lad2024 (the script, to compare with)."
    ),
]
Experiments = Annotated[
    str,
    typer.Option(
        help="Which experiments, separated by commas: sweep, lens, norms, attention, similarity, influence, geometry, "
        "neurons, heads, probes, stages.",
        show_default="all",
    ),
]
Suffix = Annotated[str, typer.Option(help="What the probed next token ends in.")]
PerToken = Annotated[bool, typer.Option("--per-token", help="Keep every token's numbers of the sweep in its shards.")]
Out = Annotated[
    Path | None,
    typer.Option(help="The run directory. The same command on it resumes.", show_default="runs/MODEL-DATA"),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda or cuda:N.")]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hugging Face model.", show_default="main")
]

Stream = Annotated[
    str,
    typer.Option(
        help="Whether the blocks' weights stay on disk, each read when it is run: yes, no, or auto (if the weights would take "
        "more than 70% of the memory available). The numbers agree to rounding."
    ),
]

UnusedTensors = Annotated[
    str,
    typer.Option(
        help="What to do with a checkpoint that holds tensors the model does not read: refuse it, or ignore them."
    ),
]

Adapter = Annotated[
    str | None,
    typer.Option(
        help="A PEFT adapter to put into the model: a folder with adapter_config.json and safetensors, or a Hugging Face id.",
        show_default=False,
    ),
]

SpecialTokens = Annotated[
    str,
    typer.Option(
        help="What a special token's name means where the text writes it: text (its characters) or keep (the token)."
    ),
]

Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Documents are lists of messages (role and content), in the field messages or #FIELD, read through the "
        "tokenizer's chat template.",
    ),
]

Pack = Annotated[
    bool,
    typer.Option(
        "--pack",
        help="Join documents shorter than a window until they fill one, a separator (EOS, or else BOS) after each. A window "
        "of joined documents counts as one document in intervals.",
    ),
]

DEFAULT_MODEL = "bookshelf-gpt2"
DEFAULT_DATA = "bookshelf"
DEFAULT_DTYPE = "float32"


def listed(names: str) -> tuple[str, ...]:
    """Names separated by commas, hyphens or not."""
    return tuple(name.strip().replace("-", "_") for name in names.split(",") if name.strip())


def load_quietly(
    name: str,
    dtype: str,
    device: str,
    revision: str | None,
    stream: str = "no",
    unused_tensors: str = "refuse",
    adapter: str | None = None,
    verify: bool = True,
) -> "Model":
    """Load a model for a command: says what it waits for, keeps transformers' advice to programmers off the terminal."""
    from depthscope.cli.console import errors_console

    with errors_console.status(f"loading {name}"):
        import huggingface_hub
        import transformers

        from depthscope.models.load import load

        transformers.utils.logging.set_verbosity_error()
        huggingface_hub.utils.logging.set_verbosity_error()
        settings = {"dtype": dtype, "device": device, "revision": revision, "stream": stream, "adapter": adapter}
        return load(name, **settings, unused_tensors=unused_tensors, verify=verify)
