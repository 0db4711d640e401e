"""Choosing blocks to remove: searches against brute force, what they never see, resuming, and what is refused."""

import json
import shutil
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace

import naive
import numpy as np
import polars as pl
import pytest
import torch
from saved_models import InterruptionError, save, tables
from typer.testing import CliRunner

import depthscope as ds
from depthscope.api.study import Study
from depthscope.cli import app
from depthscope.data.windows import Windows, make_windows
from depthscope.errors import DataError, DepthscopeError, RouteError
from depthscope.experiments.prune_search import Known, Scores, beam, evolution, greedy, single
from depthscope.experiments.prune_text import Texts
from depthscope.experiments.removals import Removals, name_of, route_without
from depthscope.exports import export_route as exports
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.routes import Step
from depthscope.run.check import State, check_run
from depthscope.schema.manifest import PruneOutcome
from depthscope.schema.prune import PRUNE_METHODS_TABLE, PRUNE_SHARD, PRUNE_STEPS_TABLE, SEARCH
from depthscope.statistics.draws import mean_over_draws
from depthscope.studies.prune_settings import prune_settings

WINDOW, TOKENS = 16, 128
ALL = "greedy,beam,evolution,single,influence,angular,random"
SMALL = {"window": WINDOW, "tokens": TOKENS, "export": False, "progress": False}


def search(model: Model, out: Path, **settings) -> Study:
    if {"random"} & {*settings.get("method", "random").split(",")} and "drop" not in settings:
        settings = {"draws": 2, **settings}
    return ds.prune(model, out=out, **{**SMALL, **settings})


def outcome(study: Study) -> PruneOutcome:
    assert study.run.manifest.prune is not None
    return study.run.manifest.prune


def texts(model: Model) -> Texts:
    return Texts(make_windows(ds.corpus(tokens=TOKENS), model, length=WINDOW), 0, searching=True)


def brute_force(model: Model, windows: Windows) -> dict[frozenset[int], float]:
    """Mean KL in float64, from whole logits, of the model without every set of one or two blocks."""
    ids, targets = windows.batch()
    own = ds.logits(model, ids)
    found = {}
    for blocks in [*combinations(range(model.depth), 1), *combinations(range(model.depth), 2)]:
        without = route_without(model.depth, frozenset(map(Step, blocks)))
        found[frozenset(blocks)] = float(naive.measures(own, ds.logits(model, ids, without), targets)["kl"].mean())
    return found


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon_h1", "granitemoehybrid"])
def test_the_searches_equal_brute_force(family, tmp_path):
    model = load(save(family, tmp_path / "model"))
    study = search(model, tmp_path / "run", remove=2, method="greedy,beam,single,random", width=4)
    kl = brute_force(model, texts(model).search)
    first = min(range(4), key=lambda block: kl[frozenset({block})])
    second = min((block for block in range(4) if block != first), key=lambda block: kl[frozenset({first, block})])
    best = min(combinations(range(4), 2), key=lambda blocks: kl[frozenset(blocks)])
    lowest = sorted(range(4), key=lambda block: kl[frozenset({block})])[:2]
    table = study.table("prune_methods").filter(pl.col("removed") == 2, pl.col("text") == "held_out", metric="kl")
    sets = {
        method: {int(block) for block in blocks.split()}
        for method, blocks in table.select("method", "blocks").rows()
        if blocks
    }
    assert (sets["greedy"], sets["beam"], sets["single"]) == ({first, second}, {*best}, {*lowest})
    assert {int(block) for block in outcome(study).blocks} == {*best}
    for row in study.table("prune_steps").iter_rows(named=True):
        assert row["mean"] == pytest.approx(kl[frozenset(map(int, row["blocks"].split()))], rel=1e-4, abs=1e-7)


def test_held_out_numbers_and_paired_intervals_equal_their_definitions(tmp_path):
    model = load(save("llama", tmp_path / "model"))
    study = search(model, tmp_path / "run", remove=2, method="greedy,single,influence,angular")
    windows = texts(model).held_out
    ids, targets = windows.batch()
    own = ds.logits(model, ids)

    def values(blocks: str) -> dict[str, np.ndarray]:
        route = route_without(4, frozenset(Step(int(block)) for block in blocks.split()))
        return {name: one.numpy() for name, one in naive.measures(own, ds.logits(model, ids, route), targets).items()}

    chosen, plain = values(" ".join(outcome(study).blocks)), values("")
    table = study.table("prune_methods").filter(text="held_out")
    assert set(table["method"]) == {"none", "greedy", "single", "influence", "angular"}
    for row in table.iter_rows(named=True):
        found = values(row["blocks"])
        by_metric = {
            **found,
            "loss_change": found["loss"] - plain["loss"],
            "kl_difference": found["kl"] - chosen["kl"],
            "loss_difference": found["loss"] - chosen["loss"],
        }
        if row["metric"] == "perplexity":
            expected = np.exp(naive.estimate(found["loss"], windows.document))
        else:
            expected = np.array(naive.estimate(by_metric[row["metric"]], windows.document))
        if row["metric"] == "agreement":
            expected = np.clip(expected, 0, 1)
        elif row["metric"] == "kl":
            expected = np.maximum(expected, 0)
        assert [row["mean"], row["ci_low"], row["ci_high"]] == pytest.approx(expected.tolist(), rel=2e-4, abs=2e-6)


def test_criteria_equal_their_definitions(tmp_path):
    model = load(save("qwen2", tmp_path / "model"))
    study = search(model, tmp_path / "run", remove=2, method="influence,angular")
    windows = texts(model).search
    streams = torch.stack(naive.residuals(model.hf, windows.batch()[0])).double()
    cosine = torch.cosine_similarity
    influence = [1 - cosine(streams[layer], streams[layer + 1], dim=-1).mean() for layer in range(4)]
    turned = [cosine(streams[layer, :, -1], streams[layer + 2, :, -1], dim=-1).arccos().mean() for layer in range(2)]
    first = int(np.argmin(turned))
    table = study.table("prune_methods").filter(pl.col("removed") == 2, metric="kl", text="search")
    sets = dict(table.select("method", "blocks").rows())
    assert sets["influence"] == " ".join(map(str, sorted(np.argsort(influence)[:2].tolist())))
    assert sets["angular"] == f"{first} {first + 1}"
    assert "3" not in sets["angular"], "the last block is never removed"


class MadeUp(Model):
    def __init__(self, depth: int) -> None:
        self.name, self.stack = "made up", SimpleNamespace(depth=depth, check_state=lambda route: None)


def made_up(depth: int, seed: int):
    """A model that is only a depth, and a KL for every set of its blocks that interactions make hard to search."""
    random = np.random.default_rng(seed)
    costs, pairs = random.uniform(0.1, 1, depth), random.normal(0, 0.5, (depth, depth))

    def kl(removed) -> float:
        blocks = sorted(step.block for step in removed)
        return 5 + sum(costs[b] for b in blocks) + sum(pairs[a, b] for a, b in combinations(blocks, 2))

    return Removals(MadeUp(depth)), kl


def driven(requests, scores: Scores, kl):
    """The path of a search whose requests are answered from `kl`; on few documents with other numbers."""
    asked = 0
    try:
        request = next(requests)
        while True:
            asked += 1
            scores.tokens[request.text] = np.array([1])
            for one in request.sets:
                noise = 0 if request.text == SEARCH else Random(f"{request.text} {name_of(one)}").gauss(0, 0.3)
                scores.sums[request.text, one] = np.array([[kl(one) + noise], [0.0], [0.0]])
            request = next(requests)
    except StopIteration as end:
        return end.value, asked


@pytest.mark.parametrize("seed", range(5))
def test_laws_of_the_searches(seed):
    removals, kl = made_up(7, seed)

    def found(make, *settings):
        known = Known(removals, Scores(), 3)
        return *driven(make(known, *settings), known.scores, kl), known

    best = min((frozenset(map(Step, blocks)) for blocks in combinations(range(7), 3)), key=kl)
    wide, asked, _ = found(beam, 35)
    assert wide[3] == best, "a beam that keeps every set is an exhaustive search"
    assert asked == 3
    narrow, _, _ = found(beam, 1)
    assert narrow == found(greedy)[0]
    assert [len(narrow[size]) for size in (1, 2, 3)] == [1, 2, 3]
    assert narrow[1] <= narrow[2] <= narrow[3]
    alone = sorted(range(7), key=lambda block: kl({Step(block)}))
    assert found(single)[0] == {size: frozenset(map(Step, alone[:size])) for size in (1, 2, 3)}
    path, asked, known = found(evolution, 12, 6, 2, seed)
    parents = [kl(one.removed) for one in known.tried if one.text == SEARCH and one.chosen]
    assert asked == 2 * 13
    assert len(parents) == 13
    assert all(after <= before for before, after in pairwise(parents)), "it never gets worse"
    assert kl(path[3]) == parents[-1]
    assert all(len(one.removed) == 3 for one in known.tried), "mutations keep the number removed"


def test_the_search_sees_no_held_out_document(tmp_path):
    model = load(save("llama", tmp_path / "model"))
    some, other = list(ds.corpus().documents())[:8], list(ds.corpus().documents())[20:24]
    changed = [other[number // 2] if number % 2 else text for number, text in enumerate(some)]
    first, second = (
        search(
            model,
            tmp_path / name,
            text=texts,
            remove=2,
            method="greedy,evolution,influence",
            generations=1,
            offspring=3,
        )
        for name, texts in (("first", some), ("second", changed))
    )
    assert first.table("prune_steps").equals(second.table("prune_steps"))
    assert outcome(first).blocks == outcome(second).blocks
    held_out = [study.table("prune_methods").filter(text="held_out") for study in (first, second)]
    assert not held_out[0].equals(held_out[1])
    seen = [study.table("prune_methods").filter(text="search", metric="kl") for study in (first, second)]
    assert seen[0].equals(seen[1])


def test_ended_after_any_step_and_resumed_gives_the_same_bytes(tmp_path):
    model = load(save("llama", tmp_path / "model"))
    settings = {
        "remove": 2,
        "method": "greedy,evolution,angular,random",
        "generations": 1,
        "offspring": 4,
        "survivors": 2,
    }
    whole = search(model, tmp_path / "whole", **settings)
    units = whole.run.manifest.units["prune"]
    for end in (2, units - 1):

        def stop(what: str, unit: int, _units: int, end=end) -> None:
            if what == "prune" and unit == end:
                raise InterruptionError

        out = tmp_path / f"ended-{end}"
        with pytest.raises(InterruptionError):
            search(model, out, **settings, progress=stop)
        assert len(list(out.glob("shards/prune/*"))) == end
        assert outcome(search(model, out, **settings)) == outcome(whole)
        assert tables(out) == tables(tmp_path / "whole")
        assert {one.state for one in check_run(out)} == {State.INTACT}
    with pytest.raises(DepthscopeError, match="made with other settings"):
        search(model, tmp_path / "whole", **settings | {"remove": 1})


def test_tables_and_shards_have_their_columns_and_sets_are_measured_once(tmp_path):
    model = load(save("gpt2", tmp_path / "model"))
    study = search(model, tmp_path / "run", remove=2, method=ALL, generations=2, offspring=4)
    steps, methods = study.table("prune_steps"), study.table("prune_methods")
    assert dict(steps.schema) == PRUNE_STEPS_TABLE
    assert dict(methods.schema) == PRUNE_METHODS_TABLE
    shards = pl.concat(pl.read_parquet(file) for file in sorted(study.path.glob("shards/prune/*")))
    assert dict(shards.schema) == PRUNE_SHARD
    measured = shards.filter(pl.col("kl").is_not_null())
    assert not measured.select("text", "blocks", "document").is_duplicated().any()
    in_search = steps.filter(text="search")
    assert in_search.filter("measured")["blocks"].is_duplicated().sum() == 0
    assert in_search.filter(method="beam", step=1)["measured"].sum() == 0, "greedy has measured these"
    assert outcome(study).block_calls < outcome(study).block_calls_alone
    finals = methods.filter(pl.col("removed") == 2, pl.col("draw").is_null(), metric="kl", text="search")
    assert outcome(study).method != "random"
    lowest = finals.filter(pl.col("blocks").is_not_null())["mean"].min()
    assert finals.filter(method=outcome(study).method)["mean"].item() == lowest
    page = study.report().read_text()
    assert "Which blocks to remove" in page
    assert "Sets by criterion" in page
    assert study.figure("prune").data


def test_block_calls_of_one_step_are_those_of_a_drop_sweep(tmp_path):
    model = load(save("gpt2", tmp_path / "model"))
    found = outcome(search(model, tmp_path / "run", remove=1, method="greedy"))
    each = len(texts(model).search)
    of_steps = 4 * 5 // 2  # a drop sweep of four blocks, with its baseline
    held_out = 4 + (3 - int(found.blocks[0]))
    assert found.block_calls == each * (of_steps + 4 + held_out), (
        "the last two: the unmodified model, and both held out"
    )


def test_components_are_chosen_separately(tmp_path):
    model = load(save("llama", tmp_path / "model"))
    study = search(model, tmp_path / "run", keep="62.5%", components=True, method="greedy,influence,random")
    found = outcome(study)
    assert len(found.blocks) == 3
    assert all(block.endswith(("~attn", "~mlp")) for block in found.blocks)
    assert "whole blocks" in found.not_found["influence"]
    steps = study.table("prune_steps").filter(step=1)
    assert sorted(steps["blocks"]) == sorted(f"{block}~{kind}" for block in range(4) for kind in ("attn", "mlp"))
    assert name_of(frozenset({Step(2), Step(0, ("mlp",))})) == "0~mlp 2"
    assert route_without(4, frozenset({Step(2), Step(1, ("mlp",)), Step(1, ("attn",))})).name == "0 1~attn~mlp 3"


def test_given_blocks_are_measured_on_the_whole_text(tmp_path):
    model = load(save("llama", tmp_path / "model"))
    study = search(model, tmp_path / "run", drop="1-2")
    assert outcome(study).route == "0 3"
    measured = ds.measure(model, "bookshelf", ds.drop(1, 2), tokens=TOKENS, window=WINDOW, progress=False)
    for metric in ("kl", "agreement", "loss", "loss_change"):
        here = study.table("prune_methods").filter(method="given", metric=metric)
        there = measured.filter(edit="drop(1, 2)", metric=metric)
        assert here["mean"].item() == pytest.approx(there["mean"].item(), rel=1e-6)
        assert here["documents"].item() == there["documents"].item()
    assert outcome(search(model, tmp_path / "part", drop="3, 1~mlp")).route == "0 1~mlp 2"
    assert study.report().exists()


def test_blocks_whose_keys_later_ones_read_are_not_tried_and_said(tmp_path):
    kinds = ["sliding_attention", "full_attention"] * 2
    save("gemma4_text", tmp_path / "model", num_kv_shared_layers=2, layer_types=kinds, vocab_size_per_layer_input=4096)
    model = load(tmp_path / "model")
    study = search(model, tmp_path / "run", remove=1, method="greedy,single,random")
    refused = study.run.manifest.not_done
    assert set(refused) == {"removing 0", "removing 1"}
    tried = study.table("prune_steps")["blocks"].unique().to_list()
    assert sorted(tried) == ["2", "3"]
    assert outcome(study).cannot_run >= 2
    with pytest.raises(RouteError, match="block"):
        search(model, tmp_path / "given", drop="1")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "expected one of --keep, --remove and --drop, got none"),
        ({"keep": "75%", "remove": 2}, "got --keep and --remove"),
        ({"keep": "0.75"}, "expected a percentage such as 75%"),
        ({"keep": "120%"}, "--keep 120% is more than the model has"),
        ({"keep": "100%"}, "--keep 100% removes nothing"),
        ({"keep": "0%"}, "nothing to keep"),
        ({"remove": 0}, "--remove is 0: expected 1 to 4,096"),
        ({"remove": "2"}, "setting remove: expected int"),
        ({"drop": "4-2"}, "expected the first block of a range not above its last"),
        ({"drop": "1,,2"}, "--drop is '1,,2': expected blocks such as 21-24"),
        ({"drop": "1,0-2"}, "block 1 is there twice"),
        ({"drop": "0-2,1~mlp"}, "block 1 is there whole and by component"),
        ({"drop": "1", "components": True}, "--components is about a search"),
        ({"drop": "1", "method": "greedy"}, "--method is about a search"),
        ({"remove": 1, "components": True, "method": "angular"}, "angular only rank whole blocks"),
        ({"remove": 1, "method": "magic"}, "unknown criterion magic: expected some of greedy, beam"),
        ({"remove": 1, "width": 8}, "--width is a setting of beam, which is not among the criteria"),
        ({"remove": 1, "method": "beam", "width": 0}, "--width is 0: expected 1 to 256"),
        ({"remove": 1, "draws": 1}, "--draws is 1: expected 2 to 100"),
        ({"removed": 1}, "unknown setting removed (did you mean remove?)"),
    ],
    ids=str,
)
def test_settings_that_fit_no_model_are_refused(given, says):
    with pytest.raises(DepthscopeError) as error:
        prune_settings(**given)
    assert says in str(error.value)


def test_what_does_not_fit_the_model_or_the_text_is_refused_and_nothing_written(tmp_path):
    model = load(save("llama", tmp_path / "model"))
    out = tmp_path / "run"
    for settings, kind, says in (
        ({"remove": 4}, DepthscopeError, "nothing left to keep: .* has 4 blocks, expected at most 3"),
        ({"remove": 9}, DepthscopeError, "9 blocks to remove, but .* has 4"),
        ({"keep": "99%"}, DepthscopeError, "removes none: expected at most 75.0%"),
        ({"drop": "0-3"}, DepthscopeError, "nothing left to keep"),
        ({"drop": "2-7"}, RouteError, "block 4 cannot be removed: .* has blocks 0 … 3"),
        ({"remove": 1, "tokens": 3 * WINDOW}, DataError, "too little text to hold some out: 3 documents"),
    ):
        with pytest.raises(kind, match=says):
            search(model, out, **settings)
        assert not out.exists()
    mamba = load(save("mamba", tmp_path / "mamba"))
    with pytest.raises(DepthscopeError, match="no separate attention and MLP"):
        search(mamba, out, remove=1, components=True)
    assert outcome(search(mamba, out, remove=1, method="greedy")).blocks


def test_the_command_searches_says_what_misleads_and_refuses_before_it_loads(tmp_path):
    save("llama", tmp_path / "model")
    arguments = ["prune", tmp_path / "model", "--remove", 1, "--tokens", TOKENS, "--window", WINDOW, "--draws", 2]
    run = [str(one) for one in (*arguments, "--no-export", "--out", tmp_path / "run")]
    shown = CliRunner().invoke(app, run, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert all(
        said in shown.output for said in ("Greedy", "Block influence", "mean of 2 draws", "fewer than if every set")
    )
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "model").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["prune"]["blocks"]
    with pytest.raises(DepthscopeError, match="expected one of --keep"):
        CliRunner().invoke(app, ["prune", "no-such-model", "--no-export"], catch_exceptions=False)


def test_the_chosen_model_is_written_once_and_its_place_is_checked_before_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "export_route", partial(exports.export_route, fresh=False))
    model, out = load(save("llama", tmp_path / "model")), tmp_path / "run"
    settings = {"remove": 2, "method": "greedy,influence", "command": "depthscope prune"}
    (out / "model").mkdir(parents=True)
    (out / "model" / "mine.txt").write_text("mine")
    with pytest.raises(DepthscopeError, match="other files"):
        search(model, out, **settings, export=True)
    shutil.rmtree(out)
    search(model, out, **settings)
    (out / "model").mkdir()
    (out / "model" / "mine.txt").write_text("mine")
    with pytest.raises(DepthscopeError, match="model"):
        search(model, out, **settings, export=True)
    shutil.rmtree(out / "model")
    study = search(model, out, **settings, export=True)
    assert outcome(study).exported == outcome(study).route
    card = (out / "model" / "README.md").read_text()
    assert all(
        said in card for said in ("Block influence", "depthscope prune", "that the search did not see", "perplexity")
    )
    ids = torch.arange(24)[None] + 5
    pruned = load(out / "model")
    torch.testing.assert_close(ds.logits(pruned, ids), ds.logits(model, ids, ds.parse_route(outcome(study).route, 4)))
    written = (out / "model" / "config.json").stat().st_mtime_ns
    assert outcome(search(model, out, **settings, export=True)).exported == outcome(study).route
    assert (out / "model" / "config.json").stat().st_mtime_ns == written
    assert {one.state for one in check_run(out)} == {State.INTACT, State.UNVERIFIED}


def test_the_mean_over_draws_covers_both_kinds_of_chance():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        draws, documents = random.normal(0, 0.3, 8), random.normal(0, 0.5, 16)
        values = 1 + draws[:, None] + documents + random.normal(0, 0.3, (8, 16))
        found = mean_over_draws(np.full(16, 10), 10 * values[:, None])
        covered += int(found.low[0] <= 1 <= found.high[0])
    assert covered / 400 >= 0.93
    alone = mean_over_draws(np.array([3, 5]), np.ones((1, 2, 2)))
    assert np.isnan(alone.low).all()
    assert alone.mean.tolist() == [0.25, 0.25]


def test_the_split_is_by_document():
    windows = Windows(
        np.zeros((9, 5), np.int32), np.repeat([3, 4, 8, 9, 11], [2, 2, 1, 2, 2]), np.zeros(9, np.int64), bos="none"
    )
    split = Texts(windows, 0, searching=True)
    assert np.unique(split.search.document).tolist() == [3, 8, 11]
    assert np.unique(split.held_out.document).tolist() == [4, 9]
    assert split.record()["search_tokens"] + split.record()["held_out_tokens"] == windows.tokens
    few = split["few 3"]
    assert few.documents == 1
    assert np.array_equal(few.document, split["few 3"].document)
