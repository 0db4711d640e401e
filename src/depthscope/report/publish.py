"""Every figure as SVG, PDF and PNG for a paper, drawn by matplotlib from the page's panels.

It uses matplotlib because plotly's export needs a browser. It is an optional dependency: `depthscope[figures]`.
The same numbers and the same matplotlib version give the same files, byte for byte.
"""

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthscope.errors import DepthscopeError, RunError
from depthscope.report.comparison import comparison_sections, side_by_side
from depthscope.report.figures import figures
from depthscope.report.section import Section
from depthscope.report.unexpected import as_run_error
from depthscope.run.files import write_file
from depthscope.run.store import RunDirectory
from depthscope.untrusted import read_bounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
STYLE: Any = {
    "font.size": 7.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#586069",
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.color": "#E2E2DC",
    "grid.linewidth": 0.5,
    "xtick.color": "#586069",
    "ytick.color": "#586069",
    "xtick.labelcolor": "#1C2024",
    "ytick.labelcolor": "#1C2024",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "text.parse_math": False,  # model names may contain $
    "pdf.fonttype": 42,  # TrueType: journals reject Type 3 fonts
    "svg.fonttype": "path",
    "svg.hashsalt": "depthscope",
}
OURS = "depthscope figure"
"""What files of figures say of their origin: only such a file is replaced."""
METADATA: Any = {
    "svg": {"Date": None, "Creator": OURS},
    "pdf": {"CreationDate": None, "Creator": OURS},
    "png": {"Software": OURS},
}
"""Metadata of the files, without timestamps."""
MOST_BYTES = 1 << 30


def publish_run(run: RunDirectory, folder: Path) -> list[Path]:
    """Write each figure of a run to `folder`/NAME.svg, .pdf and .png, and return the files.

    Figures without data are skipped. Raises DepthscopeError if matplotlib is missing, RunError if a file cannot be written or
    would replace one that is not a figure of depthscope's.
    """
    return _publish(_figures_of(run), run.settings.subject, folder)


def publish_comparison(runs: Sequence[RunDirectory], folder: Path) -> list[Path]:
    """Write each figure that compares runs; files and errors as for `publish_run`."""
    sections = comparison_sections(side_by_side(runs))
    return _publish(((kind.name, kind.title, section) for kind, section, _ in sections), "", folder)


def _figures_of(run: RunDirectory) -> Iterable[tuple[str, str, Section]]:
    for name, kind in figures(run).items():
        try:
            yield name, kind.title, kind.section(run)
        except RunError:  # the page reports what is missing
            continue


def _publish(sections: Iterable[tuple[str, str, Section]], model: str, folder: Path) -> list[Path]:
    try:
        import matplotlib as mpl

        from depthscope.report.canvas import drawn
    except ImportError as error:
        raise DepthscopeError(
            "writing figures to files needs matplotlib, which is not installed: pip install 'depthscope[figures]'"
        ) from error
    files = []
    with mpl.rc_context(STYLE):
        for name, title, section in sections:
            if section.panels:
                heading = f"{model}: {title[0].lower()}{title[1:]}" if model else title
                with as_run_error("the run", f"the figure {name!r}"):
                    files += _saved(drawn(section.panels, section.across, heading), folder, name)
    return files


def _saved(figure: "Figure", folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.{kind}" for kind in FORMATS]
    for file in files:
        _require_replaceable(file)
    for file, kind in zip(files, FORMATS, strict=True):
        stream = BytesIO()  # libraries have exceptions of their own for a full disk
        figure.savefig(stream, format=kind, dpi=300, metadata=METADATA[kind])
        write_file(file, stream.getvalue())
    return files


def _require_replaceable(file: Path) -> None:
    """Raise RunError if there is a file that is not a figure of depthscope's."""
    if file.exists() and not file.is_dir() and OURS.encode() not in read_bounded(file, RunError, MOST_BYTES):
        raise RunError(
            f"{file} is not a figure that depthscope wrote, so it is not overwritten. Move it or delete it, or write the "
            "figures into another folder (--figures)"
        )
