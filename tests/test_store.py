import json
import stat
import subprocess
import sys
from dataclasses import replace

import polars as pl
import pytest

from depthscope.errors import RunError, RunMismatchError
from depthscope.run.files import atomic_file
from depthscope.run.store import RunDirectory
from depthscope.run.units import Done, LocalRunner, run_units, work_units
from depthscope.schema.manifest import Settings

FRAME = pl.DataFrame({"a": [1, 2]})
NONE = Settings.from_json({})


def test_a_run_is_written_and_read_back(tmp_path):
    settings = Settings.from_json({"model": "m", "experiments": {"sweep": {"edits": ("swap",)}}})
    with RunDirectory.writing(tmp_path / "run", settings, {"versions": {}}) as run:
        run.write_shard("sweep", 0, FRAME)
        run.write_table("sweep", FRAME)
        run.update(status="complete")
    back = RunDirectory.reading(tmp_path / "run")
    assert (back.settings.model, back.settings.of("sweep")) == ("m", {"edits": ["swap"]})
    assert back.complete
    assert back.table("sweep").equals(FRAME)
    assert [shard.equals(FRAME) for shard in back.shards("sweep", 1)] == [True]


def test_other_settings_are_refused_and_named(tmp_path):
    there, asked = (
        Settings.from_json({"tokens": tokens, "later": {"edits": [edit]}})
        for tokens, edit in ((10, "swap"), (20, "drop"))
    )
    with RunDirectory.writing(tmp_path, there, {}):
        pass
    with (
        pytest.raises(RunMismatchError, match=r"tokens: 10 stored, 20 requested") as caught,
        RunDirectory.writing(tmp_path, asked, {}),
    ):
        pass
    assert caught.value.differences == {"tokens": (10, 20), "later.edits": (["swap"], ["drop"])}


def test_a_second_writer_is_refused_and_the_first_undisturbed(tmp_path):
    attempt = (
        "import sys; from depthscope.run.store import RunDirectory\n"
        "from depthscope.schema.manifest import Settings\n"
        "from depthscope.errors import RunError\n"
        "try:\n    RunDirectory.writing(sys.argv[1], Settings.from_json({}), {}).__enter__()\n"
        "except RunError as error:\n    print(error)"
    )
    with RunDirectory.writing(tmp_path, NONE, {}):
        done = subprocess.run(
            [sys.executable, "-c", attempt, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert "is being written by another process" in done.stdout
    done = subprocess.run([sys.executable, "-c", attempt, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_other_peoples_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds other files \(thesis.tex\)"), RunDirectory.writing(tmp_path, NONE, {}):
        pass


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"), RunDirectory.writing(tmp_path / "file", NONE, {}):
        pass


def test_a_directory_that_cannot_be_written():
    with pytest.raises(RunError, match="cannot be written"), RunDirectory.writing("/proc/depthscope-run", NONE, {}):
        pass


def test_a_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "file"

    def stopped_half_way():
        with atomic_file(target) as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        stopped_half_way()
    assert list(tmp_path.iterdir()) == []
    with atomic_file(target) as stream:
        stream.write(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert stat.S_ISREG(target.stat().st_mode)


def test_what_is_not_a_run_is_named(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        RunDirectory.reading(tmp_path)
    manifest = tmp_path / "run.json"
    for text, says in (
        ("{", "cannot be read"),
        ("[]", "run.json is damaged: expected an object"),
        ('{"format": 1}', "run.json is damaged: it lacks settings"),
        ('{"settings": {}, "format": 99}', "format 99: this depthscope reads formats up to 2. Open it with a newer"),
    ):
        manifest.write_text(text)
        with pytest.raises(RunError, match=says):
            RunDirectory.reading(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path):
    with RunDirectory.writing(tmp_path, NONE, {}) as run:
        run.write_shard("sweep", 0, FRAME)
        run.shard_path("sweep", 0).write_bytes(b"damaged")
        with pytest.raises(RunError, match=r"00000.parquet is damaged.*\. Run the study again: it makes again what is"):
            list(run.shards("sweep", 1))
        run.write_shard("sweep", 0, FRAME)
        with pytest.raises(RunError, match=r"00001\.parquet is missing"):
            list(run.shards("sweep", 2))
        with pytest.raises(RunError, match="has no table 'lens': it has none yet"):
            run.table("lens")


def test_units_cover_every_window_once():
    units = work_units(10, 4)
    assert [(unit.index, unit.start, unit.stop) for unit in units] == [(0, 0, 4), (1, 4, 8), (2, 8, 10)]


def test_units_with_a_shard_are_not_done_again(tmp_path):
    asked = []

    def work(task):
        unit, missing = task
        asked.append((unit, list(missing)))
        return Done(dict.fromkeys(missing, FRAME))

    with RunDirectory.writing(tmp_path, NONE, {}) as run:
        run.write_shard("sweep", 1, FRAME)
        run.write_shard("lens", 1, FRAME)
        run.write_shard("lens", 2, FRAME)
        units = run_units(run, ["sweep", "lens"], 3, lambda *task: task, LocalRunner(work))
        assert list(units) == [0, 1, 2]
        assert all(len(list(run.shards(name, 3))) == 3 for name in ("sweep", "lens"))
    assert asked == [(0, ["sweep", "lens"]), (2, ["sweep"])]


class Backwards:
    """A runner that takes three tasks at a time and does the last one first."""

    halved = 0

    def __init__(self):
        self.taken = []

    @property
    def room(self):
        return 3 - len(self.taken)

    def ahead(self, in_order):
        return 3 if in_order else None

    def submit(self, unit, task):
        self.taken.append((unit, {"sweep": FRAME}))

    def next(self):
        return self.taken.pop()


def test_units_that_are_done_in_any_order_are_yielded_in_order(tmp_path):
    with RunDirectory.writing(tmp_path, NONE, {}) as run:
        run.write_shard("sweep", 2, FRAME)
        for unit in run_units(run, ["sweep"], 8, lambda *task: task, Backwards()):
            assert all(run.has_shard("sweep", earlier) for earlier in range(unit + 1))
        assert unit == 7


def test_nothing_is_stored_of_units_after_the_one_that_a_goal_stops_at(tmp_path):
    with RunDirectory.writing(tmp_path, NONE, {}) as run:
        for unit in run_units(run, ["sweep"], 8, lambda *task: task, Backwards(), in_order=True):
            if unit == 4:
                break
        assert [run.has_shard("sweep", one) for one in range(8)] == [True] * 5 + [False] * 3


def test_experiments_join_a_run_but_must_agree_where_both_are(tmp_path):
    base = Settings.from_json({"tokens": 1})
    with RunDirectory.writing(tmp_path, replace(base, experiments={"sweep": {"edits": ["swap"]}}), {}) as run:
        run.finish(["sweep"])
        assert run.complete
    with RunDirectory.writing(tmp_path, replace(base, experiments={"lens": {"protocol": "text"}}), {}) as run:
        assert run.settings.experiments == {"sweep": {"edits": ["swap"]}, "lens": {"protocol": "text"}}
        assert not run.complete
        run.finish(["lens"])
        assert RunDirectory.reading(tmp_path).complete
    other = replace(base, experiments={"lens": {"protocol": "lad2024"}})
    with pytest.raises(RunMismatchError, match=r"experiments\.lens\.protocol: 'text' stored, 'lad2024' requested"):
        RunDirectory.writing(tmp_path, other, {}).__enter__()


def test_the_manifest_is_readable(tmp_path):
    with RunDirectory.writing(tmp_path, replace(NONE, model="schön"), {}):
        pass
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert "schön" in text
    assert json.loads(text)["status"] == "running"


def test_killed_before_there_was_a_manifest(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "run.json.unfinished").write_text("{")
    with RunDirectory.writing(tmp_path, replace(NONE, tokens=1), {}):
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "run.json"]


def test_versions_a_run_was_begun_with_are_kept(tmp_path):
    for torch in ("1", "1", "2"):
        with RunDirectory.writing(tmp_path, NONE, {"versions": {"torch": torch}}) as run:
            pass
    assert run.manifest.versions == {"torch": "2"}
    assert run.manifest.earlier_versions == [{"torch": "1"}]
    run.update(status="complete")
    with RunDirectory.writing(tmp_path, NONE, {"versions": {"torch": "3"}}) as run:
        assert run.manifest.earlier_versions == [{"torch": "1"}], "all shards were there already"
