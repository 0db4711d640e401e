"""The mode of `depthscope sweep` that changes ranges of middle layers: `--edits painters`."""

from dataclasses import replace

from depthscope.cli.request import Request, run_and_show
from depthscope.schema.painters import EXPERIMENT as PAINTERS
from depthscope.schema.sweep import EXPERIMENT as SWEEP


def painters_edits(request: Request) -> bool:
    """With --edits painters: instead of one layer at a time, ranges of middle layers are skipped, replaced by their middle
    layer, run in parallel, reversed, shuffled (10 orders) and looped, and blocks of 3 and 5 layers run twice (Sun et al. 2024).
    The name may stand next to others, painters,drop: then both are measured, into one run.
    """
    asked = [name.strip() for name in (request.settings.get("edits") or "").split(",") if name.strip()]
    if PAINTERS.name not in asked:
        return False
    others = [name for name in asked if name != PAINTERS.name]
    names = [SWEEP.name, PAINTERS.name] if others or request.settings.get("precision") is not None else [PAINTERS.name]
    run_and_show(replace(request, settings=request.settings | {"edits": ",".join(others) or None}), names)
    return True
