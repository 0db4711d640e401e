"""Files and JSON from outside: within bounds they read as Python reads them, beyond them they are refused at once."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthscope.errors import DataError
from depthscope.untrusted import DEEPEST_JSON, open_regular, parse_json, read_bounded, read_json

SURROGATES = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_json_reads_as_python_reads_it(value):
    assert parse_json(json.dumps(value).encode(), "there", DataError) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(content):
    try:
        expected = json.loads(content)
    except ValueError:
        with pytest.raises(DataError, match="not JSON"):
            parse_json(content, "there", DataError)
    else:
        assert repr(parse_json(content, "there", DataError)) == repr(expected)


@pytest.mark.parametrize("form", ["[{}]", '{{"a": {}}}'])
@pytest.mark.parametrize("depth", [DEEPEST_JSON, DEEPEST_JSON + 1, 100_000])
def test_nesting_is_bounded(form, depth):
    before, after = form.replace("{{", "{").replace("}}", "}").split("{}")
    text = before * depth + "1" + after * depth
    if depth <= DEEPEST_JSON:
        parse_json(text, "there", DataError)
    else:
        with pytest.raises(DataError, match="nested more than 64 levels"):
            parse_json(text, "there", DataError)


@given(TEXT, SURROGATES, st.booleans())
def test_half_a_surrogate_pair_is_refused_in_values_and_keys(text, half, key):
    content = {f"{text}{half}": 1} if key else [{"a": f"{half}{text}"}]
    with pytest.raises(DataError, match="surrogate"):
        parse_json(json.dumps(content), "there", DataError)


def test_long_numbers_and_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="not JSON"):
        parse_json("9" * 5000, "there", DataError)
    file = tmp_path / "a.json"
    file.write_text('"' + "a" * 100 + '"')
    assert read_json(file, DataError, most=102) == "a" * 100
    with pytest.raises(DataError, match="longer than"):
        read_bounded(file, DataError, most=101)


@pytest.mark.fault("a FIFO, a device or a folder in place of a file", "refused at once")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path.__class__("/dev/zero")):
        with pytest.raises(DataError, match="not a regular file"):
            open_regular(path, DataError)
    for path in (tmp_path / "absent", tmp_path / "null\0name", tmp_path / ("long" * 2000)):
        with pytest.raises(DataError, match="cannot be read"):
            open_regular(path, DataError)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there").write_bytes(b"content")
    assert read_bounded(tmp_path / "link", DataError) == b"content"
