"""From numbers per token to tables: counts that differ per row and document, classes of tokens, bounds and nulls."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from families import FAMILIES, VOCABULARY, WITHOUT_COMPONENTS
from scipy import stats

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.experiments.document_sums import Rows, class_sums, estimate_columns, window_sums
from depthscope.experiments.sweep import KEYS, Sweep
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import MEASURED
from depthscope.statistics.estimate import Estimate, estimate_of

DOCUMENTS = np.array([4, 4, 0, 2, 2, 2, 7])
LENGTH = 12
SHARE, FREE = Metric("share", "share", "", "", 0.0, 1.0), Metric("free", "nats", "", "")
RNG = np.random.default_rng(0)
MEMBER = RNG.random((4, len(DOCUMENTS) * LENGTH)) < np.array([0.5, 0.02, 0.0, 2.0])[:, None]
"""Four classes that overlap: half of the tokens, a few, none, all."""
NAMES = ("half", "few", "none", "all")


def naive(values, member, documents):
    """Mean over the tokens of a class and its interval over the documents that have any: loops over the definition."""
    owner = np.repeat(documents, LENGTH)
    counts, sums = [], []
    for document in np.unique(documents):
        chosen = values[(owner == document) & member]
        if len(chosen):
            counts.append(len(chosen))
            sums.append(chosen.sum())
    n, s = np.array(counts, float), np.array(sums)
    if not len(n):
        return None, None, None, 0, 0
    mean = s.sum() / n.sum()
    if len(n) == 1:
        return mean, None, None, n.sum(), 1
    error = np.sqrt(len(n) / (len(n) - 1) * ((s - mean * n) ** 2).sum()) / n.sum()
    half = stats.t.ppf(0.975, len(n) - 1) * error
    return mean, mean - half, mean + half, n.sum(), len(n)


def table_by_class(values, cuts=(5,)):
    metrics = (Metric("a", "", "", ""), Metric("b", "", "", ""))
    rows = Rows({"row": pl.Int32}, [(0,), (1,), (2,)], metrics).by_class(NAMES)
    shards = []
    for start, stop in pairwise((0, *cuts, len(DOCUMENTS))):
        part = slice(start * LENGTH, stop * LENGTH)
        sums, tokens = class_sums(values[..., part], MEMBER[:, part], stop - start)
        shards.append(rows.shard(sums, tokens, DOCUMENTS[start:stop]))
    return rows.table(shards)


def test_a_class_of_tokens_has_its_naive_mean_and_interval():
    """A document goes on in the next shard, some have no token of a class, one class has none at all."""
    values = RNG.normal(1, 1, (2, 3, MEMBER.shape[1]))
    table = table_by_class(values)
    assert dict(table.schema) == {"row": pl.Int32, "token_class": pl.String, **ESTIMATE}
    for row, name, metric, _, *found in table.iter_rows():
        expected = naive(values["ab".index(metric), row], MEMBER[NAMES.index(name)], DOCUMENTS)
        assert found == pytest.approx(expected), (row, name, metric)
    assert 0 < table.filter(token_class="few")["documents"][0] < 4
    assert table.filter(token_class="none")["mean"].null_count() == 6


def test_the_class_of_all_tokens_is_no_class_bit_for_bit():
    values = RNG.normal(size=(1, 2, MEMBER.shape[1])).astype(np.float32)
    sums, counts = class_sums(values, MEMBER[3:], len(DOCUMENTS))
    assert np.array_equal(sums, window_sums(values, len(DOCUMENTS)))
    rows = Rows({"row": pl.Int32}, [(0,), (1,)], (FREE,))
    assert rows.shard(sums, counts, DOCUMENTS).equals(rows.shard(sums, LENGTH, DOCUMENTS))


def test_a_number_that_is_not_finite_stays_in_its_classes():
    values = np.ones((1, 1, MEMBER.shape[1]))
    values[..., ~MEMBER[0]] = np.inf
    sums, counts = class_sums(values, MEMBER[:1], len(DOCUMENTS))
    assert np.array_equal(sums[0], counts)


def test_shards_of_one_cut_or_another_give_the_same_table():
    values = RNG.normal(size=(2, 3, MEMBER.shape[1]))
    whole, cut = table_by_class(values, ()), table_by_class(values, (1, 4))
    assert whole.drop("mean", "ci_low", "ci_high").equals(cut.drop("mean", "ci_low", "ci_high"))
    numbers = ["mean", "ci_low", "ci_high"]
    np.testing.assert_allclose(whole[numbers].to_numpy(), cut[numbers].to_numpy(), rtol=1e-9)


def test_columns_of_estimates_are_kept_in_bounds_and_null_where_there_is_no_number():
    numbers = np.array([0.5, -0.1, 1.2, np.inf, np.nan])
    estimate = Estimate(numbers, numbers - 1, numbers + 1, 10, np.arange(5))
    columns = estimate_columns(estimate, [SHARE, SHARE, FREE, FREE, SHARE])
    assert dict(columns.schema) == ESTIMATE
    assert columns["mean"].to_list() == [0.5, 0, 1.2, None, None]
    assert columns["ci_low"].to_list() == [0, 0, pytest.approx(0.2), None, None]
    assert columns["ci_high"].to_list() == [1, pytest.approx(0.9), 2.2, None, None]
    assert columns["tokens"].to_list() == [10] * 5
    assert columns["documents"].to_list() == list(range(5))


def test_an_estimate_of_all_at_hand_is_that_of_their_shard():
    values = RNG.normal(size=(2, 3, len(DOCUMENTS)))
    rows = Rows({"row": pl.Int32}, [(0,), (1,), (2,)], (SHARE, FREE))
    assert rows.filled(estimate_of(values, DOCUMENTS)).equals(rows.table([rows.shard(values, 1, DOCUMENTS)]))
    with pytest.raises(AssertionError, match="contiguous"):
        estimate_of(values, DOCUMENTS[[0, 2, 1, 3, 4, 5, 6]])


class ClassSweep(Sweep):
    """A sweep broken down by the class of the next token: all that such an experiment takes."""

    name = "class_sweep"

    def __init__(self, model, length, kinds, classes):
        super().__init__(model, length, kinds)
        self.classes = classes
        self.by_class = Rows(KEYS, self.rows.names, MEASURED).by_class(list(classes))

    def read(self, baseline, windows):
        measures = self.meter.against(baseline)
        columns = (measures.kl, measures.agreement, measures.entropy, measures.loss)
        values = np.stack([column.flatten(1).float().numpy() for column in columns])
        member = np.stack([of_class[windows.ids[:, 1:]].ravel() for of_class in self.classes.values()])
        return self.by_class.shard(*class_sums(values, member, len(windows)), windows.document)

    def tables(self, shards):
        return {self.name: self.by_class.table(shards)}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT_COMPONENTS][::5])
def test_a_sweep_by_class_of_the_next_token(tiny_of, family):
    """Against the rows per token of the sweep itself; classes that divide the vocabulary add up to the sweep."""
    model, ids = tiny_of(family), np.random.default_rng(1).integers(1, VOCABULARY, (len(DOCUMENTS), LENGTH + 1))
    windows = Windows(ids.astype(np.int32), DOCUMENTS, np.zeros(len(DOCUMENTS), dtype=np.int64), "none")
    odd = np.arange(VOCABULARY) % 2 == 1
    sweep = ClassSweep(model, LENGTH, ["swap", "drop_mlp"], {"odd": odd, "even": ~odd})
    with torch.inference_mode():
        baseline = Baseline(model, *windows.batch(), keep=sweep.keep)
        table = sweep.tables([sweep.read(baseline, windows)])["class_sweep"]
        whole = Sweep.tables(sweep, [Sweep.read(sweep, baseline, windows)])["sweep"]
        sweep.per_token = True
        tokens = Sweep.read(sweep, baseline, windows)
    for (edit, layer), rows in table.group_by("edit", "layer"):
        own = tokens.filter(edit=edit, layer=layer)
        for name, metric, mean, low, high, count, documents in rows.drop("edit", "layer", "unit").iter_rows():
            member = (own["next_token"] % 2 == (name == "odd")).to_numpy()
            expected = naive(own[metric].cast(pl.Float64).to_numpy(), member, DOCUMENTS)
            assert (mean, count, documents) == pytest.approx((expected[0], *expected[3:])), (edit, layer, metric)
            for bound, wanted in ((low, expected[1]), (high, expected[2])):
                lowest, highest = (0, 1 if metric == "agreement" else np.inf)
                assert bound == pytest.approx(np.clip(wanted, lowest, highest), abs=1e-7)
        for metric, parts in rows.group_by("metric"):
            all_tokens = whole.filter(edit=edit, layer=layer, metric=metric[0])
            assert parts["tokens"].sum() == all_tokens["tokens"].item()
            mean = (parts["mean"] * parts["tokens"]).sum() / parts["tokens"].sum()
            assert mean == pytest.approx(all_tokens["mean"].item(), abs=1e-12)
