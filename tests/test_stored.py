"""run.json and stages.json as classes: entries are checked, files of earlier and later versions read, and none changed."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from depthscope.api.study import Study
from depthscope.errors import RunError, RunMismatchError
from depthscope.models.adapter import Adapter
from depthscope.models.facts import ModelFacts
from depthscope.models.noise_floor import NoiseFloor
from depthscope.report.page import render
from depthscope.run.store import RunDirectory
from depthscope.schema.found_stages import Stages
from depthscope.schema.manifest import AdapterEntry, Manifest, ModelEntry, NoiseFloorEntry, Unmeasured

BEFORE = Path(__file__).parent / "data" / "run-before-formats"
"""A run made when stages.json had no format, with the settings of `depthscope study --tokens 1024 --window 256`."""
FILES = {"run.json": Manifest, "stages.json": Stages}


@pytest.fixture
def before(tmp_path) -> Path:
    return Path(shutil.copytree(BEFORE, tmp_path / "run"))


def content(name: str) -> dict:
    return json.loads((BEFORE / name).read_text(encoding="utf-8"))


def places(value, path=()):
    """The path of every entry, of lists their first."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from places(one, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def holder(value, path):
    """The object or list that the last step of a path leads into."""
    for step in path[:-1]:
        value = value[step]
    return value


def refusal(kind, file) -> str | None:
    """Why a file is not read; None where it is."""
    try:
        kind.read(file)
    except RunError as error:
        return str(error)
    return None


def written(path) -> str:
    """A path as messages have it."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)[1:]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_before_is_read_and_written_as_it_was_but_for_its_format(name):
    found = FILES[name].read(BEFORE / name)
    unsealed = {"unsealed": True} if name == "run.json" else {}
    now = {"format": 0} | content(name) | {"format": found.format} | unsealed
    again = json.dumps(now, indent=2, ensure_ascii=False)
    assert json.dumps(found.to_json(), indent=2, ensure_ascii=False) == again
    assert FILES[name].from_json(json.loads(again)) == found


def test_a_run_of_before_opens_and_resumes_and_its_manifest_keeps_every_entry(before):
    earlier = json.loads((before / "run.json").read_text(encoding="utf-8"))
    run = RunDirectory.reading(before)
    assert (run.settings.model, run.settings.tokens, run.manifest.model.layers) == ("bookshelf-gpt2", 1024, 12)
    assert Study(before).stages.boundaries[0].layer == 1
    assert "Feature engineering + prediction ensembling" in render(run)
    texts = []
    for _ in range(2):
        with RunDirectory.writing(before, run.settings, {"versions": run.manifest.versions}) as again:
            again.finish([])
        texts.append((before / "run.json").read_text(encoding="utf-8"))
    written = json.loads(texts[0])
    assert written == earlier | {"format": 2, "unsealed": True, "seal": written["seal"]}
    assert list(written)[-1] == "seal"
    assert texts[0] == texts[1]
    other = replace(run.settings, tokens=2048)
    with pytest.raises(RunMismatchError, match="tokens: 1024 stored, 2048 requested"):
        RunDirectory.writing(before, other, {}).__enter__()


def test_stages_of_before_may_lack_what_was_added_later(tmp_path):
    earlier = content("stages.json")
    del earlier["unnamed_changes"], earlier["method"]
    (tmp_path / "stages.json").write_text(json.dumps(earlier))
    found = Stages.read(tmp_path / "stages.json")
    assert (found.unnamed_changes, found.method) == ([], {})
    assert found.summary == earlier["summary"]


@pytest.mark.parametrize("name", FILES)
def test_every_entry_is_checked_and_the_message_says_which_what_was_expected_and_what_to_do(name, tmp_path):
    checked = 0
    for path in places(content(name)):
        if (path[:2] == ("settings", "experiments") and len(path) > 3) or (path[0] == "method" and len(path) > 1):
            continue  # an experiment's own settings, and how many changes there were, may hold anything
        damaged = content(name)
        around = holder(damaged, path)
        around[path[-1]] = 7 if isinstance(around[path[-1]], dict) else {"wrong": 7}
        file = tmp_path / name
        file.write_text(json.dumps(damaged))
        with pytest.raises(RunError) as caught:
            FILES[name].read(file)
        said = str(caught.value)
        assert said.startswith(f"{file} is damaged: "), said
        assert written(path) in said, said
        assert said.endswith(FILES[name].remedy), said
        checked += 1
    assert checked > 30


@pytest.mark.parametrize("name", FILES)
def test_an_entry_that_is_missing_is_named_or_can_be_done_without(name, tmp_path):
    for path in places(content(name)):
        lacking = content(name)
        del holder(lacking, path)[path[-1]]
        file = tmp_path / name
        file.write_text(json.dumps(lacking))
        said = refusal(FILES[name], file)
        of_fixed_length = isinstance(path[-1], int) and said and ": expected " in said
        assert said is None or f" lacks {path[-1]}. " in said or of_fixed_length
        assert path != ("settings",) or said == f"{file} is damaged: it lacks settings. {Manifest.remedy}"


@pytest.mark.parametrize("name", FILES)
def test_a_newer_format_and_what_is_no_json_are_refused_with_what_to_do(name, before):
    file = before / name
    file.write_text(json.dumps(content(name) | {"format": 99}))
    with pytest.raises(RunError, match=r"has format 99: this depthscope reads formats up to 2\. Open it with a newer"):
        FILES[name].read(file)
    file.write_text(json.dumps(content(name) | {"format": "one"}))
    with pytest.raises(RunError, match=r"is damaged: format: expected a whole number, got \"one\""):
        FILES[name].read(file)
    file.write_text("{")
    with pytest.raises(RunError, match=rf"{name} cannot be read: .*\. {FILES[name].remedy}"):
        FILES[name].read(file)


def test_what_a_later_version_adds_is_kept_and_never_left_out_of_the_comparison_of_settings(before):
    later = content("run.json") | {"later": {"a": [1]}}
    later["settings"]["more"] = 5
    later["model"]["more"] = 5
    (before / "run.json").write_text(json.dumps(later))
    run = RunDirectory.reading(before)
    run.update(finished=[])
    written = json.loads((before / "run.json").read_text())
    assert (written["later"], written["settings"]["more"]) == ({"a": [1]}, 5)
    with pytest.raises(RunMismatchError, match="more: 5 stored, None requested"):
        RunDirectory.writing(before, replace(run.settings, others={}), {}).__enter__()
    stages = content("stages.json")
    stages["signals"][0]["more"] = stages["more"] = 5
    assert Stages.from_json({"format": 1} | stages) == Stages.read(BEFORE / "stages.json")


def test_a_manifest_that_holds_next_to_nothing_gives_a_page(tmp_path):
    (tmp_path / "run.json").write_text('{"format": 1, "settings": {}}')
    run = RunDirectory.reading(tmp_path)
    assert run.manifest.noise_floor is Unmeasured.UNMEASURED
    page = render(run)
    assert "This run is incomplete" in page
    assert "Not measured in this run" in page
    assert "None" not in page.replace("None of", "")


def test_the_stored_facts_are_those_of_the_model():
    for stored, own in ((ModelEntry, ModelFacts), (AdapterEntry, Adapter), (NoiseFloorEntry, NoiseFloor)):
        assert [one.name for one in fields(stored)] == [one.name for one in fields(own)]
