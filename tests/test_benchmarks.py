"""The benchmark counts, measures and writes what it says. Nothing here is timed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

import benchmarks.accelerator as accelerator  # noqa: E402
import benchmarks.speed.__main__ as speed  # noqa: E402
from benchmarks.card.record import Line, Record  # noqa: E402
from benchmarks.speed import parts, sweeps, workers  # noqa: E402
from benchmarks.speed.floor import Floor, work  # noqa: E402
from benchmarks.speed.hooks import Hooks, scaled  # noqa: E402
from benchmarks.speed.ours import drawn_pairs  # noqa: E402
from benchmarks.speed.rounds import take_turns  # noqa: E402
from benchmarks.speed.routes import KINDS, SWEEPS, pairs, sweep_routes  # noqa: E402
from benchmarks.speed.shapes import SHAPES  # noqa: E402
from benchmarks.speed.table import PAGE, Comparison, Fact, comparison_table, fact_table, results, written_into  # noqa: E402
from benchmarks.speed.workers import Unavailable, Worker  # noqa: E402
from depthscope.engine.measure_routes import RouteMeter  # noqa: E402
from depthscope.engine.plan import block_calls, make_plan  # noqa: E402
from depthscope.experiments.sweep import layer_edits  # noqa: E402
from depthscope.routes import Route  # noqa: E402

FAMILIES = ("gpt2", "gpt_neox", "llama")


@pytest.mark.parametrize("depth", [2, 5, 12])
def test_the_sweeps_timed_are_those_of_a_study(depth):
    for kinds in SWEEPS.values():
        edits = layer_edits(kinds, depth)
        assert sweep_routes(kinds, depth) == [edit.route for edit in edits]
        assert pairs(kinds, depth) == [(edit.kind, edit.layer) for edit in edits]


@pytest.mark.parametrize("depth", [2, 5, 12])
@pytest.mark.parametrize("parallel", [False, True])
def test_whole_blocks_are_counted_as_the_plan_counts_them(depth, parallel):
    own = Route.own(depth)
    for kinds in (("swap",), ("drop",), ("swap", "drop")):
        routes = [own, *sweep_routes(kinds, depth)]
        need = work(routes, parallel)
        assert need.attention == need.mlp == block_calls(make_plan(routes))
        assert need.readouts == len(set(routes))
    drops = work([own, *sweep_routes(("drop",), depth)], parallel)
    assert (drops.mlp, drops.readouts) == (depth * (depth + 1) // 2, depth + 1)


@pytest.mark.parametrize("depth", [2, 5, 12])
def test_a_silenced_component_costs_at_its_own_layer_what_was_not_computed_before(depth):
    own = Route.own(depth)
    after = depth + depth * (depth - 1) // 2  # the model's own blocks, and all blocks after each edit
    without_attention = [own, *sweep_routes(("drop_attn",), depth)]
    assert work(without_attention, False).attention == after
    assert work(without_attention, False).mlp == after + depth
    assert work(without_attention, True).mlp == after
    without_mlp = [own, *sweep_routes(("drop_mlp",), depth)]
    for parallel in (False, True):
        assert work(without_mlp, parallel).attention == work(without_mlp, parallel).mlp == after


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hooks_measure_what_we_measure_and_leave_the_model_as_it_was(tiny_of, family):
    model = tiny_of(family)
    drawn = torch.randint(0, 97, (3, 21), generator=torch.Generator().manual_seed(1))
    ids, targets = drawn[:, :-1], drawn[:, 1:]
    before = model.hf(input_ids=ids, use_cache=False).logits
    hooks = Hooks(model, ids, targets, SWEEPS)
    hooks.warm()
    own = hooks.baseline()
    every = pairs(tuple(KINDS), model.depth)
    ours = RouteMeter(model, sweep_routes(tuple(KINDS), model.depth)).measure(ids, targets)
    for place, pair in enumerate(every):
        kl, agreement, entropy, loss = hooks.pair(own, *pair)
        torch.testing.assert_close(kl, ours.kl[place + 1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(entropy, ours.entropy[place + 1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(loss, ours.loss[place + 1], atol=1e-4, rtol=1e-4)
        assert (agreement == ours.agreement[place + 1]).float().mean() > 0.98
        assert kl.mean() > 1e-3, "the edit matters"
    assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_floor_takes_every_linear_map_of_a_block(tiny_of, family):
    model = tiny_of(family)
    floor = Floor(model, 100, 20, SWEEPS, rows=(4,), at_least=1e-4)
    floor.warm()
    totals = floor.repetition(0)
    in_products = {part: sum(weight.numel() for weight in blocks[0]) for part, blocks in floor.parts.items()}
    in_block = sum(weight.numel() for weight in model.stack.blocks[0].parameters() if weight.ndim == 2)
    assert sum(in_products.values()) == in_block
    assert 0 < totals["drop"] < totals["all four"]
    need, inside = floor.work["drop"], 2 * 20 * 32
    flops = need.attention * (2 * in_products["attention"] + inside) + need.mlp * 2 * in_products["mlp"]
    flops += need.readouts * 2 * model.unembedding.weight.numel()
    assert floor.gflops["drop"][0] == pytest.approx(100 * flops / totals["drop"] / 1e9)


class Counted:
    """A contender that takes as many seconds as turns have been taken before."""

    turns: list[str] = []  # noqa: RUF012 - shared on purpose: it is the order that is tested

    def __init__(self, name):
        self.name = name

    def warm(self):
        self.turns.append(f"warm {self.name}")

    def repetition(self, number):
        self.turns.append(f"{self.name}{number}")
        return {"drop": float(len(self.turns))}


def test_contenders_take_turns():
    taken = take_turns([Counted("A"), Counted("B")], 2)
    assert Counted.turns == ["warm A", "warm B", "A0", "B0", "A1", "B1"]
    assert taken == {"A": {"drop": [3.0, 5.0]}, "B": {"drop": [4.0, 6.0]}}


def test_one_edit_of_each_kind_is_scaled_to_the_sweep():
    chosen = drawn_pairs(tuple(KINDS), 5, seed=3)
    assert [kind for kind, _ in chosen] == list(KINDS)
    assert set(chosen) <= set(pairs(tuple(KINDS), 5))
    assert len({tuple(drawn_pairs(tuple(KINDS), 5, seed)) for seed in range(20)}) > 5, "layers are drawn anew"
    spent = {"swap": 1.0, "drop": 10.0, "drop_attn": 100.0, "drop_mlp": 1000.0}
    assert scaled(0.5, spent, SWEEPS, 5) == {"all four": 0.5 + 4 + 50 + 500 + 5000, "drop": 50.5}


def line(**changes):
    values = {"model": "m", "dtype": "float32", "edits": "drop", "tokens": 1024, "against": "hooks"}
    return Comparison(**(values | {"ours": 200.0, "theirs": 50.0, "ratios": (3.0, 4.0, 6.0)} | changes))


def test_a_table_has_a_row_per_sweep_and_says_whether_targets_are_met():
    lines = [
        line(target=4.0),
        line(edits="swap", target=4.01),
        line(edits="all", ratios=(3.0,)),
        line(against="floor", ratios=(0.8, 0.85, 0.9), share=True, target=0.85, note="150 GFLOP/s"),
        line(edits="swap", against="floor", theirs=0.0, ratios=(), share=True, note="no room", target=0.5),
    ]
    head, _, *rows = comparison_table(lines).splitlines()
    assert head == "| model | edits | ours, tokens/s | hooks | floor |"
    assert [row.replace("\N{NO-BREAK SPACE}", " ") for row in rows] == [
        "| m | drop | 200 | 4×<br>(3 – 6)<br>≥ 4×: met | 85 %<br>(80 – 90)<br>of 150 GFLOP/s<br>≥ 85 %: met |",
        "| m | swap | 200 | 4×<br>(3 – 6)<br>≥ 4.01×: **missed** | not run: no room<br>≥ 50 %: **missed** |",
        "| m | all | 200 | 3× | – |",
    ]
    facts = [Fact(what="peak", seen="1 GB", target="≤ 1.2 GB", met=True), Fact(what="speed", seen="3")]
    assert fact_table(facts).splitlines()[2:] == ["| peak | 1 GB | ≤ 1.2 GB | met |", "| speed | 3 | – |  |"]
    text = results([*lines, line(dtype="bfloat16")], facts, "How.")
    assert text.endswith("3 of 5 targets met.")
    assert text.index("Sweeps in float32:") < text.index("| m | drop |") < text.index("Sweeps in bfloat16:")


def test_measuring_a_part_again_keeps_the_other_lines_of_the_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "RAW", tmp_path / "build" / "speed.json")
    monkeypatch.setattr(speed, "in_a_new_process", lambda measure, *given: measure(*given, lambda _line: None))
    seen = {"short": "1 s", "memory": "2 GB"}
    monkeypatch.setattr(
        parts, "PARTS", {name: lambda *_, name=name: [Fact(what=name, seen=seen[name])] for name in seen}
    )

    def printed(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["speed", *arguments])
        speed.main()
        return capsys.readouterr().out

    with pytest.raises(SystemExit, match=r"expected one in build/speed\.json"):
        printed("--parts", "memory", "--again")
    printed("--parts", "short,memory")
    seen.update(short="3 s", memory="4 GB")
    after = printed("--parts", "memory", "--again")
    assert "| short | 1 s | – |" in after
    assert "| memory | 4 GB | – |" in after
    assert "2 GB" not in after
    assert "Medians of 3 rounds" in after
    assert "measured again: memory." in after
    monkeypatch.setattr(speed, "compare", lambda shape, dtype, *_: [line(model=shape.name, dtype=dtype)])
    sweeps = ("--parts", "sweeps", "--dtypes", "float32", "--again", "--shapes")
    printed(*sweeps, "llama-16")
    after = printed(*sweeps, "gpt2-small")
    assert after.index("| gpt2-small | drop") < after.index("| llama-16 | drop")
    assert "| memory | 4 GB | – |" in after
    assert after.count("After that") == 1
    assert "measured again: memory, llama-16, gpt2-small." in after
    assert after.endswith(printed("--parts", "none", "--again")), "the last run, as it was"


def test_results_are_put_between_the_markers_of_the_page():
    page = PAGE.read_text()
    once = written_into(page, "first")
    assert written_into(written_into(page, "second"), "first") == once
    assert "\n\nfirst\n\n" in once
    assert "\n\nfirst\n\n" in written_into(once, "third", "accelerator")
    for name in ("results", "accelerator"):
        before, _, rest = page.partition(f"<!-- {name}: begin -->")
        after = rest.partition(f"<!-- {name}: end -->")[2]
        changed = written_into(page, "new", name)
        assert changed.startswith(before)
        assert changed.endswith(after)
    for broken in ("", page + page, "<!-- results: end --><!-- results: begin -->"):
        with pytest.raises(ValueError, match="once each"):
            written_into(broken, "x")


def test_what_cannot_run_is_said_and_the_rest_is_compared(monkeypatch):
    def no_environment(_name, _tell):
        raise Unavailable("no network")

    monkeypatch.setattr(sweeps, "python_of", no_environment)
    told = []
    lines = sweeps.compare(SHAPES["tiny"], "float32", SWEEPS, ["authors' loop", "hooks"], 1, told.append)
    assert [(one.edits, one.against) for one in lines] == [
        (edits, against) for edits in ("all four", "drop") for against in ("authors' loop", "hooks")
    ]
    for one in lines:
        assert (one.note, one.ratios) == ("no network", ()) if one.against == "authors' loop" else len(one.ratios) == 1
    assert any("same KL as hooks" in line for line in told)


def test_alternatives_that_measure_something_else_are_not_compared(monkeypatch):
    other = Hooks.mean_kl
    monkeypatch.setattr(Hooks, "mean_kl", lambda *given: {pair: 1.1 * kl for pair, kl in other(*given).items()})
    with pytest.raises(sweeps.Disagreement, match=r"tiny, float32, \w+\(\d\): mean KL"):
        sweeps.compare(SHAPES["tiny"], "float32", SWEEPS, ["hooks"], 1, lambda _line: None)


PEER = """
from serve import serve

class Peer:
    def __init__(self, spec, ids, targets):
        assert ids.shape == targets.shape == (spec["windows"], spec["length"])
        print("what a library prints is no answer")
        self.depth = spec["config"]["n_layer"]
    def baseline(self):
        pass
    def pair(self, kind, layer):
        assert layer < self.depth - (kind == "swap")
        if kind == "drop_mlp":
            raise ValueError("no such hook")
        return 0.25

serve(Peer)
"""


def test_a_worker_answers_line_by_line_and_says_why_it_cannot(monkeypatch, tmp_path):
    (tmp_path / "peer.py").write_text(PEER)
    (tmp_path / "serve.py").write_text((workers.PEERS / "serve.py").read_text())
    monkeypatch.setattr(workers, "PEERS", tmp_path)
    monkeypatch.setattr(workers, "ENVIRONMENTS", tmp_path)
    monkeypatch.setitem(workers.SCRIPTS, "peer", workers.Peer("peer.py", "peer"))
    worker = Worker("peer", SHAPES["tiny"], "float32", {"both": ("swap", "drop")}, Path(sys.executable))
    worker.warm()
    assert worker.repetition(0)["both"] > 0
    assert {kind for kind, _ in worker.kl} == {"swap", "drop"}
    assert set(worker.kl.values()) == {0.25}
    worker.kinds = ["drop_mlp"]
    with pytest.raises(Unavailable, match="ValueError: no such hook"):
        worker.repetition(1)
    assert worker.process.returncode == 1


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_memory_is_measured_with_torch_and_transformers_alone():
    code = (
        "import sys\n"
        "for name in ('polars', 'scipy', 'sklearn', 'pandas', 'beartype', 'datasets', 'pyarrow'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks.speed import memory\n"
        "memory.main('tiny', 'float32', 64)\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    before, peak = (float(line) for line in done.stdout.splitlines()[-2:])
    assert 0.05 < before <= peak < 5, "GB beyond the weights"


ABSENT = ("polars", "ruptures", "beartype", "datasets", "plotly")


@pytest.fixture(scope="module")
def on_a_card(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], dict]:
    """What all parts print and write, in an environment without the packages that a card's may lack.

    In one process: benchmarks/accelerator.sh gives each its own, which a test of its own holds.
    """
    blocked, out = tmp_path_factory.mktemp("blocked"), tmp_path_factory.mktemp("results")
    (blocked / "sitecustomize.py").write_text(f"import sys\nfor name in {ABSENT}:\n    sys.modules[name] = None\n")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OUT": str(out),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(blocked),
    }
    command = [sys.executable, "benchmarks/accelerator.py", "--device", "cpu", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done, json.loads((out / "accelerator.json").read_text())


def test_the_accelerator_script_runs_every_part_in_a_process_of_its_own(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": shutil.which("echo")}
    command = ["benchmarks/accelerator.sh", "--device", "cpu", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    parts = [f"--part {name}" for name in accelerator.SECONDS]
    assert done.stdout.splitlines() == [
        f"benchmarks/accelerator.py {part} --device cpu --tiny" for part in (*parts, "--summary")
    ]


def test_all_parts_run_on_a_card(on_a_card):
    done, data = on_a_card
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("missed: none; failed: none; not reached: none")
    assert list(data["parts"]) == ["right", "tuned", "figures"]
    assert all(part["lines"] and not part["failed"] and not part["not_reached"] for part in data["parts"].values())
    assert {one["width"] for one in data["sizes"]} == {SHAPES["tiny"].width}


def test_the_accelerators_results_are_written_into_page_and_table(on_a_card, tmp_path, monkeypatch):
    data = on_a_card[1]
    page, cards, results = tmp_path / "page.md", tmp_path / "cards.json", tmp_path / "results.json"
    page.write_text(PAGE.read_text())
    cards.write_text("[]")
    monkeypatch.setattr(accelerator, "PAGE", page)
    monkeypatch.setattr(accelerator.sizes, "CARDS", cards)
    results.write_text(json.dumps(data))
    accelerator.write(results)
    assert "### Figures" in page.read_text()
    assert "no accelerator;" in page.read_text()
    assert cards.read_text() == "[]", "a CPU is no card"
    card = {"name": "Card", "memory": 80.0, "multiprocessors": 100, "capability": 9.0}
    results.write_text(json.dumps(data | {"card": card}))
    accelerator.write(results)
    accelerator.write(results)
    (entry,) = json.loads(cards.read_text())
    assert accelerator.sizes.nearest([entry], accelerator.sizes.Card(**card), 32).tokens == data["sizes"][0]["tokens"]


def test_a_part_goes_on_after_a_failure_and_stops_when_its_time_is_over(tmp_path):
    def fails(_deadline):
        yield Line(what="before", value=1.0, bound=2.0)
        raise ValueError("broken")

    def slow(_deadline):
        yield Line(what="after", value=3.0, bound=2.0)
        time.sleep(0.2)

    record = Record(tmp_path / "r.json", "cpu")
    record.run("right", {"fails": fails, "slow": slow, "never": fails}, seconds=0.1)
    assert Record(tmp_path / "r.json", "cpu").summary(["right", "figures"]) == (
        "met: 1 of 2 targets; missed: after (3, target ≤ 2); failed: fails; not reached: never, figures"
    )
