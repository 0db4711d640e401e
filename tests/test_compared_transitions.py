"""In how many models a transition is established: partial conjunction against its definition and by simulation."""

from itertools import combinations

import numpy as np
import pytest
from report_runs import made_up_stages

from depthscope.report.compared_transitions import spread, transition_table, transitions_said
from depthscope.schema.found_stages import Stages
from depthscope.statistics.partial_conjunction import at_least, most


def test_a_partial_conjunction_is_that_every_large_enough_subset_rejects():
    generator = np.random.default_rng(0)
    for count in range(1, 6):
        p = generator.uniform(0, 0.3, count)
        highest = 0.0
        for k in range(1, count + 1):
            subsets = combinations(p, count - k + 1)
            every = max(min(1.0, min(subset) * len(subset)) for subset in subsets)
            highest = max(highest, every)  # "in at least two" cannot be easier to show than "in at least one"
            assert at_least(p.tolist())[k - 1] == pytest.approx(highest)


@pytest.mark.parametrize("true", [0, 1, 3])
def test_more_models_than_have_it_are_rarely_claimed(true):
    generator = np.random.default_rng(1)
    claimed = [most([*np.zeros(true), *generator.uniform(size=5 - true)], 0.05) > true for _ in range(2000)]
    assert np.mean(claimed) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_places_are_relative_and_spread_between_models():
    models = [Stages.from_json(made_up_stages(depth)) for depth in (6, 12, 24)]
    first, last = (
        spread(models, one.before, one.after) for one in (models[0].transitions[0], models[0].transitions[2])
    )
    assert first.depths == pytest.approx([1 / 3] * 3)
    assert first.established == 3
    assert first.interval == pytest.approx((1 / 3, 1 / 3))
    assert last.depths == pytest.approx([5 / 6, 11 / 12, 23 / 24])
    assert last.deviation == pytest.approx(np.std(last.depths, ddof=1))
    table = transition_table([(f"model {i}", model) for i, model in enumerate(models)])
    assert table.rows[0][1] == ("named", "layer 2 of 6, absent in 25 %")
    assert table.rows[0][-1] == "at least 3 of 3"
    assert "established in at least 3 of 3 models" in transitions_said(models)[0]
    untested = [Stages.from_json(made_up_stages(6, transitions=[]))]
    assert spread(untested, models[0].transitions[0].before, models[0].transitions[0].after) is None
    assert transitions_said(untested) == []
