"""Sums that do not depend on the number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def same_sums() -> Iterator[None]:
    """Let BLAS use one thread, so that NumPy adds in the same order whatever the number of cores or OMP_NUM_THREADS.

    Tables and stages are made from few numbers. What takes long, running the model, is not limited.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
