"""The documentation: it builds without a warning and loads nothing from elsewhere, its tutorials run and show what they say,
and what its pages quote from the code is there.
"""

import ast
import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from playwright.sync_api import sync_playwright

import depthscope
from depthscope.cli import app
from depthscope.edits import parse_edit
from depthscope.engine.plan import block_calls, make_plan
from depthscope.routes import Route
from depthscope.schema import stages as stages_schema
from depthscope.schema.experiments import EXPERIMENTS, experiment_names

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = Path(depthscope.__file__).parent
PAGES = sorted(DOCS.rglob("*.md"))
TUTORIALS = sorted(path.stem for path in (DOCS / "tutorials").glob("*.ipynb"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_MKDOCS_2_WARNING": "1"}


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. A warning fails the build."""
    out = tmp_path_factory.mktemp("site")
    done = python("-m", "mkdocs", "build", "--strict", "--site-dir", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def script(name: str):
    """A module of docs/, which is no package."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


class Loaded(HTMLParser):
    """What a page loads (not what it links to), and the text of its paragraphs and cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if (
            tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "link")
            and given.get("rel") != "canonical"
        ):
            self.resources += [value for name in ("src", "href", "srcset") if (value := given.get(name))]
        self.resources += re.findall(r"url\(([^)#]+)\)", given.get("style") or "")

    def handle_data(self, data):
        self.words.append(data)


def test_pages_load_nothing_from_elsewhere_and_leave_nothing_to_fill_in(site):
    pages = sorted(site.rglob("*.html"))
    assert {"index.html", "stages.html", "tutorials/first_study.html", "reference/modules/statistics.html"} <= {
        page.relative_to(site).as_posix() for page in pages
    }
    for page in pages:
        read = Loaded(page.read_text(encoding="utf-8"))
        assert read.resources, page
        assert [one for one in read.resources if re.match(r"(https?:)?//", one)] == [], page
        assert not re.search(r"^\{\w+(: [\w.]+)?\}$", "".join(read.words), re.MULTILINE), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_first_page_opens_from_its_folder_without_errors_or_requests(site):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((site / "index.html").as_uri())
        wide = "[...document.querySelectorAll('.md-content img')].map((image) => image.naturalWidth > 500)"
        assert page.evaluate(wide) == [True, True]
        browser.close()
    assert len(requests) > 3
    assert [url for url in requests if not url.startswith("file:")] == []


def test_the_site_says_what_the_code_says(site):
    def said(page: str) -> str:
        return " ".join(" ".join(Loaded((site / page).read_text(encoding="utf-8")).words).split())

    command_line, group = said("reference/cli.html"), typer.main.get_command(app)
    for name, command in group.commands.items():
        assert f"depthscope {name}" in command_line
        assert all(
            option in command_line for parameter in command.params for option in parameter.opts if option[0] == "-"
        )
    sweep = said("experiments/sweep.html")
    assert "KL(p‖q) of the edited model’s next-token distribution q from the unmodified model’s p" in sweep.replace(
        "'", "’"
    )
    assert all(column in sweep for column in ("ci_low", "Float64", "next_token"))
    python_page = said("reference/python.html")
    assert all(name in python_page for name in depthscope.__all__)
    experiments = said("experiments/index.html")
    assert all(name in experiments for name in experiment_names())


def test_every_column_of_every_table_and_shard_has_a_meaning_and_no_meaning_is_without_a_column():
    hooks = script("hooks")
    every = {(reference, column) for reference in hooks.references() for column in hooks.table(reference)}
    assert len(every) > 100
    assert [one for one in every if not hooks.meaning(*one)] == []
    own = {(reference, column) for reference, found in hooks.MEANINGS.items() for column in found if reference != "any"}
    assert own - every == set()
    assert set(hooks.MEANINGS["any"]) <= {column for reference, column in every - own}
    assert "| `kl` | Float32 | KL(p‖q) of the edited" in hooks.columns("sweep.TOKEN_SHARD")
    assert "| `kl` | Float64 | sum over the document's tokens" in hooks.columns("sweep.DOCUMENT_SHARD")


def test_experiments_without_a_page_are_named_with_their_title():
    others = script("hooks").others
    nothing_said = others("")
    assert all(f"- `{name}`: {one.title}" in nothing_said for name, one in EXPERIMENTS.items())
    assert "`sweep`" not in others("[`sweep`](sweep.md)")
    assert others(" ".join(f"[`{name}`]" for name in EXPERIMENTS)) == ""


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_and_shows_what_is_stored(name):
    done = python(DOCS / "notebooks.py", "--check", name)
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-2000:]}\nIf what is new is right: make tutorials"


def test_tutorials_are_small_and_a_changed_word_or_number_would_be_seen():
    import nbformat

    notebooks = script("notebooks")
    assert len(TUTORIALS) == 3
    for name in TUTORIALS:
        path = DOCS / "tutorials" / f"{name}.ipynb"
        assert path.stat().st_size < 50_000
        stored = nbformat.read(path, as_version=4)
        assert list(notebooks.differences(stored, stored)) == []
        shown = [cell for cell in stored.cells if any(True for _ in notebooks.shown(cell))]
        assert len(shown) >= 4, f"{name} has no outputs"

    def cell(text):
        output = nbformat.v4.new_output("stream", text=text)
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print()", outputs=[output])])

    for before, after, same in (
        ("KL 4.678 nats", "KL 4.70 nats", True),
        ("KL 0.042", "KL 0.043", True),
        ("KL 4.678 nats", "KL 4.9 nats", False),
        ("layer 8", "layer 9", False),
        ("swap", "drop", False),
    ):
        assert (list(notebooks.differences(cell(before), cell(after))) == []) == same, (before, after)


def with_examples() -> list[str]:
    files = [path for path in sorted(SOURCE.rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__") for path in files]


def test_examples_in_docstrings_hold():
    names = with_examples()
    assert {"depthscope.routes", "depthscope.edits"} <= set(names)
    for name in names:
        found = doctest.testmod(importlib.import_module(name))
        assert found.attempted, name
        assert found.failed == 0, name


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands_shown() -> list[tuple[str, str]]:
    blocks = [(page.name, block) for page in [ROOT / "README.md", *PAGES] for block in code_blocks(page, "console")]
    return [(name, line) for name, block in blocks for line in re.findall(r"^\$ depthscope (.*)$", block, re.MULTILINE)]


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "docs/reliability.md"])
def test_tests_that_promises_name_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [name for name in re.findall(r"tests/\w+\.py", text) if not (ROOT / name).exists()] == []
    for module, test in re.findall(r"`(test_\w+)\.(test_\w+)`", text):
        assert f"def {test}(" in (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"), test


def test_readme_and_home_page_say_the_same_of_the_first_study():
    """How long it takes, on what, and when that was measured; and that the command is there after activating .venv."""
    said = []
    for page in (ROOT / "README.md", DOCS / "index.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        said += re.findall(r"study takes about \d+ s after the installation \(measured: [^)]*\d{4}\)", text)
        assert "$ source .venv/bin/activate" in text
        assert text.index("$ source .venv/bin/activate") < text.index("$ depthscope ")
    assert len(said) == 2
    assert said[0] == said[1]


def test_the_search_works_where_the_pages_are_opened_from_a_folder():
    """Its worker and its index come from the site itself, not from another host."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^  - offline\b", settings, re.MULTILINE)
    assert "- iframe-worker.js" in settings
    assert "https:" not in (DOCS / "iframe-worker.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "line"), commands_shown())
def test_commands_shown_exist_with_their_options(page, line):
    name, *rest = line.partition(" #")[0].split()
    commands = typer.main.get_command(app).commands
    assert name in commands, page
    options = {option for parameter in commands[name].params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options, page


def test_python_shown_on_the_pages_of_ideas_runs_and_gives_what_is_written_beside_it():
    ran = 0
    for page in sorted((DOCS / "concepts").glob("*.md")):
        for block in code_blocks(page, "python"):
            names: dict = {}
            for line in block.splitlines():
                code, _, written = line.partition("  # ")
                if written.strip().startswith("'"):
                    assert eval(code, names) == ast.literal_eval(written.strip()), (page, line)
                    ran += 1
                else:
                    exec(code, names)
    assert ran


def test_diagrams_show_the_routes_and_counts_of_the_code():
    drawn = (DOCS / "diagrams" / "routes.svg").read_text(encoding="utf-8")
    pairs = re.findall(r'font-weight="600">([^<]+)</text>\n<text[^>]*>([^<]+)</text>', drawn)
    assert len(pairs) == 6
    for edit, route in pairs:
        assert parse_edit("" if edit == "own" else edit)(Route.own(6)).name == route
    own = Route.own(4)
    plan = make_plan([own, *(parse_edit(f"drop({layer})")(own) for layer in range(4))])
    assert f"= {block_calls(plan)} block calls instead of {4 * 4}." in (DOCS / "diagrams" / "plan.svg").read_text(
        "utf-8"
    )


def test_the_signals_of_the_method_page_are_those_of_the_code():
    page = (DOCS / "stages.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| ([\d.]+) \|", page, re.MULTILINE))
    assert {name: float(flat) for name, flat in rows.items()} == {
        signal.name: signal.smallest for signal in stages_schema.SIGNALS.values()
    }


def messages_in_code() -> list[str]:
    """What each raised error says, a zero character in place of what is filled in."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_in_troubleshooting_are_those_of_the_code():
    page = (DOCS / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        quote
        for term in re.findall(r"((?:^[^\n]+\n)+):   ", page, re.MULTILINE)
        for quote in re.findall(r"`([^`]+)`", term)
    ]
    assert len(quoted) > 50
    code = messages_in_code()
    filled_in = re.compile(r"…|\b(?:NAME|PATH|FILE|FIELD|SUFFIX|KEY|DIRECTORY|ROUTE|FAMILY|[NMX])\b|\d+")
    for quote in quoted:
        fragments = [part for piece in filled_in.split(quote) if len(part := piece.strip(" '\"():,.#")) > 3]
        assert fragments, quote
        assert [part for part in fragments if not any(part in said for said in code)] == [], quote
