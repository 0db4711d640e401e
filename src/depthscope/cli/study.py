"""`depthscope study`."""

from depthscope.cli import options
from depthscope.cli.request import Request, measuring, run_and_show


@measuring
def command(
    request: Request,
    *,
    experiments: options.Experiments = "",
    suffix: options.Suffix = "ing",
    per_token: options.PerToken = False,
    precision: options.Precision = None,
) -> None:
    """Study a model: run all experiments, find the stages, make the tables, write the page, print what was found.

    Stop it whenever you like: the same command goes on where it was and ends with the same tables.
    """
    names = options.listed(experiments)
    run_and_show(request, experiments=names, suffix=suffix, per_token=per_token, precision=precision)
