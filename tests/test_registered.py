"""An experiment and a lens of a user's own, registered from outside the package as in a notebook."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import depthscope as ds
from depthscope.api import measure as ds_measure
from depthscope.api import study as ds_study
from depthscope.cli import build_app
from depthscope.errors import DepthscopeError
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.schema.estimates import ESTIMATE
from depthscope.studies.settings import study_settings

LARGEST = ds.Metric(
    "largest_share", "share", "Largest coordinate", "max |x_i|^p / Σ |x_i|^p of the residual stream", 0.0, 1.0
)
POWER = ds.Option(name="power", type=int, default=2, help="The power of the coordinates.")


class LargestCoordinate:
    """A reading: the share of the largest coordinate in the residual stream before each block."""

    name, readouts = "largest", 0

    def __init__(self, subject) -> None:
        from depthscope.engine.baseline import Keep

        self.keep, self.power = Keep.NOTHING, subject.options["power"]
        self.settings = {"power": self.power}
        self.rows = Rows({"layer": pl.Int32}, [(layer,) for layer in range(subject.model.depth + 1)], [LARGEST])

    def read(self, baseline, windows) -> pl.DataFrame:
        powers = [stream.double().abs() ** self.power for stream in baseline.residuals]
        shares = torch.stack([(power.amax(-1) / power.sum(-1)).flatten() for power in powers])
        sums = window_sums(shares[None].numpy(), len(windows))
        return self.rows.shard(sums, windows.length, windows.document)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        return {self.name: self.rows.table(shards)}


EXPERIMENT = ds.Experiment(
    name="largest",
    title="The largest coordinate of the residual stream.",
    question="How large is the largest coordinate of the residual stream at every depth?",
    make=LargestCoordinate,
    tables={"largest": ds.Table(columns={"layer": pl.Int32, **ESTIMATE}, metrics=[LARGEST])},
    options=[POWER],
    source="made up",
)


@pytest.fixture
def largest():
    ds.register_experiment(EXPERIMENT)
    yield EXPERIMENT
    ds.unregister_experiment("largest")


def test_a_registered_experiment_is_part_of_study_table_page_terminal_and_help(largest, gpt2, tmp_path):
    ds.register_experiment(EXPERIMENT)  # a notebook's cell that runs again
    text = ds.corpus(["It was a dark and stormy night. " * 9, "Call me Ishmael, some years ago. " * 9], tokens=96)
    study = ds.study(gpt2, text, out=tmp_path, window=16, experiments=["influence", "largest"], power=4, progress=False)
    table = study.table("largest")
    assert study.run.settings.of("largest") == {"power": 4}
    assert table["metric"].unique().to_list() == ["largest_share"]
    streams = [_streams(gpt2, ids) for ids in _windows(gpt2, text)]
    for layer in (0, gpt2.depth):
        powers = np.abs(np.stack([one[layer] for one in streams])).astype(np.float64) ** 4
        expected = (powers.max(-1) / powers.sum(-1)).mean()
        assert table.filter(pl.col("layer") == layer)["mean"].item() == pytest.approx(expected, rel=1e-6)

    page = study.report().read_text(encoding="utf-8")
    assert EXPERIMENT.title.rstrip(".") in page
    assert LARGEST.definition in page
    assert len(study.figure("largest").data) >= 1

    shown = CliRunner().invoke(build_app(), ["largest", "--help"], env={"COLUMNS": "200"}).output
    assert EXPERIMENT.question in " ".join(shown.split())
    assert "--power" in shown
    assert "largest" in CliRunner().invoke(build_app(), ["study", "--help"], env={"COLUMNS": "200"}).output


def _windows(model, text):
    from depthscope.data.windows import make_windows

    return list(make_windows(text, model, length=16).batch()[0][:, None])


def _streams(model, ids):
    """The residual stream before each block and after the last, from hooks on transformers' own forward pass."""
    found = []
    blocks = model.stack.blocks
    hooks = [
        block.register_forward_pre_hook(lambda _, given: found.append(given[0][0].numpy().copy())) for block in blocks
    ]
    hooks.append(
        blocks[-1].register_forward_hook(
            lambda _, __, out: found.append(
                (out[0] if isinstance(out, tuple) else out).reshape(len(ids[0]), -1).numpy()
            )
        )
    )
    with torch.inference_mode():
        model.hf(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def test_what_cannot_be_registered_is_refused(largest):
    with pytest.raises(DepthscopeError, match="an experiment named sweep is built in"):
        ds.register_experiment(ds.Experiment(name="sweep", title="", question="", make=dict, tables={}))
    with pytest.raises(DepthscopeError, match="cannot name an experiment"):
        ds.register_experiment(ds.Experiment(name="My Own", title="", question="", make=dict, tables={}))
    other = ds.Option(name="suffix", type=int, default=1, help="")
    with pytest.raises(DepthscopeError, match="a different option suffix"):
        ds.register_experiment(
            ds.Experiment(name="other", title="", question="", make=dict, tables={}, options=[other])
        )
    for name in ("stages", "report"):
        with pytest.raises(DepthscopeError, match=f"the name {name} is taken"):
            ds.register_experiment(ds.Experiment(name=name, title="", question="", make=dict, tables={}))
    with pytest.raises(DepthscopeError, match="another name"):  # registered again, with an option of probes
        ds.register_experiment(replace(EXPERIMENT, options=[other]))
    with pytest.raises(DepthscopeError, match="sweep already writes the table sweep"):
        ds.register_experiment(replace(EXPERIMENT, tables={"sweep": ds.Table(columns={})}))
    assert study_settings(power=3).options["power"] == 3
    ds.unregister_experiment("largest")
    with pytest.raises(DepthscopeError, match="no experiment named largest"):
        ds.unregister_experiment("largest")
    with pytest.raises(DepthscopeError, match="unknown setting power"):
        study_settings(power=3)
    ds.register_experiment(EXPERIMENT)


class HalfLens:
    """The logit lens of half the stream: but for its epsilon a final norm does not see the scale."""

    def __init__(self, model) -> None:
        self.unembedding = model.unembedding

    def decode(self, residual, depth, last):
        return self.unembedding.hidden(residual / 2)


def test_a_registered_lens_reads_in_studies_and_prompts(gpt2, tmp_path):
    ds.register_lens(ds.LensKind(name="half", title="Half", definition="half the stream", make=HalfLens))
    try:
        text = ds.corpus(["It was a dark and stormy night. " * 9], tokens=48)
        own, half = (
            ds.study(gpt2, text, out=tmp_path / lens, window=16, experiments=["lens"], lens=lens, progress=False)
            for lens in ("logit", "half")
        )
        assert half.run.settings.of("lens") == {"protocol": "text", "lens": "half"}
        assert own.run.settings.of("lens") == {"protocol": "text"}
        means = [one.table("lens").filter(metric="kl")["mean"] for one in (own, half)]
        np.testing.assert_allclose(*means, rtol=1e-2, atol=1e-4)
        by_name, by_object = (ds.lens(gpt2, "Call me Ishmael", lens=lens) for lens in ("half", HalfLens(gpt2)))
        assert by_name.equals(by_object)
        with pytest.raises(
            DepthscopeError, match="unknown lens melted: expected some of logit, frozen_scale, tuned, jacobian, half"
        ):
            ds.lens(gpt2, "Call me Ishmael", lens="melted")
    finally:
        ds.unregister_lens("half")


def test_the_examples_of_the_guide_run_as_they_are_written(monkeypatch, tmp_path):
    """The blocks of docs/guides/adding.md one after the other, on less text."""
    guide = (Path(__file__).parents[1] / "docs" / "guides" / "adding.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) == 5
    for module, name in ((ds_study, "study"), (ds_measure, "measure")):
        own = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *given, own=own, **named: own(*given, **{**named, "tokens": 32, "window": 16, "progress": False}),
        )
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "guide"}
    try:
        for block in blocks[:4]:
            exec(block, namespace)
        assert "skip_pair" in namespace["study"].table("sweep")["edit"]
        run = ds.study("bookshelf-gpt2", experiments=["largest"], out="runs/largest").run
        exec(blocks[4], namespace)
        section = namespace["KIND"].build(run)
        assert section.panels
        assert section.sentences[0].startswith("After the last block the largest coordinate has")
    finally:
        ds.unregister_experiment("largest")
        ds.unregister_lens("mean_shift")
        ds.unregister_measure("total_variation")
        ds.unregister_edit("skip_pair")
