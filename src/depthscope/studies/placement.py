"""Where a study's units are computed: in this process, or by replicas of its model on a Ray cluster."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from depthscope.engine.reductions import Reductions
from depthscope.experiments.experiment import OwnUnits, Reading, Sequential
from depthscope.models.model import Model
from depthscope.run.cluster import Cluster
from depthscope.run.units import LocalRunner, Runner
from depthscope.studies.unit_work import Work


@contextmanager
def placed(
    cluster: Cluster | None,
    model: Model,
    experiments: Sequence[Reading | OwnUnits],
    chosen: tuple[Reductions, str],
    logits: float,
    units: int,
) -> Iterator[Runner]:
    """A runner for the tasks of prepared experiments (`unit_work`), in this process without a cluster.

    `chosen` is the form of the sums over the vocabulary and why it is no other, `logits` how many are reduced in total, `units`
    how many units there are at most. Ray is started or connected to when the first task is submitted. Raises ModelError for a
    model that other processes cannot load.
    """
    if cluster is None:
        yield LocalRunner(Work(model, experiments, chosen[0]).perform)
        return
    # These need packages of an extra.
    if cluster.address is None and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # for the Ray that is started; read when Ray is imported
    from depthscope.run.ray_runner import RayRunner
    from depthscope.studies.detached import detached
    from depthscope.studies.replica import blueprint, require_loadable

    require_loadable(model)

    def build(cpus: int):
        sent = [one for one in experiments if not isinstance(one, Sequential)]
        return blueprint(model, logits, cpus, detached(sent, model), chosen)

    cuda, threads = model.device.type == "cuda", torch.get_num_threads()
    with RayRunner(cluster, build, cuda=cuda, threads=threads, units=units) as runner:
        yield runner
