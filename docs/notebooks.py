"""The tutorials: notebooks with their outputs in docs/tutorials, which are also pages of the site.

    python docs/notebooks.py           run every tutorial again and store its outputs
    python docs/notebooks.py --check   run them and compare with what is stored; exit status 1 where they differ

Names of tutorials after that mean these alone.

Numbers may differ by a hundredth of themselves, as they do between versions of torch; words may not.
"""

import copy
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat

TUTORIALS = Path(__file__).parent / "tutorials"
TOLERANCE = 0.01
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?")
MARKUP = re.compile(r"<style>.*?</style>|<[^>]+>", re.DOTALL)


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run in an empty folder."""
    from nbclient import NotebookClient

    fresh = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    fresh.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(fresh.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return fresh


def shown(cell: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    """What a code cell shows, as (kind, text): `html` where there is a table, else `text`."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/html" in data:
            yield "html", data["text/html"]
        elif text := output.get("text") or data.get("text/plain"):
            yield "text", text


def differences(stored: nbformat.NotebookNode, fresh: nbformat.NotebookNode) -> Iterator[str]:
    """Where what a notebook shows is not what is stored."""
    for number, (before, after) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        left, right = (MARKUP.sub(" ", " ".join(text for _, text in shown(cell))) for cell in (before, after))
        if NUMBER.sub("#", left).split() != NUMBER.sub("#", right).split():
            yield f"cell {number}: stored {left!r}, now {right!r}"
            continue
        for there, here in zip(NUMBER.findall(left), NUMBER.findall(right), strict=True):
            # what is written with few digits may differ by its last one
            last = 10.0 ** -len(there.partition(".")[2]) if "e" not in there else 0.0
            if abs(float(there) - float(here)) > max(TOLERANCE * abs(float(there)), 1.001 * last * ("." in there)):
                yield f"cell {number}: stored {there}, now {here}"


def to_markdown(path: Path) -> str:
    """A tutorial as a page: text, code and what the code showed."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for kind, text in shown(cell):
            if kind == "html":
                parts.append(
                    f'<div class="output">\n{re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)}\n</div>'
                )
            else:
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts.append(f"[This page as a notebook]({path.name})")
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Run tutorials; 1 where one differs from what is stored and was to be checked, else 0."""
    check, names = "--check" in arguments, [name for name in arguments if name != "--check"]
    differing = 0
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        stored = nbformat.read(path, as_version=4)
        fresh = execute(stored)
        if not check:
            nbformat.write(fresh, path)
            print(f"{path.name} {path.stat().st_size:,} bytes")
        elif found := list(differences(stored, fresh)):
            differing = 1
            print(f"{path.name}:", *found, sep="\n  ")
    return differing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
