"""What the site takes from the code each time it is built, so that it cannot go stale.

In a page, a line `{columns: sweep.SWEEP_TABLE}` becomes the columns of that table and what its module says of it,
`{metrics: sweep}` the quantities a schema module defines, `{definitions: sweep.EDIT_KINDS}` named things and their
sentences, `{commands}` the whole command line, `{families}` the names of components per model family, `{tables}` the columns
of every table and shard, `{errors}` the tree of exceptions, `{others}` the experiments that the page says nothing of. Pages of
the Python modules and of the tutorials are made here, and diagrams are put into their pages, so that they take the page's
colours.
"""

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from itertools import pairwise
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
from depthscope.models.families import FAMILIES  # noqa: E402
from depthscope.schema.metric import Metric  # noqa: E402

SOURCE = Path(depthscope.schema.__file__).parents[1]
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
    """Columns of a table or shard, and the sentence beneath it in its schema module."""
    module, _, name = reference.partition(".")
    table: Mapping[str, Any] = getattr(_schema(module), name)
    rows = [(f"`{column}`", str(pl.Schema({column: kind})[column])) for column, kind in table.items()]
    return f"{_said(module, name)}\n\n{_table(('column', 'type'), rows)}"


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
        known = asdict(value) if is_dataclass(value) else {"definition": value}  # type: ignore[arg-type]
        rows.append((f"`{key}`", known.get("definition") or known.get("sentence") or known["test"]))
    return _table(("name", "definition"), rows)


def tables() -> str:
    """The columns of every table and shard in the schema."""
    parts = []
    for module in sorted(found.name for found in pkgutil.iter_modules(depthscope.schema.__path__)):
        names = [name for name in vars(_schema(module)) if name.endswith(("_TABLE", "_SHARD"))]
        if names:
            parts += [f"## {module}", (_schema(module).__doc__ or "").strip(), "### Quantities", metrics(module)]
            parts += [part for name in names for part in (f"### {name}", columns(f"{module}.{name}"))]
    return "\n\n".join(parts)


def others(page: str) -> str:
    """The experiments of a study that a page does not name, each with its module's first sentence."""
    from depthscope.studies import registry  # noqa: F401  the one import that brings torch: the experiments' modules
    from depthscope.studies.settings import NAMES

    said = []
    for name in NAMES:
        if f"[`{name}`]" not in page:
            module = sys.modules.get(f"depthscope.experiments.{name}")
            first = ((module and module.__doc__) or "").strip().partition("\n")[0]
            said.append(
                f"- `{name}`: {first} [Its module](../{MODULES}/experiments.md), [its tables](../reference/tables.md)."
            )
    return "\n".join(["Not on a page of their own yet:", "", *said]) if said else ""


def _said(module: str, name: str) -> str:
    """The string that stands beneath an assignment."""
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


FILLED = {
    "columns": columns,
    "metrics": metrics,
    "definitions": definitions,
    "tables": tables,
    "families": families,
    "errors": error_tree,
    "commands": commands,
}
