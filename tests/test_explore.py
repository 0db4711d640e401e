"""The explorer's answers: the numbers are the library's own, and nothing typed or stored breaks or enters the page."""

import math
import os
import re
import shutil
import socket
from html import unescape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
import torch
from families import tiny_model
from report_runs import all_tables, made_up_stages, make_run
from test_structure import FILES, imported, package

import depthscope as ds
from depthscope.data.token_classes import vocabulary_of
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import DataError, DepthscopeError, RouteError, RunError
from depthscope.experiments.jacobian_lens import JacobianLens
from depthscope.experiments.lenses import lenses_of
from depthscope.experiments.neurons import NeuronReport, TokenCosine
from depthscope.experiments.sweep import layer_edits
from depthscope.experiments.tuned_lens import FORMAT, KIND, TunedLens, describe
from depthscope.explore import comparison, markup, neurons
from depthscope.explore import prompt as prompts
from depthscope.explore import runs as listing
from depthscope.explore.answers import Answers
from depthscope.explore.attention import head_scores, pattern_figure, pattern_of
from depthscope.explore.figures import without_links
from depthscope.explore.lens import COLOURS, lens_table
from depthscope.explore.prompt import Prompt, Session
from depthscope.explore.runs import Runs, model_of, progress
from depthscope.explore.surgery import LAST, MEAN, operate, read_cell, strength
from depthscope.models.model import Model
from depthscope.run.store import RunDirectory

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "qwen2"]
HOSTILE = [
    "<script>alert(1)</script>",
    "{{value}} ${1+1} `x` \\u003c",
    "🙂🏽 שלום عالم",
    "\x00\x1b[31m",
    "\ud800",
    "\n\t  ",
]
IDS = torch.arange(3, 12)[None]


@pytest.fixture(params=FAMILIES)
def model(request, tiny_of):
    return tiny_of(request.param)


@pytest.fixture(scope="module")
def answers(gpt2):
    return Answers(Session(gpt2))


def shown_text(html):
    return re.sub(r"<[^>]+>", " ", html)


def test_only_page_and_server_know_gradio():
    users = {file.name for file in FILES if "gradio" in {name.split(".")[0] for name in imported(file)}}
    assert users == {"page.py", "serve.py"}
    assert {package(file) for file in FILES if file.name in users and "gradio" in file.read_text()} >= {"explore"}


def test_surgery_measures_what_the_route_meter_does_and_predicts_what_the_logits_say(model):
    with torch.inference_mode():
        found = operate(model, Baseline(model, IDS, IDS), 3, MEAN)
        last = operate(model, Baseline(model, IDS, IDS), 3, LAST)
    kinds = ["swap", "drop", "drop_attn", "drop_mlp"]
    edits = layer_edits(kinds, model.depth)
    expected = RouteMeter(model, [edit.route for edit in edits]).measure(IDS, IDS)
    assert [(e.kind, e.layer) for e in found.edits] == [(e.kind, e.layer) for e in edits]
    torch.testing.assert_close(found.kl, expected.kl[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(last.kl[:, 0], expected.kl[:, 0, -1], rtol=1e-4, atol=1e-6)
    assert found.kl[0].abs().max() == 0
    for index, edit in enumerate(edits, start=1):
        probabilities = ds.logits(model, IDS, edit.route)[0, -1].double().softmax(-1)
        torch.testing.assert_close(found.top_probabilities[index], probabilities.topk(3).values, rtol=1e-4, atol=1e-7)
        assert read_cell(f"{edit.kind},{edit.layer}", found) == (f"{edit.kind}({edit.layer})", index)


def test_surgery_on_a_model_without_components_says_what_could_not_be_done(tiny_of):
    mamba = tiny_of("mamba")
    with torch.inference_mode():
        found = operate(mamba, Baseline(mamba, IDS, IDS), 3)
    assert set(found.not_done) == {"drop_attn", "drop_mlp"}
    assert {edit.kind for edit in found.edits} == {"swap", "drop"}
    assert [read_cell(cell, found) for cell in ("drop_mlp,0", "drop,99", "drop,x", "", "drop,²")] == [None] * 5


def test_next_tokens_of_a_route_are_those_of_the_logits(model):
    text = f"1 0 2-{model.depth - 1}" if model.depth > 3 else "1 0"
    route = comparison.read_route(text, model.depth)
    with torch.inference_mode():
        found = comparison.last_probabilities(model, IDS, route)
        own = comparison.last_probabilities(model, IDS, ds.Route.own(model.depth))
    torch.testing.assert_close(found, ds.logits(model, IDS, route)[0, -1].double().softmax(-1))
    naive = sum(p * math.log(p / q) for p, q in zip(own.tolist(), found.tolist(), strict=True) if p)
    assert comparison.divergence(own, found) == pytest.approx(naive, abs=1e-9)
    assert comparison.divergence(own, own) == 0


@pytest.mark.parametrize("edit", ["", "swap(3)", "drop(2-4) | drop_mlp(7)"])
def test_a_continuation_is_greedy_on_its_route_and_stops_at_the_context(shelf, edit):
    route = comparison.read_route(edit, shelf.depth)
    ids = torch.tensor([shelf.tokenize("It was the best of")])
    with torch.inference_mode():
        found = comparison.continuation(shelf, ids, route, 4)
    expected = ids
    for _ in range(4):
        best = ds.logits(shelf, expected, route)[0, -1].argmax()
        expected = torch.cat([expected, best[None, None]], 1)
    assert found.ids == expected[0, ids.shape[1] :].tolist()
    with torch.inference_mode():
        full = comparison.continuation(shelf, torch.full((1, shelf.context - 1), 5), route, 4)
    assert len(full.ids) == 1
    assert "context of 256 tokens is full" in full.stopped
    with torch.inference_mode():
        assert "stopped after 0 seconds" in comparison.continuation(shelf, ids, route, 4, seconds=0.0).stopped


def test_the_text_is_continued_under_a_chosen_edit(answers):
    html = answers.continued("It was the best of", LAST, "drop,3")
    assert html.count("class='written'") == 2
    assert "drop(3)" in html
    assert "unmodified model" in html
    assert "Choose a cell" in answers.continued("It was the best of", LAST, "drop,99")
    assert "Enter a text" in answers.continued("", LAST, "drop,3")


def test_routes_as_they_are_typed():
    own = ds.Route.own(12)
    assert comparison.read_route("", 12) == comparison.read_route(" none ", 12) == own
    assert comparison.read_route("0 1 3 2 4-11", 12) == ds.swap(2)(own)
    assert comparison.read_route("Swap(3) | drop_mlp(7)", 12) == (ds.swap(3) | ds.drop_mlp(7))(own)
    assert comparison.read_route("(3+4) 5~mlp", 12).name == "(3+4) 5~mlp"
    assert comparison.read_route("empty", 12).visits == ()
    for text, says in {
        "swap(99)": "out of range",
        "melt(3)": "cannot read the edit",
        "three": "cannot read",
        "repeat(0-11, 5000)": "too often",
        "repeat(0-11, 90) | repeat(0-11, 90)": "visits 1080 blocks: expected at most 96",
        "0-11 " * 9: "visits 108 blocks",
        "5" * 50: "numbers below",
        "0 " * 999: "at most 1,000 characters",
    }.items():
        with pytest.raises(RouteError, match=re.escape(says)):
            comparison.read_route(text, 12)


def test_the_lens_table_holds_the_lens(gpt2, answers):
    text = "It was the worst of times"
    lens = ds.lens(gpt2, text)
    for colour in COLOURS:
        _, html = answers.lens(text, colour)
        tokens = [unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", html)]
        best = lens.filter(lens["rank"] == 1)
        assert tokens == best["predicted"].to_list()
        shades = [float(found) for found in re.findall(r"--s:([\d.]+)", html)]
        value = {
            COLOURS[0]: best["probability"],
            COLOURS[1]: best["entropy"] / math.log(4096),
            COLOURS[2]: best["kl"] / 10,
        }[colour]
        assert shades == pytest.approx(value.clip(0, 1).to_list(), abs=6e-4)
    assert lens_table(lens, 4096, "melted") == lens_table(lens, 4096, COLOURS[0])


def test_every_lens_that_reads_the_model_can_be_chosen(gpt2, tmp_path):
    class Doubled:
        def decode(self, residual, depth, last):
            return gpt2.unembedding.hidden(2 * residual)

    ds.register_lens(ds.LensKind(name="doubled", title="Doubled", definition="twice", make=lambda model: Doubled()))
    try:
        width = gpt2.unembedding.weight.shape[1]
        fitted = {
            "jacobian": JacobianLens(gpt2, torch.eye(width).expand(gpt2.depth, -1, -1)),
            "tuned": TunedLens.identity(gpt2),
        }
        for name, one in fitted.items():
            one.config["model"], one.config["format"] = describe(gpt2), FORMAT
            one.config |= {KIND: name} if name == "jacobian" else {}
            one.save(tmp_path / name)
        lenses, refused = lenses_of(gpt2, {name: tmp_path / name for name in fitted})
        assert [*lenses] == ["logit", "frozen_scale", "tuned", "jacobian", "doubled"]
        assert refused == {}
        assert [*lenses_of(gpt2, {"tuned": tmp_path / "jacobian"})[1]] == ["tuned"]
        answers = Answers(Session(gpt2, lenses))
        assert answers.shown_lenses() == ["logit", "tuned", "jacobian"]
        one_by_one = [answers.lens("It was", COLOURS[0], [name])[1] for name in lenses]
        assert answers.lens("It was", COLOURS[0], [*lenses, "<b>"])[1] == "".join(one_by_one)
        assert ["Logit lens: the most" in one_by_one[0], "Doubled: the most" in one_by_one[-1]] == [True, True]
        assert "Choose a lens" in answers.lens("It was", COLOURS[0], [])[1]
    finally:
        ds.unregister_lens("doubled")


def test_head_scores_and_patterns_are_those_of_the_model(model):
    with torch.inference_mode():
        baseline = Baseline(model, IDS, IDS)
        scores = head_scores(baseline)
        patterns = [found[0].double() for found in baseline.patterns() if found is not None]
        implementation = model.hf.config._attn_implementation
        shown = pattern_of(baseline, 1, 0)
    assert model.hf.config._attn_implementation == implementation != "eager"
    torch.testing.assert_close(shown.double(), patterns[1][0])
    seq = IDS.shape[1]
    for found, key in ((scores.previous, lambda q: q - 1), (scores.first, lambda q: 0)):
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        for one in found:
            naive = sum(float(patterns[one.layer][one.head, q, key(q)]) for q in range(1, seq)) / (seq - 1)
            assert one.score == pytest.approx(naive, abs=1e-6)
    drawn = pattern_figure(shown, HOSTILE[:1] * seq, "a <b>")
    assert "<script" not in drawn.to_json()
    with torch.inference_mode(), pytest.raises(DepthscopeError, match="has no head 99 in layer 0: expected 0 … 3"):
        pattern_of(baseline, 0, 99)
    with torch.inference_mode(), pytest.raises(DepthscopeError, match="has no layer 40: expected 0 … 3"):
        pattern_of(baseline, 40, 0)


def test_activations_are_what_goes_into_the_output_map(gpt2):
    ids = torch.tensor([gpt2.tokenize("It was the best of times")])
    seen = []
    handle = gpt2.hf.transformer.h[4].mlp.c_proj.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    with torch.inference_mode():
        gpt2.hf(input_ids=ids)
    handle.remove()
    with torch.inference_mode():
        found = neurons.activations(gpt2, ids, 4, 17)
    assert found == pytest.approx(seen[0][0, :, 17].tolist(), abs=1e-5)


def test_neuron_counts_agree_with_the_study_of_neurons(shelf):
    session = Session(shelf)
    layers = neurons.NeuronLayers(shelf, session.neurons)
    table = session.neurons.tables([layers.layer(layer) for layer in range(shelf.depth)])["neuron_counts"]
    for kind, place in (("prediction", 1), ("suppression", 2)):
        assert [row[place] for row in layers.counts()] == table.filter(kind=kind)["count"].to_list()
    layer, neuron = map(int, neurons.sharpest(layers).split("."))
    report = session.neurons.neuron(layer, neuron)
    card = shown_text(neurons.neuron_card(report))
    assert all(one.text in card for one in (*report.promoted, *report.suppressed) if one.text.isalpha())


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_is_typed_is_shown_and_never_run(answers, text):
    said = [
        *answers.lens(text, COLOURS[0]),
        answers.compare(text, text, "swap(3)", False),
        answers.surgery(text, LAST),
        answers.edited(text, LAST, "drop,3"),
        answers.edited(text, LAST, text),
        answers.heads(text),
        answers.pattern(text, -3, 77)[1],
        answers.neuron(text, "3.5"),
        answers.neuron("a", text),
    ]
    html = "".join(said)
    assert "<script" not in html
    assert not set("{}$`\\") & set(html)
    assert len(html) > 10_000


NONSENSE_NUMBERS = [None, -1, 40, 2.5, 1e300, -1e300, math.inf, math.nan]
NONSENSE = [
    "",
    "40",
    "-1",
    "40.0",
    "0.99999",
    "9" * 5000,
    f"0.{'9' * 5000}",
    "²",
    "drop(-1)",
    "drop(9999999)",
    "x" * 9999,
]
NONSENSE_CELLS = ["drop,40", "drop,-1", "drop,²", f"drop,{'9' * 5000}", "melt,0", "none,-1", ",", "0"]


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_every_room_answers_nonsense_with_a_sentence(family, gpt2):
    answers = Answers(Session(Model(tiny_model(family, vocab_size=4096), gpt2.tokenizer, "tiny")))
    for text in ("", "\0", "some text"):
        said = [answers.pattern(text, layer, 0) for layer in NONSENSE_NUMBERS]
        said += [answers.pattern(text, 0, head) for head in NONSENSE_NUMBERS]
        assert all(figure is None and "problem" in why for figure, why in said)
    for typed in NONSENSE:
        assert "problem" in answers.neuron("some text", typed)
        assert "problem" in answers.compare("some text", typed or "?", "drop(0)", False)
        assert answers.edited("some text", typed, typed) == ""
    for text in ("", "²", "x" * 9):
        assert len(answers.lens(text, "melted")) == 2
        assert answers.surgery(text, "melted")
        assert answers.heads(text)
        assert len(answers.strongest(text)) == 2
    assert [answers.edited("some text", LAST, cell) for cell in NONSENSE_CELLS] == [""] * len(NONSENSE_CELLS)
    for layer in (-5, 0, 40, 10**30):
        assert all(isinstance(part, str) for part in answers.layers(layer))
    assert re.fullmatch(r"\d+\.\d+", answers.sharpest())


def test_promoted_and_suppressed_tokens_are_drawn_on_one_scale():
    report = NeuronReport(
        layer=0,
        neuron=1,
        kind="other",
        numbers={},
        promoted=[TokenCosine(1, "a", 0.4), TokenCosine(2, "b", 0.2)],
        suppressed=[TokenCosine(3, "c", -0.1)],
        classes=[],
    )
    widths = re.findall(r"width:([\d.]+)%", neurons.neuron_card(report))
    assert widths == ["100.0", "50.0", "25.0"]


def test_the_runs_open_with_one_that_has_something_to_show(tmp_path):
    runs = Runs(tmp_path)
    assert runs.first() is None
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert runs.first() == "broken"
    make_run(tmp_path / "begun", complete=False, experiments=("sweep",))
    assert runs.first() == "begun"
    make_run(tmp_path / "full", tables={"sweep": all_tables()["sweep"]})
    make_run(tmp_path / "later", complete=False, experiments=("sweep",))
    assert runs.first() == "full"
    assert runs.overview("full").count("class='cell chosen'") == 1
    assert "chosen" not in runs.overview()


def test_every_token_of_the_vocabulary_can_be_shown(shelf):
    texts = vocabulary_of(shelf)
    parts = 0
    for token in range(shelf.unembedding.vocabulary):
        html = markup.token(texts.shown(token))
        assert re.fullmatch(r"<bdi class='token'>[^<>{}$`\\]+</bdi>", html), html
        assert "\ufffd" not in html
        parts += "&lt;0x" in html
    assert parts > 0, "bytes that are part of a character"


def test_no_prompt_and_a_long_one(answers):
    note, table = answers.lens("", COLOURS[0])
    assert "Enter a text" in note
    assert table == ""
    assert "Enter a text" in answers.surgery("", LAST) + answers.compare("", "", "", False)
    note, table = answers.lens("It was so. " * 1000, COLOURS[0])
    assert "The text is too long: only its first 256 tokens are used (the context of bookshelf-gpt2)" in note
    assert table.count("<tr>") == 257
    assert "the context of 256 tokens is full" in answers.compare("It was so. " * 1000, "", "drop(3)", True)
    assert "1 token;" in answers.lens("a", COLOURS[0])[0]
    assert "layer.head" in answers.heads("a")
    assert answers.strongest("a") == answers.strongest("") == (0, 0)
    assert answers.strongest("one two three") != (0, 0)


def test_prompts_are_computed_once_and_not_kept_for_ever(gpt2, monkeypatch):
    monkeypatch.setattr(prompts, "KEPT", 4)
    session = Session(gpt2)
    with session.reading("one") as first:
        assert first.surgery(LAST) is first.surgery(LAST)
    with session.reading("one") as again:
        assert again is first
    for number in range(9):
        with session.reading(f"text {number}"):
            pass
    assert len(session._prompts) == 4
    assert isinstance(first, Prompt)
    monkeypatch.setattr(gpt2, "tokenizer", None)
    with pytest.raises(DataError, match="without a tokenizer"), session.reading("two"):
        pass


def test_colours_of_kl_grow_between_their_ends():
    shades = [float(strength(kl).removeprefix("--s:")) for kl in (0.0, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1e6)]
    assert shades == [0, 0, 0.25, 0.5, 0.75, 1, 1]


def test_runs_of_all_kinds_are_listed_with_the_reason(tmp_path):
    make_run(tmp_path / "runs" / "full", tables=all_tables())
    half = make_run(tmp_path / "runs" / "half", complete=False, experiments=("sweep", "heads"))
    half.write_shard("sweep", 0, all_tables()["sweep"])
    for name, manifest in {
        "broken": '{"format": 1',
        "other": '{"format": 99, "settings": {}}',
        "odd": '{"format": 1, "settings": {"experiments": 5, "tokens": "x"}, "not_done": 3}',
        "<b>hostile": '{"format": 1, "settings": {"model": "<script>alert(1)</script>"}, "status": "complete"}',
    }.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "run.json").write_text(manifest)
    runs = Runs(tmp_path)
    html = runs.overview()
    assert set(runs.names()) == {f"runs/{n}" for n in ("full", "half", "broken", "other", "odd", "<b>hostile")}
    for said in (
        "complete",
        "incomplete, last written 0 s ago",
        "cannot be read",
        "format 99: this depthscope reads",
    ):
        assert said in html
    assert "<script" not in html
    assert "<b>" not in html
    assert "sweep 1 of 4" in " ".join(shown_text(runs.status("runs/half")).split())
    assert [(one.experiment, one.stored) for one in progress(half)] == [("sweep", 1), ("heads", 0)]
    assert "damaged" in runs.status("runs/odd")
    for name in (*runs.names(), "runs/none", "../..", "/etc", "", None):
        figure, why = runs.figure(name, "sweep")
        assert (figure is not None) == (name == "runs/full"), why
        assert isinstance(runs.status(name), str)
    assert "no longer exists" in runs.status("../..")
    assert {name for _, name in runs.figures("runs/full")} >= {"sweep", "lens"}
    assert "unknown figure" in runs.figure("runs/full", "melted")[1]


LINK = "<a href='http://evil.example'>a</a><b>b</b><span style='font-size:99px'>c</span><img src=x>"


def hostile(value):
    """The same JSON with a link in every text that no code reads."""
    if isinstance(value, dict):
        return {
            key: f"{member} {LINK}" if isinstance(member, str) and key in FREE else hostile(member)
            for key, member in value.items()
        }
    return [hostile(member) for member in value] if isinstance(value, list) else value


FREE = {"title", "sentence", "reason", "summary", "test", "evidence", "model", "data", "unit"}


@pytest.mark.fault("links and HTML in the texts of a run's files", "shown as text in the explorer's plots and tables")
def test_no_link_enters_a_plot_or_the_page(tmp_path):
    tables = all_tables() | {
        "own": pl.DataFrame(
            {"layer": [0, 1], LINK: [0, 1], "metric": [LINK] * 2, "unit": [LINK] * 2, "mean": [0.5, 0.6]}
            | {"ci_low": [0.4, 0.5], "ci_high": [0.6, 0.7], "tokens": [9, 9], "documents": [3, 3]}
        )
    }
    make_run(tmp_path / "run", tables=tables, stages=hostile(made_up_stages()), model=LINK)
    runs = Runs(tmp_path)
    drawn = 0
    for _, name in runs.figures("run"):
        shown, why = runs.figure("run", name)
        assert "<a" not in why
        if shown is not None:
            text = shown.to_json().replace("\\u003c", "<")
            drawn += "evil.example" in text
            assert not re.search(r"<(a|img|span)\b", text), name
    assert drawn > 3, "the texts are shown"
    for html in (runs.overview("run"), runs.status("run")):
        assert not re.search(r"<(a|img)\b", html)


def test_figures_keep_emphasis_and_lose_links():
    trace = go.Scatter(x=["<a href='http://x'>1</a>"], y=np.array(["<A HREF=x>"]), text="<b>t</b><extra></extra> 1 < 2")
    shown = without_links(go.Figure(trace, {"title": {"text": "<i>t</i><br><span>x</span>"}}))
    assert shown.data[0].x == ("&lt;a href='http://x'>1</a>".replace("</a>", "&lt;/a>"),)
    assert shown.data[0].y == ("&lt;A HREF=x>",)
    assert shown.data[0].text == "<b>t</b><extra></extra> 1 &lt; 2"
    assert shown.layout.title.text == "<i>t</i><br>&lt;span>x&lt;/span>"


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("full") / "run"
    make_run(run, tables=all_tables(), stages=made_up_stages())
    (run / "shards" / "sweep").mkdir(parents=True)
    return run


@pytest.mark.parametrize(
    "what", ["run.json", "stages.json", "tables", "tables/sweep.parquet", "shards", "shards/sweep"]
)
@pytest.mark.parametrize("kind", ["outside", "broken", "circle", "pipe", "inside"])
@pytest.mark.fault(
    "a run with links out of the explored folder, or with pipes", "not followed or opened; said in the list"
)
def test_links_out_of_the_folder_are_not_followed(full_run, tmp_path, what, kind):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    for run in (outside / "run", folder / "run", folder / "other"):
        shutil.copytree(full_run, run)
    place = folder / "run" / what
    place.rename(place.with_name("away"))
    if kind == "pipe":
        os.mkfifo(place)
    else:
        target = {"outside": outside / "run" / what, "inside": folder / "other" / what}
        place.symlink_to(target.get(kind, tmp_path / "nothing" if kind == "broken" else place))
    runs = Runs(folder)
    listed = "run" in runs.names()
    if kind == "inside":
        assert listed
        if what == "run.json":  # opening a run reads it, and follows no link out of the run
            with pytest.raises(RunError, match="leads out of"):
                runs.open("run")
        else:
            assert runs.open("run")
        return
    assert not listed or "of this run is a" in shown_text(runs.overview())
    if listed:
        with pytest.raises(RunError, match=r"is a link|is a pipe"):
            runs.open("run")
    assert runs.figures("run") == []
    assert runs.figure("run", "sweep") == (None, "")
    if what == "run.json":  # whatever is damaged, the other run is read by the same call
        assert len(runs.figures("other")) > 5


def test_a_run_with_more_entries_than_are_looked_at_is_not_opened(tmp_path, monkeypatch):
    make_run(tmp_path / "run", tables=all_tables())
    monkeypatch.setattr(listing, "MOST_ENTRIES", 3)
    runs = Runs(tmp_path)
    assert "tables of this run has more than 3 entries" in shown_text(runs.overview())
    assert runs.figures("run") == []


@pytest.mark.fault(
    "depthscope explore on a run that names a model of the hub", "no hub is asked; the page says the command"
)
@pytest.mark.parametrize("name", ["evil/model", "gpt2", "evil", "a b;rm -rf x", "<a href=x>"])
def test_the_model_that_a_run_names_is_not_asked_of_a_hub(tmp_path, monkeypatch, name):
    from huggingface_hub import constants

    from depthscope.cli.explore import _loaded

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as without the tests' own setting
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a host was looked up"))
    model, note = _loaded(name, True, "auto", "cpu", None, None)
    assert model.name == "bookshelf-gpt2"
    assert "`depthscope explore " in note
    assert constants.HF_HUB_OFFLINE is False
    html = markup.message(note)
    assert "<a" not in html


def test_no_runs_and_the_model_of_one(tmp_path):
    assert "There are no runs" in Runs(tmp_path).overview()
    assert "There are no runs" in Runs(tmp_path / "nowhere").overview()
    run = make_run(tmp_path / "run", tables=all_tables())
    assert model_of(tmp_path / "run") == run.settings.model
    assert model_of(tmp_path) is None
    alone = Runs(tmp_path / "run")
    assert alone.names() == ["."]
    assert isinstance(alone.open("."), RunDirectory)
    assert "run" in shown_text(alone.overview())


def test_a_port_in_use_gives_the_next_free_one(monkeypatch):
    serve = pytest.importorskip("depthscope.explore.serve")
    with socket.socket() as taken:
        taken.bind((serve.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < serve.free_port(port) < port + serve.PORTS_TRIED
        monkeypatch.setattr(serve, "PORTS_TRIED", 1)
        with pytest.raises(DepthscopeError, match="no free port"):
            serve.free_port(port)


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    import importlib.util

    from depthscope.cli.explore import command

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DepthscopeError, match=re.escape("pip install 'depthscope[explore]'")):
        command()


def test_the_style_sheet_asks_for_nothing():
    import depthscope.explore

    style = Path(depthscope.explore.__file__).with_name("page.css").read_text()
    assert not re.search(r"url\(|@import|https?:", style)
