"""Entropy neurons, causally: tables against float64 models with hooks, laws of total and direct effects, bad input."""

import copy

import naive
import numpy as np
import pytest
import torch
from families import DEPTH, tiny_model
from rebuilt import logits_of
from report_runs import all_tables, make_run
from test_ablation import share_of, tables, windows
from test_sweep import run, save
from torch import nn

import depthscope as ds
from depthscope.engine.frozen_norm import FrozenNorm
from depthscope.errors import DepthscopeError, UnsupportedError
from depthscope.experiments.entropy_candidates import ChosenNeuron, chosen_neurons
from depthscope.experiments.entropy_neurons import EntropyNeurons
from depthscope.experiments.neurons import Neurons
from depthscope.models.load import load
from depthscope.report.figures import FIGURES
from depthscope.schema.entropy_neurons import (
    BEST,
    CANDIDATE,
    CONTROL,
    DIFFERENCE,
    ENTROPY_NEURONS_BEST_TABLE,
    ENTROPY_NEURONS_GROUPS_TABLE,
    ENTROPY_NEURONS_TABLE,
    EXTREMES,
    GROUPS,
    NAME,
)
from depthscope.studies.settings import study_settings

PLACES = {
    "gpt2": ("transformer.ln_f", "transformer.h.{}.mlp.c_proj"),
    "gpt_neox": ("gpt_neox.final_layer_norm", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    "opt": ("model.decoder.final_layer_norm", "model.decoder.layers.{}.fc2"),
    "llama": ("model.norm", "model.layers.{}.mlp.down_proj"),
    "qwen3": ("model.norm", "model.layers.{}.mlp.down_proj"),
    "gemma2": ("model.norm", "model.layers.{}.mlp.down_proj"),
}
"""The final norm, and the MLP's output projection of a block."""
SIGNED = ("loss_total", "loss_direct", "entropy_total", "entropy_direct")


def neuron(layer, number, group=CANDIDATE):
    """A neuron that was chosen by hand."""
    return ChosenNeuron(layer, number, group, 1, "other", None, None)


class Rebuilt:
    """A model in float64, with hooks by hand: a neuron at its mean, and the final norm by its definition."""

    def __init__(self, family, model):
        self.hf = copy.deepcopy(model.hf).double()
        norm, self.projection = PLACES[family]
        self.norm, self.ones = self.hf.get_submodule(norm), float(family == "gemma2")
        self.reference = model.reference_ids()

    def seen(self, module, ids):
        """What a module is given."""
        found = []
        handle = module.register_forward_pre_hook(lambda _module, args: found.append(args[0].clone()))
        own = logits_of(self.hf, ids)
        handle.remove()
        return found[0], own

    def scale(self, given):
        if isinstance(self.norm, nn.LayerNorm):
            return (given.var(-1, unbiased=False, keepdim=True) + self.norm.eps).sqrt()
        eps = getattr(self.norm, "eps", None) or self.norm.variance_epsilon
        return (given.square().mean(-1, keepdim=True) + eps).sqrt()

    def ablated(self, layer, number, ids, scale=None):
        """The logits with one neuron at its mean, and the norm's scale replaced by `scale`."""
        projection = self.hf.get_submodule(self.projection.format(layer))
        mean = self.seen(projection, self.reference)[0].flatten(0, -2).mean(0)[number]

        def replaced(_module, args):
            changed = args[0].clone()
            changed[..., number] = mean
            return (changed, *args[1:])

        def frozen(module, args, _output):
            if isinstance(module, nn.LayerNorm):
                centred = args[0] - args[0].mean(-1, keepdim=True)
                return centred / scale * module.weight + module.bias
            return args[0] / scale * (module.weight + self.ones)

        handles = [projection.register_forward_pre_hook(replaced)]
        handles += [] if scale is None else [self.norm.register_forward_hook(frozen)]
        logits = logits_of(self.hf, ids)
        for handle in handles:
            handle.remove()
        return logits

    def effects(self, one, text):
        """Total and direct effects on loss and entropy, [windows, tokens]."""
        ids, targets = text.batch()
        given, own = self.seen(self.norm, ids)
        base = naive.measures(own, own, targets)
        found = {}
        for name, scale in (("total", None), ("direct", self.scale(given))):
            measured = naive.measures(own, self.ablated(one.layer, one.neuron, ids, scale), targets)
            found |= {f"{key}_{name}": (measured[key] - base[key]).numpy() for key in ("loss", "entropy")}
        return found


@pytest.mark.parametrize("family", PLACES)
def test_the_tables_are_their_naive_definitions(tiny_of, family):
    model, text = tiny_of(family), windows()
    chosen = chosen_neurons(model, 2, 2)
    assert [one.group for one in chosen] == [CANDIDATE] * 2 + [CONTROL] * 2
    found = tables(model, EntropyNeurons(model, chosen), text)
    assert dict(found[NAME].schema) == ENTROPY_NEURONS_TABLE
    assert dict(found[GROUPS].schema) == ENTROPY_NEURONS_GROUPS_TABLE
    assert dict(found[BEST].schema) == ENTROPY_NEURONS_BEST_TABLE
    rebuilt = Rebuilt(family, model)
    effects = [rebuilt.effects(one, text) for one in chosen]

    def same(rows, expected):
        got = rows.select("mean", "ci_low", "ci_high").row(0)
        # A share is a ratio of small numbers, which float32 knows to a few digits.
        assert got == pytest.approx(expected, rel=1e-3, abs=3e-3 if "share" in rows["metric"].item() else 2e-6)

    def per_document(values):
        return [np.abs(values)[text.document == d].sum() for d in np.unique(text.document)]

    for one, values in zip(chosen, effects, strict=True):
        rows = found[NAME].filter(layer=one.layer, neuron=one.neuron)
        for name in SIGNED:
            same(rows.filter(metric=name), naive.estimate(values[name], text.document))
            size = naive.estimate(np.abs(values[name]), text.document)
            same(rows.filter(metric=f"{name}_size"), [max(0, size[0]), max(0, size[1]), size[2]])
        for key, share in (("loss", "mediated_share"), ("entropy", "entropy_mediated_share")):
            total, direct = values[f"{key}_total"], values[f"{key}_direct"]
            same(rows.filter(metric=f"{key}_mediated"), naive.estimate(total - direct, text.document))
            if not np.abs(total).sum():  # a ReLU that is never active
                assert rows.filter(metric=share)["mean"].item() is None
                continue
            ratio, low, high = share_of(per_document(direct), per_document(total))
            same(rows.filter(metric=share), [1 - ratio, 1 - high, min(1, 1 - low)])
    of_groups = []
    for group in (CANDIDATE, CONTROL):
        mine = [values for one, values in zip(chosen, effects, strict=True) if one.group == group]
        loss = np.mean([values["loss_total"] for values in mine], axis=0)
        same(found[GROUPS].filter(group=group, metric="loss_total"), naive.estimate(loss, text.document))
        above, below = (np.sum([per_document(v[f"loss_{way}"]) for v in mine], 0) for way in ("direct", "total"))
        ratio, low, high = share_of(above, below)
        same(found[GROUPS].filter(group=group, metric="mediated_share"), [1 - ratio, 1 - high, min(1, 1 - low)])
        of_groups.append((1 - ratio, (above - ratio * below) / below.sum()))
    (own, own_errors), (control, control_errors) = of_groups
    documents = len(own_errors)
    half = (
        np.sqrt(documents / (documents - 1) * np.sum((own_errors - control_errors) ** 2)) * 2.2009852
    )  # t, 11 degrees
    apart = own - control
    same(found[GROUPS].filter(group=DIFFERENCE, metric="mediated_share"), [apart, apart - half, apart + half])


def test_candidates_are_ranked_by_the_scores_of_neurons_and_controls_are_others(tiny_of):
    model = tiny_of("llama")
    experiment = Neurons(model)
    scores = experiment.tables([experiment.work(unit) for unit in range(DEPTH)])["neurons"]
    chosen = chosen_neurons(model, 3, 1)
    last = scores.filter(layer=DEPTH - 1).with_columns(score=scores["norm_z"].sum() * 0)
    last = last.with_columns(score=last["norm_z"] - last["effect_z"]).sort("score", descending=True)
    assert [one.neuron for one in chosen[:3]] == last["neuron"].to_list()[:3]
    for one in chosen:
        row = scores.filter(layer=one.layer, neuron=one.neuron)
        assert (one.kind, one.norm_z, one.effect_z) == pytest.approx(row.select("kind", "norm_z", "effect_z").row(0))
    assert len({one.neuron for one in chosen}) == 6
    assert chosen == chosen_neurons(model, 3, 1)
    everything = chosen_neurons(model, 256, 99)
    assert sum(one.group == CANDIDATE for one in everything) == len(scores) // 2


def test_a_neuron_that_never_changes_has_no_effect():
    hf = tiny_model("gpt2")
    with torch.no_grad():
        hf.get_submodule("transformer.h.2.mlp.c_fc").get_parameter("weight")[:, 5] = 0
    model, text = load(hf), windows()
    found = tables(model, EntropyNeurons(model, [neuron(2, 5), neuron(2, 6, CONTROL)]), text)[NAME]
    for name in SIGNED:
        assert found.filter(neuron=5, metric=f"{name}_size")["mean"].item() < 2e-6
        assert found.filter(neuron=6, metric=f"{name}_size")["mean"].item() > 2e-5


def test_a_neuron_in_the_null_space_of_the_unembedding_acts_through_the_norm_alone():
    hf = tiny_model("llama")
    with torch.no_grad():
        written = hf.model.layers[DEPTH - 1].mlp.down_proj.weight[:, 3] * hf.model.norm.weight
        unit = written / written.norm()
        hf.lm_head.weight -= (hf.lm_head.weight @ unit)[:, None] * unit
    model, text = load(hf), windows()
    ids, _ = text.batch()
    before = logits_of(model.hf, ids)
    found = tables(model, EntropyNeurons(model, [neuron(DEPTH - 1, 3)]), text)
    for key, share in (("loss", "mediated_share"), ("entropy", "entropy_mediated_share")):
        assert found[NAME].filter(metric=f"{key}_direct_size")["mean"].item() < 5e-6
        assert found[NAME].filter(metric=f"{key}_total_size")["mean"].item() > 1e-4
        assert found[NAME].filter(metric=share)["mean"].item() == pytest.approx(1, abs=0.02)
    assert DIFFERENCE not in found[GROUPS]["group"].to_list()  # there is no control
    assert torch.equal(logits_of(model.hf, ids), before)


def test_the_size_of_units_changes_nothing_and_extremes_have_wider_intervals(tiny_of):
    model, text = tiny_of("gemma2"), windows()
    chosen = chosen_neurons(model, 3, 2)
    whole = tables(model, EntropyNeurons(model, chosen), text)
    pieces = tables(model, EntropyNeurons(model, chosen), text, cuts=[3, 11, 24])
    for name, table in whole.items():
        for column in ("mean", "ci_low", "ci_high"):
            assert pieces[name][column].to_list() == pytest.approx(table[column].to_list(), rel=2e-3, abs=2e-5)
    candidates = whole[NAME].filter(group=CANDIDATE)
    assert len(whole[BEST]) == len(EXTREMES)
    for row in whole[BEST].iter_rows(named=True):
        among = candidates.filter(metric=row["metric"])["mean"]
        assert row["mean"] == (among.min() if row["extreme"] == "lowest" else among.max())
        assert row["ci_low"] <= row["mean"] <= row["ci_high"]
        assert row["measured"] == 3


def test_what_cannot_be_done_is_said_in_one_line(tiny_of):
    with pytest.raises(UnsupportedError, match="no separate MLP"):
        chosen_neurons(tiny_of("mamba"), 2, 1)
    with pytest.raises(UnsupportedError, match=r"neurons of block 3 .* made of experts"):
        chosen_neurons(tiny_of("mixtral"), 2, 1)
    for modules, says in (
        ([], "needs a single norm between the last block and the unembedding, found nothing"),
        ([nn.Softsign()], "cannot be frozen: Softsign is neither a LayerNorm nor an RMSNorm"),
        ([nn.LayerNorm(32), nn.Linear(32, 32)], "found LayerNorm, Linear"),
    ):
        model = load(tiny_model("llama"))
        model.unembedding.modules = list[nn.Module](modules)
        with pytest.raises(UnsupportedError, match=says):
            FrozenNorm(model)
    for given, says in (
        ({"entropy_top": 0}, "0 candidate entropy neurons: expected 1 to 256"),
        ({"entropy_layers": 0}, "the last 0 layers: expected 1 to 1,024"),
    ):
        with pytest.raises(DepthscopeError, match=says):
            study_settings(experiments=NAME, **given)


def test_the_command_prints_the_mediated_shares(tmp_path):
    folder = save("llama", tmp_path / "model")
    asked = ("--tokens", 240, "--window", 20, "--entropy-top", 2, "--entropy-layers", 2)
    said = run("entropy-neurons", folder, *asked, "--out", tmp_path / "run")
    assert "mediated share" in said
    assert len(ds.Study(tmp_path / "run").table(NAME)["neuron"]) == 4 * 12
    assert NAME in study_settings(experiments="deep").experiments


def test_the_section_compares_candidates_with_random_neurons(tmp_path):
    section = FIGURES[NAME].build(make_run(tmp_path / "run", 6, tables=all_tables(6)))
    assert [panel.name for panel in section.panels] == [f"{NAME}-{part}" for part in ("effects", "entropy", "shares")]
    said = " ".join(section.sentences).replace("\u00a0", " ")
    assert "of the effect on the loss in the candidates and" in said
    assert "Of the 2 candidates none is of the kind “entropy”" in said
    assert "L5N4 changes the loss the most" in said


@pytest.mark.parametrize("family", PLACES)
def test_frozen_at_its_own_stream_the_norm_is_the_live_one(tiny_of, family):
    model = tiny_of(family)
    norm = FrozenNorm(model)
    stream = torch.randn(2, 5, model.unembedding.weight.shape[1], generator=torch.Generator().manual_seed(0)) * 3
    with model.measuring():
        frozen = norm.freeze(stream)
        assert torch.equal(norm.hidden(frozen, stream), model.unembedding.hidden(stream))
        # Only the scale is frozen: twice the stream gives twice the output, less the shift.
        twice = (2 * frozen.normed - norm.affine.shift).flatten(0, 1)
        assert torch.allclose(norm.hidden(frozen, 2 * stream), twice, rtol=1e-4, atol=1e-4)
