import bz2
import gzip
import json
import lzma
from functools import partial

import datasets
import polars as pl
import pyarrow as pa
import pytest

import depthscope as ds
from depthscope.data import corpus as corpora
from depthscope.data.corpus import Corpus
from depthscope.errors import DataError

TEXTS = ["One fine day.", 'Ein schöner Tag.\nZwei Zeilen, "zwei".', "第三"]
COMPRESSORS = {
    "xz": lzma.compress,
    "gz": partial(gzip.compress, mtime=0),
    "bz2": bz2.compress,
    "zst": lambda content: bytes(pa.Codec("zstd").compress(content, asbytes=True)),
}


@pytest.fixture
def files(tmp_path):
    frame = pl.DataFrame({"text": TEXTS, "body": [text.upper() for text in TEXTS], "n": [1, 2, 3]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ndjson(tmp_path / "a.jsonl")
    frame.write_ndjson(tmp_path / "a.ndjson")
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    (tmp_path / "list.json").write_text(json.dumps(frame.to_dicts(), indent=2), encoding="utf-8")
    (tmp_path / "object.json").write_text(json.dumps({"version": 2, "data": frame.to_dicts()}), encoding="utf-8")
    (tmp_path / "strings.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    (tmp_path / "lines.json").write_bytes((tmp_path / "a.jsonl").read_bytes())
    for suffix, compress in COMPRESSORS.items():
        for kind in ("jsonl", "csv"):
            (tmp_path / f"a.{kind}.{suffix}").write_bytes(compress((tmp_path / f"a.{kind}").read_bytes()))
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
        (tmp_path / f"{number}.md").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("a.parquet", "a.jsonl", "a.ndjson", "a.csv", "a.tsv", "?.txt", "?.md"),
        *("list.json", "object.json", "strings.json", "lines.json"),
        *(f"a.{kind}.{suffix}" for kind in ("jsonl", "csv") for suffix in COMPRESSORS),
    ],
)
def test_every_kind_of_file_gives_the_same_documents(files, name):
    corpus = ds.corpus(files / name)
    assert list(corpus.documents()) == TEXTS
    assert corpus[2] == "第三"


def test_the_field_can_be_named(files):
    assert ds.corpus(f"{files}/a.parquet#body")[0] == "ONE FINE DAY."
    assert ds.corpus(f"{files}/a.jsonl#body")[0] == "ONE FINE DAY."
    assert ds.corpus(f"{files}/a.csv#body")[0] == "ONE FINE DAY."
    assert ds.corpus(f"{files}/list.json#body")[0] == "ONE FINE DAY."


def test_a_field_may_lie_within_another(tmp_path):
    rows = [{"data": {"text": text, "more": {"n": 1}}, "x.y": text.upper()} for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "a.json", "a.parquet", "saved"):
        assert list(ds.corpus(f"{tmp_path}/{name}#data.text").documents()) == TEXTS, name
        assert ds.corpus(f"{tmp_path}/{name}#x.y")[0] == "ONE FINE DAY.", "a name with a dot comes first"
        with pytest.raises(DataError, match=r"no field 'data\.prose' \(it has text, more\)"):
            ds.corpus(f"{tmp_path}/{name}#data.prose")[0]


def test_rows_without_text_are_empty_and_keep_their_numbers(tmp_path):
    """Numbers of documents are places in the source, whatever stands before them."""
    rows = ['{"text": "a"}', "null", '{"text": null}', '{"text": ""}', "", '{"text": "b"}']
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(rows).encode())
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b'text,n\na,1\n,2\n"",3\n"",4\nb,5\n')
    pl.DataFrame({"text": ["a", None, "", None, "b"]}).write_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert list(ds.corpus(str(tmp_path / name)).documents()) == ["a", "", "", "", "b"], name


def test_rows_without_text_end_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "MOST_EMPTY", 10)
    (tmp_path / "a.jsonl").write_text('{"text": null}\n' * 10 + '{"text": "a"}')
    with pytest.raises(DataError, match="10 rows in a row have no text"):
        list(ds.corpus(str(tmp_path / "a.jsonl")).documents())


def test_a_cell_may_be_long_and_hold_line_breaks(tmp_path):
    text = 'line "one"\n\n' * 20_000
    pl.DataFrame({"text": [text, "b"], "n": [1, 2]}).write_csv(tmp_path / "a.csv")
    assert list(ds.corpus(str(tmp_path / "a.csv")).documents()) == [text, "b"]


def test_a_name_that_could_be_a_pattern_is_a_file_where_there_is_one(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    assert ds.corpus(tmp_path / "a[1].txt")[0] == "one"


def test_a_folder_is_what_can_be_read_in_it(files):
    folder = files / "folder"
    (folder / "deeper" / ".hidden").mkdir(parents=True)
    for number, place in enumerate(("b.txt", "a.txt", "deeper/c.jsonl", "README.md", "deeper/.hidden/d.txt", "e.bin")):
        text = f"text {number}"
        (folder / place).write_text(json.dumps({"text": text}) if place.endswith("jsonl") else text)
    assert list(ds.corpus(str(folder)).documents()) == ["text 1", "text 0", "text 2"]
    assert list(ds.corpus(f"{folder}/*.md").documents()) == ["text 3"]
    (files / "none").mkdir()
    with pytest.raises(DataError, match="is a folder with no text in it"):
        ds.corpus(str(files / "none"))


def test_a_folder_written_by_the_datasets_library(tmp_path):
    train = datasets.Dataset.from_dict({"text": TEXTS, "body": [text.upper() for text in TEXTS]})
    train.save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict(test=train.select([0]), train=train)
    both.save_to_disk(tmp_path / "both")
    datasets.DatasetDict(a=train, b=train).save_to_disk(tmp_path / "others")
    assert list(ds.corpus(str(tmp_path / "one")).documents()) == TEXTS
    assert list(ds.corpus(str(tmp_path / "both")).documents()) == TEXTS
    assert list(ds.corpus(f"{tmp_path}/both/test#body").documents()) == ["ONE FINE DAY."]
    with pytest.raises(DataError, match=r"holds the splits a, b and no train: name one as .*others/SPLIT"):
        list(ds.corpus(str(tmp_path / "others")).documents())
    with pytest.raises(DataError, match="has no field 'prose': it has text, body"):
        list(ds.corpus(f"{tmp_path}/one#prose").documents())


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
        (b'{"text": "a"}\n{"text"', "x.jsonl", "line 2 is not JSON"),
        (b'{"prose": "a"}', "x.jsonl", r"line 1: no field 'text' \(it has prose\)"),
        (b'{"text": 3}', "x.jsonl", "field 'text' is a int, expected text"),
        (b"[1]", "x.jsonl", "it is a list"),
        (b"not parquet", "x.parquet", "not a parquet file"),
        (b"not xz", "x.txt.xz", "cannot be read"),
        (b"not zstd", "x.txt.zst", "cannot be read"),
        (b"not bz2", "x.txt.bz2", "cannot be read"),
        (COMPRESSORS["zst"](b"cut off" * 100)[:-4], "x.txt.zst", "cannot be read"),
        (COMPRESSORS["gz"](b"cut off" * 100)[:-4], "x.txt.gz", "cannot be read"),
        (b"[1, 2", "x.json", "x.json is not JSON"),
        (b'{"a": 1, "b": 2}', "x.json", r"expected a list of records.*got an object with a, b, 0 of these lists"),
        (b'{"a": [], "b": []}', "x.json", "got an object with a, b, 2 of these lists"),
        (b"[]", "x.json", "x.json is empty"),
        (b'[{"text": "a"}, 3]', "x.json", r"record 1: no field 'text' \(it is a int\)"),
        (b"text,n\na\n", "x.csv", "line 2: 1 cells under a heading of 2"),
        (b'text,n\n"a,1\n', "x.csv", "not a table that can be read"),
        (b"prose\na\n", "x.csv", r"line 2: no field 'text' \(it has prose\)"),
        (b'{"text": "\\ud800"}', "x.jsonl", "half of a surrogate pair"),
        (b'{"text": [{"role": "user", "content": "a"}]}', "x.jsonl", "is a list of messages, expected text. --chat"),
        (b'{"messages": []}', "x.jsonl", "Name the text field with #FIELD, or read its messages with --chat"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, name, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(ds.corpus(str(tmp_path / name)).documents())


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b'{"messages": "hello"}', "x.jsonl", "field 'messages' is a str, expected a list of messages"),
        (
            b'{"messages": [{"from": "me", "value": "a"}]}',
            "x.jsonl",
            "message 0: expected an object with role and content",
        ),
        (b'{"text": "a"}', "x.jsonl", r"no field 'messages' \(it has text\). Name the field of messages with #FIELD"),
        (b"a text", "x.txt", "is text: expected records with messages for --chat"),
    ],
)
def test_chats_that_cannot_be_read_are_named(tmp_path, content, name, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(ds.corpus(str(tmp_path / name), chat=True).documents())


def test_chats_are_documents_in_every_kind_of_file(tmp_path):
    chats = [[{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": "It is."}] for n in range(2)]
    rows = [{"messages": chat, "id": 1} for chat in chats]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "a.parquet", "saved"):
        assert [list(chat) for chat in ds.corpus(str(tmp_path / name), chat=True).documents()] == chats, name
    assert list(ds.corpus(chats, chat=True)[1]) == chats[1]
    with pytest.raises(DataError, match="document 0 is a str, expected a list of messages"):
        ds.corpus(["a"], chat=True)


def test_places_that_cannot_be_used_are_named_before_anything_is_read(files):
    (files / "x.doc").write_text("text")
    (files / "x.jsonl").write_text("not JSON")
    (files / "z.z").write_text("of no kind")
    for source, says in (
        (f"{files}/none.txt", "no text at"),
        (f"{files}/x.doc", r"cannot tell what kind of text this is: expected .txt, .md, .jsonl"),
        (f"{files}/?.*", "cannot tell what kind"),
        ("hf:a:b:c:d", "cannot read hf:a:b:c:d"),
        ("hf:", "cannot read hf:"),
    ):
        with pytest.raises(DataError, match=says):
            ds.corpus(source)
        with pytest.raises(DataError, match=says):
            list(Corpus(source=source).documents())
    for source in (f"{files}/x.jsonl", f"{files}/a.parquet#prose", "hf:nobody/nothing"):
        ds.corpus(source)
    for source, says in (
        (f"{files}/a.parquet#prose", "has no field 'prose': it has text, body, n"),
        ("hf:nobody/nothing", "data set hf:nobody/nothing cannot be read"),
    ):
        with pytest.raises(DataError, match=says):
            list(ds.corpus(source).documents())
    with pytest.raises(DataError, match="positive number of tokens"):
        ds.corpus(tokens=0)
