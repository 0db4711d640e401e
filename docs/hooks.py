"""What the site takes from the code each time it is built, so that it cannot go stale.

In a page, a line `{columns: sweep.SWEEP_TABLE}` becomes the columns of that table, what each means, and its docstring,
`{metrics: sweep}` the quantities a schema module defines, `{definitions: probes.GROUPS}` named things and their
sentences, `{edits}` the edits of a sweep, `{commands}` the whole command line, `{settings}` the settings of `ds.study`,
`{families}` the names of components per model family, `{tables}` the columns of every table and shard, `{errors}` the tree
of exceptions, `{others}` the experiments that the page says nothing of. Pages of the Python modules and of the tutorials are
made here, and diagrams are put into their pages, so that they take the page's colours.
"""

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import polars as pl
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

import notebooks  # noqa: E402

import depthscope.schema  # noqa: E402
from depthscope import errors  # noqa: E402
from depthscope.cli import app  # noqa: E402
from depthscope.cli.request import SHARED  # noqa: E402
from depthscope.edit_registry import EDITS, sweeps  # noqa: E402
from depthscope.models.families import FAMILIES  # noqa: E402
from depthscope.schema.experiments import EXPERIMENTS  # noqa: E402
from depthscope.schema.metric import Metric  # noqa: E402
from depthscope.studies.settings import study_options  # noqa: E402

SOURCE = Path(depthscope.schema.__file__).parents[1]
TABLE = re.compile(r"_(TABLE|SHARD|shard)$")
MARKER = re.compile(r"^\{(\w+)(?:: ([\w.]+))?\}$", re.MULTILINE)
DIAGRAM = re.compile(r"^!\[([^\]]*)\]\(([^)]+\.svg)\)$", re.MULTILINE)
MODULES = "reference/modules"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the Python modules into the navigation, where their index stands."""
    pages = [f"{MODULES}/{name}.md" for name in ("index", *_packages())]

    def filled(entries: list[Any]) -> list[Any]:
        if entries == pages[:1]:
            return pages
        return [
            {title: filled(below) if isinstance(below, list) else below for title, below in entry.items()}
            if isinstance(entry, dict)
            else entry
            for entry in entries
        ]

    config.nav = filled(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {f"{MODULES}/{name}.md": text for name, text in _module_pages()}
    for path in sorted(notebooks.TUTORIALS.glob("*.ipynb")):
        made[f"tutorials/{path.stem}.md"] = notebooks.to_markdown(path)
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what comes from the code, and diagrams."""
    written = markdown

    def fill(found: re.Match[str]) -> str:
        return others(written) if found[1] == "others" else FILLED[found[1]](*filter(None, found.groups()[1:]))

    markdown = MARKER.sub(fill, markdown)
    folder = (DOCS / page.file.src_uri).parent
    return DIAGRAM.sub(lambda found: _diagram(folder / found[2], found[1]), markdown)


def _diagram(path: Path, description: str) -> str:
    drawing = path.read_text(encoding="utf-8").strip()
    assert drawing.startswith("<svg "), path
    assert "\n\n" not in drawing, f"{path}: an empty line would end the HTML that stands in a page"
    return drawing.replace("<svg ", f'<svg class="diagram" role="img" aria-label="{description}" ', 1)


def _schema(name: str) -> Any:
    return importlib.import_module(f"depthscope.schema.{name}")


def columns(reference: str) -> str:
    """Columns of a table or shard with what each means, below the docstring of the table in its schema module."""
    module, _, name = reference.partition(".")
    types = pl.Schema(table(reference))
    rows = [(f"`{column}`", str(kind), meaning(reference, column)) for column, kind in types.items()]
    return f"{_said(module, name)}\n\n{_table(('column', 'type', 'meaning'), rows)}"


def references() -> list[str]:
    """`module.NAME` of every table and shard in the schema."""
    modules = sorted(found.name for found in pkgutil.iter_modules(depthscope.schema.__path__))
    return [f"{module}.{name}" for module in modules for name in vars(_schema(module)) if TABLE.search(name)]


def table(reference: str) -> Mapping[str, Any]:
    """Columns and types of a table or shard. The shard of probes depends on how many neurons are read: here 64."""
    module, _, name = reference.partition(".")
    found = getattr(_schema(module), name)
    return found(64) if callable(found) else found


def meaning(reference: str, column: str) -> str:
    """What a column means, with its unit: as stated for this table, as its module defines the quantity, or as everywhere."""
    if column in (own := MEANINGS.get(reference, {})):
        return own[column]
    for metric in map(_metrics, vars(_schema(reference.partition(".")[0])).values()):
        for one in metric:
            if one.name == column:
                return f"{one.definition}; unit: {one.unit}"
    return MEANINGS["any"][column]


def metrics(module: str) -> str:
    """Every quantity a schema module defines: name, unit, definition."""
    found = {metric.name: metric for value in vars(_schema(module)).values() for metric in _metrics(value)}
    rows = [(f"`{m.name}`", m.title, m.unit, m.definition) for m in found.values()]
    return _table(("metric", "", "unit", "definition"), rows)


def _metrics(value: Any) -> Iterator[Metric]:
    if isinstance(value, Metric):
        yield value
    elif isinstance(value, dict):
        yield from (one for one in value.values() if isinstance(one, Metric))


def definitions(reference: str) -> str:
    """A mapping of names to sentences, or to things with a title and a definition."""
    module, _, name = reference.partition(".")
    rows = []
    for key, value in getattr(_schema(module), name).items():
        named = ": ".join(key) if isinstance(key, tuple) else key
        rows.append(
            (f"`{named}`", value if isinstance(value, str) else getattr(value, "definition", None) or value.sentence)
        )
    return _table(("name", "definition"), rows)


def edits() -> str:
    """The edits that a sweep can apply."""
    return _table(("name", "definition"), [(f"`{name}`", EDITS[name].definition) for name in sweeps()])


def tables() -> str:
    """The columns of every table and shard in the schema."""
    parts = []
    for module, found in groupby(references(), lambda reference: reference.partition(".")[0]):
        parts += [f"## {module}", (_schema(module).__doc__ or "").strip(), "### Quantities", metrics(module)]
        parts += [part for one in found for part in (f"### {one.partition('.')[2]}", columns(one))]
    return "\n\n".join(parts)


def others(page: str) -> str:
    """The experiments of a study that a page does not name, each with its title."""
    said = [f"- `{name}`: {one.title}" for name, one in EXPERIMENTS.items() if f"[`{name}`]" not in page]
    return "\n".join(["Not on a page of their own yet:", "", *said]) if said else ""


def settings() -> str:
    """The settings of a study and of its experiments: keywords of `ds.study` and options of the commands."""
    rows = []
    for name, option in study_options().items():
        of = [f"`{one.name}`" for one in EXPERIMENTS.values() if name in {own.name for own in one.options}]
        default = option.shown_default or ("" if option.default in (None, ()) else f"`{option.default}`")
        kind = "list of names" if option.type is tuple else option.type.__name__
        rows.append((f"`{name}`", kind, default, ", ".join(of) or "the study", _plain(option.text)))
    return _table(("setting", "type", "default", "of", "meaning"), rows)


def _said(module: str, name: str) -> str:
    """The string below an assignment, or the docstring of a function."""
    if callable(found := getattr(_schema(module), name)):
        return " ".join((found.__doc__ or "").split())
    body = ast.parse(Path(_schema(module).__file__).read_text(encoding="utf-8")).body
    for here, after in pairwise(body):
        targets = getattr(here, "targets", [getattr(here, "target", None)])
        if any(getattr(target, "id", None) == name for target in targets) and isinstance(after, ast.Expr):
            return " ".join(str(ast.literal_eval(after.value)).split())
    return ""


def families() -> str:
    """Where attention and MLP write, per family, as `models/families.py` has it."""
    rows = [(f"`{name}`", f"`{found.attention}`", f"`{found.mlp}`") for name, found in sorted(FAMILIES.items())]
    return _table(("family (`model_type`)", "attention", "MLP"), rows)


def error_tree() -> str:
    """The exceptions, each with what it means."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    rows = [(f"`{kind.__name__}`", f"`{kind.__bases__[0].__name__}`", (kind.__doc__ or "").strip()) for kind in kinds]
    return _table(("error", "is a", "means"), rows)


def commands() -> str:
    """Every command of the command line with its options; those that measuring commands share stand first."""
    group = typer.main.get_command(app)
    shared = [parameter.name for parameter in SHARED]
    measuring = {name for name, one in group.commands.items() if set(shared) <= {p.name for p in one.params}}  # type: ignore[attr-defined]
    some = next(one for name, one in group.commands.items() if name in measuring)  # type: ignore[attr-defined]
    parts = [
        "## Options of every measuring command",
        f"{', '.join(f'`{name}`' for name in group.commands if name in measuring)} take these.",  # type: ignore[attr-defined]
        _options([parameter for parameter in some.params if parameter.name in shared]),
    ]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        own = [p for p in command.params if p.name != "help" and not (name in measuring and p.name in shared)]
        parts += [f"## depthscope {name}", _plain(command.help or "")]
        if name in measuring:
            parts.append("The shared options" + (", and:" if own else " alone."))
        parts += [_options(own)] if own else []
    return "\n\n".join(parts)


def _options(parameters: list[Any]) -> str:
    rows = []
    for one in parameters:
        argument = one.param_type_name == "argument"
        default = one.show_default if isinstance(one.show_default, str) else one.default
        shown = "" if default in (None, False, "") or not one.show_default else f"`{default}`"
        name = one.metavar if argument else ", ".join(one.opts)
        rows.append((f"`{name}`", shown, _plain(one.help or "")))
    return _table(("option", "default", ""), rows)


def _plain(text: str) -> str:
    """Help as it is read: rich's escapes taken off, brackets kept from becoming links."""
    return text.replace("\\[", "[").replace("[", "\\[").replace("]", "\\]").strip()


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _packages() -> list[str]:
    return sorted(path.stem for path in SOURCE.iterdir() if _modules(path))


def _modules(path: Path) -> list[str]:
    """Modules of a package, or a single module, that have a docstring of their own to show."""
    files = sorted(path.glob("*.py")) if path.is_dir() else [path] if path.suffix == ".py" else []
    files += sorted(path.glob("sections/*.py")) if path.is_dir() else []
    named = [file.relative_to(SOURCE.parent).with_suffix("") for file in files if file.stem != "__init__"]
    return [".".join(name.parts) for name in named]


def _module_pages() -> Iterator[tuple[str, str]]:
    """(name, Markdown) of a page per package, from docstrings alone: nothing is imported."""
    rows = []
    for path in sorted(SOURCE.iterdir()):
        if modules := _modules(path):
            init = path / "__init__.py" if path.is_dir() else path
            said = (ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            rows.append((f"[`{path.stem}`]({path.stem}.md)", said))
            yield path.stem, "\n\n".join([f"# depthscope.{path.stem}", said, *(f"::: {name}" for name in modules)])
    intro = "What each package is for, then every public name with its docstring. Imports point one way, and a test holds that."
    yield "index", f"# Modules\n\n{intro}\n\n{_table(('package', ''), rows)}\n"


_INTERVAL = "of the 95 % interval of `mean` over documents, in `unit`; null with a single document"
_SUMS = "sum over the document's tokens of"
_OF_TASKS = {
    "task": "name of the task",
    "filter": "the harness's filter of answers; `none` for most tasks",
    "metric": "name of the task's metric",
    "edit": "the edit's or route's name; `none` is the unmodified model",
}
_OF_CLASSES = {
    "classing": "how the predicted tokens are divided into classes (`frequency`, `kind`, …)",
    "token_class": "class of the predicted token, in its classing",
    "tokens": "number of tokens of the class that the mean is over",
    "documents": "number of documents with tokens of the class",
}
_OF_CLASS_LAYERS = _OF_CLASSES | {
    "extreme": "whether it is the `highest` or the `lowest`",
    "ci_low": "lower end of the 95 % interval of all layers and classes at once; null for a class with fewer than 50 "
    "tokens or 10 documents",
    "ci_high": "upper end of the 95 % interval of all layers and classes at once; null for a class with fewer than 50 "
    "tokens or 10 documents",
    "cells": "number of ratios, layers × classes, that the intervals cover at once",
}

_OF_MODES = {"mode": "what is given instead: `zero`, `mean` or `resample`"}
_OF_BEST = _OF_MODES | {
    "extreme": "whether it is the one with the `lowest` or the `highest` value",
    "ci_low": "lower end of the 95 % interval of all of the mode at once, in `unit`; null below 10 documents",
    "ci_high": "upper end of the 95 % interval of all of the mode at once, in `unit`; null below 10 documents",
    "measured": "number of heads or neurons of the mode, which the intervals cover at once",
}
_DEPTH = "depth of the residual stream: l is before block l, L (the number of blocks) after the last one"
MEANINGS: dict[str, dict[str, str]] = {
    "any": {
        "layer": "layer (block), from 0",
        "head": "query head of the layer, from 0",
        "neuron": "MLP neuron of the layer, from 0",
        "metric": "name of the measured quantity",
        "unit": "unit of `mean`, `ci_low` and `ci_high`",
        "mean": "mean of the metric over tokens, in `unit`",
        "ci_low": f"lower end {_INTERVAL}",
        "ci_high": f"upper end {_INTERVAL}",
        "tokens": "number of tokens (positions) the mean is over",
        "documents": "number of documents (with `--pack` packs, with `--cluster` clusters) that the interval rests on",
        "document": "document, numbered from 0 in the order of the text; a pack and, in sums, a cluster have that of their "
        "first document",
        "edit": "kind of edit (`swap`, `drop`, …); `none` is the unmodified model",
        "kind": "kind of neuron (`prediction`, `suppression`, …)",
        "token_class": "class of tokens that explains most of the variance of the neuron's effect on the logits; null without "
        "a tokenizer",
        "suffix": "suffix that the probe looks for at the end of the next token",
        "word_tokens": "number of tokens in the words of `merge`, `merge_first` and the class `word`; null for other metrics",
    },
    "formation.FORMATION_TABLE": {
        "study": "the study of the run's last checkpoint, which distinguishes training runs measured with other settings",
        "trained": "the model whose checkpoints were measured: a folder of folders, or a Hugging Face id",
        "text": "source of the text",
        "mean": "the estimate, in `unit`; null where the change may be 0",
    },
    "tasks.ANSWER_SHARD": {
        "request": "number of the request, in the order of length, from 0",
        "edit": "the edit's or route's name; `none` is the unmodified model",
        "loglikelihood": "log-likelihood of the continuation after its context; nats. Null for a request for text",
        "greedy": "whether every token of the continuation is the most likely one. Null for a request for text",
        "text": "what was generated; null for a request for a log-likelihood",
    },
    "tasks.TASK_TABLE": _OF_TASKS
    | {
        "route": "the route that the edit gives",
        "value": "the metric, as the harness aggregates it",
        "stderr": "the harness's standard error of `value`",
        "difference": "`value` minus that of the unmodified model",
        "ci_low": "lower end of the paired 95 % interval of `difference`",
        "ci_high": "upper end of the paired 95 % interval of `difference`",
        "changed": "number of examples whose value is not that of the unmodified model",
        "examples": "number of examples",
        "clusters": "number of units that the interval rests on",
        "higher_is_better": "whether a higher `value` is better, as the task declares it",
    },
    "tasks.EXAMPLE_TABLE": _OF_TASKS
    | {
        "example": "number of the example in the task's data set",
        "cluster": "number of the first example of its cluster",
        "value": "what the harness aggregates of the example",
    },
    "tasks.KL_TABLE": {"edit": _OF_TASKS["edit"]},
    "tasks.CORRELATION_TABLE": {name: said for name, said in _OF_TASKS.items() if name != "edit"}
    | {
        "edits": "number of edits that the correlation is over",
        "spearman": "Spearman's correlation of `difference` with mean KL, over edits; null for fewer than 4",
        "ci_low": "lower end of its approximate 95 % interval",
        "ci_high": "upper end of its approximate 95 % interval",
    },
    "sweep.SWEEP_TABLE": {"layer": "layer of the edit, from 0; for a swap the first of the two; −1 for `none`"},
    "sweep.TOKEN_SHARD": {
        "document": "document the token belongs to, numbered from 0 in the order of the text",
        "position": "position of the token in its document, in tokens from 0",
        "token": "token id at the position: the last one the model reads for this prediction",
        "next_token": "id of the token that follows: the one the loss is about",
        "layer": "layer of the edit, from 0; for a swap the first of the two; −1 for `none`",
        "agreement": "1 if p and q have the same most likely token, else 0",
    },
    "sweep.DOCUMENT_SHARD": {
        "layer": "layer of the edit, from 0; for a swap the first of the two; −1 for `none`",
        "tokens": "number of tokens of the document that the sums are over",
        "kl": f"{_SUMS} KL(p‖q); nats",
        "agreement": "number of the document's tokens where p and q have the same most likely token",
        "entropy": f"{_SUMS} H(q); nats",
        "loss": f"{_SUMS} −log q(next token); nats",
    },
    "precision.PRECISION_TABLE": {
        "layer": "layer of the edit, from 0; for a swap, and for a cell of a map, the first of them",
        "other": "the last layer of a cell of a map; in a sweep the same as `layer`",
        "mean": "mean KL(p‖q) over tokens; nats",
        "ci_low": "lower end of the interval that decides on stopping, in nats; null before 40 documents",
        "ci_high": "upper end of the interval that decides on stopping, in nats; null before 40 documents",
        "half_width_relative": "half the width of that interval over the mean, as a fraction; null before 40 documents",
        "under_noise_floor": "whether the whole interval is below the KL that rounding in the run's dtype gives",
    },
    "prune.PRUNE_STEPS_TABLE": {
        "method": "the search (`greedy`, `beam`, `evolution`, `single`)",
        "step": "how many blocks the sets of the step have; of `evolution` the generation, from 0",
        "text": "`search`, or `few`: the part of it on which offspring are scored, drawn again in each generation",
        "blocks": "the removed blocks or components in order, such as `3 7~mlp`",
        "chosen": "whether the search goes on with the set",
        "measured": "whether the set was measured at this step; otherwise its value is known from an earlier one",
        "above_best": "KL minus that of the step’s best set, in nats",
        "above_best_low": "lower end of its 95 % interval, paired by document, not corrected for having chosen the best",
        "above_best_high": "upper end of that interval",
    },
    "prune.PRUNE_METHODS_TABLE": {
        "method": "the criterion; `given` for the blocks of `--drop`, `none` for the unmodified model",
        "draw": "of `random`: the draw, from 0; null otherwise, and for the mean over draws",
        "removed": "how many blocks or components are removed",
        "blocks": "which, in order, such as `3 7~mlp`; null for the mean over draws",
        "text": "`held_out`, the documents that no search saw, or `search`",
    },
    "prune.PRUNE_SHARD": {
        "text": "`search`, `held_out`, or `few` and the generation",
        "blocks": "the removed blocks or components; of `block_influence` the block, of `angular_distance` the range of blocks",
        "tokens": "number of tokens of the document that the sums are over; of `angular_distance` windows",
        "kl": f"{_SUMS} KL(p‖q); nats",
        "agreement": "number of the document's tokens where p and q have the same most likely token",
        "loss": f"{_SUMS} −log q(next token); nats",
        "block_influence": f"{_SUMS} 1 − cos(x_l, x_{{l+1}})",
        "angular_distance": "sum over the document's windows of arccos(cos(x_l, x_m)) / π on the last token",
    },
    "lens.LENS_TABLE": {
        "layer": "depth of the residual stream: l is before block l, L (the number of blocks) after the last one"
    },
    "attention.ATTENTION_TABLE": {
        "tokens": "number of queries (positions) the mean is over: by default those with 16 tokens before them, "
        "so that the first 16 of every window are left out"
    },
    "attention.HEADS_TABLE": {
        "tokens": "number of queries (positions) the mean is over: by default those with 16 tokens before them, "
        "so that the first 16 of every window are left out"
    },
    "heads.HEADS_TABLE": {
        "rank": "rank of the head by `mean` among all heads of the model for this metric, from 1",
        "chance": "mean that a head with uniform attention would have, in `unit`; 0 for `merge` and `merge_first`",
        "p_adjusted": "p-value of a one-sided t test over documents of mean > chance, adjusted by Benjamini and Hochberg over "
        "the metric's heads; null with a single document",
        "null_mean": "mean that attention by position alone would give (definition per metric below), in `unit`; for the "
        "previous-token metrics it can exceed 1",
        "excess": "`mean` − `null_mean`, in `unit`",
        "least_excess": "excess above which a head is of the metric's kind, in `unit`",
        "p_kind": "p-value of a one-sided t test over documents of excess > `least_excess`, adjusted by Benjamini and Hochberg "
        "over the metric's heads; null with a single document",
        "of_kind": "whether `p_kind` < 0.05: the head is of the metric's kind on these queries; null with a single document",
        "tokens": "number of queries the mean is over; pairs of prompts for `merge` and `merge_first`",
        "documents": "number of documents the mean is over; for random tokens the number of sequences",
    },
    "heads.HEAD_POSITIONS_TABLE": {
        "prompts": "class of prompts: `word` (last word of `word_tokens` tokens) or `plain` (last word of one token)",
        "offset": "how far before the prompt's final token the attended token is, in tokens; 0 is the final token itself",
        "word_tokens": "number of tokens in the words of the class `word`, on the rows of both classes",
        "tokens": "number of prompts the mean is over",
    },
    "heads.HEAD_SHARD": {
        "sample": "queries the row is over: `prompts`, or the name of a metric",
        "quantity": "what is measured on them: `merge`, `merge_first`, `word`, `plain`, `attention`, `excess` over chance, or "
        "excess `over_null`",
        "offset": "for `word` and `plain`, how far before the final token the attended token is, in tokens; else null",
        "documents": "number of documents in the work unit",
        "tokens": "number of queries in the work unit",
        "tokens_squared": "sum over documents of the squared number of queries",
        "sum": "sum over documents of S, the document's sum of the quantity over its queries; fraction of attention",
        "square": "sum over documents of S²",
        "product": "sum over documents of S times the number of queries",
    },
    "similarity.SIMILARITY_TABLE": {
        "layer": "first of the two layers that change places, from 0",
        "component": "component whose output is compared: `attention` or `mlp`",
        "moved": "direction of the move: `later` (block l now runs second) or `earlier` (block l + 1 now runs first)",
    },
    "similarity.GEOMETRY_TABLE": {
        "layer": "smaller of the two depths: l is before block l",
        "other": "larger of the two depths; L (the number of blocks) is after the last block",
        "mean": "the angular distance, averaged over windows, or the CKA, in `unit`",
        "tokens": "number of windows, one position each, the value is from",
    },
    "layer_maps.MAP_TABLE": {
        "kind": "kind of map; `drop` are the single drops that interactions are computed from",
        "layer": "first layer of the range, or the earlier of the pair, from 0",
        "other": "last layer of the range (included), or the later of the pair",
    },
    "layer_maps.MAP_BEST_TABLE": {
        "kind": "kind of map",
        "layers": "number of layers of the ranges among which this is the best; 0 where it is the best of the whole map",
        "extreme": "whether the best is the `lowest` or the `highest`",
        "layer": "first layer of the range, or the earlier of the pair, from 0",
        "other": "last layer of the range (included), or the later of the pair",
        "ci_low": "lower end of the 95 % interval of all cells of the kind at once, in `unit`; null below 10 documents",
        "ci_high": "upper end of the 95 % interval of all cells of the kind at once, in `unit`; null below 10 documents",
        "cells": "number of cells of the kind, which the intervals cover at once",
    },
    "class_tables.SWEEP_CLASSES_TABLE": _OF_CLASSES
    | {"edit": "kind of edit (`swap`, `drop`, …); `none` is the unmodified model"},
    "class_tables.LENS_CLASSES_TABLE": _OF_CLASSES
    | {"layer": "depth of the residual stream: l is before block l, L (the number of blocks) after the last one"},
    "class_tables.MAP_CLASSES_TABLE": _OF_CLASSES
    | {
        "kind": "kind of map; `drop` are the single drops",
        "layer": "first layer of the range, or the earlier of the pair, from 0",
        "other": "last layer of the range (included), or the later of the pair",
    },
    "class_tables.SWEEP_CLASS_LAYERS_TABLE": _OF_CLASS_LAYERS
    | {"layer": "layer of the edit at which the class's `kl_ratio` is extreme, from 0"},
    "class_tables.LENS_CLASS_LAYERS_TABLE": _OF_CLASS_LAYERS
    | {"layer": "depth at which the class's `kl_ratio` is extreme: l is before block l"},
    "painters.PAINTERS_TABLE": {
        "edit": "kind of edit (`skip`, `random`, …)",
        "layer": "first of the changed layers, from 0",
        "other": "last of the changed layers",
        "draw": "seed of a random order; null for the mean over all of them and for edits without randomness",
    },
    "painters.PAINTERS_ORDER_TABLE": {
        "worse": "edit that is claimed to be worse",
        "better": "edit that is claimed to be better, the next in the order",
        "layer": "first of the changed layers, of the largest range, from 0",
        "other": "last of the changed layers, of the largest range",
        "ranges": "number of ranges that the difference is averaged over",
        "ci_low": "lower end of the interval at level 1 − 0.05 / 5, over documents (and random orders), in `unit`",
        "ci_high": "upper end of the interval at level 1 − 0.05 / 5, over documents (and random orders), in `unit`",
        "verdict": "`as claimed` if the interval is above 0, `reversed` if it is below, else `not resolved`",
    },
    "dependency.DEPENDENCY_SHARD": {
        "variant": "what is skipped and where the change is measured: `all`, `future`, `local` or `local_future`",
        "layer": "skipped block, from 0",
        "other": "later block whose write is measured; the number of blocks where it is the output",
        "change": "sum of the changes over the document's measured positions",
        "largest": "largest change at any of these positions",
        "tokens": "number of measured positions",
    },
    "dependency.DEPENDENCY_TABLE": {
        "variant": "what is skipped and where the change is measured: `all`, `future`, `local` or `local_future`",
        "layer": "skipped block, from 0",
        "other": "later block whose write is measured",
        "largest": "largest change at any measured position: no estimate, it grows with the text",
    },
    "dependency.DEPENDENCY_EFFECTS_TABLE": {
        "variant": "what is skipped and where the change is measured",
        "layer": "skipped block, from 0",
        "largest": "largest change at any measured position, of any later block or of the output",
    },
    "dependency.DEPENDENCY_DEPTH_TABLE": {
        "variant": "what is skipped and where the change is measured",
        "mean": "the score, a ratio of sums over all tokens, in `unit`",
    },
    "dimension.DIMENSION_TABLE": {
        "layer": "depth: l is before layer l, L (the number of layers) after the last",
        "mean": "the quantity, of all points, in `unit`",
        "ci_low": "lower end of the 95 % interval, from a jackknife over groups of documents, in `unit`",
        "ci_high": "upper end of the 95 % interval, from a jackknife over groups of documents, in `unit`",
        "tokens": "number of points: windows whose last tokens' residual streams are used",
    },
    "dimension.DIMENSION_SCALES_TABLE": {
        "layer": "depth: l is before layer l, L (the number of layers) after the last",
        "neighbours": "n: distances to the n-th and 2n-th neighbours are compared",
        "mean": "the intrinsic dimension on this scale, in `unit`",
        "ci_low": "lower end of the 95 % interval, from a jackknife over groups of documents, in `unit`",
        "ci_high": "upper end of the 95 % interval, from a jackknife over groups of documents, in `unit`",
        "tokens": "number of points: windows whose last tokens' residual streams are used",
    },
    "dimension.TRAJECTORY_TABLE": {
        "layer": "depth: l is before layer l, L (the number of layers) after the last",
        "mean": "mean over windows (entropies) or angles (curvature), in `unit`",
        "tokens": "number of windows, or of angles for the curvature",
    },
    "dimension.TRAJECTORY_SHARD": {
        "layer": "depth: l is before layer l, L (the number of layers) after the last",
        "quantity": "`prompt_entropy`, `unit_prompt_entropy` or `curvature`",
        "tokens": "number of windows, or of angles for the curvature",
        "value": "sum over the document's windows, or angles",
    },
    "ablation.HEAD_ABLATION_TABLE": _OF_MODES,
    "ablation.NEURON_ABLATION_TABLE": _OF_MODES
    | {"rank": "place of the neuron among those of its layer, by how much it writes, from 1"},
    "ablation.ABLATION_LAYERS_TABLE": _OF_MODES,
    "ablation.HEAD_ABLATION_BEST_TABLE": _OF_BEST,
    "ablation.NEURON_ABLATION_BEST_TABLE": _OF_BEST,
    **{
        f"sinks.{name}": {"tokens": "number of windows the mean is over"}
        for name in ("SINKS_TABLE", "SINKS_MODEL_TABLE", "SINK_HEADS_TABLE")
    },
    "massive.MASSIVE_TABLE": {
        "layer": "depth of the residual stream: l is before block l, L (the number of blocks) after the last one",
        "tokens": "number of windows the mean is over",
    },
    "massive.MASSIVE_BLOCKS_TABLE": {
        "layer": "the block that writes or removes, from 0",
        "position": "`first` (the window's first position) or `later` (all others)",
        "tokens": "number of windows the mean is over",
    },
    "massive.MASSIVE_DIMENSIONS_TABLE": {
        "layer": "depth of the residual stream",
        "dimension": "dimension of the residual stream, from 0",
        "position": "`first` (the window's first position) or `later` (all others)",
        "tokens": "number of windows the mean is over; of `massive_value` massive activations",
    },
    "massive.MASSIVE_EXTREMES_TABLE": {
        "layer": "depth of the residual stream",
        "value": "the value with the largest magnitude that was found, with its sign",
        "median": "median magnitude in its window's x_l",
        "ratio": "magnitude over that median; null where the median is 0",
        "dimension": "its dimension, from 0",
        "place": "its position in the window, from 0",
        "token": "token id at that position",
        "text": "the token as text",
        "document": "the document it is in, numbered from 0 in the order of the text",
        "windows": "number of windows that were read",
        "tokens": "number of positions that were read",
    },
    "massive.MASSIVE_TOKENS_TABLE": {
        "position": "`first` (the window's first position) or `later` (all others)",
        "rank": "rank of the token among those of the position, from 1",
        "token": "token id",
        "text": "the token as text",
        "count": "number of positions with this token and a massive activation at some depth",
        "documents": "number of documents they are in",
    },
    "massive.MASSIVE_SHARD": {
        "document": "document, numbered from 0 in the order of the text",
        "quantity": "a metric; `carrier`: positions with massive activations at some depth, by token; `extreme`: the "
        "document's value with the largest magnitude",
        "layer": "depth of the residual stream, or block; −1 where there is none",
        "position": "`first` or `later`; empty where a row is about both",
        "dimension": "dimension of the residual stream; −1 where there is none",
        "token": "token id; −1 where there is none",
        "count": "number of windows of the document; of `massive_value` massive activations, of `carrier` positions",
        "sum": "sum of the quantity over them; of `extreme` the value",
        "place": "of `extreme` the position in the window; else −1",
        "median": "of `extreme` the median magnitude in its window's x_l; else 0",
    },
    "linearity.LINEARITY_TABLE": {
        "positions": "`all`, or `not_first`: all but the first of each window",
        "mean": "the score, or the mean of the metric over tokens, in `unit`",
        "ci_low": "lower end of the 95 % interval over documents, in `unit`; null for scores in sample",
        "ci_high": "upper end of the 95 % interval over documents, in `unit`; null for scores in sample",
        "tokens": "number of tokens that the value is over; of scores in sample, of the text that the map was fitted on",
        "documents": "number of their documents",
    },
    "linearity.LINEARITY_MEAN_TABLE": {
        "positions": "`all`, or `not_first`: all but the first of each window",
        "mean": "the score, averaged over the blocks that have one",
        "ci_low": "lower end of the 95 % interval over documents; null for scores in sample",
        "ci_high": "upper end of the 95 % interval over documents; null for scores in sample",
        "tokens": "number of tokens that the scores are over; in sample, of the text that the maps were fitted on",
        "documents": "number of their documents",
    },
    "linearity.LINEARITY_EXTREMES_TABLE": {
        "positions": "`all`, or `not_first`: all but the first of each window",
        "extreme": "whether the block has the `lowest` or the `highest` mean",
        "mean": "the score, or the mean of the metric over tokens, in `unit`",
        "ci_low": "lower end of the interval at level 1 − 0.05 / `blocks`, in `unit`",
        "ci_high": "upper end of the interval at level 1 − 0.05 / `blocks`, in `unit`",
        "blocks": "number of blocks among which this one was picked",
    },
    "effective_depth.EFFECTIVE_DEPTH_TABLE": {
        "lens": "the lens that is read; null for the readings of cosines",
        "reading": "how the depth is read (`write_cosine`, `kl`, `overlap`, …)",
        "threshold": "the value that the curve has to cross",
        "depth": "the depth: block l for cosines, x_l for a lens; null if the curve has none",
        "ci_low": "lower end of the 95 % interval of `depth` over resampled documents; null with a single document",
        "ci_high": "upper end of the 95 % interval of `depth` over resampled documents; null with a single document",
        "share": "(`depth` + 1) divided by the number of blocks, as in the published code; a fraction",
        "share_low": "the same of `ci_low`",
        "share_high": "the same of `ci_high`",
        "exists": "share of resamples of the documents in which the depth exists; null with a single document",
        "reason": "why there is no depth; null if there is one",
        "tokens": "number of tokens (positions) that the curve is a mean over",
        "documents": "number of documents (packs, clusters) that are resampled",
    },
    "effective_depth.EFFECTIVE_DEPTH_CURVES_TABLE": {
        "lens": "the lens; null for cosines",
        "layer": "block for cosines; for a lens the residual stream before that block, and the number of blocks after the last",
        "mean": "mean of the metric over tokens, in `unit`; of `kl_share` the ratio of the mean KL to its maximum over depths",
        "ci_low": "lower end of the 95 % interval over documents, in `unit` (of `kl_share` of resampled documents)",
        "ci_high": "upper end of the 95 % interval over documents, in `unit` (of `kl_share` of resampled documents)",
    },
    "guess_refine.GUESS_REFINE_TABLE": {
        "lens": "the lens",
        "layer": "l of the residual stream x_l: before block l, and after the last block for the number of blocks",
        "band": "rank of the lens's most likely token by frequency: `1-10`, `11-100`, `101-1000`, `rest`; for `overturned` "
        "also `all`",
        "mean": "the share, as a fraction; null for `overturned` of a band that is never predicted at this depth",
        "tokens": "number of positions: all for `share`; for `overturned` those whose most likely token is in the band",
        "documents": "number of documents (packs, clusters) with such positions, which the interval rests on",
    },
    "depth_probes.DEPTH_PROBES_TABLE": {
        "property": "what is probed (`token`, `word_class`, …)",
        "layer": _DEPTH,
        "mean": "mean of the metric over test examples, in `unit`",
        "tokens": "number of test examples the mean is over",
        "documents": "number of test documents (or packs, or clusters) that the interval rests on",
    },
    "depth_probes.DEPTH_PROBES_BEST_TABLE": {
        "property": "what is probed (`token`, `word_class`, …)",
        "layer": "depth at which the metric's mean is highest, the first of equal ones",
        "layer_low": "lower end of the 95 % bootstrap interval of that depth; null below 10 test documents",
        "layer_high": "upper end of the 95 % bootstrap interval of that depth; null below 10 test documents",
        "mean": "the metric's mean at that depth, in `unit`",
        "ci_low": "lower end of the 95 % interval of all depths at once, in `unit`; null below 10 test documents",
        "ci_high": "upper end of the 95 % interval of all depths at once, in `unit`; null below 10 test documents",
        "tokens": "number of test examples the mean is over",
        "documents": "number of test documents (or packs, or clusters) that the interval rests on",
    },
    "depth_probes.DEPTH_PROBES_CLASSES_TABLE": {
        "property": "what is probed (`token`, `word_class`, …)",
        "label": "the class: a token, a class of words, a place in the word, a suffix",
        "training": "number of training examples of the class",
        "test": "number of test examples of the class",
    },
    "depth_probes.depth_probes_shard": {
        "example": "number of the example among all examples of the run, from 0",
        "layer": _DEPTH,
        "residual": "the residual stream at the example's position (64 is an example of its width)",
    },
    "patching.PATCHING_TABLE": {
        "group": "positions that are patched: `word`, `between`, `last`; `none` is the corrupted run",
        "layer": _DEPTH,
        "mean": "of `kl` the mean over pairs, of `recovered` 1 − the ratio of sums over pairs, in `unit`",
        "tokens": "number of pairs the mean is over, one position each",
    },
    "patching.PATCHING_DEPTHS_TABLE": {
        "group": "positions that are patched: `word`, `last`, `between`",
        "layer": "of `half_depth` the first depth beyond the crossing, of `largest_recovery` the depth of the largest mean",
        "mean": "of `half_depth` the depth of the crossing, interpolated; of `largest_recovery` the recovered share",
        "ci_low": "lower end of the 95 % interval, in `unit`; null below 10 documents",
        "ci_high": "upper end of the 95 % interval, in `unit`; null below 10 documents",
        "tokens": "number of pairs",
    },
    "patching.PATCHING_SHARD": {
        "group": "positions that are patched: `word`, `between`, `last`; `none` is the corrupted run",
        "layer": _DEPTH,
        "tokens": "number of pairs of the document in the work unit",
        "kl": "sum over these pairs of KL(clean‖patched) at the last position; nats",
    },
    "entropy_neurons.ENTROPY_NEURONS_TABLE": {
        "group": "`candidate`, or `control` (a random neuron of the same layer)",
        "rank": "place in the group, from 1: candidates by `norm_z` − `effect_z`, controls by layer and number",
        "kind": "the neuron's kind by the experiment `neurons`",
        "norm_z": "how long the output weight is: robust z-score of its log norm among the model's neurons",
        "effect_z": "how much it distinguishes tokens: robust z-score of the log of the logit effect's variance over norm²",
        "mean": "mean of the metric over tokens, in `unit`; of shares 1 − the ratio of sums over documents",
    },
    "entropy_neurons.ENTROPY_NEURONS_GROUPS_TABLE": {
        "group": "`candidate`, `control`, or `difference` (the shares of the candidates minus those of the control)",
        "neurons": "number of neurons in the group",
        "mean": "mean of the metric over tokens and neurons, in `unit`; of shares 1 − the ratio of sums over all of them",
    },
    "entropy_neurons.ENTROPY_NEURONS_BEST_TABLE": {
        "extreme": "whether the candidate has the `lowest` or the `highest` mean",
        "ci_low": "lower end of the 95 % interval that covers all candidates at once, in `unit`; null below 10 documents",
        "ci_high": "upper end of the 95 % interval that covers all candidates at once, in `unit`; null below 10 documents",
        "measured": "number of candidates among which this one was picked",
    },
    "neurons.NEURON_COUNTS_TABLE": {
        "count": "number of neurons of the kind in the layer",
        "share": "`count` over `neurons`, as a fraction",
        "neurons": "number of neurons in the layer, of all kinds",
        "largest_kurtosis": "largest kurtosis among all neurons of the layer; dimensionless, 3 for a normal distribution",
    },
    "neurons.NEURON_TOKENS_TABLE": {
        "strength": "value of the column that ranks neurons of the kind (`kurtosis`, `norm` or `variance` in `neurons`)",
        "promoted": "tokens whose cosines with the neuron's output weight are largest, largest first",
        "promoted_ids": "their token ids",
        "promoted_cosines": "their cosines, from −1 to 1",
        "suppressed": "tokens whose cosines with the neuron's output weight are smallest, smallest first",
        "suppressed_ids": "their token ids",
        "suppressed_cosines": "their cosines, from −1 to 1",
    },
    "depth_regime.DEPTH_REGIME_TABLE": {
        "layer": "l of x_l, the residual stream before block l; of angles of steps and writes the block",
        "positions": "`all`, or `not_first`: all but the first of each window",
    },
    "depth_regime.DEPTH_REGIME_READINGS_TABLE": {
        "positions": "`all`, or `not_first`: all but the first of each window",
        "side": "side of the threshold on which the whole interval is (`spread`, `concentrated`; `independent`, `aligned`, "
        "`opposed`; `early`, `late`); null if it is on none, and for readings that decide nothing",
    },
    "depth_regime.DEPTH_REGIME_VERDICT_TABLE": {
        "positions": "`all`, or `not_first`: all but the first of each window",
        "verdict": "`ensemble`, `procedural`, `composition`, or `not resolved`",
        "reason": "why no regime is named; null if one is",
        "tokens": "number of tokens that the readings are over",
        "documents": "number of documents (packs, clusters) that the intervals rest on",
    },
    "probes.PROBES_TABLE": {
        "group": "what classifies: a group of neurons, a layer, the unmodified model, the majority class, or n-grams",
        "layer": "layer, from 0, for the group `layer`; null for all others",
        "k": "number of neurons used together; 0 if none are",
        "draw": "draw of random neurons, from 0; null for the mean over draws and for all other groups",
        "mean": "mean of the metric over test examples, in `unit`",
        "tokens": "number of test examples the mean is over",
    },
    "probes.PROBE_NEURONS_TABLE": {
        "group": "group of the neuron: `prediction` or `suppression`",
        "rank": "rank of the neuron in its group by training accuracy, from 1",
        "difference": "mean of W_U·w_out over tokens with the suffix minus that over the rest; logits per unit of activation",
        "kurtosis": "kurtosis of the cosines of w_out with the rows of W_U; dimensionless, 3 for a normal distribution",
        "skew": "skew of the same cosines; dimensionless",
        "selected_by": "how the neuron was chosen: `class` or `difference`",
        "training_accuracy": "accuracy of the neuron's own probe on the training examples, as a fraction",
        "mean": "accuracy of the neuron's own probe on the test examples, in `unit`",
        "tokens": "number of test examples the mean is over",
    },
    "probes.probe_shard": {
        "training": "whether the context is a training example; the others are test examples",
        "label": "whether the next token ends in the suffix",
        "top1": "whether the model's most likely next token ends in the suffix",
        "log_probability": "log of the model's probability that the next token ends in the suffix; nats",
        "activations": "activations of all neurons that the experiment reads (64 is an example), at the context's last token",
    },
}
"""What each column means, with its unit: in one table or shard, or (`any`) wherever nothing else is stated. Columns named
after a quantity of their schema module need no entry, since the quantity has a definition and a unit."""

FILLED = {
    "columns": columns,
    "metrics": metrics,
    "definitions": definitions,
    "edits": edits,
    "tables": tables,
    "families": families,
    "errors": error_tree,
    "commands": commands,
    "settings": settings,
}
