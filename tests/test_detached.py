"""Experiments sent to another process without their model give the same shards there."""

import copy

import pytest
import torch

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows
from depthscope.errors import DepthscopeError
from depthscope.experiments.experiment import Subject
from depthscope.models.load import load
from depthscope.schema.experiments import declared_experiments
from depthscope.studies.read_windows import read_windows
from depthscope.studies.settings import study_settings

pytest.importorskip("cloudpickle", reason="the extra cluster is not installed")

from depthscope.studies.detached import attached, detached

NAMES = ("sweep", "lens", "norms", "head_ablation")


def test_a_copy_of_the_model_takes_its_place_in_every_family(tiny):
    ids = torch.randint(0, tiny.known_tokens, (3, 9), generator=torch.Generator().manual_seed(0)).int().numpy()
    windows = Windows(
        ids, document=torch.arange(3).numpy(), start=torch.zeros(3, dtype=torch.int64).numpy(), bos="none"
    )
    options = study_settings(experiments=NAMES).options
    made = []
    for name in NAMES:
        try:
            made.append(declared_experiments()[name].maker()(Subject(tiny, Corpus(), windows, "none", options)))
        except DepthscopeError:  # what this family lacks
            continue
    assert {"sweep", "lens"} <= {one.name for one in made}
    other = load(copy.deepcopy(tiny.hf))
    there = attached(detached(made, tiny), other)
    ours, theirs = read_windows(tiny, made, windows), read_windows(other, there, windows)
    assert all(ours[name].equals(theirs[name]) for name in ours)
    sweep = next(one for one in there if one.name == "sweep")
    assert sweep.meter.model is other


def test_an_experiment_that_cannot_be_sent_is_named(tiny_of):
    class Odd:
        name = "odd"

        def __reduce__(self):
            raise TypeError("no pickle")

    with pytest.raises(
        DepthscopeError, match=r"experiment odd cannot be sent to another process \(TypeError: no pickle"
    ):
        detached([Odd()], tiny_of("gpt2"))
