"""Published lenses: what a file may do to be read, which files are refused, and that a converted lens is the lens."""

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial

import polars as pl
import pytest
import torch
from families import DEPTH, WIDTH, tiny_model
from test_jacobian_lens import TEXT, windows

import depthscope as ds
from depthscope.engine.baseline import Baseline
from depthscope.errors import DepthscopeError, RunError, UnsupportedError
from depthscope.experiments import published_lens
from depthscope.experiments.fit_jacobian import JacobianRecipe, fit_jacobian_lens
from depthscope.experiments.jacobian_lens import JacobianLens
from depthscope.experiments.lens import LensReading
from depthscope.experiments.published_lens import converted
from depthscope.experiments.tuned_lens import CONFIG, PARAMS, TunedLens
from depthscope.models.load import load
from depthscope.models.unpickle import WORKER, Unpickled, unpickled
from depthscope.run.lock import locked

MOST = 1 << 24


def stored(file, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file


def with_pickle(file, content: bytes):
    """An archive as torch.save writes, with this pickle in it."""
    return stored(file, {"archive/data.pkl": content, "archive/version": "3", "archive/byteorder": "little"})


class Called:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def whole(file):
    torch.save({"J": {0: torch.eye(2)}}, file)
    return file


HOSTILE = {
    "not an archive": (
        lambda file, seen: file.write_bytes(pickle.dumps(Called(os.system, f"touch {seen}"))),
        "no complete",
    ),
    "truncated": (lambda file, seen: file.write_bytes(whole(file).read_bytes()[:-30]), "no complete archive"),
    "zip bomb": (
        lambda file, seen: stored(file, {"archive/data.pkl": bytes(1 << 24)}, zipfile.ZIP_DEFLATED),
        "a compressed entry of 16,777,216 bytes",
    ),
    "a huge pickle": (lambda file, seen: with_pickle(file, bytes((1 << 24) + 1)), "its pickle has 16 MiB"),
    "a call": (
        lambda file, seen: with_pickle(file, pickle.dumps(Called(os.system, f"touch {seen}"), 2)),
        "it names .*system",
    ),
    "memory": (
        lambda file, seen: with_pickle(file, pickle.dumps(Called(bytearray, 1 << 40), 2)),
        "needs more memory than",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_with_one_line_and_nothing_is_run(kind, tmp_path):
    file, seen = tmp_path / "lens.pt", tmp_path / "seen"
    write, says = HOSTILE[kind]
    write(file, seen)
    limit = 1 << 25
    with pytest.raises(DepthscopeError, match=says) as error:
        unpickled(file, limit, tmp_path)
    assert "\n" not in str(error.value)
    assert not seen.exists()
    assert {one.name for one in tmp_path.iterdir()} == {"lens.pt"}


def test_only_plain_numbers_that_fit_into_the_file_are_taken():
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    assert worker._plain("J", torch.eye(3), 36).equal(torch.eye(3))
    refused = {
        "more elements than the file": [torch.ones(1).expand(1 << 20, 1 << 20)],
        "expected plain float numbers": [torch.eye(3).to_sparse(), torch.eye(3, device="meta"), torch.eye(3).long()],
    }
    for says, tensors in refused.items():
        for tensor in tensors:
            with pytest.raises(worker.RefusedError, match=says):
                worker._plain("J", tensor, 36)
    nested = {"J": {0: torch.eye(2), "a": {1: [1, 2]}}, "text": "é", "odd": {1, 2}, "none": None, "mixed": [1, "2"]}
    found = dict(worker._members(nested))
    assert found.pop("J.0").equal(torch.eye(2))
    assert found == {"J.a.1": [1, 2], "text": "é", "odd": "a set", "none": None, "mixed": "a list"}
    for wrong in ({1: {2: {3: {4: {5: 6}}}}}, {(1, 2): 3}, {"a" * 201: 1}):
        with pytest.raises(worker.RefusedError, match=r"nests|a key is"):
            worker._members(wrong)


def test_the_limits_hold(tmp_path):
    """CPU time, sockets, processes, files and the network, each tried by code that runs where the pickle would."""
    code = f"""
import importlib.util, os, resource, socket, subprocess, sys, json
spec = importlib.util.spec_from_file_location("worker", {str(WORKER)!r})
worker = importlib.util.module_from_spec(spec); spec.loader.exec_module(worker)
alone = worker._left_the_network()
if alone:
    assert not any("0" * 7 not in line.split()[1] for line in open("/proc/net/route").readlines()[1:])
worker._limited(1 << 28, 1, 1 << 20)
sys.addaudithook(worker._refuse)
tries = dict(
    process=lambda: subprocess.run(["true"]), system=lambda: os.system("true"), fork=os.fork, socket=socket.socket,
    write=lambda: open("made", "w"), remove=lambda: os.remove({str(tmp_path)!r}), memory=lambda: bytearray(1 << 29),
)
seen = {{}}
for name, act in tries.items():
    try:
        act()
        seen[name] = "done"
    except BaseException as error:
        seen[name] = type(error).__name__
print(json.dumps(seen), flush=True)
while True:
    pass
"""
    ended = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGXCPU or ended.returncode == -signal.SIGKILL, ended.stderr
    assert json.loads(ended.stdout) == dict.fromkeys(
        ("process", "system", "fork", "socket", "write", "remove"), "RefusedError"
    ) | {"memory": "MemoryError"}
    assert not list(tmp_path.iterdir())


def test_a_larger_file_and_what_is_no_file_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "lens.pt").write_bytes(bytes(3 << 20))
    with pytest.raises(DepthscopeError, match="has 3 MiB: expected at most 1"):
        unpickled(tmp_path / "lens.pt", 1 << 20, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nothing"):
        with pytest.raises(DepthscopeError, match=r"pipe is not a regular file|nothing cannot be read"):
            unpickled(tmp_path / name, MOST, tmp_path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    model = load(tiny_model("gpt2"))
    return model, fit_jacobian_lens(model, TEXT, tmp_path_factory.mktemp("fit"), recipe=JacobianRecipe(skip=2))


def published(lens: JacobianLens, dtype=torch.float32) -> dict:
    """As the code of Gurnee et al. writes it: layer l is the output of block l, and none is for the embedding."""
    maps = {at - 1: lens.jacobian[at].to(dtype) for at in range(1, DEPTH)}
    return {"J": maps, "n_prompts": 8, "source_layers": [*maps], "d_model": WIDTH}


def opened(content: dict, *_) -> Unpickled:
    """What the process would give, without one."""
    members = {}
    for name, value in content.items():
        inside = isinstance(value, dict)
        members |= {f"{name}.{key}": one for key, one in value.items()} if inside else {name: value}
    tensors = {name: one for name, one in members.items() if isinstance(one, torch.Tensor)}
    return Unpickled(tensors, {k: v for k, v in members.items() if k not in tensors}, "0" * 64, 1, ())


def test_a_converted_jacobian_lens_is_the_lens(fitted, tmp_path, monkeypatch):
    """From file to prompt and study, in every step with the numbers of the lens that was published."""
    model, lens = fitted
    torch.save(published(lens), tmp_path / "lens.pt")
    out = tmp_path / "out"
    real = published_lens.unpickled
    monkeypatch.setattr(published_lens, "unpickled", lambda *given: files.append(real(*given)) or files[0])
    files: list[Unpickled] = []
    found = ds.convert_lens(model, tmp_path / "lens.pt", out=out)
    assert {one.name for one in out.iterdir()} == {PARAMS, CONFIG, ".lock"}
    again = JacobianLens.load(out, model)
    for one in (found, again):
        assert torch.equal(one.jacobian[1:], lens.jacobian[1:])
        assert one.missing == (0,)
    assert min(found.config["published"]["agreement"][1:]) > 0.4
    monkeypatch.setattr(published_lens, "unpickled", lambda *_: files[0])
    assert ds.convert_lens(model, tmp_path / "lens.pt", out=out).is_stored(out)
    asked = partial(ds.lens, model, [5, 9, 3, 40, 7], 2)
    ours, plain = (asked(lens="jacobian", jacobian_lens=place) if place else asked(lens=lens) for place in (out, None))
    assert ours.equals(plain.filter(pl.col("layer") > 0))
    reading, full = (LensReading(model, jacobian=one) for one in (again, lens))
    text = windows(3)
    with model.measuring():
        tables = [one.tables([one.read(Baseline(model, *text.batch()), text)]) for one in (reading, full)]
    assert tables[0]["jacobian_lens"].equals(tables[1]["jacobian_lens"].filter(pl.col("layer") > 0))
    assert tables[0]["lens"].equals(tables[1]["lens"])
    monkeypatch.setattr(published_lens, "unpickled", lambda *_: replace(files[0], sha256="1" * 64))
    with pytest.raises(RunError, match="holds another lens than"):
        ds.convert_lens(model, tmp_path / "other.pt", out=out)


def changed(content: dict, **maps) -> dict:
    return content | {"J": content["J"] | {int(name[1:]): one for name, one in maps.items()}}


def test_a_lens_of_another_model_or_form_is_refused(fitted, tmp_path, monkeypatch):
    model, lens = fitted
    whole, nan = published(lens), lens.jacobian[1].clone()
    nan[0, 0] = torch.nan
    cases = {
        "expected \\[32, 32\\], for .* of 32 coordinates": changed(whole, L1=torch.eye(WIDTH + 1)),
        "J of layer 1 .* has NaN": changed(whole, L1=nan),
        "maps for layers 7, which .* with 4 blocks does not have": changed(whole, L7=torch.eye(WIDTH)),
        "records d_model 64: expected 32": whole | {"d_model": 64},
        "records source_layers": whole | {"source_layers": [0]},
        "to something else than itself": changed(whole | {"source_layers": [0, 1, 2, 3]}, L3=2 * torch.eye(WIDTH)),
        "agree with the Jacobians": whole | {"J": {at: one.T for at, one in whole["J"].items()}},
        "expected a Jacobian lens of jlens": {"weights": torch.eye(2)},
        "3 maps and 0 biases": {f"{at}.weight": torch.eye(WIDTH) for at in range(3)},
    }
    for says, content in cases.items():
        monkeypatch.setattr(published_lens, "unpickled", partial(opened, content))
        with pytest.raises(DepthscopeError, match=says.replace("32", str(WIDTH))):
            converted(model, tmp_path / "lens.pt", tmp_path)
    monkeypatch.setattr(published_lens, "unpickled", partial(opened, whole))
    with pytest.raises(DepthscopeError, match="It is for other weights"):
        converted(load(tiny_model("gpt2", seed=1)), tmp_path / "lens.pt", tmp_path)


def test_a_few_layers_are_read_where_they_are_and_refused_by_a_study(fitted, tmp_path, monkeypatch):
    model, lens = fitted
    few = published(lens)
    few |= {"J": {1: few["J"][1], DEPTH - 1: torch.eye(WIDTH)}, "source_layers": [1, DEPTH - 1]}
    monkeypatch.setattr(published_lens, "unpickled", partial(opened, few))
    found = converted(model, tmp_path / "lens.pt", tmp_path)
    assert found.missing == tuple(at for at in range(DEPTH) if at != 2)
    assert ds.lens(model, [1, 2, 3], lens=found)["layer"].unique().sort().to_list() == [2, DEPTH]
    with pytest.raises(UnsupportedError, match="has no map for 2 of the depths x_1 to x_3"):
        LensReading(model, jacobian=found)


def test_a_converted_tuned_lens_is_the_lens(tmp_path, monkeypatch):
    model, generator = load(tiny_model("llama")), torch.Generator().manual_seed(0)
    lens = TunedLens(
        model,
        0.1 * torch.randn(DEPTH, WIDTH, WIDTH, generator=generator),
        torch.randn(DEPTH, WIDTH, generator=generator),
    )
    state = {f"{at}.weight": lens.matrix[at] for at in range(DEPTH)} | {
        f"{at}.bias": lens.bias[at] for at in range(DEPTH)
    }
    monkeypatch.setattr(published_lens, "unpickled", partial(opened, state))
    found = converted(model, tmp_path / "params.pt", tmp_path)
    assert torch.equal(found.matrix, lens.matrix)
    assert torch.equal(found.bias, lens.bias)
    config = {"d_model": WIDTH, "num_hidden_layers": DEPTH, "unembed_hash": "0" * 64}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(DepthscopeError, match="for another unembedding"):
        converted(model, tmp_path / "params.pt", tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(DepthscopeError, match="records num_hidden_layers 9"):
        converted(model, tmp_path / "params.pt", tmp_path)


def test_a_directory_has_one_writer_and_no_stranger_is_overwritten(fitted, tmp_path):
    model, lens = fitted
    out = tmp_path / "out"
    with locked(out):
        for act in (
            partial(ds.convert_lens, model, tmp_path / "lens.pt", out=out),
            partial(ds.tune_lens, model, ["a"], out=out, progress=False),
        ):
            code = "another process"
            with pytest.raises(RunError, match=code):
                act()
    lens.save(out)
    lens.save(out)
    (out / CONFIG).write_text("{}")
    with pytest.raises(RunError, match="nothing is overwritten"):
        lens.save(out)
    (out / CONFIG).unlink()
    with pytest.raises(RunError, match=r"has params\.safetensors, and not an intact lens"):
        fit_jacobian_lens(model, replace(TEXT, source="other"), out)
