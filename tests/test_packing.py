"""Packing: short documents joined into windows, each token with its document, each pack a unit of its own."""

import copy

import numpy as np
import polars as pl
import pytest
from families import tiny_model

import depthscope as ds
from depthscope.data.packing import Packer
from depthscope.data.windows import make_windows
from depthscope.errors import DataError, RunMismatchError
from depthscope.models.load import load
from depthscope.report.method import method
from depthscope.report.wording import counted_documents

SENTENCE = "the cat sat on the mat. "
SHORT = [f"{word} {SENTENCE * times}" for word, times in zip("abcdefghijklmnopqrstuvwxyz", [1, 2, 3] * 9, strict=False)]
SHORT += [f"{text}again" for text in SHORT]
LONG = SENTENCE * 40
EOS = 0


def naive_packs(model, texts: list[str], tokens: int) -> list[list[tuple[int, int, int]]]:
    """(token, document, position in the document) of each pack, token by token."""
    packs, current = [], []
    for number, text in enumerate(texts):
        ids = [*model.tokenize(text, "text"), EOS]
        if len(ids) > tokens:
            continue
        for position, token in enumerate(ids):
            if len(current) < tokens:
                current.append((token, number, position))
        if len(current) == tokens:
            packs.append(current)
            current = []
    return packs


def test_packs_are_short_documents_one_after_the_other(gpt2):
    windows = make_windows(ds.corpus(SHORT, pack=True), gpt2, length=40)
    packs = naive_packs(gpt2, SHORT, 41)
    document, position = windows.places
    assert len(windows) == len(packs) > 10
    for row, pack in enumerate(packs):
        assert list(zip(windows.ids[row], *(array[row] for array in (document, position)), strict=False)) == pack[:-1]
        assert windows.ids[row, -1] == pack[-1][0]
    assert windows.document.tolist() == [pack[0][1] for pack in packs]
    boundaries = [[one[1] != pack[0][1] for one in pack[:-1]] for pack in packs]
    assert windows.packed == {
        "separator": "<|endoftext|>",
        "documents": len({one[1] for pack in packs for one in pack[:-1]}),
        "windows_with_boundary": sum(map(any, boundaries)),
        "positions_after_boundary": sum(map(sum, boundaries)),
    }


def test_no_document_is_in_two_packs_so_packs_are_independent(gpt2):
    windows = make_windows(ds.corpus(SHORT, pack=True), gpt2, length=40)
    packs = [set(row) for row in windows.owner.tolist()]
    assert sum(map(len, packs)) == len(set.union(*packs))
    assert windows.documents == len(packs)
    assert windows.too_short == len(SHORT) - 1 - windows.owner.max()


def test_documents_that_fill_a_window_are_what_they_are_without_packing(gpt2):
    texts = [SHORT[0], LONG, *SHORT[1:20], LONG.upper()]
    packed, plain = (make_windows(ds.corpus(texts, pack=pack), gpt2, length=40) for pack in (True, False))
    long = np.isin(packed.document, plain.document)
    assert np.array_equal(packed.ids[long], plain.ids)
    assert np.array_equal(packed.start[long], plain.start)
    assert (packed.owner[long] == packed.document[long, None]).all()
    assert (~long).sum() > 2
    places = list(zip(packed.document.tolist(), packed.start.tolist(), strict=True))
    assert places == sorted(set(places))


def test_document_and_position_name_a_token(gpt2):
    windows = make_windows(ds.corpus([LONG, *SHORT, LONG], pack=True), gpt2, length=40, bos="window")
    document, position = windows.places
    assert len(set(zip(document.ravel().tolist(), position.ravel().tolist(), strict=True))) == windows.tokens
    assert (windows.ids[:, 0] == 0).all()
    part = windows.in_random_order(3).part(2, 5)
    assert part.owner.shape == (3, 40)
    assert (part.owner[:, 0] == part.document).all()


def test_the_hash_knows_of_packing(gpt2):
    """Even where the tokens are the same: what counts as a document is not."""
    long, packed = (make_windows(ds.corpus([LONG, LONG], pack=pack), gpt2, length=40) for pack in (False, True))
    assert np.array_equal(long.ids, packed.ids)
    assert long.token_hash() != packed.token_hash()


def test_a_separator_that_is_there_is_not_written_twice():
    packer = Packer(separator=0, tokens=7)
    assert packer.add(3, np.array([5, 6, 0], np.int32)) is None
    pack = packer.add(8, np.array([7, 8, 9], np.int32))
    assert pack.ids.tolist() == [5, 6, 0, 7, 8, 9, 0]
    assert pack.owner.tolist() == [3, 3, 3, 8, 8, 8, 8]
    assert packer.waiting == 0


def test_tokenizers_without_eos_use_bos_or_are_refused(gpt2):
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.eos_token = None
    assert tokenizer.bos_token_id == 0
    assert make_windows(ds.corpus(SHORT, pack=True), load(gpt2.hf, tokenizer=tokenizer), length=40).separator
    tokenizer.bos_token = None
    with pytest.raises(DataError, match="has neither an EOS nor a BOS token to separate documents with"):
        make_windows(ds.corpus(SHORT, pack=True), load(gpt2.hf, tokenizer=tokenizer), length=40)


def test_too_little_text_to_fill_one_window(gpt2):
    with pytest.raises(
        DataError, match="fewer tokens than one window: expected at least 257; 2 documents were read, of"
    ):
        make_windows(ds.corpus(SHORT[:2], pack=True), gpt2)


@pytest.fixture(scope="module")
def tiny(gpt2):
    return load(tiny_model("gpt2", vocab_size=4096), tokenizer=gpt2.tokenizer)


def test_a_packed_study_has_packs_as_units_and_says_so(tiny, tmp_path):
    text = ds.corpus([*SHORT, LONG], pack=True)
    settings = {"window": 40, "edits": ["drop"], "experiments": ["sweep"]}
    told = []
    studies = {
        per_token: ds.study(
            tiny,
            text,
            out=tmp_path / str(per_token),
            per_token=per_token,
            progress=lambda *one: told.append(one),
            **settings,
        )
        for per_token in (False, True)
    }
    settings["progress"] = False
    windows = make_windows(text, tiny, length=40)
    assert [what for what, _, _ in told[:2]] == ["reading documents"] * 2
    tables = [study.table("sweep") for study in studies.values()]
    assert tables[0].equals(tables[1])
    assert tables[0]["documents"].unique().to_list() == [windows.documents]
    run = studies[True].run
    assert run.manifest.text.packed.to_json() == windows.packed
    assert run.manifest.text.documents == windows.documents
    assert run.settings.pack == "<|endoftext|>"
    shard = pl.concat(run.shards("sweep", len(list((run.path / "shards" / "sweep").iterdir()))))
    shard = shard.filter(pl.col("edit") == "none")
    document, position = windows.places
    assert shard["document"].to_list() == document.ravel().tolist()
    assert shard["position"].to_list() == position.ravel().tolist()
    said = method(run.manifest)["text"]
    for fact in (
        "<|endoftext|> after each",
        f"{windows.packed['documents']} documents were used",
        "counts as one document",
    ):
        assert fact in said
    counted = f"{windows.packed['documents']} documents, in {windows.documents} independent units"
    assert counted_documents(run.manifest.text) == counted
    with pytest.raises(RunMismatchError, match=r"pack: '<\|endoftext\|>' stored, None requested"):
        ds.study(tiny, [*SHORT, LONG], out=tmp_path / "True", per_token=True, **settings)
    with pytest.raises(DataError, match="no document as long as one window"):
        ds.study(tiny, SHORT, out=tmp_path / "other", **settings)


def test_precision_counts_packs_and_ends_at_one(tiny, tmp_path):
    text = ds.corpus(SHORT, pack=True)
    study = ds.study(
        tiny, text, out=tmp_path, window=40, precision=0.9, experiments=["sweep"], edits=["drop"], progress=False
    )
    windows = make_windows(ds.corpus(SHORT, tokens=1_000_000, pack=True), tiny, length=40)
    said = study.run.manifest
    assert said.precision.documents == said.text.documents <= windows.documents
    assert said.text.packed.windows_with_boundary == said.text.documents
