"""Healing: better on held-out text or the weights from before, resumed as uninterrupted, nothing left where it fails."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny_model
from saved_models import save
from transformers import AutoModelForCausalLM

import depthscope as ds
from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.errors import DataError, DepthscopeError, ModelError, NumericError, RunError
from depthscope.exports import heal as healing
from depthscope.exports import heal_state
from depthscope.exports.export_route import export_route
from depthscope.exports.heal import Healed, Recipe, heal, split
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.routes import parse_route

pytest.importorskip("peft", reason="healing needs peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks transformers by the old name
RECIPE = Recipe(rank=4, rate=0.01, batch_tokens=256)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Model, Path, Windows]:
    """A model, a cut of it, and windows of 24 documents."""
    folder = tmp_path_factory.mktemp("heal")
    teacher = load(save("llama", folder / "whole"))
    export_route(teacher, parse_route("0 2-3", 4), folder / "cut", fresh=False)
    texts = [text[:400] for text in list(Corpus().documents())[:24]]
    return teacher, folder / "cut", make_windows(ds.corpus(texts, tokens=1500), teacher, length=32)


def healed(pair: tuple[Model, Path, Windows], out: Path, recipe: Recipe = RECIPE, **more) -> Healed:
    teacher, cut, windows = pair
    return heal(load(cut), teacher, windows, out, recipe, fresh=False, **more)


def test_healing_lowers_the_kl_on_held_out_documents(pair, tmp_path):
    teacher, cut, windows = pair
    found = healed(pair, tmp_path / "out")
    rows = {(row["edit"], row["metric"]): row for row in found.table.iter_rows(named=True)}
    before, after = rows["before healing", "kl"], rows["after healing", "kl"]
    assert found.improved
    assert after["mean"] < before["mean"]
    assert rows["after healing", "kl_change"]["mean"] == pytest.approx(after["mean"] - before["mean"], abs=1e-6)
    assert before["documents"] == split(windows)[1].documents == 3
    assert rows["none", "kl"]["mean"] == 0
    # The naive definition, of the checkpoints as they lie on disk.
    ids, targets = split(windows)[1].batch()
    for folder, name in ((cut, "before healing"), (tmp_path / "out", "after healing")):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            log_p, log_q = (one(input_ids=ids).logits.double().log_softmax(-1) for one in (teacher.hf, model))
        assert float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) == pytest.approx(
            rows[name, "kl"]["mean"], rel=1e-4
        )
        loss = -log_q.gather(-1, targets[..., None]).mean()
        assert float(loss) == pytest.approx(rows[name, "loss"]["mean"], rel=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "cut, a cut of whole (llama), healed." in card
    assert "| layers | 4 | 3 |" in card
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_interrupted_and_resumed_healing_gives_the_same_weights(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(heal_state, "STORE_EVERY", 0.0)

    def interrupt(what: str, done: int, units: int) -> None:
        if what == "healing" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        healed(pair, tmp_path / "resumed", tell=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["resumed.healing"]
    with pytest.raises(DepthscopeError, match=r"rank: 4 stored, 2 requested"):
        healed(pair, tmp_path / "resumed", Recipe(rank=2, rate=0.01, batch_tokens=256))
    steps = []
    healed(pair, tmp_path / "resumed", tell=lambda what, done, units: steps.append(done) if what == "healing" else None)
    assert steps[0] == 3
    healed(pair, tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("resumed", "whole")]
    assert weights[0] == weights[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["resumed", "whole"]


def test_where_healing_makes_it_worse_the_weights_from_before_are_kept(pair, tmp_path):
    found = healed(pair, tmp_path / "out", Recipe(rank=4, rate=1.0, batch_tokens=256))
    assert not found.improved
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (pair[1], tmp_path / "out"))
    assert before == after
    assert "these are the weights from before it" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_healed_is_refused_and_leaves_nothing(pair, tmp_path, monkeypatch):
    teacher, cut, windows = pair
    few = windows.take(windows.document < np.unique(windows.document)[9])
    with pytest.raises(DataError, match="9 documents of at least one window; expected at least 16"):
        heal(load(cut), teacher, few, tmp_path / "out", RECIPE)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(RunError, match="is a file"):
        healed(pair, tmp_path / "mine")
    with pytest.raises(ModelError, match="different vocabularies"):
        heal(load(cut), load(tiny_model("llama")), windows, tmp_path / "out", RECIPE)
    with pytest.raises(ModelError, match="rate is 0"):
        Recipe(rate=0.0)
    true_kl = healing._kl
    with monkeypatch.context() as broken:
        broken.setattr(healing, "_kl", lambda p, q: true_kl(p, q) * (float("nan") if q.requires_grad else 1.0))
        with pytest.raises(NumericError, match="NaN or infinity at step 1"):
            healed(pair, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_state_is_said_and_healing_starts_again(pair, tmp_path, monkeypatch):
    state = tmp_path / "out.healing" / heal_state.FILE
    state.parent.mkdir()
    state.write_text(json.dumps({"not": "a state"}))
    with pytest.warns(UserWarning, match="Healing starts from the beginning"):
        healed(pair, tmp_path / "out")
    assert not state.parent.exists()
