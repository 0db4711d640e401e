"""Calling a library that prints, forks and draws random numbers of its own, without any of that being seen outside."""

import io
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np

SEED, NUMPY_SEED = 0, 1234
"""As the lm-evaluation-harness seeds the two generators."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """While open, the harness prints nothing, starts no processes, and draws the same random numbers; Python's and numpy's
    generators are then put back as they were."""
    drawn, drawn_numpy = random.getstate(), np.random.get_state()
    single = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would fork a process that has torch's threads
    random.seed(SEED)
    np.random.seed(NUMPY_SEED)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        random.setstate(drawn)
        np.random.set_state(drawn_numpy)
        if single is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = single
