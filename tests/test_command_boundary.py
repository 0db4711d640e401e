"""The command line as a boundary: any arguments end with a status and one message, and text from outside is only ever text."""

import ast
import errno
import io
import re
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import depthscope
from depthscope.cli import app, boundary, commands, options
from depthscope.cli.boundary import run
from depthscope.cli.console import PlainConsole, styled
from depthscope.cli.summary import print_summary
from depthscope.models import from_files
from depthscope.models import load as loading
from depthscope.printable import ACTING, printable, shown
from depthscope.progress import progress_bar
from depthscope.run.references import reference_runs
from depthscope.run.store import RunDirectory

HOSTILE = (
    *(
        "",
        "-",
        "--",
        "#",
        "#x",
        "[#]",
        "**/*",
        "t[/x]",
        "[link=http://a.b]y[/link]",
        "[bold]",
        ":smile:",
        "🙂",
        "ß" * 200,
    ),
    *("\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;http://a.b\x1b\\x", "\x9b2J", "a\nerror: b", "a\rb", "\x7f", "a\0b"),
    *(
        "\u202eabc",
        "\u2066x",
        "\udcff",
        "\ud800",
        "9" * 5000,
        "1e30",
        "1e14",
        "10000000000000000",
        "-1",
        "nan",
        "inf",
        "0",
    ),
    *(
        "a" * 300,
        "a/" * 3000,
        "~nobody/x",
        "hf:",
        "hf:a:b:c:d",
        "/dev/zero",
        "/proc/self/mem",
        ",",
        "a,,b",
    ),
)
ACTS = re.compile(ACTING.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
"""What acts on a terminal, but for the line breaks that the program itself prints."""
GROUP = typer.main.get_command(app)
NAMES = {
    name: [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    for name, command in GROUP.commands.items()
    if name != "explore"  # imports much, and is tested on its own
}


def require_plain(text: str) -> None:
    assert not (found := ACTS.search(text)), ascii(found)
    assert "Traceback" not in text


@pytest.fixture
def loads(monkeypatch, tmp_path):
    """Commands run in an empty directory, and end where they would load a model."""

    def load(*arguments, **settings):
        raise typer.Exit(0)

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(commands, "build_app", lambda: GROUP)  # making it takes longer than all the rest
    monkeypatch.setattr(boundary, "entry_points", lambda group: [])
    monkeypatch.chdir(tmp_path)


@pytest.mark.fault(
    "any arguments to any command: hostile names, numbers and bytes",
    "status 0 or 2, one message, no control characters",
)
def test_any_arguments(loads, capsys, tmp_path, tries):
    values = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_characters="/~"), max_size=20)
    texts = st.sampled_from(sorted(NAMES)).flatmap(
        lambda name: st.tuples(
            st.just([name]) | st.just([]),
            st.lists(
                st.tuples(st.sampled_from(NAMES[name] or ["--help"]), values)
                | values.map(lambda value: (value,))
                | st.tuples(st.sampled_from(NAMES[name] or ["--help"]), values).map(lambda pair: ("=".join(pair),)),
                max_size=4,
            ),
        )
    )

    @settings(max_examples=tries(40, of=4000), deadline=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def holds(parts):
        command, rest = parts
        status = run([*command, *(one for pair in rest for one in pair if one != boundary.DEBUG)])
        printed = capsys.readouterr()
        assert status in (0, 2), printed.err
        require_plain(printed.out + printed.err)
        assert status == 0 or printed.err.strip() or printed.out.strip()

    holds()
    assert list(tmp_path.iterdir()) == [], "nothing written"


@pytest.mark.fault("a hostile name or number for every option", "status 0 or 2, nothing that acts on a terminal")
def test_every_option(loads, capsys, tries):
    each = tries(1, of=len(HOSTILE))
    values = cycle(HOSTILE)
    for command, option in ((command, option) for command, names in NAMES.items() for option in names):
        for value in islice(values, each):
            status = run([command, f"{option}={value}"])
            printed = capsys.readouterr()
            assert status in (0, 2), (option, ascii(value), printed.err)
            require_plain(printed.out + printed.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("study", "--tokens", "1e30"),
        ("study", "--tokens", "100000000000000"),
        ("sweep", "--precision", "nan"),
        ("sweep", "--window", "9" * 30),
        ("lens", "--top", "-1", "--prompt", "a"),
        ("sweep", "--dtype", "[link=http://a.b]"),
        ("sweep", "--device", "cuda:9999"),
        ("sweep", "--stream", ""),
        ("sweep", "--unused-tensors", "x"),
        ("sweep", "--revision", ""),
        ("study", ""),
        ("study", "\udcff"),
        ("study", "--data", ""),
        ("study", "--cluster", ""),
        ("probes", "--suffix", "\udcff"),
        ("study", "--out", "a" * 300),
        ("tune", "--out", "lens", "--bos", "x"),
        ("generate", "--prompt", ""),
        ("generate", "--prompt", "\udcff"),
        ("generate", "--prompt", "a", "--temperature", "nan"),
        ("generate", "--prompt", "a", "--top-p", "2"),
        ("generate", "--prompt", "a", "--tokens", "0"),
        ("generate", "--prompt", "a", "--edit", "melt(3)"),
        ("generate", "--prompt", "a", "--stop", ""),
        ("export", "--drop", "x", "--out", "cut"),
        ("export", "--out", "cut"),
        ("heal", "cut", "--teacher", "bookshelf-gpt2", "--out", "healed", "--rate", "0"),
        ("report", "a" * 300),
        ("report", "run", "--out", "b/" * 3000),
    ],
)
def test_what_no_model_could_use_is_refused_before_one_is_loaded(loads, capsys, arguments):
    assert run(arguments) == 2
    assert "error:" in capsys.readouterr().err


def test_names_from_outside_are_shown_as_they_are(loads, capsys):
    assert run(["study", "--data", "t[/x] :smile: [link=http://a.b]c[/link] \x1b[31m\u202e\nerror: \udcff.txt"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        r"error: no text at t[/x] :smile: [link=http://a.b]c[/link] \x1b[31m\u202e\nerror: \xff.txt: expected"
    )
    assert "]8;" not in said
    assert run(["swep\x1b[2J"]) == 2
    assert r"No such command 'swep\x1b[2J'" in capsys.readouterr().err
    assert run(["info", "--dtype=\x1b[2J\nerror: x"]) == 2
    assert not re.search("^error: x", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_console_takes_nothing_for_markup(terminal):
    stream = io.StringIO()
    console = PlainConsole()
    console.file, console._force_terminal, console.width = stream, terminal, 10_000
    for name in (name.replace("\0", "") for name in HOSTILE):
        console.print(name)
        console.print(styled(name, "bold"))
        with console.status(styled(name, "")):
            pass
    without_styles = re.sub(r"\x1b\[([0-9;]*m|\?25[lh]|\dA|2K)|\r", "", stream.getvalue())
    assert not ACTS.search(without_styles) if terminal else not ACTS.search(stream.getvalue())
    assert "[link=http://a.b]y[/link]" in stream.getvalue()
    assert ":smile:" in stream.getvalue()


def test_progress_bars_show_names_as_they_are():
    stream = io.StringIO()
    with progress_bar(Console(file=stream, width=400)) as tell:
        for name in ("t[/x]", "\x1b]0;title\x07", "[link=http://a.b]y[/link]"):
            tell(name, 1, 2)
    assert "t[/x]" in stream.getvalue()
    assert r"\x1b]0;title\x07" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


NAME = "t[/x]\x1b[31m\u202e[link=http://a.b]y[/link]\nerror:"


def test_results_with_hostile_names_are_printed(capsys, monkeypatch, tmp_path, gpt2):
    (reference,) = reference_runs("bookshelf-gpt2")
    run_ = RunDirectory(reference.path, reference.manifest)
    there = replace(run_.settings, model=NAME, data=NAME)
    run_.manifest = replace(run_.manifest, settings=there, not_done={NAME: NAME}, kernels={NAME: NAME})
    print_summary(run_, ["sweep", "norms", "lens", "stages"])
    said = capsys.readouterr().out
    require_plain(said)
    assert said.count(printable(NAME)) >= 4

    @dataclass
    class Facts:
        name: str = NAME

    def load_quietly(*given, **settings):
        return SimpleNamespace(facts=Facts()) if given[0] == "facts" else gpt2

    monkeypatch.setattr(options, "load_quietly", load_quietly)
    assert run(["info", "facts"]) == 0
    assert printable(NAME) in capsys.readouterr().out
    assert run(["lens", "--prompt", f"It was {NAME}", "--top", "2"]) == 0
    require_plain(capsys.readouterr().out)
    page = tmp_path / NAME.replace("/", "-") / "page.html"
    assert run(["report", str(reference.path), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    require_plain(said)
    assert printable(page) in said
    assert page.stat().st_size > 100_000


class PanicException(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.fault(
    "a library fails in a way that nobody expected", "one message, no traceback; with --debug the traceback"
)
@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (
            RuntimeError("boom [/x]\nmore\x1b[2J"),
            1,
            "unexpected error: RuntimeError: boom [/x]\n  This is a bug",
        ),
        (PanicException("boom"), 1, "unexpected error: PanicException: boom"),
        (OSError(errno.ENOSPC, "No space left on device", "a[/x]\nb"), 2, r"error: a[/x]"),
        (MemoryError(), 2, "error: not enough memory"),
        (RecursionError("too deep"), 1, "unexpected error: RecursionError"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), 1, "unexpected error: UnicodeEncodeError"),
    ],
)
def test_the_last_boundary(monkeypatch, capsys, error, status, says):
    def load(*arguments, **settings):
        raise error

    monkeypatch.setattr(loading, "load", load)
    assert run(["info"]) == status
    said = capsys.readouterr().err
    assert said.startswith(says)
    require_plain(said)
    with pytest.raises(type(error)):
        run(["info", "--debug"])


def test_a_plugin_that_cannot_be_loaded_is_named(monkeypatch, capsys):
    plugin = boundary.EntryPoint("broken", "depthscope_no_such_module:x", boundary.PLUGINS)
    monkeypatch.setattr(boundary, "entry_points", lambda group: [plugin])
    assert run(["info"]) == 2
    assert (
        "the plugin broken (depthscope_no_such_module:x) cannot be loaded: ModuleNotFoundError"
        in capsys.readouterr().err
    )


def test_values_in_messages_are_short_and_plain():
    class Bad:
        def __repr__(self):
            raise ValueError

    for value in (*HOSTILE, 10**5000, Bad(), ["a" * 10**6], float("nan"), b"\xff"):
        assert len(shown(value)) < 1000
        require_plain(shown(value))
    assert printable("Ein schöner Tag: 第三 👩‍💻 نص") == "Ein schöner Tag: 第三 👩‍💻 نص"


def test_choices_are_those_of_the_loader():
    from depthscope.models.offload import streaming

    assert (from_files.AUTO, *from_files.DTYPES) == options.DTYPES
    assert set(options.CHOICES["--stream"]) == set(streaming.CHOICES)


def test_only_one_module_prints():
    """Everything printed passes through the consoles of cli.console, so no other module makes one or reads markup."""
    source = Path(depthscope.__file__).parent
    for file in source.rglob("*.py"):
        where, nodes = file.relative_to(source).as_posix(), list(ast.walk(ast.parse(file.read_text())))
        imported = {
            f"{node.module}.{one.name}" for node in nodes if isinstance(node, ast.ImportFrom) for one in node.names
        }
        if where not in ("cli/console.py", "progress.py"):
            assert "rich.console.Console" not in imported, where
        if where != "cli/options.py":  # help texts of our own
            assert not any(name.startswith("rich.markup") for name in imported), where
        assert "print" not in {
            node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert "from_markup" not in attributes, where
        assert "echo" not in attributes or where == "cli/commands.py", where
