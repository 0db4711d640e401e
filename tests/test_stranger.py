"""A run directory from a stranger: the page or our error, in bounded time and memory, and nothing of theirs in the page."""

import copy
import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from drawn_plots import wait_until_drawn
from hostile_runs import HOSTILE, HOSTILE_NAME, TABLES, hostile_run, many_rows, small_run, sweep_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright
from pyarrow import parquet
from report_runs import all_tables, made_up_stages, make_run, sweep_table

from depthscope.errors import DepthscopeError, RunError
from depthscope.report import downloads
from depthscope.report.comparison import write_comparison
from depthscope.report.figures import figure, figures
from depthscope.report.measured import scientific
from depthscope.report.page import render, write_page
from depthscope.run import bounded_tables
from depthscope.run.bounded_tables import frame_of
from depthscope.run.parquet_layout import layout
from depthscope.run.store import RunDirectory
from depthscope.schema.manifest import Manifest
from depthscope.schema.stored import MOST_LAYERS

REFUSED = "our error with the file, what was expected and what was found"
EITHER = "the page or our error, never a traceback"


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return small_run(tmp_path / "run")


@pytest.fixture
def no_plotly(monkeypatch):
    """Pages without the 5 MB of plotly's script, for tests that make many."""
    monkeypatch.setattr("depthscope.report.html.get_plotlyjs", lambda: "")


def outcome(path: Path, out: Path) -> str:
    """Open a run, and make its page, its comparison with itself and its figures: `page`, or the message of our error."""
    try:
        run = RunDirectory.reading(path)
        repr(run.stages)
        write_page(run, out)
        write_comparison([run, run], out)
    except DepthscopeError as error:
        return str(error)
    for name in figures(run):
        try:
            figure(run, name)
        except DepthscopeError:
            continue
    return "page"


# Tables


def test_every_table_is_read_as_polars_reads_it(run):
    for name in run.tables():
        expected = pl.read_parquet(run.path / "tables" / f"{name}.parquet")
        assert run.table(name).equals(expected)
        assert run.table(name).schema == expected.schema


@pytest.mark.fault("a run's table is no table that a study writes", REFUSED + "; the rest of the page is there")
@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_no_study_writes_is_refused_before_it_takes_memory(what, run, no_plotly):
    make, message = TABLES[what]
    file = run.path / "tables" / "sweep.parquet"
    make(file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match=re.escape(message)) as caught:
        run.table("sweep")
    assert str(file) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
    if what == next(iter(TABLES)):  # each is refused by the same call
        assert "This cannot be shown: " in render(run)


@pytest.mark.fault("a table of 60 million rows in less than 2 MB", REFUSED)
def test_a_table_of_another_name_and_a_shard_are_bounded_by_memory(run):
    file = run.path / "tables" / "strange.parquet"
    file.write_bytes(many_rows())
    assert file.stat().st_size < 2_000_000
    with pytest.raises(RunError, match="60,000,000 rows that would take more than 512 MiB"):
        run.table("strange")
    with pytest.raises(RunError, match="more than 512 MiB"):
        frame_of(file.read_bytes(), file)


@pytest.mark.fault("the pages of a table decompress to more than its footer says", REFUSED)
def test_pages_are_measured_not_believed(monkeypatch):
    stream = io.BytesIO()
    parquet.write_table(sweep_rows(20_000), stream, compression="zstd", use_dictionary=False)
    content = stream.getvalue()
    true = sum(chunk.unpacked for chunk in layout(content).chunks)
    assert true > 10 * len(content)
    monkeypatch.setattr(bounded_tables, "LEAST_MEMORY", true // 2)
    monkeypatch.setattr(bounded_tables, "MOST_EXPANSION", 0)
    with pytest.raises(RunError, match="far more than its size on disk"):
        frame_of(content, Path("t.parquet"))


@pytest.mark.fault("bytes of a table are changed, in footer, headers and data", "our error or a table; no abort")
def test_damaged_bytes_of_a_table_are_an_error_or_a_table(tries):
    tables = all_tables(3, heads_per_layer=1)
    frames = [tables[name] for name in ("sweep", "heads", "neuron_tokens")]
    contents = []
    for frame in frames:
        stream = io.BytesIO()
        frame.write_parquet(stream, compression="zstd", statistics=False)
        contents.append(stream.getvalue())
    refused = 0
    for seed in range(tries(150, of=6000)):
        chance = random.Random(seed)
        content = bytearray(chance.choice(contents))
        footer = len(content) - int.from_bytes(content[-8:-4], "little") - 8
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = chance.randrange(footer if chance.random() < 0.5 else 0, len(content))
            content[place] = chance.choice((0, 127, 128, 255, content[place] ^ (1 << chance.randrange(8))))
        try:
            frame_of(bytes(content), Path("t.parquet"))
        except RunError:
            refused += 1
    assert refused > 0


NUMBERS = st.one_of(
    st.none(), st.floats(), st.sampled_from([1e308, -1e308, 5e-324, 0.0, -0.0, 1.0, float("nan"), float("inf"), -1e-9])
)
TEXTS = st.sampled_from(["", "kl", "none", "drop", HOSTILE, "x" * 5000, "\x00", "{0}", None])


@pytest.mark.fault("cells of a table are null, NaN, extreme or unknown; rows are missing or doubled", EITHER)
def test_tables_of_anything_give_a_page(tmp_path, no_plotly, tries):
    run = small_run(tmp_path / "run", depth=3)
    original = {name: run.table(name) for name in run.tables()}

    @given(data=st.data())
    @settings(
        max_examples=tries(2, of=150),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def holds(data):
        name = data.draw(st.sampled_from(sorted(original)))
        changed = original[name]
        for _ in range(data.draw(st.integers(0, 3))):
            column = data.draw(st.sampled_from(changed.columns))
            kind = changed.schema[column]
            if kind.is_float():
                values = NUMBERS
            elif kind.is_integer():
                values = st.one_of(st.none(), st.sampled_from([-1, 0, 1, 2, 3, 4, 10**9, -(2**31)]))
            elif kind == pl.String:
                values = TEXTS
            else:
                continue
            value = pl.lit(data.draw(values), dtype=kind)
            every = data.draw(st.integers(1, 3))
            hit = pl.int_range(pl.len()) % every == 0
            changed = changed.with_columns(pl.when(hit).then(value).otherwise(pl.col(column)).alias(column))
        how = data.draw(st.sampled_from(["all", "some", "doubled", "one", "none"]))
        if how == "some":
            changed = changed.sample(fraction=0.5, seed=data.draw(st.integers(0, 99)))
        changed = {"doubled": pl.concat([changed, changed]), "one": changed.head(1), "none": changed.head(0)}.get(
            how, changed
        )
        file = run.path / "tables" / f"{name}.parquet"
        changed.write_parquet(file)
        try:
            assert outcome(run.path, tmp_path / "page.html") == "page"
        finally:
            original[name].write_parquet(file)

    holds()


# run.json and stages.json

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(
            [10**9, -5, 2**63, 10**400, 1e308, 5e-324, "1e9", "", HOSTILE, "../../etc", "\x00", "x" * 70_000]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)


def places(value, path=()):
    """The path of every entry."""
    if path:
        yield path
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(one, (*path, key))


@pytest.mark.fault("entries of run.json or stages.json are any other JSON", EITHER)
def test_json_of_anything_gives_a_page_or_our_error(tmp_path, no_plotly, tries):
    tables = {name: all_tables(3, 1)[name] for name in ("sweep", "neuron_counts")}
    run = make_run(tmp_path / "run", depth=3, tables=tables, stages=made_up_stages(3))
    original = {name: json.loads((run.path / name).read_text(encoding="utf-8")) for name in ("run.json", "stages.json")}
    original["run.json"] |= {"reference": {"title": "a"}, "noise_floor": 1e-9}
    original["run.json"] |= {"noise_floor_of": {"kl": 1e-9, "dtype": "a", "finer": "b", "tokens": 3}}
    ways = {name: list(places(content)) for name, content in original.items()}

    @given(data=st.data())
    @settings(
        max_examples=tries(6, of=600),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def holds(data):
        name = data.draw(st.sampled_from(sorted(original)))
        content = copy.deepcopy(original[name])
        for _ in range(data.draw(st.integers(1, 2))):
            path = data.draw(st.sampled_from(ways[name]))
            around = content
            try:
                for step in path[:-1]:
                    around = around[step]
                around[path[-1]] = data.draw(JSON)
            except (LookupError, TypeError):  # the first change took its place away
                continue
        try:
            (run.path / name).write_text(json.dumps(content), encoding="utf-8")
            outcome(run.path, tmp_path / "page.html")
        finally:
            (run.path / name).write_text(json.dumps(original[name]), encoding="utf-8")

    holds()


RAW = {
    "nested 100,000 deep": '{"settings": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "half a surrogate pair": '{"settings": {"model": "\\ud800"}}',
    "a number of 5,000 digits": '{"settings": {}, "model": {"layers": ' + "9" * 5000 + "}}",
    "a thousand million layers": '{"settings": {}, "model": {"layers": 1000000000}}',
    "fewer than no layers": '{"settings": {}, "model": {"layers": -3}}',
    "layers as text": '{"settings": {}, "model": {"layers": "12"}}',
    "layers that are not a number": '{"settings": {}, "model": {"layers": NaN}, "noise_floor_of": []}',
    "a megabyte of name": '{"settings": {"model": "' + "x" * 1_000_000 + '"}}',
    "ten megabytes": '{"settings": {"model": "' + "x" * 10_000_000 + '"}}',
    "an experiment that is a path": '{"settings": {"experiments": {"../../../etc": {}}}}',
    "a list": "[" + "0," * 50_000 + "0]",
    "not UTF-8": b'{"settings": {"model": "\xff"}}',
    "nothing": "",
}


@pytest.mark.fault("run.json is no JSON of a run", REFUSED + " and what to do")
@pytest.mark.parametrize("what", RAW)
def test_a_manifest_of_no_run_is_refused(what, tmp_path):
    content = RAW[what]
    (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=re.escape(Manifest.remedy)) as caught:
        RunDirectory.reading(tmp_path)
    assert str(tmp_path / "run.json") in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.fault("a noise floor that is not a number", "the page, which says that it could not be measured")
@pytest.mark.parametrize("value", ["NaN", "Infinity", "null"])
def test_a_noise_floor_that_is_no_number_was_not_measured(value, tmp_path, no_plotly):
    run = small_run(tmp_path / "run")
    file = run.path / "run.json"
    text = json.dumps(json.loads(file.read_text()) | {"noise_floor": 0.125, "noise_floor_of": None})
    file.write_text(text.replace("0.125", value))
    assert "It could not be measured" in render(RunDirectory.reading(run.path))
    assert {scientific(one) for one in (None, float("nan"), float("inf"), float("-inf"))} == {"unknown"}


@pytest.mark.fault("a model of as many layers as a file may say", "the page")
def test_the_most_layers_give_a_page(tmp_path, no_plotly):
    run = make_run(tmp_path / "run", depth=MOST_LAYERS, frame=sweep_table(3))
    assert outcome(run.path, tmp_path / "page.html") == "page"


# What a page may contain


class Seen(HTMLParser):
    """Elements with the names of their attributes, and everything that is an address."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[tuple[str, str]] = set()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.elements |= {(tag, name) for name, _ in attrs} | {(tag, "")}
        self.addresses |= {
            value or "" for name, value in attrs if name in ("href", "src", "action", "content", "style")
        }


def seen(page: str) -> Seen:
    found = Seen()
    found.feed(page)
    return found


def own(addresses: set[str]) -> set[str]:
    """Addresses outside the page's own anchors and colours."""
    patterns = (r"#[a-z_]+", r"(border-)?color: var\(--[a-z0-9_-]+\)", r"height: \d+px")
    return {one for one in addresses if not any(re.fullmatch(pattern, one) for pattern in patterns)}


@pytest.mark.fault(
    "every text of a run is HTML, script, a link or a template", "no element or address of theirs in the page"
)
@pytest.mark.parametrize("all_texts", [False, True])
def test_texts_of_a_run_add_nothing_to_a_page(all_texts, tmp_path):
    plain = seen(render(small_run(tmp_path / "plain")))
    run = hostile_run(tmp_path / "hostile", all_texts)
    page = render(run)
    assert "press" in page
    found = seen(page)
    assert found.elements <= plain.elements | {
        ("p", "class"),
        ("code", ""),
        ("aside", "role"),
        ("aside", "class"),
        ("aside", ""),
    }
    assert own(found.addresses) == own(plain.addresses)
    write_comparison([run, run], tmp_path / "both.html")
    write_comparison([RunDirectory.reading(tmp_path / "plain")] * 2, tmp_path / "plain.html")
    both, alone = (seen((tmp_path / name).read_text(encoding="utf-8")) for name in ("both.html", "plain.html"))
    assert both.elements <= alone.elements | plain.elements
    assert own(both.addresses) == own(alone.addresses)


@pytest.mark.fault(
    "every text of a run is HTML, script, a link or a template", "no request, dialog or link in a browser"
)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("all_texts", [False, True])
def test_a_hostile_page_asks_for_nothing_and_runs_nothing(all_texts, tmp_path):
    out = write_page(hostile_run(tmp_path / "run", all_texts), tmp_path / "page.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request", lambda one: troubles.append(one.url) if one.url[:5] not in ("file:", "data:", "blob:") else None
        )
        page.goto(out.as_uri())
        for plot in page.query_selector_all(".plot"):
            plot.scroll_into_view_if_needed()
        wait_until_drawn(page)
        assert all_texts or page.evaluate("document.querySelectorAll('.plot').length") > 10
        links = "[...document.querySelectorAll('a')].map((a) => a.getAttribute('href') || a.getAttribute('xlink:href') || '')"
        assert all(re.fullmatch("#[a-z_]+", one) for one in page.evaluate(links))
        shown = page.evaluate("document.querySelectorAll('img, iframe, object, embed, form, foreignObject').length")
        assert shown == 0
        browser.close()
    assert troubles == []


@pytest.mark.fault("text in plots is markup of a link", "it is shown as text")
def test_plots_show_markup_as_text(tmp_path):
    run = hostile_run(tmp_path / "run", all_texts=False)
    for name in figures(run):
        try:
            drawn = figure(run, name).to_json()
        except RunError:
            continue
        assert "<a " not in drawn
        assert "\\u003ca " not in drawn
        assert "<img" not in drawn


@pytest.mark.fault("a text of a table is a formula", "it is a text in the CSV; numbers stay numbers")
@given(texts=st.lists(st.text(st.sampled_from("=+-@\t\r\n＝＋－＠'\"|,a1 "), max_size=4), min_size=1, max_size=5))
@settings(derandomize=True, database=None)
def test_no_cell_of_a_csv_is_a_formula(texts):
    frame = pl.DataFrame({"text": texts, "list": [[one, "b"] for one in texts], "number": [-1.5] * len(texts)})
    read = pl.read_csv(
        io.StringIO(downloads.csv(frame)), schema={"text": pl.String, "list": pl.String, "number": pl.Float64}
    )
    for name in ("text", "list"):
        for cell in read[name]:
            assert cell is None or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
    assert [(cell or "").removeprefix("'") for cell in read["text"]] == [one.removeprefix("'") for one in texts]
    assert read["number"].to_list() == [-1.5] * len(texts)
    header = downloads.csv(pl.DataFrame({"=1+1": [1], HOSTILE_NAME: [2]})).splitlines()[0]
    assert header.startswith("'=1+1,")
    assert "'=cmd" in header


# Links and special files

SPECIAL = {
    "/etc/passwd": "leads out of",
    "/dev/zero": "leads out of",
    "fifo": "is not a regular file",
    "folder": "not a regular file",
}


@pytest.mark.fault("a file of a run is a link out of it, a device, a pipe or a folder", REFUSED + ", at once")
@pytest.mark.parametrize("name", ["run.json", "stages.json", "tables/sweep.parquet"])
@pytest.mark.parametrize("what", SPECIAL)
def test_links_out_of_a_run_and_special_files_are_refused(name, what, tmp_path):
    run = make_run(tmp_path / "run", depth=3, frame=sweep_table(3), stages=made_up_stages(3))
    file = run.path / name
    file.unlink()
    if what == "fifo":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        file.symlink_to(what)
    with pytest.raises(RunError, match=SPECIAL[what]):
        RunDirectory.reading(run.path).table("sweep") if name != "stages.json" else RunDirectory.reading(
            run.path
        ).stages


@pytest.mark.fault("the folder of a run's tables is a link out of it", REFUSED)
def test_a_folder_behind_a_link_is_refused_and_a_run_behind_a_link_is_read(tmp_path):
    run = make_run(tmp_path / "run", depth=3, frame=sweep_table(3))
    (tmp_path / "link").symlink_to(run.path)
    assert RunDirectory.reading(tmp_path / "link").table("sweep").equals(run.table("sweep"))
    (run.path / "tables").rename(tmp_path / "elsewhere")
    (run.path / "tables").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leads out of"):
        run.table("sweep")


@pytest.mark.fault("a link waits where a page is written", "the file that it points to stays")
def test_a_page_is_not_written_through_a_link(tmp_path, no_plotly):
    run = make_run(tmp_path / "run", depth=3, frame=sweep_table(3))
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (run.path / "report.html").symlink_to(mine)
    with pytest.raises(RunError, match="not a page that depthscope wrote"):
        write_page(run, run.path / "report.html")
    (run.path / "report.html").unlink()
    (run.path / "report.html.unfinished").symlink_to(mine)
    write_page(run, run.path / "report.html")
    assert not (run.path / "report.html").is_symlink()
    assert mine.read_text() == "precious"


@pytest.mark.fault("`depthscope report` on a run whose tables are no tables", "exit 0 and a page, in 4 GB of addresses")
def test_the_command_makes_a_page_of_a_stranger_s_run_within_bounds(run):
    for name in ("sweep", "strange"):
        (run.path / "tables" / f"{name}.parquet").write_bytes(many_rows())
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from depthscope.cli import main
sys.argv = ["depthscope", "report", {str(run.path)!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "60,000,000 rows" in (run.path / "report.html").read_text(encoding="utf-8")
