"""depthscope takes a language model apart layer by layer: it swaps, drops and ablates layers and measures the effect.

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

from depthscope.edits import EDITS as _EDITS

if TYPE_CHECKING:
    from depthscope.api.evaluate import evaluate as evaluate
    from depthscope.api.export import export as export
    from depthscope.api.export import speed as speed
    from depthscope.api.generate import generate as generate
    from depthscope.api.generate import generate_stream as generate_stream
    from depthscope.api.heal import heal as heal
    from depthscope.api.inputs import corpus as corpus
    from depthscope.api.measure import measure as measure
    from depthscope.api.prompt import lens as lens
    from depthscope.api.prompt import logits as logits
    from depthscope.api.prune import prune as prune
    from depthscope.api.series import Series as Series
    from depthscope.api.series import study_recipe as study_recipe
    from depthscope.api.series import study_revisions as study_revisions
    from depthscope.api.study import Study as Study
    from depthscope.api.study import study as study
    from depthscope.api.tune import convert_lens as convert_lens
    from depthscope.api.tune import tune_lens as tune_lens
    from depthscope.edit_registry import Edit as Edit
    from depthscope.edit_registry import LayerSweep as LayerSweep
    from depthscope.edit_registry import parse_edit as parse_edit
    from depthscope.edit_registry import register_edit as register_edit
    from depthscope.edit_registry import unregister_edit as unregister_edit
    from depthscope.edits import drop as drop
    from depthscope.edits import drop_attn as drop_attn
    from depthscope.edits import drop_head as drop_head
    from depthscope.edits import drop_mlp as drop_mlp
    from depthscope.edits import drop_neuron as drop_neuron
    from depthscope.edits import drop_ple as drop_ple
    from depthscope.edits import drop_ssm as drop_ssm
    from depthscope.edits import exchange as exchange
    from depthscope.edits import loop as loop
    from depthscope.edits import mean_ablate_head as mean_ablate_head
    from depthscope.edits import mean_ablate_neuron as mean_ablate_neuron
    from depthscope.edits import parallel as parallel
    from depthscope.edits import repeat as repeat
    from depthscope.edits import repeat_middle as repeat_middle
    from depthscope.edits import repeat_range as repeat_range
    from depthscope.edits import resample_ablate_head as resample_ablate_head
    from depthscope.edits import resample_ablate_neuron as resample_ablate_neuron
    from depthscope.edits import reverse as reverse
    from depthscope.edits import shuffle as shuffle
    from depthscope.edits import swap as swap
    from depthscope.errors import DepthscopeError as DepthscopeError
    from depthscope.models.load import load as load
    from depthscope.routes import Route as Route
    from depthscope.routes import parse_route as parse_route
    from depthscope.run.references import reference as reference
    from depthscope.schema.declaration import Experiment as Experiment
    from depthscope.schema.declaration import Option as Option
    from depthscope.schema.declaration import Table as Table
    from depthscope.schema.experiments import register_experiment as register_experiment
    from depthscope.schema.experiments import unregister_experiment as unregister_experiment
    from depthscope.schema.lens import LensKind as LensKind
    from depthscope.schema.lens import register_lens as register_lens
    from depthscope.schema.lens import unregister_lens as unregister_lens
    from depthscope.schema.measures import Measure as Measure
    from depthscope.schema.measures import register_measure as register_measure
    from depthscope.schema.measures import unregister_measure as unregister_measure
    from depthscope.schema.metric import Metric as Metric

_HOMES = {
    "depthscope.api.evaluate": ("evaluate",),
    "depthscope.api.generate": ("generate", "generate_stream"),
    "depthscope.api.export": ("export", "speed"),
    "depthscope.api.heal": ("heal",),
    "depthscope.api.inputs": ("corpus",),
    "depthscope.api.measure": ("measure",),
    "depthscope.api.prompt": ("lens", "logits"),
    "depthscope.api.prune": ("prune",),
    "depthscope.api.series": ("Series", "study_recipe", "study_revisions"),
    "depthscope.api.study": ("Study", "study"),
    "depthscope.api.tune": ("convert_lens", "tune_lens"),
    "depthscope.edit_registry": ("Edit", "LayerSweep", "parse_edit", "register_edit", "unregister_edit"),
    "depthscope.edits": tuple(_EDITS),
    "depthscope.errors": ("DepthscopeError",),
    "depthscope.models.load": ("load",),
    "depthscope.routes": ("Route", "parse_route"),
    "depthscope.run.references": ("reference",),
    "depthscope.schema.declaration": ("Experiment", "Option", "Table"),
    "depthscope.schema.experiments": ("register_experiment", "unregister_experiment"),
    "depthscope.schema.lens": ("LensKind", "register_lens", "unregister_lens"),
    "depthscope.schema.measures": ("Measure", "register_measure", "unregister_measure"),
    "depthscope.schema.metric": ("Metric",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'depthscope' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
