"""The interval of CKA covers the alignment of independent samples although documents have several."""

import numpy as np
from scipy import stats

from depthscope.statistics.alignment import cka, jackknife_interval

WIDTH = 12
MAP = np.random.default_rng(99).normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)


def samples(random, documents, windows, spread=0.6):
    """Two representations of windows that share an effect of their document, log-normal in size, and are skewed by it."""
    size = np.exp(random.normal(0, spread, (2, documents, 1, 1)))
    shared, own = random.normal(size=(documents, 1, WIDTH)), random.normal(size=(documents, windows, WIDTH))
    x = (0.7 * (shared * size[0] + own * size[1])).reshape(-1, WIDTH)
    y = np.tanh(x @ MAP) + 0.3 * random.normal(size=x.shape)
    return np.stack([x, y], 1), np.repeat(np.arange(documents), windows)


def test_the_interval_covers_with_few_documents_of_several_windows():
    random = np.random.default_rng(0)
    truth = float(np.mean([cka(samples(random, 1000, 1)[0], batch=1000)[0, 1] for _ in range(4)]))
    covered, plain, simulations = 0, 0, 150
    for _ in range(simulations):
        residuals, documents = samples(random, 8, 4)
        value, low, high = (found[0, 1] for found in jackknife_interval(residuals, documents))
        assert low <= value <= high <= 1
        covered += int(low <= truth <= high)
        without = np.array([cka(residuals[documents != one])[0, 1] for one in range(8)])
        plain += int(abs(value - truth) <= stats.t.ppf(0.975, 7) * np.sqrt(7 * without.var()))
    assert covered >= 0.93 * simulations
    assert plain < 0.9 * simulations, "a plain jackknife is not enough here, so this test can tell"


def test_equal_representations_have_the_interval_one():
    residuals, documents = samples(np.random.default_rng(1), 6, 2)
    value, low, high = jackknife_interval(residuals[:, [0, 0]], documents)
    np.testing.assert_allclose([value[0, 1], low[0, 1], high[0, 1]], 1, atol=1e-9)
    assert np.isnan(jackknife_interval(residuals[:4], documents[:4])[1]).all()
