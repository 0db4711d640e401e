"""A model on one accelerator: streamed, read on a prompt, continued, and with lenses fitted there.

What a study does is held in test_several_devices.py, where the residual stream is on an accelerator too.
"""

import pytest
import torch
from saved_models import save

import depthscope as ds
from accelerator.agreement import IDS, measured, require_same, require_same_table
from depthscope.data.corpus import Corpus
from depthscope.data.tasks import LOCAL_TASKS
from depthscope.data.windows import make_windows
from depthscope.engine.baseline import Baseline
from depthscope.explore.surgery import operate
from depthscope.exports.export_route import export_route
from depthscope.exports.heal import Recipe, heal
from depthscope.models.load import load
from depthscope.routes import parse_route


@pytest.fixture(scope="session")
def device(devices):
    return devices[1]


def test_devices_are_kept_apart(devices):
    """The devices refuse what a card refuses, or nothing here would mean anything."""
    if devices[0] == devices[1]:
        pytest.skip("needs two devices")
    here, there, host = (torch.ones(3, 3, device=place) for place in (*devices, "cpu"))
    for one, other in ((here, there), (here, host), (host, here)):
        for act in (torch.add, torch.mm, lambda a, b: torch.cat([a, b]), lambda a, b: torch.where(a > 0, a, b)):
            with pytest.raises(RuntimeError, match="same device"):
                act(one, other)
    with pytest.raises(RuntimeError):  # a single number may come from the host, but not here
        torch.addcmul(torch.tensor(1.0), here, here)
    with pytest.raises(TypeError):
        here.numpy()


def test_a_view_is_changed_where_it_lies(device):
    """What the simulation itself could get wrong: operations in place go through copies on the host."""
    for place in ("cpu", device):
        square = torch.zeros(4, 4, device=place)
        square.diagonal().add_(1.0)
        square[1:3, ::2].mul_(2.0)
        square.T[3].fill_(5.0)
        assert square.tolist() == [[1, 0, 0, 5], [0, 1, 0, 5], [0, 0, 2, 5], [0, 0, 0, 5]]


@pytest.mark.parametrize("stream", ["no", "yes"])
def test_routes_are_measured_as_on_the_cpu(stream, device, tmp_path):
    folder = save("llama", tmp_path / "model")
    card = load(folder, device=device, stream=stream)
    assert card.device == torch.device(device)
    assert card.stack.streamed == (stream == "yes")
    require_same(measured(card), measured(load(folder, device="cpu")))


@pytest.fixture(scope="module")
def both(device, tmp_path_factory):
    folder = save("gpt2", tmp_path_factory.mktemp("model"))
    return load(folder, device="cpu"), load(folder, device=device)


def test_prompts_are_read_and_continued_as_on_the_cpu(both):
    host, card = both
    text = "The cat sat on the mat"
    assert ds.generate(card, text, tokens=12) == ds.generate(host, text, tokens=12)
    require_same_table(ds.lens(card, text), ds.lens(host, text), "lens")
    operated = []
    for model in both:
        ids = IDS[:1].to(model.device)
        with model.measuring():
            operated.append(operate(model, Baseline(model, ids, ids), 3))
    torch.testing.assert_close(operated[1].kl, operated[0].kl, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lens", ["tuned", "jacobian"])
def test_lenses_are_fitted_on_the_device(lens, both, tmp_path):
    card = both[1]
    most = {"most_windows": 8} if lens == "jacobian" else {}
    ds.tune_lens(card, ds.corpus("bookshelf", tokens=640), out=tmp_path / "lens", window=16, lens=lens, **most)
    study = ds.study(
        card, ds.corpus("bookshelf", tokens=160), out=tmp_path / "run", window=16, experiments=["lens"], lens=lens,
        progress=False, **{f"{lens}_lens": str(tmp_path / "lens")},
    )  # fmt: skip
    assert study.table("lens")["mean"].is_finite().all()


def test_searches_and_tasks_run_on_the_device(both, tmp_path):
    how = {"window": 16, "tokens": 128, "export": False, "progress": False, "remove": 1, "method": "greedy"}
    searched = [ds.prune(model, out=tmp_path / f"cut{at}", **how) for at, model in enumerate(both)]
    require_same_table(searched[1].table("prune_steps"), searched[0].table("prune_steps"), "prune_steps")
    pytest.importorskip("lm_eval", reason="tasks need lm-eval")
    how = {"limit": 3, "tokens": 100, "window": 25, "progress": False}
    evaluated = [
        ds.evaluate(model, list(LOCAL_TASKS), "drop(1)", out=tmp_path / f"tasks{at}", **how)
        for at, model in enumerate(both)
    ]
    for table in ("tasks", "edit_kl"):
        require_same_table(evaluated[1].table(table), evaluated[0].table(table), table)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks transformers by the old name
def test_a_cut_model_is_healed_on_the_device(device, tmp_path):
    pytest.importorskip("peft", reason="healing needs peft")
    folder = save("llama", tmp_path / "whole")
    export_route(load(folder, device="cpu"), parse_route("0 2-3", 4), tmp_path / "cut", fresh=False)
    student, teacher = (load(place, device=device) for place in (tmp_path / "cut", folder))
    texts = [text[:400] for text in list(Corpus().documents())[:24]]
    windows = make_windows(ds.corpus(texts, tokens=1500), teacher, length=32)
    recipe = Recipe(rank=4, rate=0.01, batch_tokens=256)
    assert heal(student, teacher, windows, tmp_path / "healed", recipe, fresh=False).improved
