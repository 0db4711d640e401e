"""Intrinsic dimension, rank, entropy and curvature by depth against their naive definitions; sets of known dimension."""

import itertools

import naive
import numpy as np
import pytest
from scipy import optimize, special
from test_sweep import save

import depthscope as ds
from depthscope.data.windows import make_windows
from depthscope.engine.baseline import Baseline
from depthscope.errors import DataError
from depthscope.experiments.dimension import Dimension, of_points
from depthscope.experiments.trajectory import Trajectory
from depthscope.models.load import load
from depthscope.schema.dimension import (
    DIMENSION_SCALES_TABLE,
    DIMENSION_TABLE,
    POINT_METRICS,
    TRAJECTORY_SHARD,
    TRAJECTORY_TABLE,
)
from depthscope.statistics import intrinsic_dimension as shape

LENGTH = 8


def of_text(family, path):
    model = load(save(family, path / family))
    return model, make_windows(ds.corpus(tokens=320), model, length=LENGTH)


def read(model, windows, experiment):
    with model.measuring():
        return experiment.read(Baseline(model, *windows.batch()), windows)


def sorted_distances(points):
    return [sorted(np.linalg.norm(a - b) for j, b in enumerate(points) if j != i) for i, a in enumerate(points)]


def naive_gride(near, n):
    """The largest likelihood, from the density of the ratios as it is written in the paper."""
    ratios = np.array([row[2 * n - 1] / row[n - 1] for row in near])

    def loss(d):
        density = d * (ratios**d - 1) ** (n - 1) / (special.beta(n, n) * ratios ** (d * (2 * n - 1) + 1))
        return -np.log(density).sum()

    return optimize.minimize_scalar(loss, bounds=(0.05, 60), method="bounded", options={"xatol": 1e-9}).x


def naive_two_nn(near):
    ratios = sorted(row[1] / row[0] for row in near)
    x = [np.log(ratio) for ratio in ratios]
    y = [-np.log(1 - (i + 1) / len(ratios)) if i + 1 < len(ratios) else 0 for i in range(len(ratios))]
    kept = int(0.9 * len(ratios))
    return sum(a * b for a, b in zip(x[:kept], y[:kept], strict=True)) / sum(a * a for a in x[:kept])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "mamba"])
def test_the_tables_are_their_definition(family, tmp_path):
    model, windows = of_text(family, tmp_path)
    ids, documents = windows.batch()[0], windows.document
    streams = [one.double().numpy() for one in naive.residuals(model.hf, ids)]
    points = Dimension(model, windows)
    tables = points.tables([read(model, windows, points)])
    assert dict(tables["dimension"].schema) == DIMENSION_TABLE
    assert dict(tables["dimension_scales"].schema) == DIMENSION_SCALES_TABLE
    for depth, stream in enumerate(streams):
        last = stream[:, -1].astype(np.float32).astype(np.float64)
        near = sorted_distances(np.unique(last, axis=0))
        shares = np.linalg.svd(last - last.mean(0), compute_uv=False) ** 2
        shares = shares[shares > 0] / shares.sum()
        expected = {
            "two_nn": naive_two_nn(near),
            "anisotropy": shares.max(),
            "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        }
        found = tables["dimension"].filter(layer=depth)
        for metric, value in expected.items():
            assert found.filter(metric=metric)["mean"].item() == pytest.approx(value, rel=1e-3), (depth, metric)
        assert found.filter(metric="two_nn")["tokens"].item() == len(near)
        scales = tables["dimension_scales"].filter(layer=depth)
        for n in (1, 4):
            value = scales.filter(neighbours=n)["mean"].item()
            assert value == pytest.approx(naive_gride(near, n), rel=1e-3), (depth, n)
    paths = Trajectory(model, LENGTH)
    shard = read(model, windows, paths)
    assert dict(shard.schema) == TRAJECTORY_SHARD
    table = paths.tables([shard])["trajectory"]
    assert dict(table.schema) == TRAJECTORY_TABLE
    for depth, stream in enumerate(streams):
        for metric, values in trajectories(stream).items():
            row = table.filter(layer=depth, metric=metric).row(0, named=True)
            assert row["tokens"] == np.isfinite(values).sum()
            assert row["mean"] == pytest.approx(np.nanmean(values), rel=1e-3, abs=1e-5)
            if np.isfinite(values).all():  # else a window counts for fewer angles
                expected = naive.estimate(values, documents)
                assert [row["mean"], row["ci_low"], row["ci_high"]] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def trajectories(stream):
    """Entropies and angles of each window, shaped [windows, values]."""
    found = {"prompt_entropy": [], "unit_prompt_entropy": [], "curvature": []}
    for vectors in stream:
        for name, rows in (
            ("prompt_entropy", vectors),
            ("unit_prompt_entropy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),
        ):
            shares = np.linalg.svd(rows, compute_uv=False) ** 2
            shares = shares[shares > 0] / shares.sum()
            found[name].append([-(shares * np.log(shares)).sum()])
        steps = [b - a for a, b in itertools.pairwise(vectors)]
        found["curvature"].append([angle(a, b) for a, b in itertools.pairwise(steps)])
    return {name: np.array(values) for name, values in found.items()}


def angle(a, b):
    """NaN where a token is repeated and the embedding knows no positions: a step of length 0 has no direction."""
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return np.arccos(np.clip(a @ b / lengths, -1, 1)) if lengths > 0 else np.nan


def test_sets_of_known_dimension_and_invariance():
    generator = np.random.default_rng(0)
    documents = np.repeat(np.arange(50), 8)
    into, _ = np.linalg.qr(generator.normal(size=(20, 20)))
    for dimension in (2, 5):
        points = np.zeros((400, 20))
        points[:, :dimension] = generator.uniform(size=(400, dimension))
        values, low, high, counts, _ = of_points(points @ into, documents, [1, 4])
        for place in (0, 3, 4):
            assert values[place] == pytest.approx(dimension, rel=0.2)
            assert low[place] < values[place] < high[place]
        assert counts.tolist() == [400] * 5
        assert 1 < values[2] <= dimension + 1e-9
        moved = of_points(3 * points @ into.T + 7, documents, [1, 4])[0]
        assert moved == pytest.approx(values, rel=1e-6)
    line = np.outer(np.arange(400.0), np.ones(20))
    assert of_points(line, documents, [])[0][1:] == pytest.approx([1, 1])  # all variance in one direction
    same = of_points(np.ones((400, 20)), documents, [1])
    assert np.isnan(same[0]).all()
    assert len(same[0]) == len(POINT_METRICS) + 1


def test_equal_vectors_have_no_direction_and_little_text_is_refused(tmp_path):
    model, windows = of_text("gpt2", tmp_path)
    paths = Trajectory(model, LENGTH)
    whole = paths.tables([read(model, windows, paths)])
    parts = [read(model, windows.part(*ends), paths) for ends in ((0, 5), (5, len(windows)))]
    for tables in (paths.tables(parts), paths.tables([paths.joined(parts)])):
        assert tables["trajectory"]["mean"].to_numpy() == pytest.approx(
            whole["trajectory"]["mean"].to_numpy(), rel=1e-5
        )
    with model.measuring():
        baseline = Baseline(model, *windows.batch())
        baseline.residuals[1][:] = 1.0
        table = paths.tables([paths.read(baseline, windows)])["trajectory"].filter(layer=1)
    assert table.filter(metric="curvature").select("mean", "tokens").row(0) == (None, 0)
    assert table.filter(metric="prompt_entropy")["mean"].item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match="windows of 2 tokens have no curvature"):
        Trajectory(model, 2)
    with pytest.raises(
        DataError, match="3 windows are too few points for an intrinsic dimension: expected at least 16"
    ):
        Dimension(model, windows.part(0, 3))
    assert shape.gride(np.ones((10, 4)), 2) != shape.gride(np.ones((10, 4)), 2)  # NaN: no ratio above 1
