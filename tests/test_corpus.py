import gzip
import lzma

import datasets
import polars as pl
import pytest

import depthscope as ds
from depthscope.errors import DataError

TEXTS = ["One fine day.", "Ein schöner Tag.\nZwei Zeilen.", "第三"]


@pytest.fixture
def files(tmp_path):
    frame = pl.DataFrame({"text": TEXTS, "body": [text.upper() for text in TEXTS], "n": [1, 2, 3]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ndjson(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.xz", "a.jsonl.gz", "?.txt"])
def test_every_kind_of_file_gives_the_same_documents(files, name):
    assert list(ds.corpus(str(files / name)).documents()) == TEXTS


def test_the_field_can_be_named(files):
    assert ds.corpus(f"{files}/a.parquet#body")[0] == "ONE FINE DAY."
    assert ds.corpus(f"{files}/a.jsonl#body")[0] == "ONE FINE DAY."


def test_a_text_file_is_read_as_passages_that_lose_nothing(files):
    lines = [f"line {number} of the text\n" for number in range(1000)]
    (files / "long.txt").write_text("".join(lines))
    passages = list(ds.corpus(str(files / "long.txt")).documents(passage=500))
    assert "".join(passages) == "".join(lines)
    assert len(passages) > 40
    assert all(passage.endswith("\n") for passage in passages)


def test_the_embedded_shelf():
    texts = list(ds.corpus().documents())
    assert len(texts) == 180
    assert sum(map(len, texts)) > 900_000
    assert ds.corpus()[5] == texts[5]
    with pytest.raises(IndexError, match="no document 180"):
        ds.corpus()[180]


def test_a_data_set_is_streamed_through_the_datasets_library(files, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    folder = files / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes((files / "a.jsonl").read_bytes())
    assert list(ds.corpus(f"hf:{folder}").documents()) == TEXTS
    assert ds.corpus(f"hf:{folder}::train#body")[0] == "ONE FINE DAY."
    with pytest.raises(DataError, match="row 0: no field 'prose'"):
        list(ds.corpus(f"hf:{folder}#prose").documents())


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "x.txt", "x.txt is empty"),
        (b"fine\n\0\1\2", "x.txt", "line 2: a zero byte"),
        (b"fine\nnot \xff utf-8", "x.txt", r"line 2: not UTF-8 \(byte 0xff at column 5\)"),
        (b'{"text": "a"}\n{"text"', "x.jsonl", "line 2: not JSON"),
        (b'{"prose": "a"}', "x.jsonl", r"line 1: no field 'text' \(it has prose\)"),
        (b'{"text": 3}', "x.jsonl", "field 'text' is a int, expected text"),
        (b"[1]", "x.jsonl", "it is a list"),
        (b"not parquet", "x.parquet", "not a parquet file"),
        (b"text", "x.doc", r"expected .txt, .jsonl or .parquet"),
        (b"not xz", "x.txt.xz", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, name, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(ds.corpus(str(tmp_path / name)).documents())


def test_places_that_cannot_be_used_are_named(files):
    for source, says in (
        (f"{files}/none.txt", "no text at"),
        (f"{files}", "is a folder"),
        (f"{files}/a.parquet#prose", "has no field 'prose': it has text, body, n"),
        ("hf:a:b:c:d", "cannot read hf:a:b:c:d"),
        ("hf:nobody/nothing", "data set hf:nobody/nothing cannot be read"),
    ):
        with pytest.raises(DataError, match=says):
            list(ds.corpus(source).documents())
    with pytest.raises(DataError, match="positive number of tokens"):
        ds.corpus(tokens=0)
