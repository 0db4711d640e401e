"""Studies whose results are at a URL: the same bytes as in a directory, resumed on another machine, and no URL written by two.

Another machine is another folder of local copies.
"""

import json
import os
import shutil
import signal
import sys
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from killing import FRESH
from saved_models import InterruptionError, save, tables

import depthscope as ds
from depthscope.cli import main
from depthscope.errors import DamageWarning, DepthscopeError, RemoteWarning, RunError
from depthscope.run import mirror, remote
from depthscope.run.mirror import FOLDER_VARIABLE, copies_folder, destination, local_copy
from depthscope.run.remote import Remote, is_url, shown_place
from depthscope.run.store import RunDirectory
from depthscope.run.writer_note import GONE, NOTE, WriterNote

HOW: dict[str, Any] = {
    "experiments": ["sweep"],
    "edits": ["drop"],
    "window": 16,
    "unit_tokens": 32,
    "tokens": 160,
    "progress": False,
}
UNITS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save("gpt2", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def here(model, tmp_path_factory):
    """The bytes of a study in a directory."""
    return tables(ds.study(model, out=tmp_path_factory.mktemp("local") / "run", **HOW).path)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Makes this process another machine, as which it begins; without pauses before failed transfers are tried again."""
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))

    def become(name: str) -> Path:
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / name))
        return tmp_path / name

    become("first")
    return become


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    """A URL at which there is nothing yet."""
    yield f"memory://{tmp_path.name}/run" if request.param == "memory" else f"file://{tmp_path}/bucket/run"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def at(url: str) -> dict[str, bytes]:
    """The files at a URL."""
    files, root = fsspec.url_to_fs(url)
    return {name.removeprefix(root).strip("/"): files.cat_file(name) for name in files.find(root)}


def put(url: str, name: str, content: bytes) -> None:
    files, root = fsspec.url_to_fs(url)
    files.pipe_file(f"{root}/{name}", content)


def stored(url: str) -> dict[str, bytes]:
    """Tables and shards at a URL."""
    return {name: content for name, content in at(url).items() if name.endswith(".parquet")}


def units(url: str) -> set[int]:
    return {int(Path(name).stem) for name in stored(url) if name.startswith("shards/sweep/")}


def end_after(monkeypatch, shards: int) -> list[int]:
    """The units measured from now on; so many, and then the study ends with an exception."""
    measured, write = [], RunDirectory.write_shard

    def counted(self, experiment, unit, frame):
        if len(measured) == shards:
            raise InterruptionError
        measured.append(unit)
        write(self, experiment, unit, frame)

    monkeypatch.setattr(RunDirectory, "write_shard", counted)
    return measured


def command(*arguments: object, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["depthscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def shell(model: str) -> tuple[object, ...]:
    given = {name: value for name, value in HOW.items() if name not in ("progress", "unit_tokens")}
    options = [(f"--{name}", value if isinstance(value, int) else ",".join(value)) for name, value in given.items()]
    return ("study", model, *(one for pair in options for one in pair))


def test_what_is_written_to_a_url_is_what_is_written_to_a_directory(url, model, here):
    study = ds.study(model, out=url, **HOW)
    assert stored(url) == here == tables(study.path)
    assert at(url)["run.json"] == (study.path / "run.json").read_bytes()
    assert NOTE not in at(url)
    assert study.path.is_relative_to(copies_folder())


def test_another_machine_reads_it(url, model, here, machine):
    ds.study(model, out=url, **HOW)
    machine("second")
    study = ds.Study(url)
    assert tables(study.path) == here
    assert study.run.complete
    with pytest.raises(RunError, match="holds no run"):
        ds.Study(f"{url}-elsewhere")


def test_a_study_that_ended_goes_on_elsewhere_and_measures_no_unit_twice(url, model, here, machine, monkeypatch):
    measured = end_after(monkeypatch, 2)
    with pytest.raises(InterruptionError):
        ds.study(model, out=url, **HOW)
    assert units(url) == set(measured) == {0, 1}
    assert NOTE not in at(url)
    machine("second")
    monkeypatch.undo()
    machine("second")
    again = end_after(monkeypatch, UNITS)
    ds.study(model, out=url, **HOW)
    assert sorted(again) == [2, 3, 4]
    assert stored(url) == here


def killed_while_pushing(model: str, url: str, copies: str, shard: str) -> None:
    """A study that SIGKILL ends when half of a shard is at the URL."""
    os.environ[FOLDER_VARIABLE] = copies
    copy = LocalFileSystem.put_file

    def half(self, path, target, **more):
        if not target.endswith(shard):
            return copy(self, path, target, **more)
        content = Path(path).read_bytes()
        Path(target).write_bytes(content[: len(content) // 2])
        return os.kill(os.getpid(), signal.SIGKILL)

    pytest.MonkeyPatch().setattr(LocalFileSystem, "put_file", half)
    ds.study(model, out=url, **HOW)


@pytest.mark.parametrize("where", ["first", "second"])
def test_a_killed_study_goes_on_here_and_elsewhere(tmp_path, model, here, machine, monkeypatch, where):
    url = f"file://{tmp_path}/bucket/run"
    process = FRESH.Process(target=killed_while_pushing, args=(model, url, str(machine("first")), "00002.parquet"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert units(url) == {0, 1, 2}
    machine(where)
    if where == "second":  # nobody knows yet that the first is gone
        with pytest.raises(
            RunError, match=rf"is being written by .* wait 5 minutes or delete .*/{NOTE}, and give the same"
        ):
            ds.study(model, out=url, **HOW)
        (tmp_path / "bucket" / "run" / NOTE).unlink()
    measured = end_after(monkeypatch, UNITS)
    if where == "second":
        with pytest.warns(DamageWarning, match="This unit is computed again"):
            ds.study(model, out=url, **HOW)
        assert sorted(measured) == [2, 3, 4]
    else:  # whatever this machine has measured is still whole here
        ds.study(model, out=url, **HOW)
        assert not set(measured) & {0, 1, 2}
    assert stored(url) == here


def test_a_shard_that_is_cut_at_the_url_is_measured_again(url, model, here, monkeypatch):
    ds.study(model, out=url, **HOW)
    shard = "shards/sweep/00003.parquet"
    put(url, shard, here[shard][:-20])
    measured = end_after(monkeypatch, UNITS)
    with pytest.warns(DamageWarning, match=r"00003\.parquet is damaged"):
        ds.study(model, out=url, **HOW)
    assert measured == [3]
    assert stored(url) == here


def test_what_is_deleted_at_the_url_does_not_come_back_from_the_copy(url, model, here, monkeypatch):
    ds.study(model, out=url, **HOW)
    files, root = fsspec.url_to_fs(url)
    files.rm(root, recursive=True)
    measured = end_after(monkeypatch, UNITS)
    changed: dict[str, Any] = {"edits": ["swap"]}
    ds.study(model, out=url, **(HOW | changed))
    assert len(measured) == UNITS
    assert stored(url).keys() == here.keys()


def failing(monkeypatch, url: str, times: float, name: str = ".parquet") -> list[str]:
    """The uploads that fail from now on: the first ones of files with a name that ends so."""
    kind = type(fsspec.url_to_fs(url)[0])
    failed, upload = [], kind.put_file

    def refused(self, path, target, **more):
        if target.endswith(name) and len(failed) < times:
            failed.append(target)
            raise ConnectionResetError(104, "Connection reset by peer")
        return upload(self, path, target, **more)

    monkeypatch.setattr(kind, "put_file", refused)
    return failed


def test_a_push_that_fails_for_a_moment_is_tried_again(url, model, here, monkeypatch):
    failed = failing(monkeypatch, url, times=3)
    ds.study(model, out=url, **HOW)
    assert len(failed) == 3
    assert stored(url) == here


def test_pushes_that_keep_failing_end_the_study_and_the_copy_is_kept_and_pushed_later(
    url, model, here, machine, monkeypatch
):
    failing(monkeypatch, url, times=float("inf"), name="00001.parquet")
    with pytest.raises(RunError, match=r"cannot be written: .*Connection reset by peer.* is kept on this machine, in "):
        ds.study(model, out=url, **HOW)
    assert 1 not in units(url)
    kept = {int(file.stem) for file in copies_folder().glob("*/run/shards/sweep/*.parquet")}
    assert {0, 1} <= kept
    monkeypatch.undo()
    machine("first")
    measured = end_after(monkeypatch, UNITS)
    ds.study(model, out=url, **HOW)
    assert not kept & set(measured)
    assert stored(url) == here


def interrupted(url: str, end: type[BaseException], *names: str) -> None:
    """Write files without telling of them, then end with an exception."""
    with destination(url) as directory:
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text("{}")
        raise end


def test_an_error_with_failing_pushes_is_told_with_what_is_missing_at_the_url(url, monkeypatch):
    failing(monkeypatch, url, times=float("inf"), name="run.json")
    with pytest.warns(RemoteWarning, match="is kept on this machine"), pytest.raises(InterruptionError):
        interrupted(url, InterruptionError, "run.json")


def test_the_rest_is_pushed_whatever_ends_a_study_and_what_is_deleted_is_deleted_there(url):
    with pytest.raises(KeyboardInterrupt):
        interrupted(
            url,
            KeyboardInterrupt,
            "model/config.json",
            "lenses/tuned/training.safetensors",
            "lenses/tuned/config.json.unfinished",
        )
    assert set(at(url)) == {"model/config.json", "lenses/tuned/training.safetensors"}
    with destination(url) as directory:
        (directory / "lenses/tuned/training.safetensors").unlink()
    assert set(at(url)) == {"model/config.json"}


def test_a_file_is_pushed_after_those_it_speaks_of(url, monkeypatch):
    pushed, upload = [], Remote.put
    monkeypatch.setattr(Remote, "put", lambda self, file, name: (pushed.append(name), upload(self, file, name))[1])
    with destination(url) as directory:
        for name in ("tables/sweep.parquet", "run.json", "stages.json"):
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text("{}")
    assert pushed == ["stages.json", "tables/sweep.parquet", "run.json"]


def note(copy: str, age: timedelta) -> bytes:
    moment = (datetime.now(UTC) - age).isoformat()
    return json.dumps({"host": "node-7", "pid": 12, "time": moment, "copy": copy}).encode()


def test_a_second_writer_is_refused_before_anything_is_read(url, model, machine):
    with destination(url):
        machine("second")
        with pytest.raises(RunError, match=r"is being written by .*, seen \d s ago\): wait"):
            ds.study("no-such-model", out=url, **HOW)
        assert not (copies_folder() / "run").exists()
    put(url, NOTE, note("another", timedelta(seconds=GONE + 5)))
    with destination(url):  # whoever wrote that note is gone
        assert b"node-7" not in at(url)[NOTE]


def test_a_second_writer_on_this_machine_is_refused(url, machine):
    with destination(url), pytest.raises(RunError, match="is being written by another process"), destination(url):
        pass


def test_a_writer_whose_place_was_taken_ends(url, monkeypatch):
    taken = WriterNote(Remote(url), "mine")
    taken.take()
    put(url, NOTE, note("another", timedelta()))
    taken.renew()  # it is not time yet
    monkeypatch.setattr("depthscope.run.writer_note.RENEWED", 0)
    with pytest.raises(RunError, match=r"is now written by node-7 \(process 12"):
        taken.renew()
    taken.remove()
    assert b"node-7" in at(url)[NOTE]


def test_other_files_are_neither_pulled_nor_mixed_with_a_run(url, machine):
    put_file = fsspec.url_to_fs(url)[0]
    put_file.makedirs(fsspec.url_to_fs(url)[1], exist_ok=True)
    put(url, "holiday.jpg", b"sea")
    with pytest.raises(RunError, match=r"holds other files \(holiday\.jpg\)"), destination(url):
        pass
    put(url, "run.json", b"{}")
    assert [file.name for file in local_copy(url).iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["tables/../../../stolen", "tables//x", "tables/.lock", "notes.txt", "tables/a\\b"])
def test_names_that_lead_elsewhere_are_not_followed(name):
    assert not mirror._is_own(name)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("nowhere://bucket/run", "unknown protocol 'nowhere'"),
        ("s3://bucket/run", "needs a package that is not installed (Install s3fs to access S3): pip install s3fs"),
    ],
)
def test_a_url_that_cannot_be_opened_is_one_line_from_the_shell(out, says, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for given in (("study", "no-such-model", "--out", out), ("check", out), ("report", out)):
        assert command(*given, monkeypatch=monkeypatch) == 2
        said = capsys.readouterr().err
        assert says in " ".join(said.split())
        assert "Traceback" not in said
    with pytest.raises(DepthscopeError, match=r"protocol|package"):
        ds.study("no-such-model", out=out, progress=False)


def test_what_is_no_url(tmp_path):
    assert is_url("s3://bucket/run")
    assert not any(is_url(place) for place in ("runs/first", tmp_path, Path("C:/runs"), "a:b"))
    with pytest.raises(DepthscopeError, match="was a URL before it became a Path"):
        is_url(Path("s3://bucket/run"))
    assert shown_place("ftp://me:secret@host/run") == "ftp://host/run"


def test_the_shell_writes_page_and_tables_to_a_url_and_reads_them(url, model, machine, monkeypatch, capsys):
    assert command(*shell(model), "--out", url, monkeypatch=monkeypatch) == 0
    assert f"kept {url}" in " ".join(capsys.readouterr().out.split())
    assert {"run.json", "report.html", "tables/sweep.parquet"} <= at(url).keys()
    machine("second")
    assert command("check", url, monkeypatch=monkeypatch) == 0
    assert "are intact" in capsys.readouterr().out
    assert command("report", url, monkeypatch=monkeypatch) == 0


def test_the_shell_says_in_one_line_what_could_not_be_pushed(url, model, monkeypatch, capsys):
    failing(monkeypatch, url, times=float("inf"))
    assert command(*shell(model), "--out", url, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert "is kept on this machine" in " ".join(said.split())
    assert "Traceback" not in said


def test_a_series_goes_on_at_a_url(url, model, machine, tmp_path):
    recipe = tmp_path / "two.toml"
    settings = 'experiments = ["sweep"]\nedits = ["drop"]\nwindow = 16\n'
    models = f'[[models]]\nname = "one"\nmodel = "{model}"\n'
    text = '[[texts]]\ndata = "bookshelf"\ntokens = 32\n'
    recipe.write_text(settings + models + text)
    first = ds.study_recipe(recipe, out=url, progress=False)
    assert {"series.json", "index.html", *(f"runs/{name}/report.html" for name in first.studies)} <= at(url).keys()
    before = {name: content for name, content in at(url).items() if name.startswith("runs/")}
    machine("second")
    shutil.copytree(model, tmp_path / "copy")
    recipe.write_text(settings + models + f'[[models]]\nname = "two"\nmodel = "{tmp_path / "copy"}"\n' + text)
    series = ds.study_recipe(recipe, out=url, progress=False)
    assert len(series.studies) == 2
    assert not series.failed
    there = at(url)
    assert {name: there[name] for name in before if name.endswith("parquet")} == {
        name: content for name, content in before.items() if name.endswith("parquet")
    }
    machine("third")
    assert list(ds.Series(url).studies) == list(series.studies)


def test_nothing_is_told_of_a_directory(tmp_path, model, monkeypatch):
    with destination(tmp_path / "run") as directory, warnings.catch_warnings():
        assert directory == tmp_path / "run"
    assert not (tmp_path / "first").exists()
