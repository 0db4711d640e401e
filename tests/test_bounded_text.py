"""Text files that a stranger made: documents or one DataError, in bounded time and memory, whatever is in them."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import suppress
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthscope.data import corpus as corpora
from depthscope.data import formats, lines
from depthscope.data.corpus import Corpus
from depthscope.errors import DataError
from depthscope.untrusted import MIB

LIMIT = MIB // 4
COMPRESSED = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: bytes(pa.Codec("zstd").compress(content, asbytes=True)),
}


def documents(path, most=2000, **how):
    """The first documents of a file, which must be text or chats."""
    found = list(islice(Corpus(source=str(path), **how).documents(), most))
    assert all(isinstance(one, str | tuple) for one in found)
    return found


@pytest.fixture
def small_limit(monkeypatch):
    """Limits small enough for many tries; one test has the real ones."""
    for module in (lines, formats):
        monkeypatch.setattr(module, "MOST_BYTES", LIMIT)
    monkeypatch.setattr(lines, "MOST_BLANK_LINES", 5_000)


BOMBS = [
    ("a.txt", b"", b"a" * MIB, "line 1 is longer than"),
    ("zeros.txt", b"", b"\0" * MIB, "line 1 is longer than"),
    ("blank.md", b"", b"\n" * MIB, "blank lines in a row"),
    ("a.jsonl", b'{"text": "', b"a" * MIB, "line 1 is longer than"),
    ("blank.jsonl", b"", b" \n" * (MIB // 2), "blank lines in a row"),
    ("a.json", b"[\n", b'"%s",\n' % (b"a" * 96) * (MIB // 100), "is longer than .* Write a record per line"),
    ("a.csv", b'text\n"', b"%s\n" % (b"a" * 99) * (MIB // 100), "the row that ends here is longer than"),
    ("blank.tsv", b"text\n", b"\n" * MIB, "blank lines in a row"),
]


@pytest.mark.fault(
    "a compressed text file that grows to 256 times the limit: one line, blank lines, an open quote, a list without end",
    "refused with file, line and limit; memory stays flat",
)
@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize(("name", "head", "body", "says"), BOMBS, ids=[bomb[0] for bomb in BOMBS])
def test_bombs(tmp_path, small_limit, suffix, name, head, body, says):
    compress = COMPRESSED[suffix]
    file = tmp_path / (name + suffix)
    file.write_bytes(compress(head + body) + compress(body) * 63)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=says) as refused:
            for _ in Corpus(source=str(file)).documents():
                pass
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB  # an .xz decoder has a window of 8
    finally:
        tracemalloc.stop()
    assert name in str(refused.value)


@pytest.mark.fault("a text file of one line of a gigabyte", "refused after 64 MiB, with the limit")
def test_the_limit_is_the_one_stated(tmp_path):
    with (tmp_path / "a.txt").open("wb") as file:
        file.write(b"a")
        file.truncate(lines.MOST_BYTES + 10)
    with pytest.raises(DataError, match="line 1 is longer than 64 MiB"):
        documents(tmp_path / "a.txt")
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="line 1 is longer than 64 MiB"):
        documents(tmp_path / "sparse.txt")


@pytest.mark.fault("an .xz file whose header asks for 4 GiB of memory", "refused")
def test_memory_that_an_archive_asks_for(tmp_path):
    content = bytearray(lzma.compress(b"text\n"))
    size = (content[12] + 1) * 4  # the block's header, after the stream's of 12 bytes
    content[16] = 40  # the dictionary's size, 4 GiB - 1
    content[12 + size - 4 : 12 + size] = zlib.crc32(content[12 : 12 + size - 4]).to_bytes(4, "little")
    (tmp_path / "a.txt.xz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        documents(tmp_path / "a.txt.xz")


def test_archives_of_several_parts_are_read_whole(tmp_path):
    for suffix, compress in COMPRESSED.items():
        padding = b"\0" * 8 if suffix == ".xz" else b""
        (tmp_path / f"a.txt{suffix}").write_bytes(compress(b"one\n") + padding + compress(b"two\n") + padding)
        assert documents(tmp_path / f"a.txt{suffix}") == ["one\ntwo\n"], suffix
        (tmp_path / f"b.txt{suffix}").write_bytes(compress(b"one\n" * 1000)[:-9])
        with pytest.raises(DataError, match="cannot be read"):
            documents(tmp_path / f"b.txt{suffix}")


@pytest.mark.fault(
    "a FIFO, a device, a broken link or a folder in place of a text file", "refused before the model is loaded"
)
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "absent.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for source in ("pipe.txt", "link.txt", "broken.txt", "zero.txt", "*.txt", "p*.txt"):
        with pytest.raises(DataError, match="is not a regular file"):
            Corpus(source=f"{tmp_path}/{source}").check()
    with pytest.raises(DataError, match="folder with no text in it"):
        Corpus(source=str(tmp_path)).check()
    (tmp_path / "saved").mkdir()
    os.mkfifo(tmp_path / "saved" / "state.json")
    with pytest.raises(DataError, match=r"state.json is not a regular file"):
        documents(tmp_path / "saved")


@pytest.mark.fault(
    "a text file with a name that means something else to a shell or to --data", "read, or named in an error"
)
def test_a_file_that_exists_is_read_whatever_its_name(tmp_path):
    names = (
        "a[1].txt",
        "a#1.txt",
        "U.TXT",
        "a*.md",
        "a?.txt",
        "two\nlines.txt",
        "\x1b[31m.txt",
        "#b#.txt",
        "~x.txt",
        "a b.txt",
    )
    for name in (*names, os.fsdecode(b"caf\xe9.txt")):
        (tmp_path / name).write_text(f"in {name!a}")
        assert documents(tmp_path / name) == [f"in {name!a}"]
        (tmp_path / name).unlink()
    for name in ("a#1.jsonl", "b[2].JSONL"):
        (tmp_path / name).write_text('{"text": "text", "body": "body"}')
        assert documents(tmp_path / name) == ["text"]
        assert documents(f"{tmp_path / name}#body") == ["body"]
    assert documents(f"{tmp_path}/a[#]*.jsonl#body") == ["body"]
    (tmp_path / "D.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "text"}'))
    assert documents(tmp_path / "D.JSONL.GZ") == ["text"]


DEEP = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
CRAFTED = [
    ("deep.jsonl", DEEP, "line 1 is nested more than 64 levels"),
    ("deep.json", DEEP, "nested more than 64 levels"),
    ("deep-keys.json", b'{"text": {"a":' * 50_000 + b"1" + b"}}" * 50_000, "nested more than 64 levels"),
    ("digits.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
    ("digits.json", b"[" + b"9" * 5000 + b"]", "is not JSON"),
    ("half.jsonl", b'{"text": "a", "other": "\\ud83d"}', "half of a surrogate pair"),
    ("half.json", b'["\\udc00"]', "half of a surrogate pair"),
    ("utf-16.txt", "text".encode("utf-16"), "a zero byte"),
    ("surrogate.txt", "a\ud800".encode(errors="surrogatepass"), "not UTF-8"),
    ("number.jsonl", b'{"text": 1e400}', "is a float, expected text"),
    ("types.jsonl", b'{"text": {"text": ["a"]}}', "is a dict, expected text"),
    ("nan.jsonl", b'{"text": NaN}', "is a float, expected text"),
    ("no-name.jsonl", b'{"": "a"}', "no field 'text'"),
    ("long-name.jsonl", b'{"' + b"a" * 100_000 + b'": "a"}', "no field 'text'"),
    ("many-names.jsonl", json.dumps(dict.fromkeys(map(str, range(5000)))).encode(), "and 4,980 more"),
    ("escape.jsonl", b'{"\\u001b[31m": "a"}', r"it has \\x1b\[31m"),
    ("quote.csv", b'text\n"a', "not a table that can be read"),
    ("wide.csv", b"," * 100_000 + b"\na\n", "1 cells under a heading of 100001"),
    ("no-heading.csv", b"\n\na,b\n", "2 cells under a heading of 0"),
    ("magic.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "not a parquet file"),
    ("footer.parquet", b"PAR1" + b"\0" * 20 + b"\xff\xff\xff\x7fPAR1", "not a parquet file"),
]


@pytest.mark.fault("a crafted text file: deep nesting, 5,000 digits, half of a surrogate pair, wrong types", "refused")
@pytest.mark.parametrize(("name", "content", "says"), CRAFTED, ids=[case[0] for case in CRAFTED])
def test_crafted_files(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as refused:
        documents(tmp_path / name)
    assert len(str(refused.value)) < 6000
    assert name in str(refused.value)


def nested_groups(depth: int) -> bytes:
    """A parquet file whose schema has groups within groups, in thrift's compact protocol."""

    def number(value: int) -> bytes:
        rest = value >> 7
        return bytes([value & 127 | (128 if rest else 0)]) + (number(rest) if rest else b"")

    def group(name: bytes) -> bytes:  # repetition required, name, one child
        return b"\x35\x00\x18" + number(len(name)) + name + b"\x15\x02\x00"

    root, leaf = b"\x48\x01s\x15\x02\x00", b"\x15\x0c\x25\x02\x18\x01x\x00"
    schema = b"\xfc" + number(depth + 2) + root + group(b"text") + group(b"a") * (depth - 1) + leaf
    footer = b"\x15\x02\x19" + schema + b"\x16\x00\x19\x0c\x00"
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


@pytest.mark.fault("a parquet file with a schema of 200,000 levels", "refused")
def test_a_deep_schema(tmp_path):
    (tmp_path / "a.parquet").write_bytes(nested_groups(200_000))
    with pytest.raises(DataError, match="not a parquet file that can be read"):
        documents(tmp_path / "a.parquet")


@pytest.mark.fault("a parquet file of 6 million empty rows in 60 kB", "reading ends with an error")
def test_rows_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "MOST_EMPTY", 2000)
    pq.write_table(pa.table({"text": pa.nulls(6_000_000, pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="2,000 rows in a row have no text"):
        documents(tmp_path / "a.parquet", most=10_000)


@pytest.mark.fault("a parquet file that stores a long text once and has it in 10,000 rows", "refused in flat memory")
@pytest.mark.parametrize("nested", [False, True])
def test_a_cell_that_is_repeated(tmp_path, small_limit, nested):
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["a" * (2 * LIMIT)]))
    column = pa.StructArray.from_arrays([cells], ["x"]) if nested else cells
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < LIMIT
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DataError, match="row 0 is longer than"):
        documents(f"{tmp_path}/a.parquet#text.x" if nested else tmp_path / "a.parquet")
    assert pa.default_memory_pool().max_memory() < before + 40 * LIMIT


@pytest.mark.fault("text in a parquet file that is not UTF-8", "refused with its row")
def test_damaged_text(tmp_path):
    column = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe"))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    read = Corpus(source=str(tmp_path / "a.parquet")).documents()
    assert next(read) == "a"
    with pytest.raises(DataError, match="row 1 cannot be read"):
        next(read)


def samples() -> dict[str, bytes]:
    """A small valid file of every kind."""
    rows = [
        {"text": "one fine day " * 3, "n": 1, "messages": [{"role": "user", "content": "a"}]},
        {"text": None, "n": 2},
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    records = "\n".join(map(json.dumps, rows)).encode()
    return {
        "a.txt": b"one\ntwo\n\nthree",
        "a.jsonl": records,
        "a.json": json.dumps(rows).encode(),
        "a.csv": b'text,n\n"one\nline",1\n,2\n',
        "a.parquet": sink.getvalue().to_pybytes(),
        **{f"a.jsonl{suffix}": compress(records) for suffix, compress in COMPRESSED.items()},
    }


SAMPLES = samples()


@pytest.mark.fault(
    "any bytes as a text file, and valid files with bytes changed, added or cut off", "documents or DataError"
)
def test_any_bytes(tmp_path, tries):
    changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=4), st.integers(0, 4)), max_size=4)

    @settings(max_examples=tries(60, of=4000), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(SAMPLES)), changes, st.none() | st.binary(max_size=300), st.booleans())
    def holds(name, changes, content, chat):
        damaged = bytearray(SAMPLES[name])
        for place, added, removed in changes:
            place %= len(damaged) + 1
            damaged[place : place + removed] = added
        file = tmp_path / name
        file.write_bytes(damaged if content is None else content)
        with suppress(DataError):
            documents(file, chat=chat and not name.endswith(".txt"))

    holds()


@pytest.mark.fault("a bit of a parquet file of text is flipped", "documents or DataError")
def test_flipped_bits(tmp_path, tries):
    content = SAMPLES["a.parquet"]
    bits = range(0, 8 * len(content), max(1, 8 * len(content) // tries(60, of=2000)))
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.parquet").write_bytes(damaged)
        with suppress(DataError):
            documents(tmp_path / "a.parquet")


CALLS = """
import math
from pathlib import Path

import depthscope as ds

huge = 10**5000
calls = [
    *(lambda v=v: ds.corpus(tokens=v) for v in (0, -1, 1.5, 1e30, 10**14, huge, math.nan, math.inf, "12", True, [])),
    *(lambda v=v: ds.corpus(v) for v in (None, 5, huge, [], [3], b"bytes", "", "#x", "a" * 5000, "a\\0b", "~nobody/x")),
    lambda: ds.corpus(Path("x" * 300)),
    *(lambda v=v: ds.corpus(["a"], special_tokens=v) for v in (None, [], huge)),
    *(lambda v=v: ds.corpus(cluster=v) for v in ("", 3, [], "\\ud800")),
    lambda: ds.corpus([["a"]], chat=True),
    *(lambda v=v: ds.study("bookshelf-gpt2", window=v) for v in (0, -1, 1.5, huge, "12", True, 10**14)),
    *(lambda v=v: ds.study("bookshelf-gpt2", precision=v) for v in (0, -1, math.nan, math.inf, huge, "x", [], True)),
    *(lambda v=v: ds.study("bookshelf-gpt2", tokens=v) for v in (0, huge, "12", math.nan)),
    *(lambda v=v: ds.study("bookshelf-gpt2", edits=v) for v in (5, ["melt"], [3], {"x": 1}, "\\ud800")),
    *(lambda v=v: ds.study("bookshelf-gpt2", experiments=v) for v in (5, ["none"], [huge], "\\x1b[31m")),
    *(lambda v=v: ds.study("bookshelf-gpt2", bos=v) for v in (5, "x", [], "")),
    *(lambda v=v: ds.study("bookshelf-gpt2", suffix=v) for v in (5, "", "\\ud800", "a" * 10000)),
    *(lambda v=v: ds.study("bookshelf-gpt2", lens=v) for v in (5, "", "none", "\\ud800")),
    *(lambda v=v: ds.study(v) for v in (None, 5, [], {})),
    *(lambda v=v: ds.study("bookshelf-gpt2", out=v) for v in (5, [], huge)),
    lambda: ds.study("bookshelf-gpt2", nonsense=1),
    *(lambda v=v: ds.measure("bookshelf-gpt2", edits=v) for v in (5, [5], huge)),
    *(lambda v=v: ds.measure("bookshelf-gpt2", window=v) for v in (0, "12", huge)),
    *(lambda v=v: ds.tune_lens("bookshelf-gpt2", out="lens", window=v) for v in (0, "12", huge)),
    *(lambda v=v: ds.logits(model, v) for v in (None, 5, "", "\\ud800", [], [[1], [2, 3]], [huge], [None], ["a"])),
    *(lambda v=v: ds.logits(model, v) for v in ([-1], [10**9], object())),
    *(lambda v=v: ds.lens(model, "It was", top=v) for v in (0, -1, 10**9)),
]
model = ds.load("bookshelf-gpt2")
for number, call in enumerate(calls):
    try:
        call()
    except ds.DepthscopeError as error:
        assert len(str(error)) < 5000, number
    else:
        raise SystemExit(f"call {number} was accepted")
print(len(calls))
"""


@pytest.mark.fault("values of any type and size as arguments in Python", "DepthscopeError")
def test_arguments_in_python(tmp_path):
    """In a process of its own: in this one beartype checks types before the functions do."""
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert int(done.stdout) > 80
    assert list(tmp_path.iterdir()) == []
