"""Evidence for a step against its definition; what it must not depend on; held-out layers against fits by hand."""

import numpy as np
import pytest

from depthscope.statistics.held_out_layers import KNEE, shapes
from depthscope.statistics.smooth_steps import DEGREE, LAMBDA, RHO, G, SmoothSteps, despiked, smooth_steps

LAYERS, EDGE = 13, 2


def signals_of(seed: int, layers: int = LAYERS, count: int = 3) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).standard_normal((layers, count)), 0)


def naive_marginal(values: np.ndarray, design: np.ndarray, rho: float, share: float, prior: np.ndarray) -> float:
    """Log marginal likelihood with flat priors on coefficients and log σ, up to what all models share.

    What is added to the design has a normal prior of covariance σ² `prior`. By determinants, without whitening.
    """
    n = len(values)
    time = (np.arange(n) + 0.5) / n
    wiener = np.array([[min(s, t) ** 2 * (3 * max(s, t) - min(s, t)) / 2 for t in time] for s in time])
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    covariance = rho**apart + share * wiener + prior
    inverse = np.linalg.inv(covariance)
    inside = design.T @ inverse @ design
    left = values - design @ np.linalg.solve(inside, design.T @ inverse @ values)
    free = n - design.shape[1]
    return (
        -0.5 * np.linalg.slogdet(covariance)[1]
        - 0.5 * np.linalg.slogdet(inside)[1]
        - free / 2 * np.log(left @ inverse @ left)
    )


def test_the_bayes_factor_is_that_of_its_definition():
    model, signals = SmoothSteps(LAYERS, EDGE), signals_of(0)
    found = model.evidence(signals)
    trend = np.stack([np.linspace(-1, 1, LAYERS) ** power for power in range(DEGREE + 1)], 1)
    grid = [(rho, share) for rho in RHO for share in LAMBDA]
    for column in range(signals.shape[1]):
        values = (signals[:, column] - signals[:, column].mean()) / signals[:, column].std()
        none = np.array([naive_marginal(values, trend, *one, np.zeros((LAYERS, LAYERS))) for one in grid])
        for row, place in enumerate(model.places):
            step = (np.arange(LAYERS) >= place).astype(float)
            with_step = []
            for rho, share in grid:
                covariance = np.linalg.inv(np.linalg.inv(_covariance(rho, share)))
                inverse = np.linalg.inv(covariance)
                beyond = step - trend @ np.linalg.solve(trend.T @ inverse @ trend, trend.T @ inverse @ step)
                information = beyond @ inverse @ beyond
                with_step.append(naive_marginal(values, trend, rho, share, G / information * np.outer(step, step)))
            expected = np.logaddexp.reduce(with_step) - np.logaddexp.reduce(none)
            assert found.log_bayes[row, column] == pytest.approx(expected, abs=1e-6)


def _covariance(rho: float, share: float) -> np.ndarray:
    time = (np.arange(LAYERS) + 0.5) / LAYERS
    wiener = np.array([[min(s, t) ** 2 * (3 * max(s, t) - min(s, t)) / 2 for t in time] for s in time])
    return rho ** np.abs(np.subtract.outer(np.arange(LAYERS), np.arange(LAYERS))) + share * wiener


def test_level_slope_bend_and_scale_are_no_evidence():
    signals = signals_of(1)
    found = smooth_steps(LAYERS, EDGE).evidence(signals)
    time = np.linspace(-1, 1, LAYERS)[:, None]
    other = smooth_steps(LAYERS, EDGE).evidence(7 * (signals + 3 - 2 * time + 5 * time**2))
    np.testing.assert_allclose(other.log_bayes, found.log_bayes, atol=1e-6)
    np.testing.assert_allclose(other.rises, found.rises, atol=1e-6)
    turned = smooth_steps(LAYERS, EDGE).evidence(-signals)
    np.testing.assert_allclose(turned.log_bayes, found.log_bayes, atol=1e-9)
    np.testing.assert_allclose(turned.rises, 1 - found.rises, atol=1e-9)


def test_a_step_is_found_where_it_is_with_its_sign_and_nothing_in_a_line():
    layers = 24
    noise = 0.2 * np.random.default_rng(2).standard_normal((layers, 2))
    step = np.where(np.arange(layers)[:, None] >= 10, [2.0, -2.0], 0)
    found = smooth_steps(layers, 3).evidence(noise + step)
    assert found.log_bayes.argmax(0).tolist() == [7, 7]
    assert found.log_bayes.max() > 5
    assert (found.rises[7] > 0.999).tolist() == [True, False]
    assert (found.directed(np.array([1.0, 1.0]))[7] > 0).tolist() == [True, False]
    straight = smooth_steps(layers, 3).evidence(noise + np.arange(layers)[:, None] / 4)
    assert straight.log_bayes.max() < 2


def test_null_signals_are_as_correlated_as_the_signals_and_smooth_follows_them():
    model = smooth_steps(40, 4)
    shared = np.random.default_rng(3).standard_normal((40, 1))
    signals = shared + 0.3 * np.random.default_rng(4).standard_normal((40, 3))
    evidence = model.evidence(signals)
    drawn = model.nulls(signals, evidence, 50, np.random.default_rng(5))
    assert drawn.shape == (40, 3, 50)
    between = np.mean([np.corrcoef(drawn[:, :, i].T)[0, 1] for i in range(50)])
    assert between > 0.6
    curve = np.sin(np.linspace(0, 3, 40))[:, None] * [1, 2, 3]
    exact = curve + 1e-3 * np.random.default_rng(6).standard_normal(curve.shape)
    np.testing.assert_allclose(model.smooth(exact, model.evidence(exact)), curve, atol=0.05)


def test_a_spike_is_taken_out_and_a_step_is_not():
    values = np.where(np.arange(20) >= 9, 5.0, 0.0)[:, None] + 0.1 * np.random.default_rng(7).standard_normal((20, 1))
    np.testing.assert_array_equal(despiked(values)[[8, 9], 0], values[[8, 9], 0])
    spiked = values.copy()
    spiked[4] += 8
    assert abs(despiked(spiked)[4, 0]) < 1


def test_held_out_errors_are_those_of_fits_without_the_layer():
    signals = signals_of(8, 15)
    scaled = (signals - signals.mean(0)) / signals.std(0)
    where = np.linspace(-1, 1, 15)
    found = {shape.title: shape for shape in shapes(signals)}
    for layer in range(15):
        rest = [i for i in range(15) if i != layer]
        line = [np.polyval(np.polyfit(where[rest], scaled[rest, k], 1), where[layer]) for k in range(3)]
        assert found["a straight line"].errors[layer] == pytest.approx(((scaled[layer] - line) ** 2).mean())
        mean = scaled[rest].mean(0)
        assert found["a constant"].errors[layer] == pytest.approx(((scaled[layer] - mean) ** 2).mean())


def test_the_shape_that_made_the_signals_predicts_best():
    layers = np.arange(24)[:, None]
    noise = 0.3 * np.random.default_rng(9).standard_normal((24, 6))
    signs = np.array([1, -1, 1, 1, -1, 1])
    made = {
        "a straight line": signs * layers / 4,
        KNEE: signs * np.maximum(layers - 12, 0) / 2,
        "2 segments": signs * np.where(layers >= 9, 4, 0),
        "3 segments": np.where(layers >= 16, 4 * signs, np.where(layers >= 8, 2 * np.roll(signs, 2), 0)),
    }
    for title, values in made.items():
        assert min(shapes(values + noise), key=lambda shape: shape.error).title == title
