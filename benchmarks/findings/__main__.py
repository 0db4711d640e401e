"""Write the findings page, its pictures and the README's paragraph.

    python -m benchmarks.findings [NAME=RUN …] [--write]

Runs that are given become reference runs first: their tables are reduced and kept under src/depthscope/data/reference/NAME,
where they replace earlier ones. Without --write the page is printed. Needs no model and no network.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.findings import page, pictures
from benchmarks.findings.layer_sections import PICTURED
from benchmarks.findings.models import MODELS
from depthscope.errors import DepthscopeError
from depthscope.run.files import atomic_file
from depthscope.run.references import reference_names, reference_runs, store_reference
from depthscope.run.store import RunDirectory

ROOT = Path(__file__).parents[2]
PAGE, README, IMAGES = ROOT / "docs" / "findings" / "index.md", ROOT / "README.md", ROOT / "docs" / "images"
MEASURED = Path(__file__).parent / "measured"
BEGIN, END = "<!-- findings: written by python -m benchmarks.findings -->", "<!-- end of findings -->"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the page is made from: the reference runs in the order of MODELS, and measurements of single layers."""

    runs: Sequence[RunDirectory]
    layers: dict[str, dict[str, Any]]


def kept() -> Kept:
    """What the repository keeps."""
    names = [
        *(name for name in MODELS if name in reference_names()),
        *(n for n in reference_names() if n not in MODELS),
    ]
    files = {name: MEASURED / f"{name}.json" for name in MODELS}
    layers = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    return Kept(reference_runs(names), layers)


def written(text: str, paragraph: str) -> str:
    """The README with its paragraph on the findings. Raises ValueError where the marks are missing."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{README.name} lacks the marks {BEGIN} and {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{paragraph}{END}", text)


def pictures_of(found: Kept) -> dict[str, tuple[Any, Any]]:
    """The pictures by file name: their numbers, and how to draw them."""
    drawn: dict[str, tuple[Any, Any]] = {
        page.PICTURE: (pictures.drop_numbers(found.runs), partial(pictures.drops, found.runs))
    }
    for name, measured in found.layers.items():
        for layer in PICTURED.get(name, ()):
            drawn[pictures.layer_picture(name, layer)] = (
                pictures.layer_numbers(measured, layer),
                partial(pictures.costly_layer, measured, layer),
            )
    return drawn


def store(given: Sequence[str]) -> None:
    """Keep runs given as NAME=RUN. Raises DepthscopeError for one that cannot be read or has no name."""
    for one in given:
        name, equals, path = one.partition("=")
        if not equals:
            raise DepthscopeError(f"expected NAME=RUN, such as smollm2-135m=runs/smollm2, got {one!r}")
        print(f"kept {store_reference(RunDirectory.reading(path), name, MODELS.get(name, {'title': name}))}")


def main() -> None:
    """Keep the runs, then write or print the page."""
    parser = argparse.ArgumentParser(description="The findings page.")
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN")
    parser.add_argument("--write", action="store_true", help="Write page, pictures and the README's paragraph.")
    options = parser.parse_args()
    try:
        store(options.runs)
    except DepthscopeError as error:
        raise SystemExit(f"error: {error}") from None
    found = kept()
    text = page.render(found.runs, found.layers)
    if not options.write:
        print(text)
        return
    for file, content in ((PAGE, text), (README, written(README.read_text("utf-8"), page.readme(found.runs)))):
        with atomic_file(file) as stream:
            stream.write(content.encode())
    for name, (numbers, draw) in pictures_of(found).items():
        pictures.save(draw(), IMAGES / name, numbers)


if __name__ == "__main__":
    main()
