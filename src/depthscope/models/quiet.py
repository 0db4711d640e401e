"""transformers' progress bars and advice to programmers, off."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub
import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """While open, transformers and the hub's client say nothing; their errors still rise."""
    level, bars = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    hub_level = huggingface_hub.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.utils.logging.set_verbosity(level)
        huggingface_hub.utils.logging.set_verbosity(hub_level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
