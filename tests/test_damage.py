"""Damaged, lost, swapped and foreign files: nothing damaged is believed, nothing measured is lost, nobody's file is touched."""

import errno
import json
import os
import random
import resource
import shutil
from pathlib import Path

import pytest
from test_study import contents
from test_sweep import save
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.errors import DamagedError, DamageWarning, DepthscopeError, RunError, RunMismatchError
from depthscope.experiments.lens_state import FILE, LensState
from depthscope.experiments.lens_sums import LensSums
from depthscope.experiments.tuned_lens import CONFIG, FORMAT, PARAMS, TunedLens, describe
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.report.page import write_page
from depthscope.report.page_file import require_replaceable
from depthscope.run import files
from depthscope.run.check import State, check_run
from depthscope.run.layout import stored_shards
from depthscope.run.store import RunDirectory

NAMES = ("sweep", "lens", "norms", "stages")
STUDY = {"window": 16, "unit_tokens": 48, "edits": ["drop"], "experiments": NAMES, "progress": False}
NOT_BELIEVED = "noticed, whichever bit or file it is: nothing damaged is read as a number"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return load(save("gpt2", tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def whole(model, few, tmp_path_factory) -> Path:
    """A finished run with its page."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return studied(model, few, out).report().parent


@pytest.fixture(scope="module")
def other(model, few, tmp_path_factory) -> Path:
    """A run of the same model on less text."""
    out = tmp_path_factory.mktemp("other") / "run"
    return ds.study(model, ds.corpus(str(few), tokens=96), out=out, **STUDY).path


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def studied(model: Model, text: Path, out: Path, **changed: object) -> ds.Study:
    return ds.study(model, ds.corpus(str(text)), out=out, **{**STUDY, **changed})


def stored(run: Path) -> list[Path]:
    """Every file of a run that is relied on."""
    return sorted(file for file in run.rglob("*") if file.is_file() and file.name != ".lock")


def read(file: Path, run: Path) -> None:
    """Read a file of a run as the program does."""
    if file.name == "report.html":
        require_replaceable(file)
        return
    opened = RunDirectory.reading(run)
    if file.parent.name == "tables":
        opened.table(file.stem)
    elif file.suffix == ".parquet":
        opened.shard(file.parent.name, int(file.stem))
    elif file.name == "stages.json":
        assert opened.stages is not None


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def states(run: Path) -> dict[str, State]:
    return {one.file.as_posix(): one.state for one in check_run(run) if one.state is not State.INTACT}


@pytest.mark.fault("one bit of a file of a run is flipped", NOT_BELIEVED)
def test_a_flipped_bit_is_never_believed(run, tries):
    chance = random.Random(15)
    there = stored(run)
    for file in there:
        read(file, run)
    for _ in range(tries(30, of=1500)):
        file = chance.choice(there)
        content = file.read_bytes()
        file.write_bytes(flipped(content, chance))
        with pytest.raises(RunError):
            read(file, run)
        file.write_bytes(content)


@pytest.mark.fault("a file of a run is cut, at a random place or to nothing", NOT_BELIEVED)
def test_a_cut_file_is_never_believed(run, tries):
    chance = random.Random(16)
    for number in range(tries(30, of=300)):
        file = chance.choice(stored(run))
        content = file.read_bytes()
        file.write_bytes(content[: 0 if number % 10 == 0 else chance.randrange(len(content))])
        with pytest.raises(RunError):
            read(file, run)
        file.write_bytes(content)


@pytest.mark.fault("one bit of a tuned lens or of the state of its training is flipped", NOT_BELIEVED)
def test_a_flipped_bit_of_a_lens_is_never_believed(model, tmp_path, tries):
    chance = random.Random(17)
    lens = TunedLens.identity(model)
    lens.config = {"format": FORMAT, "model": describe(model)}
    lens.save(tmp_path)
    state = LensState({"text": "a"}, LensSums.empty(model))
    state.store(tmp_path, now=True)
    TunedLens.load(tmp_path, model)
    assert LensState.resume(tmp_path, model) is not None
    for _ in range(tries(20, of=300)):
        file = tmp_path / chance.choice((PARAMS, CONFIG, FILE))
        content = file.read_bytes()
        file.write_bytes(flipped(content, chance))
        if file.name == FILE:
            with pytest.warns(DamageWarning, match="trained from the beginning"):
                assert LensState.resume(tmp_path, model) is None
        else:
            with pytest.raises(DepthscopeError):
                TunedLens.load(tmp_path, model)
        file.write_bytes(content)


@pytest.mark.fault(
    "files of a run are flipped, cut, deleted or exchanged at random, and the study is run again",
    "what was damaged is computed again, which is said; tables and stages are the same bytes",
)
def test_a_damaged_run_is_completed_to_the_same_bytes(model, few, whole, tmp_path, tries):
    chance = random.Random(18)
    for number in range(tries(2, of=12)):
        run = Path(shutil.copytree(whole, tmp_path / str(number)))
        shards = [file for _, _, file in stored_shards(run)]
        hurt = chance.sample(shards, 3)
        hurt[0].write_bytes(flipped(hurt[0].read_bytes(), chance))
        hurt[1].write_bytes(hurt[1].read_bytes()[: chance.randrange(100)])
        chance.choice([file for file in shards if file not in hurt]).unlink()
        shutil.copy(chance.choice([file for file in shards if file != hurt[2] and file.exists()]), hurt[2])
        for file in (run / "stages.json", chance.choice(list((run / "tables").iterdir()))):
            file.write_bytes(flipped(file.read_bytes(), chance))
        with pytest.warns(DamageWarning, match="This unit is computed again") as said:
            studied(model, few, run)
        assert {str(file) for file in hurt} == {next(f"{f}" for f in hurt if f"{f} " in f"{w.message}") for w in said}
        assert contents(run) == contents(whole)
        assert states(run) == {}


@pytest.mark.fault(
    "a shard is replaced by that of another unit, experiment or run", "noticed, and computed again; same tables"
)
@pytest.mark.parametrize("source", ["unit", "experiment", "run"])
def test_a_shard_of_something_else_is_not_taken(source, run, other, whole, model, few):
    own = run / "shards" / "sweep" / "00001.parquet"
    shutil.copy(
        {
            "unit": run / "shards" / "sweep" / "00000.parquet",
            "experiment": run / "shards" / "lens" / "00001.parquet",
            "run": other / "shards" / "sweep" / "00001.parquet",
        }[source],
        own,
    )
    opened = RunDirectory.reading(run)
    with pytest.raises(
        DamagedError, match="made with other settings" if source == "run" else "expected shard sweep of"
    ):
        list(opened.shards("sweep", 2))
    assert states(run) == {"shards/sweep/00001.parquet": State.DAMAGED}
    with pytest.warns(DamageWarning, match="computed again"):
        studied(model, few, run)
    assert contents(run) == contents(whole)


@pytest.mark.fault("a table or stages.json is replaced by that of another table or run", "noticed when it is read")
def test_a_table_of_something_else_is_not_read(run, other):
    shutil.copy(run / "tables" / "norms.parquet", run / "tables" / "lens.parquet")
    for name in ("tables/sweep.parquet", "stages.json"):
        shutil.copy(other / name, run / name)
    opened = RunDirectory.reading(run)
    with pytest.raises(DamagedError, match="expected table lens, got table norms"):
        opened.table("lens")
    with pytest.raises(DamagedError, match="was made with other settings"):
        opened.table("sweep")
    with pytest.raises(DamagedError, match="was made with other settings"):
        opened.stages  # noqa: B018
    damaged = dict.fromkeys(("tables/lens.parquet", "tables/sweep.parquet", "stages.json"), State.DAMAGED)
    assert states(run) == damaged


LOSSES = {
    "deleted": lambda content: None,
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by its last line": lambda content: content[:-2],
    "one digit changed": lambda content: content.replace(b'"window": 16', b'"window": 17'),
    "of zeros": lambda content: bytes(len(content)),
}


@pytest.mark.fault(
    "run.json is deleted, emptied, cut, changed or zeroed",
    "the same command resumes from all shards and says so; other settings are refused, and reading says what to do",
)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_manifest_loses_nothing(loss, run, whole, model, few):
    manifest = run / "run.json"
    content = LOSSES[loss](manifest.read_bytes())
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    before = {file: file.stat().st_mtime_ns for _, _, file in stored_shards(run)}
    with pytest.raises(RunError, match=r"give the command that made (this|the) run again"):
        RunDirectory.reading(run)
    assert states(run)["run.json"] in (State.MISSING, State.DAMAGED)
    with pytest.raises(RunError, match=r"was made with other settings than those requested\. Give the command"):
        studied(model, few, run, window=20)
    with pytest.warns(DamageWarning, match=r"run\.json .*: the run is resumed from \d+ files that were made with the"):
        studied(model, few, run)
    assert before == {file: file.stat().st_mtime_ns for _, _, file in stored_shards(run)}
    assert contents(run) == contents(whole)
    assert RunDirectory.reading(run).complete
    assert states(run) == {}


@pytest.mark.fault("run.json is replaced by that of another run", "refused: nothing is read or computed with it")
def test_a_manifest_of_another_run_is_refused(run, other, model, few):
    shutil.copy(other / "run.json", run / "run.json")
    with pytest.raises(RunMismatchError, match=r"tokens: 96 stored(.|\n)*its shards were made with the requested ones"):
        studied(model, few, run)
    for name in ("sweep", "lens", "norms"):
        with pytest.raises(DamagedError, match="was made with other settings"):
            RunDirectory.reading(run).table(name)


@pytest.mark.fault("run.json and all shards are damaged", "refused; nothing is deleted")
def test_nothing_intact_to_resume_from_is_refused(tmp_path, model, few):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DamagedError, match=r"run\.json cannot be read: .*\. No intact file there states its"):
        studied(model, few, tmp_path)
    assert (tmp_path / "run.json").read_text() == "{"


@pytest.mark.fault("somebody's files are in the directory or in the run", "refused or left alone: every byte is there")
def test_other_peoples_files_survive(run, tmp_path, model, few):
    theirs = tmp_path / "theirs"
    for name in ("thesis.unfinished", "run.json.unfinished.tex", "report.html"):
        theirs.mkdir()
        (theirs / name).write_text("years of work")
        with pytest.raises(RunError, match=rf"holds other files \({name}\)"):
            studied(model, few, theirs)
        assert [file.name for file in theirs.iterdir()] == [name]
        shutil.rmtree(theirs)
    kept = ("notes/chapter.unfinished", "shards/mine.unfinished", "tables/mine.parquet.unfinished", "a.unfinished")
    own = ("run.json.unfinished", "shards/sweep/00000.parquet.unfinished", "tables/sweep.parquet.unfinished")
    for name in (*kept, *own):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("years of work")
    assert states(run) == {**dict.fromkeys(kept, State.FOREIGN), **dict.fromkeys(own, State.UNFINISHED)}
    studied(model, few, run)
    assert all((run / name).read_text() == "years of work" for name in kept)
    assert not any((run / name).exists() for name in own)


@pytest.mark.fault("a link with the name of a temporary file leads to somebody's file", "the file is not written to")
def test_a_link_in_place_of_a_temporary_file_is_not_followed(run, tmp_path, model, few):
    (tmp_path / "thesis").write_text("years of work")
    (run / "run.json.unfinished").symlink_to(tmp_path / "thesis")
    studied(model, few, run)
    files.write_file(tmp_path / "new", b"content")
    (tmp_path / "new.unfinished").symlink_to(tmp_path / "thesis")
    files.write_file(tmp_path / "new", b"more")
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert (tmp_path / "new").read_bytes() == b"more"


@pytest.mark.fault(
    "a page was changed by hand, or another file has its name", "not overwritten, and said before anything is measured"
)
def test_a_page_changed_by_hand_is_not_overwritten(run, other, few, tmp_path, monkeypatch):
    page = run / "report.html"
    write_page(RunDirectory.reading(run), page)  # as it was written: replaced
    edited = page.read_text(encoding="utf-8").replace("<h1>", "<h1>My notes: ", 1)
    page.write_text(edited, encoding="utf-8")
    said = r"changed after depthscope wrote it, so it is not overwritten\. Move it or delete it"
    with pytest.raises(RunError, match=said):
        ds.Study(run).report()
    monkeypatch.setattr("depthscope.cli.options.load_quietly", lambda *about: pytest.fail("the model was loaded"))
    result = CliRunner().invoke(app, ["study", "--data", str(few), "--out", str(run)])
    assert isinstance(result.exception, RunError)
    assert page.read_text(encoding="utf-8") == edited
    notes = tmp_path / "notes.html"
    notes.write_text("<p>mine")
    for command in (["report", run, "--out", notes], ["compare", run, other, "--out", notes]):
        result = CliRunner().invoke(app, [str(argument) for argument in command])
        assert "notes.html is not a page that depthscope wrote" in str(result.exception)
    assert notes.read_text() == "<p>mine"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RunError, match="not a regular file"):
        ds.Study(run).report(tmp_path / "fifo")


@pytest.mark.fault(
    "the disk is full at a random write of a study", "one message, nothing half written, and the same command goes on"
)
def test_a_full_disk_is_one_message_and_the_study_goes_on(whole, model, few, tmp_path, monkeypatch, tries):
    flush, chance = os.fsync, random.Random(19)
    written, moment = 0, 0

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == moment:
            reason = chance.choice((errno.ENOSPC, errno.EDQUOT))
            raise OSError(reason, os.strerror(reason))
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    studied(model, few, tmp_path / "counted")
    in_all = written
    assert in_all > 50
    for number in range(tries(2, of=24)):
        run = tmp_path / str(number)
        written, moment = 0, chance.randint(1, in_all)
        with pytest.raises(RunError, match=r"cannot be written: .*\. Free some space and run the same command again"):
            studied(model, few, run)
        assert not list(run.rglob("*.unfinished"))
        assert not (run / "run.json").exists() or states(run) == {}
        moment = 0
        studied(model, few, run)
        assert contents(run) == contents(whole)


@pytest.mark.fault(
    "the system refuses to let files grow, under Parquet, JSON and page alike", "one message, no traceback"
)
@pytest.mark.parametrize("most", [0, 100, 2000, 20_000])
def test_a_refused_write_is_our_error(most, run, tmp_path):
    opened = RunDirectory.reading(run)
    table = opened.table("sweep")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        refused = []
        for write in (
            lambda: opened.write_table("sweep", table),
            lambda: opened.write_shard("sweep", 0, table),
            opened.update,
            lambda: opened.finish(["sweep"]),
            lambda: write_page(opened, tmp_path / "page.html"),
        ):
            try:
                write()
            except RunError as error:
                refused.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(refused) > 0
    assert all("cannot be written: File too large" in message for message in refused)
    assert not list(tmp_path.rglob("*.unfinished"))
    assert states(run) == {} or most == 20_000


@pytest.mark.fault(
    "the power fails right after a file was written", "its bytes and its name were flushed to disk, in order"
)
def test_a_file_and_its_directory_are_flushed(tmp_path, monkeypatch):
    done = []
    flush, move = os.fsync, Path.replace

    def noted(descriptor: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("renamed"), move(self, to))[1])
    files.write_file(tmp_path / "new" / "deep" / "file", b"content")
    folder = str(tmp_path)
    made = {folder, f"{folder}/new"}
    assert set(done[:2]) == made
    assert done[2:] == [f"{folder}/new/deep/file.unfinished", "renamed", f"{folder}/new/deep"]


def test_check_lists_what_is_whole_and_what_is_not(run):
    def checked() -> tuple[int, str]:
        result = CliRunner().invoke(app, ["check", str(run)], catch_exceptions=False)
        return result.exit_code, result.output

    code, said = checked()
    assert code == 0
    assert f"all {len(stored(run))} files with a checksum are intact" in said
    (run / "notes.txt").write_text("mine")
    (run / "shards" / "lens" / "00000.parquet").unlink()
    for name in ("tables/sweep.parquet", "report.html"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:500] + b"x" + content[501:])
    code, said = checked()
    assert code == 1
    for words in (
        "damaged: tables/sweep.parquet: its content does not match its checksum",
        "damaged: report.html: its content does not match its checksum",
        "missing: shards/lens/00000.parquet",
        "not depthscope's: notes.txt",
        "give the command that made this run again",
        "move or delete report.html",
    ):
        assert words in said, words
    result = CliRunner().invoke(app, ["check", str(run / "tables")])
    assert "holds no run" in str(result.exception)


def test_a_run_begun_before_there_were_checksums_is_completed(run, whole, model, few):
    """Its files are read without verification, as before; those written now have a checksum."""
    content = json.loads((run / "run.json").read_text())
    earlier = {key: content[key] for key in content if key not in ("seal", "units", "tables", "stages")}
    (run / "run.json").write_text(json.dumps(earlier | {"format": 1}))
    frame = RunDirectory.reading(run).shard("norms", 0)
    frame.write_parquet(run / "shards" / "norms" / "00000.parquet")
    assert states(run) == {"run.json": State.UNVERIFIED, "shards/norms/00000.parquet": State.UNVERIFIED}
    (run / "shards" / "lens" / "00000.parquet").write_bytes(b"damaged")
    with pytest.warns(DamageWarning, match=r"lens/00000\.parquet is damaged .*This unit is computed again"):
        studied(model, few, run)
    assert contents(run) == contents(whole)
    assert RunDirectory.reading(run).manifest.unsealed
    assert states(run)["shards/norms/00000.parquet"] is State.UNVERIFIED
