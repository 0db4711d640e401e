"""Clusters of documents: the unit of every interval, resampling and split, wherever a cluster's documents are in the source."""

import json

import datasets
import numpy as np
import polars as pl
import pytest
from families import tiny_model
from scipy import stats

import depthscope as ds
from depthscope.data.corpus import Corpus
from depthscope.data.suffix_contexts import suffix_contexts
from depthscope.data.windows import make_windows
from depthscope.data.word_prompts import word_prompts
from depthscope.errors import DataError, RunMismatchError
from depthscope.experiments import heads
from depthscope.models.load import load
from depthscope.report.findings import intervals_note
from depthscope.report.method import method
from depthscope.report.trust import trust
from depthscope.report.wording import counted_documents
from depthscope.stages.signals import _resampled

PASSAGES = [text[at : at + 250] for text in list(Corpus().documents())[:8] for at in (0, 900, 1800)]
LONG = [text[:4000] for text in list(Corpus().documents())[:45]]
BOOKS = [(7 * number) % 5 for number in range(24)]
READINGS = ["sweep", "norms", "similarity", "influence", "lens"]
SETTINGS = {"window": 24, "edits": ["drop"], "unit_tokens": 240, "progress": False}


def written(folder, books, texts=PASSAGES, order=None, name="a.jsonl"):
    rows = [json.dumps({"text": texts[i], "book": books[i]}) for i in (range(len(texts)) if order is None else order)]
    (folder / name).write_text("\n".join(rows), encoding="utf-8")
    return str(folder / name)


@pytest.fixture(scope="module")
def tiny(gpt2):
    return load(tiny_model("gpt2", vocab_size=4096), tokenizer=gpt2.tokenizer)


def naive(sums, counts):
    """Mean and half-width of the cluster-robust interval, from one sum and one count per cluster."""
    sums, counts = np.array(sums), np.array(counts)
    mean, d = sums.sum() / counts.sum(), len(sums)
    variance = d / (d - 1) * ((sums - mean * counts) ** 2).sum() / counts.sum() ** 2
    return mean, stats.t.ppf(0.975, d - 1) * np.sqrt(variance)


def test_windows_of_a_cluster_are_contiguous_and_know_their_own_document(gpt2, tmp_path):
    windows = make_windows(ds.corpus(written(tmp_path, BOOKS), cluster="book"), gpt2, length=24)
    plain = make_windows(ds.corpus(written(tmp_path, BOOKS)), gpt2, length=24)
    first = {book: BOOKS.index(book) for book in BOOKS}
    document, position = windows.places
    assert windows.document.tolist() == sorted(first[BOOKS[number]] for number in plain.document)
    assert [first[BOOKS[number]] for number in document[:, 0]] == windows.document.tolist()
    assert windows.documents == 5
    assert windows.packed is None
    rows = {(int(d), int(s)): ids.tolist() for d, s, ids in zip(plain.document, plain.start, plain.ids, strict=True)}
    assert {
        (int(d), int(p)): ids.tolist() for d, p, ids in zip(document[:, 0], position[:, 0], windows.ids, strict=True)
    } == rows
    largest = max(np.bincount([BOOKS[number] for number in plain.document])) / len(plain)
    assert windows.clustered == {"field": "book", "documents": 24, "largest_share": largest}
    shuffled = windows.in_random_order(1)
    assert sorted(shuffled.document.tolist()) == windows.document.tolist()
    assert shuffled.token_hash() != windows.token_hash() != plain.token_hash()


@pytest.fixture(scope="module")
def studied(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clusters")
    text = ds.corpus(written(folder, BOOKS), cluster="book")
    per_token = ds.study(tiny, text, out=folder / "t", per_token=True, experiments=["sweep", "stages"], **SETTINGS)
    return per_token, text, ds.study(tiny, text, out=folder / "d", experiments=READINGS, **SETTINGS)


def shards(study, name="sweep"):
    return [pl.read_parquet(file) for file in sorted((study.path / "shards" / name).iterdir())]


def test_intervals_are_the_cluster_robust_ones_of_the_tokens(studied):
    per_token, _, per_document = studied
    table = per_token.table("sweep")
    assert table.equals(per_document.table("sweep"))
    tokens = pl.concat(shards(per_token)).with_columns(
        book=pl.col("document").map_elements(lambda i: BOOKS[i], return_dtype=pl.Int64)
    )
    assert set(tokens["document"]) == set(range(24))
    assert (tokens["cluster"] == tokens["book"].replace_strict({b: BOOKS.index(b) for b in set(BOOKS)})).all()
    for row in table.filter(pl.col("metric").is_in(["kl", "loss"])).iter_rows(named=True):
        of_row = tokens.filter(edit=row["edit"], layer=row["layer"]).group_by("book")
        own = of_row.agg(pl.col(row["metric"]).cast(pl.Float64).sum(), pl.len())
        mean, half = naive(own[row["metric"]], own["len"])
        assert row["documents"] == 5
        assert row["mean"] == pytest.approx(mean, rel=1e-9)
        assert row["ci_high"] - row["mean"] == pytest.approx(half, rel=1e-6)


def test_all_experiments_count_clusters_and_replicates_resample_them(studied):
    per_token, _, study = studied
    for name in ("norms", "similarity", "influence", "lens"):
        assert set(study.table(name)["documents"]) == {5}, name
    found = shards(study)
    assert pl.concat(found)["document"].n_unique() == 5
    _, means = _resampled(found, ["edit", "layer"], ["kl"])
    sums = pl.concat(found).group_by("document", "edit", "layer", maintain_order=True).agg(pl.col("kl", "tokens").sum())
    drawn = {book: np.random.default_rng([0, book]).poisson(1.0, 1000) for book in sums["document"].unique()}
    part = sums.filter(edit="drop", layer=1)
    weights = np.stack([drawn[book] for book in part["document"]])
    with np.errstate(invalid="ignore"):
        expected = weights.T @ part["kl"].to_numpy() / (weights.T @ part["tokens"].to_numpy())
    np.testing.assert_allclose(means["kl"].means[1:, 2], expected, rtol=1e-9)
    assert per_token.stages.method["documents"] == 5


def test_the_order_of_the_source_changes_no_interval(tiny, studied, tmp_path):
    order = np.random.default_rng(3).permutation(24)
    text = ds.corpus(written(tmp_path, BOOKS, order=order), cluster="book")
    other = ds.study(tiny, text, out=tmp_path / "o", experiments=["sweep"], **SETTINGS).table("sweep")
    table = studied[0].table("sweep")
    for column in ("mean", "ci_low", "ci_high"):
        np.testing.assert_allclose(other[column], table[column], rtol=1e-5, atol=1e-9)
    assert other["documents"].equals(table["documents"])


def test_one_document_per_cluster_is_no_cluster(tiny, gpt2, tmp_path):
    source = written(tmp_path, [f"book {number}" for number in range(24)])
    texts = [ds.corpus(source, cluster=cluster) for cluster in (None, "book")]
    names = ["sweep", "norms", "geometry"]
    runs = [
        ds.study(tiny, text, out=tmp_path / f"{number}", experiments=names, **SETTINGS)
        for number, text in enumerate(texts)
    ]
    for name in names:
        tables = [run.table(name) for run in runs]
        assert tables[0].equals(tables[1]), name
    numbered = (pl.read_parquet(run.path / "shards" / "sweep" / "00000.parquet") for run in runs)
    assert next(numbered).equals(next(numbered))
    source = written(tmp_path, list(range(45)), texts=LONG, name="long.jsonl")
    texts = [Corpus(source=source, cluster=cluster) for cluster in (None, "book")]
    contexts = [suffix_contexts(text, gpt2).token_hash() for text in texts]
    prompts = [word_prompts(text, gpt2).token_hash() for text in texts]
    assert contexts[0] == contexts[1]
    assert prompts[0] == prompts[1]


def test_an_interrupted_run_resumes_to_the_same_tables_and_no_other_clusters(tiny, studied, tmp_path):
    _, text, whole = studied
    units = len(shards(whole))
    assert units > 4

    def stop(what, done, _):
        if what != "reading documents" and done == 3:
            raise KeyboardInterrupt

    settings = {**SETTINGS, "experiments": READINGS}
    with pytest.raises(KeyboardInterrupt):
        ds.study(tiny, text, out=tmp_path, **{**settings, "progress": stop})
    with pytest.raises(RunMismatchError, match="cluster: 'book' stored, None requested"):
        ds.study(tiny, ds.corpus(text.source), out=tmp_path, **settings)
    resumed = ds.study(tiny, text, out=tmp_path, **settings)
    for file in (whole.path / "tables").iterdir():
        assert file.read_bytes() == (tmp_path / "tables" / file.name).read_bytes()
    assert resumed.run.settings.cluster == "book"


def test_page_and_manifest_say_over_what_intervals_are(studied):
    run = studied[2].run
    text = run.manifest.text
    assert (text.documents, text.clustered.field, text.clustered.documents) == (5, "book", 24)
    assert counted_documents(text) == "24 documents, in 5 clusters by book"
    assert "24 documents were used, in 5 clusters by book" in method(run.manifest)["text"]
    entries = dict(trust(run.manifest, None))
    assert "95%, over 5 clusters by book, not tokens" in entries["Intervals"]
    assert f"the largest has {text.clustered.largest_share:.0%} of the tokens" in entries["Intervals"]
    assert "only 5 clusters by book" in intervals_note(5, text)
    assert "single cluster" in intervals_note(1, text)


def test_one_cluster_gives_no_interval_and_too_few_no_probe(tiny, gpt2, tmp_path):
    text = ds.corpus(written(tmp_path, [1] * 24), cluster="book")
    table = ds.measure(tiny, text, ["drop(1)"], ["kl"], window=24, progress=False)
    assert table["ci_low"].null_count() == table.height
    assert set(table["documents"]) == {1}
    passages = [{"text": document, "book": "one"} for document in list(Corpus().documents())[:60]]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, passages)))
    with pytest.raises(DataError, match="in 1 clusters by book"):
        suffix_contexts(Corpus(source=str(tmp_path / "one.jsonl"), cluster="book"), gpt2)


def test_the_bookshelf_has_nine_books(gpt2):
    for field, clusters in (("title", 9), ("author", 7), ("id", 180)):
        assert len({cluster for _, cluster, _ in Corpus(cluster=field).numbered()}) == clusters


def test_probes_and_heads_keep_clusters_whole(gpt2, tmp_path):
    books = [number % 9 for number in range(45)]
    text = Corpus(source=written(tmp_path, books, texts=LONG), cluster="book")
    contexts = suffix_contexts(text, gpt2)
    trained, tested = (set(contexts.document[one]) for one in (contexts.training, ~contexts.training))
    assert not trained & tested
    assert trained | tested == set(range(9))
    assert (np.diff(contexts.document) >= 0).all()
    scored = heads.Heads(gpt2, text)
    for sample, documents in (("prompts", scored.prompts.document), ("natural", scored.natural_documents)):
        parts = [set(documents[unit.rows]) for unit in scored.plan if unit.sample == sample]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 9, sample


def test_packs_join_documents_of_one_cluster_only(gpt2, tmp_path):
    short = [text[:120] for text in PASSAGES]
    source = written(tmp_path, BOOKS, texts=short)
    windows = make_windows(ds.corpus(source, pack=True, cluster="book"), gpt2, length=40)
    assert [{BOOKS[d] for d in row} for row in windows.owner.tolist()] == [{BOOKS[d]} for d in windows.document]
    assert windows.packed["documents"] == windows.clustered["documents"] > windows.documents > 2
    with pytest.raises(DataError, match="has no book with as many tokens as one window: expected at least 201"):
        make_windows(ds.corpus(source, pack=True, cluster="book"), gpt2, length=200)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved", "nested"])
def test_every_kind_of_data_with_fields_has_clusters(kind, tmp_path):
    rows = pl.DataFrame({"body": ["a", "b", "", "c", "d"], "n": [3, 1, None, 3, 1]})
    place, field = tmp_path / f"a.{kind}", "n"
    if kind == "saved":
        datasets.Dataset.from_dict(rows.to_dict(as_series=False)).save_to_disk(str(place))
    elif kind == "nested":
        place, field = tmp_path / "a.parquet", "about.n"
        rows.select("body", about=pl.struct("n")).write_parquet(place)
    elif kind == "jsonl":
        rows.write_ndjson(place)
    else:
        getattr(rows, f"write_{kind}")(place)
    found = list(ds.corpus(f"{place}#body", cluster=field).numbered())
    assert found == [(0, 0, "a"), (1, 1, "b"), (2, 2, ""), (3, 0, "c"), (4, 1, "d")]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            '{"text": "a"}',
            "x.jsonl",
            r"line 1: no field 'book' \(it has text\). Name the field of clusters with --cluster",
        ),
        ('{"text": "a", "book": null}', "x.jsonl", "line 1: field 'book' is null: expected text or a number"),
        ('{"text": "a", "book": [1]}', "x.jsonl", "line 1: field 'book' is a list: expected text or a number"),
        ('["a"]', "x.json", "record 0: no field 'book'"),
        ("a text", "x.txt", "is text: expected records with the field 'book' for --cluster"),
    ],
)
def test_what_cannot_be_clustered_is_said_with_its_place(content, name, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(ds.corpus(str(tmp_path / name), cluster="book").documents())


def test_wrong_names_of_clusters(tmp_path):
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no field 'book': it has text\. Name one with --cluster"):
        list(ds.corpus(str(tmp_path / "a.parquet"), cluster="book").documents())
    with pytest.raises(DataError, match="documents in memory have no field 'book' to cluster by"):
        ds.corpus(["a", "b"], cluster="book")
    with pytest.raises(DataError, match="the name of the cluster field is empty"):
        ds.corpus(cluster="")
