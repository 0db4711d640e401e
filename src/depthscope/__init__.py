"""depthscope takes a language model apart layer by layer: it swaps, drops and silences layers and measures what that does.

    import depthscope as ds

    model = ds.load("bookshelf-gpt2")
    text = ds.corpus("bookshelf", tokens=20_000)
    study = ds.study(model, text, out="runs/first")
    study.table("sweep")
    ds.logits(model, text[0], ds.swap(3) | ds.drop_mlp(7))

Names are loaded when first used, so that reading a run's report needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depthscope.api import Study, corpus, lens, load, logits, study
    from depthscope.edits import (
        Edit,
        drop,
        drop_attn,
        drop_mlp,
        drop_ple,
        drop_ssm,
        parallel,
        parse_edit,
        repeat,
        reverse,
        shuffle,
        swap,
    )
    from depthscope.errors import DepthscopeError
    from depthscope.routes import Route, parse_route

_HOMES = {
    "depthscope.api": ("Study", "corpus", "lens", "load", "logits", "study"),
    "depthscope.edits": (
        "Edit",
        "drop",
        "drop_attn",
        "drop_mlp",
        "drop_ple",
        "drop_ssm",
        "parallel",
        "parse_edit",
        "repeat",
        "reverse",
        "shuffle",
        "swap",
    ),
    "depthscope.errors": ("DepthscopeError",),
    "depthscope.routes": ("Route", "parse_route"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DepthscopeError",
    "Edit",
    "Route",
    "Study",
    "corpus",
    "drop",
    "drop_attn",
    "drop_mlp",
    "drop_ple",
    "drop_ssm",
    "lens",
    "load",
    "logits",
    "parallel",
    "parse_edit",
    "parse_route",
    "repeat",
    "reverse",
    "shuffle",
    "study",
    "swap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'depthscope' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
