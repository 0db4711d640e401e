"""Head scores are their naive definitions; heads built to do a thing score for that thing; tables follow from shards."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from families import FAMILIES, tiny_model
from scipy import stats
from test_patterns import transformers_own

from depthscope.data.corpus import Corpus
from depthscope.data.repeats import random_repeats, without_repetition
from depthscope.errors import DataError, RunError, UnsupportedError
from depthscope.experiments import heads as study
from depthscope.experiments.heads import Heads
from depthscope.models.load import load
from depthscope.schema.heads import HEAD_METRICS, HEAD_POSITIONS_TABLE, HEAD_SHARD, HEADS_TABLE, MERGING
from depthscope.statistics.estimate import ClusterMoments
from depthscope.statistics.head_scores import (
    attention_elsewhere,
    attention_of_final,
    attention_on,
    duplicate_keys,
    even_attention_on,
    induction_keys,
    merge_scores,
    previous_by_recency,
    previous_keys,
    second_previous_keys,
)
from depthscope.statistics.ranking import adjusted, p_above, ranks, standard_error

VOCABULARY = 4096


@pytest.fixture(scope="module")
def short_text(short_text):
    return Corpus(source=short_text)


@pytest.fixture(scope="module")
def with_words(gpt2):
    """A tiny random model of a family that reads the embedded models' tokens."""

    def make(family, **changes):
        return load(tiny_model(family, vocab_size=VOCABULARY, **changes), tokenizer=gpt2.tokenizer)

    return make


def shards_of(heads):
    return [heads.work(unit) for unit in range(heads.units)]


def random_patterns(*shape):
    torch.manual_seed(0)
    return torch.randn(*shape, shape[-1]).tril().softmax(-1).tril()


NAIVE_KEYS = {
    previous_keys: lambda ids, i: [i - 1] if i else [],
    duplicate_keys: lambda ids, i: [j for j in range(i) if ids[j] == ids[i]],
    induction_keys: lambda ids, i: [j + 1 for j in range(i) if ids[j] == ids[i] and j + 1 < i],
}


@pytest.mark.parametrize("keys", NAIVE_KEYS, ids=lambda keys: keys.__name__)
def test_attention_on_keys_is_its_naive_definition(keys):
    ids = torch.randint(0, 6, (3, 11), generator=torch.Generator().manual_seed(1))
    pattern = random_patterns(3, 2, 11)
    wanted = keys(ids)
    found, even = attention_on(pattern, wanted), even_attention_on(wanted)
    assert found.dtype == even.dtype == torch.float64
    for batch in range(3):
        naive = [NAIVE_KEYS[keys](ids[batch].tolist(), i) for i in range(11)]
        assert int(wanted[batch].any(-1).sum()) == sum(map(bool, naive)) > 3
        assert float(even[batch]) == pytest.approx(sum(len(j) / (i + 1) for i, j in enumerate(naive)))
        for head in range(2):
            rows = pattern[batch, head].double().tolist()
            expected = sum(rows[i][j] for i, some in enumerate(naive) for j in some)
            assert float(found[batch, head]) == pytest.approx(expected, rel=1e-12)


def test_even_attention_scores_as_even_attention():
    ids = torch.randint(0, 6, (3, 11), generator=torch.Generator().manual_seed(1))
    even = (torch.ones(11, 11).tril() / torch.arange(1, 12)[:, None]).expand(3, 1, 11, 11)
    for keys in NAIVE_KEYS:
        torch.testing.assert_close(attention_on(even, keys(ids))[:, 0], even_attention_on(keys(ids)))


def test_nulls_are_their_naive_definitions():
    ids = torch.randint(0, 6, (4, 11), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = ids[:, -2]  # a position that is a duplicate in every sequence
    pattern = random_patterns(4, 2, 11)
    keys = duplicate_keys(ids)
    elsewhere = attention_elsewhere(pattern, keys)
    recency = previous_by_recency(pattern, previous_keys(ids), second_previous_keys(ids), 0.5)
    for batch in range(4):
        for head in range(2):
            expected = 0.0
            for i, j in keys[batch].nonzero().tolist():
                others = [pattern[b, head, i, j].double() for b in range(4) if not keys[b, i, j]]
                expected += float(sum(others) / len(others) if others else pattern[batch, head, i, j])
            assert float(elsewhere[batch, head]) == pytest.approx(expected, rel=1e-12)
            rows = pattern[batch, head].double()
            expected = float(rows[1, 0]) + sum(2 * float(rows[i, i - 2]) for i in range(2, 11))
            assert float(recency[batch, head]) == pytest.approx(expected, rel=1e-12)


def test_heads_that_attend_by_position_do_not_exceed_their_nulls():
    """Any profile over positions plus noise per sequence: 150 heads on 64 sequences, none of which looks at tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 60, (64, 32), generator=generator)
    heads, away = 150, 3 * torch.eye(32)
    away[:, 0] = 3  # from itself and the first token, so that all others have more than uniformly
    profile = 2 * torch.randn(heads, 32, 32, generator=generator) - away
    over_null, over_uniform = ClusterMoments(heads), ClusterMoments(heads)
    for some in ids.split(16):
        logits = profile + torch.randn(16, heads, 32, 32, generator=generator)
        pattern = logits.masked_fill(~torch.ones(32, 32).tril().bool(), -torch.inf).softmax(-1)
        keys = induction_keys(some)
        nulls = (attention_elsewhere(pattern, keys), even_attention_on(keys)[:, None])
        for moments, null in zip((over_null, over_uniform), nulls, strict=True):
            excess = (attention_on(pattern, keys) - null).numpy()
            for count, own in zip(keys.any(-1).sum(-1).tolist(), excess, strict=True):
                moments.add(count, own)

    def significant(moments):
        found = moments.estimate()
        p = p_above(np.zeros(heads), found.mean, standard_error(found), found.documents)
        return float((p < 0.05).mean())

    assert significant(over_null) <= 0.08
    assert significant(over_uniform) > 0.2, "uniform attention is too low a bar here, so this test can tell"


@pytest.mark.parametrize("decay", [0.5, 0.7, 1.0])
def test_attention_by_recency_is_no_previous_token_head(decay):
    weights = decay ** (torch.arange(12)[:, None] - torch.arange(12)).clamp(min=0).double()
    pattern = (weights.tril() / weights.tril().sum(-1, keepdim=True))[None, None]
    ids = torch.arange(12)[None]
    previous, second = previous_keys(ids), second_previous_keys(ids)
    assert float(attention_on(pattern, previous) - previous_by_recency(pattern, previous, second, 0.5)) <= 1e-12
    only = previous.double()[:, None]
    assert float(attention_on(only, previous) - previous_by_recency(only, previous, second, 0.5)) == 10


def test_controls_repeat_nothing_and_keep_the_second_half(gpt2):
    repeats = random_repeats(gpt2, [0])
    controls = without_repetition(repeats, [0])
    assert controls.equal(without_repetition(repeats, [0]))
    assert not controls.equal(without_repetition(repeats, [0], seed=1))
    assert controls[:, 51:].equal(repeats[:, 51:])
    assert set(controls[:, 0].tolist()) == {0}
    assert not duplicate_keys(controls[:, 1:]).any()
    few = torch.arange(5).repeat(3, 2)
    assert not (without_repetition(few)[:, :5] == few[:, 5:]).any()


def test_in_repeated_random_tokens_the_keys_are_the_diagonals_they_are_known_by():
    ids = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:7].repeat(1, 2)
    for keys, distance in ((duplicate_keys, 7), (induction_keys, 6)):
        assert keys(ids)[0].nonzero().tolist() == [[i, i - distance] for i in range(7, 14)]


def test_attention_of_the_final_token_counts_backwards():
    pattern = random_patterns(2, 3, 20)
    found = attention_of_final(pattern)
    assert found.shape == (2, 3, 16)
    for offset in range(16):
        assert found[1, 2, offset] == pattern[1, 2, 19, 19 - offset]


@pytest.mark.parametrize("word_tokens", [2, 3, 4])
def test_merge_scores_are_their_naive_definition(word_tokens):
    word, plain = (attention_of_final(random_patterns(2, 3, 16 + n)) for n in (4, 3))
    merge, first = merge_scores(word, plain, word_tokens)
    for pair in range(2):
        for head in range(3):
            own = [float(word[pair, head, o] - plain[pair, head, o]) for o in range(1, word_tokens)]
            assert float(merge[pair, head]) == pytest.approx(sum(own))
            assert float(first[pair, head]) == pytest.approx(own[-1])


def naive_estimate(sums, counts):
    n, s = np.array(counts, float), np.array(sums, float)
    mean = s.sum() / n.sum()
    half = stats.t.ppf(0.975, len(n) - 1) * np.sqrt(len(n) / (len(n) - 1) * ((s - mean * n) ** 2).sum()) / n.sum()
    return mean, mean - half, mean + half


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "qwen2"])
def test_tables_are_the_naive_means_of_transformers_own_patterns(family, with_words, short_text):
    model = with_words(family)
    heads = Heads(model, short_text)
    tables = heads.tables(shards_of(heads))
    prompts = heads.prompts
    n = prompts.word_tokens
    layer, head = 2, 3
    of = {
        kind: transformers_own(model, ids)[layer][:, head, -1].double().flip(-1)[:, :16].numpy()
        for kind, ids in zip(("word", "plain"), prompts.batch(slice(None)), strict=True)
    }
    documents, first = np.unique(prompts.document, return_index=True)
    counts = np.diff(first, append=len(prompts))

    def expected(values):
        return naive_estimate([values[prompts.document == d].sum() for d in documents], counts)

    def found(table, **keys):
        row = tables[table].filter(layer=layer, head=head, **keys).row(0, named=True)
        return row["mean"], row["ci_low"], row["ci_high"]

    for kind in of:
        for offset in (0, 3, 15):
            wanted = expected(of[kind][:, offset])
            assert found("head_positions", prompts=kind, offset=offset) == pytest.approx(wanted, abs=1e-5)
    more = of["word"] - of["plain"]
    assert found("heads", metric="merge") == pytest.approx(expected(more[:, 1:n].sum(1)), abs=1e-5)
    assert found("heads", metric="merge_first") == pytest.approx(expected(more[:, n - 1]), abs=1e-5)
    own = transformers_own(model, heads.repeats[:, :])[layer][:, head].double()
    length = own.shape[-1] // 2
    scores = own.diagonal(1 - length, 1, 2)[:, 1:].sum(1).numpy()
    assert found("heads", metric="induction") == pytest.approx(naive_estimate(scores, [length] * 64), abs=1e-5)
    own = transformers_own(model, heads.natural)[layer][:, head].double()
    scores = own.diagonal(-1, 1, 2).sum(1).numpy()
    wanted = naive_estimate(scores, [heads.natural.shape[1] - 1] * len(scores))
    assert found("heads", metric="previous_token_natural") == pytest.approx(wanted, abs=1e-5)


def test_every_family_has_its_heads_scored(with_words, short_text):
    """One unit suffices to see that the parts fit: rows for every head of every block."""
    for family in FAMILIES:
        model = with_words(family)
        if family == "mamba":
            with pytest.raises(UnsupportedError, match=r"\(mamba\) has no attention patterns"):
                Heads(model, short_text)
            continue
        heads = Heads(model, short_text)
        table = heads.tables([heads.work(0)])["heads"]
        assert table["metric"].unique(maintain_order=True).to_list() == ["merge", "merge_first"]
        for (_, layer), rows in table.group_by("metric", "layer"):
            assert sorted(rows["head"]) == [0, 1, 2, 3], (family, layer)
        assert table.filter(metric="merge")["layer"].unique().to_list() == [0, 1, 2, 3]
        assert table["mean"].is_between(-1, 1).all()


def built_gpt2(gpt2):
    """A model whose head 0 reads the position before, by position codes turned by one, and head 1 the same token.

    Codes add up to zero and are equally long, so that the norm passes them on as they are.
    """
    hf = tiny_model("gpt2", n_embd=64, n_head=2, n_positions=128, vocab_size=VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.pi * torch.rand(8, generator=generator)
    angles = torch.arange(128.0)[:, None] * frequencies
    positions = torch.cat([angles.cos(), angles.sin()], 1)
    tokens = torch.randn(VOCABULARY, 16, generator=generator).sign()
    c, s = frequencies.cos().diag(), frequencies.sin().diag()
    turn = torch.block_diag(*[torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)])] * 2)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        hf.transformer.wpe.weight[:, :32] = torch.cat([positions, -positions], 1)
        hf.transformer.wte.weight[:, 32:] = torch.cat([tokens, -tokens], 1)
        for block in hf.transformer.h:
            block.ln_1.weight.fill_(1)
            weight = block.attn.c_attn.weight.view(64, 3, 2, 32)
            weight[:32, 0, 0] = 20 * turn
            weight[:32, 1, 0] = weight[32:, 1, 1] = torch.eye(32)
            weight[32:, 0, 1] = 20 * torch.eye(32)
    return load(hf, tokenizer=gpt2.tokenizer)


def test_heads_built_to_do_a_thing_score_for_it(gpt2, short_text):
    """A head on the token before has score 1; one on the same token shares it between itself and the earlier place."""
    heads = Heads(built_gpt2(gpt2), short_text)
    table = heads.tables(shards_of(heads))["heads"]

    def score(metric, head):
        return table.filter(metric=metric, layer=1, head=head)["mean"].item()

    assert score("previous_token", 0) > 0.99
    assert score("previous_token_natural", 0) > 0.99
    assert score("duplicate_token", 0) < 0.01
    assert score("duplicate_token", 1) == pytest.approx(0.5, abs=0.01)
    assert score("induction", 1) < 0.02
    assert abs(score("merge", 0)) < 0.01
    previous = table.filter(metric="previous_token")
    assert set(previous.filter(pl.col("rank") <= 4)["head"]) == {0}
    assert previous.filter(head=0)["p_adjusted"].max() < 1e-6
    assert previous.filter(head=1)["p_adjusted"].min() > 0.05


def ideal_patterns(ids):
    """Heads that do one thing only: read their word's first token where one ends, the token before, duplicates, induction."""
    batch, length = ids.shape
    pattern = torch.zeros(batch, 5, length, length)
    for b in range(batch):
        row = ids[b].tolist()
        for i in range(length):
            earlier = [j for j in range(i) if row[j] == row[i]]
            looks = {1: [i - 1], 2: earlier, 3: [j + 1 for j in earlier], 4: list(range(i + 1))}
            for head, keys in looks.items():
                keys = [k for k in keys if 0 <= k < i or head == 4] or [i]
                pattern[b, head, i, keys] = 1 / len(keys)
            pattern[b, 0, i, i] = 1
    pattern[: batch // 2, 0, -1] = 0
    pattern[: batch // 2, 0, -1, -4] = 1
    return pattern


def test_ideal_heads_have_ideal_scores(gpt2, short_text, monkeypatch):
    """Patterns put in the model's place, one block without: every head is first where it should be."""
    monkeypatch.setattr(study, "attention_patterns", lambda model, ids, named: iter([ideal_patterns(ids), None]))
    monkeypatch.setattr(study, "has_patterns", lambda model: [True] + [False] * 11)
    heads = Heads(gpt2, short_text)
    assert heads.settings["blocks_without_patterns"] == list(range(1, 12))
    tables = heads.tables(shards_of(heads))
    scores, positions = tables["heads"], tables["head_positions"]
    assert scores["layer"].unique().to_list() == positions["layer"].unique().to_list() == [0]
    best = {"merge": 0, "merge_first": 0, "previous_token": 1, "duplicate_token": 2, "induction": 3}
    for metric, head in best.items():
        top = scores.filter(metric=metric, rank=1).row(0, named=True)
        assert (top["head"], top["mean"], top["p_adjusted"]) == (head, pytest.approx(1), 0), metric
        assert (top["of_kind"], top["p_kind"], top["null_mean"]) == (True, 0, pytest.approx(0, abs=0.02)), metric
        assert scores.filter(metric=metric)["of_kind"].sum() == 1, metric
    for metric in HEAD_METRICS:
        even = scores.filter(metric=metric, head=4).row(0, named=True)
        assert even["mean"] == pytest.approx(even["chance"]), metric
        assert even["p_adjusted"] > 0.01
    for kind, offset in (("word", 3), ("plain", 0)):
        assert positions.filter(head=0, prompts=kind).sort("offset")["mean"].to_list() == [
            float(o == offset) for o in range(16)
        ]


def test_bos_is_no_token_to_attend_to(gpt2, short_text, monkeypatch):
    heads = Heads(gpt2, short_text, bos="window")
    assert not Heads(gpt2, short_text).settings["bos"]
    assert heads.repeats[:, 0].tolist() == [0] * 64
    assert set(heads.natural[:, 0].tolist()) == set(heads.prompts.word[:, 0].tolist()) == {0}
    monkeypatch.setattr(study, "attention_patterns", lambda model, ids, named: iter([ideal_patterns(ids)]))
    shard = heads._sequences(heads.repeats[:3], np.arange(3), study.REPEATED).filter(head=1, quantity="attention")
    assert shard.filter(sample="previous_token")["tokens"].item() == 3 * 99
    assert shard.filter(sample="previous_token")["sum"].item() == pytest.approx(3 * 99)


def test_shards_hold_whole_documents_and_are_made_again_bit_for_bit(with_words, short_text):
    model = with_words("qwen2")
    heads, again = Heads(model, short_text), Heads(model, short_text)
    assert heads.settings == again.settings
    assert heads.settings != Heads(model, short_text, seed=1).settings
    assert json.loads(json.dumps(heads.settings)) == heads.settings
    units = [unit for unit, planned in enumerate(heads.plan) if planned.sample == "prompts"]
    documents = [set(heads.prompts.document[heads.plan[unit].rows]) for unit in units]
    assert len(units) == 2
    assert not documents[0] & documents[1]
    assert sum(map(len, documents)) == heads.prompts.documents
    for unit in (0, heads.units - 1):
        first = heads.work(unit)
        assert first.schema == pl.Schema(HEAD_SHARD)
        heads.work(1)
        assert first.equals(again.work(unit))
    with pytest.raises(RunError, match="two shards of heads contain different heads or offsets"):
        heads.tables([first, first[1:]])


def test_tables_have_their_columns_and_ranks(with_words, short_text):
    heads = Heads(with_words("llama"), short_text)
    tables = heads.tables(iter(shards_of(heads)))
    assert tables["heads"].schema == pl.Schema(HEADS_TABLE)
    assert tables["head_positions"].schema == pl.Schema(HEAD_POSITIONS_TABLE)
    assert len(tables["head_positions"]) == 4 * 4 * 2 * 16
    assert tables["heads"]["metric"].unique(maintain_order=True).to_list() == list(HEAD_METRICS)
    for (metric,), rows in tables["heads"].group_by("metric"):
        assert sorted(rows["rank"]) == list(range(1, 17))
        assert rows.sort("rank")["mean"].is_sorted(descending=True)
        assert rows["word_tokens"].null_count() == (0 if metric in {m.name for m in MERGING} else 16)
        assert (rows["ci_low"] <= rows["mean"]).all()
        assert rows["p_adjusted"].is_between(0, 1).all()
        np.testing.assert_allclose(rows["mean"] - rows["null_mean"], rows["excess"], atol=1e-12)
        assert (rows["of_kind"] == (rows["p_kind"] < 0.05)).all()
        assert not rows.filter(pl.col("excess") <= pl.col("least_excess"))["of_kind"].any()
    assert set(tables["heads"].filter(metric="merge")["documents"]) == {heads.prompts.documents}
    assert set(tables["heads"].filter(metric="induction")["documents"]) == {64}


def test_without_long_documents_the_text_itself_has_no_scores(gpt2, tmp_path):
    path = tmp_path / "short.jsonl"
    pieces = [text[at : at + 320] for text in list(Corpus().documents())[::3] for at in (0, 2000)]
    pl.DataFrame({"text": pieces}).write_ndjson(path)
    heads = Heads(gpt2, Corpus(source=str(path)))
    assert heads.settings["windows"] == 0
    assert "natural" not in {planned.sample for planned in heads.plan}
    table = heads.tables([heads.work(0), heads.work(heads.units - 1)])["heads"]
    assert table["metric"].unique(maintain_order=True).to_list() == list(HEAD_METRICS)[:5]


def test_what_cannot_be_done_is_refused_when_constructed(gpt2, with_words, short_text):
    with pytest.raises(DataError, match="without a tokenizer"):
        Heads(load(gpt2.hf), short_text)
    with pytest.raises(UnsupportedError, match="16, is shorter than 20 tokens"):
        Heads(with_words("gpt2", n_positions=16), short_text)


def test_trained_models_have_heads_that_merge_words(shelf, short_text):
    heads = Heads(shelf, short_text)
    units = [unit for unit, planned in enumerate(heads.plan) if planned.sample == "prompts"]
    table = heads.tables([heads.work(unit) for unit in units])["heads"].filter(metric="merge")
    assert table.filter(rank=1)["ci_low"].item() > 0.1
    assert 2 <= table.filter(pl.col("p_adjusted") < 0.05).height < 40


def moments_of(values):
    moments = ClusterMoments(values.shape[1])
    for row in values:
        moments.add(1, row)
    return moments


def p_values(values, floor):
    estimate = moments_of(values).estimate()
    floors = np.full(values.shape[1], floor)
    return p_above(floors, estimate.mean, standard_error(estimate), estimate.documents)


def test_p_values_are_those_of_a_t_test():
    values = np.random.default_rng(0).normal(0.1, 1, (30, 8))
    for floor in (0.0, 0.05):
        expected = stats.ttest_1samp(values, floor, alternative="greater").pvalue
        np.testing.assert_allclose(p_values(values, floor), expected, rtol=1e-9)
    assert np.isnan(p_values(values[:1], 0.0)).all()
    assert p_values(np.tile([0.5, 0.25, -0.5], (4, 1)), 0.25).tolist() == [0, 1, 1]


def test_adjusted_p_values_are_benjamini_and_hochbergs():
    p = np.array([0.04, 0.001, 0.6, 0.02, 0.021])
    order = np.argsort(p)
    naive = [min(p[order[j]] * 5 / (j + 1) for j in range(place, 5)) for place in range(5)]
    np.testing.assert_allclose(adjusted(p)[order], naive)
    assert np.isnan(adjusted(np.full(3, np.nan))).all()


def test_ranks_count_from_the_largest():
    assert ranks(np.array([0.1, 0.5, 0.1, -1.0])).tolist() == [2, 1, 3, 4]
