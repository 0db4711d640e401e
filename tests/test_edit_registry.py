"""Edits are declared once: names and parser agree, and a user's own edit stands wherever a built-in one does."""

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import build_app
from depthscope.cli.console import console
from depthscope.cli.summary import print_summary
from depthscope.edit_registry import EDITS, EditKind, LayerSweep, check_edits, register_edit, sweeps, unregister_edit
from depthscope.errors import RouteError
from depthscope.experiments.sweep import layer_edits
from depthscope.report.figures import FIGURES
from depthscope.report.page import render
from depthscope.report.palette import edit_looks, shown_edits
from depthscope.routes import Route
from depthscope.studies.settings import study_settings

DEPTH = 6
OWN = Route.own(DEPTH)
numbers = st.integers(-2, DEPTH) | st.integers()


SINGLE = [name for name, one in EDITS.items() if one.listed is None]


@st.composite
def calls(draw):
    """An edit's name, and arguments by position and by name, some of them None where there is a default."""
    name = draw(st.sampled_from(SINGLE))
    given: dict[str, int | None] = {}
    for parameter in EDITS[name].signature.parameters.values():
        optional = parameter.default is not parameter.empty
        if not optional or draw(st.booleans()):
            given[parameter.name] = draw(numbers | st.sampled_from([None, parameter.default]) if optional else numbers)
    return name, given


def applied(edit):
    """The route, or what is said of why there is none."""
    try:
        return edit(OWN)
    except RouteError as error:
        return str(error)


@given(calls(), calls())
def test_a_name_is_read_back_as_an_equal_edit_that_does_the_same(first, second):
    edits = [EDITS[name].edit(**given) for name, given in (first, second)]
    both = edits[0] | edits[1]
    assert ds.parse_edit(both.name) == both
    assert (edits[0] == edits[1]) == (edits[0].name == edits[1].name)
    if all(abs(value or 0) < 99 for value in first[1].values()):
        assert applied(ds.parse_edit(edits[0].name)) == applied(edits[0])


@given(calls())
def test_a_default_is_the_same_given_or_left_out(call):
    name, given = call
    parameters = EDITS[name].signature.parameters
    defaults = {one.name: one.default for one in parameters.values() if one.default is not one.empty}
    assert EDITS[name].edit(**given) == EDITS[name].edit(**(defaults | given))
    assert EDITS[name].edit(**given) == getattr(ds, name)(**{k: v for k, v in given.items() if v is not None})


def test_names_are_what_one_would_write():
    written = {
        ds.repeat(2): "repeat(2)",
        ds.repeat(2, 4, 2): "repeat(2, 4)",
        ds.repeat(2, times=3): "repeat(2, times=3)",
        ds.shuffle(-3): "shuffle(-3)",
        ds.shuffle(-3, last=-4): "shuffle(-3, 0, -4)",
        ds.reverse(last=2): "reverse(0, 2)",
        ds.parallel(0): "parallel()",
    }
    assert {edit: edit.name for edit in written} == written
    assert ds.parse_edit("drop(2-4) | Drop-mlp (3)".lower()) == ds.drop(2, 4) | ds.drop_mlp(3)
    assert ds.parse_edit("shuffle(-3--2)") == ds.shuffle(-3, -2)
    assert ds.parse_edit("repeat(first=2, times=3)") == ds.repeat(2, times=3)
    for wrong in (
        "swap(1-)",
        "swap(--1)",
        "swap(1,)",
        "repeat(times=2, 3)",
        "repeat(2, times=3, times=4)",
        "swap(1.5)",
    ):
        with pytest.raises(RouteError, match="expected integers"):
            ds.parse_edit(wrong)
    for wrong in ("swap()", "swap(1, 2)", "swap(first=1)", "swap(1, layer=1)"):
        with pytest.raises(RouteError, match="cannot read the edit 'swap"):
            ds.parse_edit(wrong)


def test_a_list_is_written_with_ranges_and_read_back():
    edit = ds.drop_head(4, 3, 0, 7)
    assert edit.name == "drop_head(4, 3, 0, 7)"
    assert ds.parse_edit(edit.name) == edit
    assert ds.parse_edit("drop_head(4, 0-3, 7) | drop-neuron(1, 228)") == ds.drop_head(
        4, 0, 1, 2, 3, 7
    ) | ds.drop_neuron(1, 228)
    assert ds.drop_head(4, 7, 3, 0)(OWN) == ds.drop_head(4, 0, 3, 7, 7)(OWN) == edit(OWN)
    assert edit(OWN).name == "0-3 4~head0,3,7 5"
    assert ds.drop_neuron(5, *range(9))(OWN).name == "0-4 5~neuron0-8"
    assert (ds.drop_head(0, 1) | ds.mean_ablate_head(0, 1))(OWN) == ds.mean_ablate_head(0, 1)(OWN)
    assert (ds.drop_head(0, 1) | ds.drop_attn(0))(OWN) == ds.drop_attn(0)(OWN)
    for wrong, says in (
        ("drop_head(4)", "no head of layer 4 is named"),
        ("drop_head(6, 0)", "layer of the heads 6 is out of range"),
        ("drop_head(4, -1)", "head -1 is out of range"),
        ("drop_head(1-2, 3)", "expected one integer in place of 1-2"),
        ("drop_head(4, 3-1)", "expected one integer in place of 3-1"),
        ("drop_head()", "cannot read the edit"),
        ("drop_head(4, heads=3)", "cannot read the edit"),
        ("drop_neuron(0, 0-99999999)", "too many heads or neurons"),
    ):
        with pytest.raises(RouteError, match=says):
            ds.parse_edit(wrong)(OWN)
    for wrong in ("4~head", "4~head-1", "4~head1=median", "4~head1~head1=mean", "4~neuron3-1", "4~head1,,2", "4~"):
        with pytest.raises(RouteError, match=r"cannot read|two ways"):
            ds.parse_route(wrong, DEPTH)


@pytest.mark.parametrize("arguments", [(), (None,), (1.5,), ("1",), (1, 2)])
def test_a_constructor_takes_whole_numbers(arguments):
    with pytest.raises(TypeError):
        ds.swap(*arguments)


def test_constructors_show_the_signature_without_the_route():
    assert list(inspect.signature(ds.repeat).parameters) == ["first", "last", "times"]
    assert ds.swap.__name__ == "swap"
    assert ds.swap.__doc__ == "Swap blocks `layer` and `layer + 1` (E1 of the paper)."


def test_type_checkers_see_every_public_name():
    tree = ast.parse(Path(ds.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    names = [alias.asname for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(names) == ds.__all__


def define_skip_pair(title="Skip pair"):
    @ds.register_edit(
        title=title, definition="a layer and the next are skipped", sweep=LayerSweep(first=1, neighbours=1)
    )
    def skip_pair(route: Route, layer: int) -> Route:
        """Blocks `layer` and `layer + 1` are skipped."""
        return ds.drop(layer, layer + 1)(route)

    return skip_pair


@pytest.fixture
def skip_pair():
    """An edit declared outside the package, as in a notebook."""
    made = define_skip_pair()
    yield made
    unregister_edit("skip_pair")


def sweep_of(gpt2, path, **more):
    text = ds.corpus(tokens=40)
    return ds.study(gpt2, text, out=path, window=20, experiments=["sweep"], progress=False, **more)


def test_an_own_edit_is_written_read_and_run_as_any_other(skip_pair, gpt2):
    assert skip_pair(3).name == "skip_pair(3)"
    assert ds.parse_edit("swap(1) | skip-pair(3)") == ds.swap(1) | skip_pair(3)
    assert skip_pair(3)(OWN) == ds.drop(3, 4)(OWN)
    ids = torch.arange(8)
    torch.testing.assert_close(
        ds.logits(gpt2, ids, "skip_pair(3)"), ds.logits(gpt2, ids, ds.drop(3, 4)), rtol=0, atol=0
    )


def test_an_own_edit_is_swept_and_shown(skip_pair, gpt2, tmp_path):
    study = sweep_of(gpt2, tmp_path, edits=["drop", "skip_pair"])
    rows = study.table("sweep").filter(edit="skip_pair", metric="kl")
    assert rows["layer"].to_list() == list(range(1, gpt2.depth - 1))
    page = render(study.run)
    (look,) = (
        look for name, look in edit_looks(shown_edits(study.table("sweep")["edit"])).items() if name == "skip_pair"
    )
    assert f'"meta":"{look.name}"' in page
    assert f"--{look.name}: {look.light}" in page
    assert page.count("Skip pair") >= 3, "in the legend, the definitions and the table of all layers"
    assert "a layer and the next are skipped" in page
    with console.capture() as said:
        print_summary(study.run)
    assert "Skip pair KL" in said.get()


def test_an_own_edit_alone_gives_the_page_its_headline(skip_pair, gpt2, tmp_path):
    page = render(sweep_of(gpt2, tmp_path / "run", edits=["skip_pair"]).run)
    assert "Skip pair at layers " in page
    assert "no edit was measured" not in page


def test_an_own_edit_of_a_component_stands_with_the_components(gpt2, tmp_path):
    """It needs the component in every block it changes, and the sentences name all of those."""
    register_edit(title="Drop two", definition="two attentions", sweep=LayerSweep(neighbours=1, component="attn"))(
        drop_two
    )
    try:
        study = sweep_of(gpt2, tmp_path, edits=["drop_attn", "drop_two"])
        whole, parts = (FIGURES[name].build(study.run) for name in ("sweep", "components"))
        lacking = replace(gpt2.components, parts=({}, *gpt2.components.parts[1:]))
        found = [edit.layer for edit in layer_edits(["drop_two"], gpt2.depth, lacking)]
    finally:
        unregister_edit("drop_two")
    assert found == list(range(1, gpt2.depth - 1))
    assert [look.title for look in parts.legend] == ["Drop attention", "Drop two"]
    assert whole.legend == []
    said = [sentence for sentence in parts.sentences if sentence.startswith("Ablating the attention changes")]
    assert [re.search(r"most in (layers?) \d+( and \d+)?:", one)[1] for one in said] == ["layer", "layers"]


def drop_two(route: Route, layer: int) -> Route:
    return (ds.drop_attn(layer) | ds.drop_attn(layer + 1))(route)


def test_an_own_edit_is_in_help_and_settings(skip_pair):
    said = " ".join(CliRunner().invoke(build_app(), ["sweep", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "skip-pair" in said
    assert study_settings(experiments=("sweep",), edits=("skip_pair",)).options["edits"] == ("skip_pair",)
    assert list(sweeps())[-1] == "skip_pair"


def test_a_run_with_an_edit_that_is_not_registered_here_still_shows_it(gpt2, tmp_path):
    define_skip_pair()
    study = sweep_of(gpt2, tmp_path, edits=["drop", "skip_pair"])
    unregister_edit("skip_pair")
    page = render(study.run)
    assert "an edit that is not registered here" in page
    with console.capture() as said:
        print_summary(study.run)
    assert "skip_pair KL" in said.get()


def test_an_own_edit_that_does_something_else_now_does_not_resume(skip_pair, gpt2, tmp_path):
    sweep_of(gpt2, tmp_path, edits=["skip_pair"])
    EDITS["skip_pair"] = EditKind(
        name="skip_pair",
        title="Skip pair",
        definition="",
        function=lambda route, layer: ds.drop(layer)(route),
        sweep=LayerSweep(first=1, neighbours=1),
    )
    with pytest.raises(ds.DepthscopeError, match=r"sweep.routes.skip_pair.1: '0 3-11' stored, '0 2-11' requested"):
        sweep_of(gpt2, tmp_path, edits=["skip_pair"])


def test_the_same_definition_may_run_again_and_no_other_takes_its_name(skip_pair):
    define_skip_pair(title="Skip two")
    assert EDITS["skip_pair"].title == "Skip two"
    with pytest.raises(RouteError, match=r"the edit skip_pair is already .*define_skip_pair"):
        register_edit(title="Other", definition="other", name="skip_pair")(lambda route, layer: route)
    for name in ("swap", "repeat"):
        with pytest.raises(RouteError, match=f"{name} is a built-in edit"):
            register_edit(title="Mine", definition="mine", name=name)(lambda route, layer: route)
        with pytest.raises(RouteError, match=f"{name} is a built-in edit"):
            unregister_edit(name)


@pytest.mark.parametrize(
    ("named", "function", "says"),
    [
        ({"name": "none"}, lambda route: route, "'none' cannot name an edit"),
        ({"name": "Skip-Pair"}, lambda route: route, "'Skip-Pair' cannot name an edit"),
        ({"name": "mine"}, lambda route, a=0, *layers: route, "expected integer parameters after the route"),
        ({"name": "mine"}, lambda route, share=0.5: route, "expected integer parameters after the route"),
        ({"name": "mine", "sweep": LayerSweep()}, lambda route: route, "a sweep calls mine with only a layer"),
        ({"name": "mine", "sweep": LayerSweep()}, lambda route, a, b: route, "a sweep calls mine with only a layer"),
    ],
)
def test_what_cannot_be_an_edit_is_refused(named, function, says):
    with pytest.raises(RouteError, match=says):
        register_edit(title="Mine", definition="mine", **named)(function)
    assert "mine" not in EDITS


@pytest.mark.parametrize("given", [{"first": -1}, {"neighbours": -1}, {"component": "brain"}])
def test_a_sweep_of_nothing_is_refused(given):
    with pytest.raises(RouteError):
        LayerSweep(**given)


@pytest.mark.parametrize("result", [None, 3, Route.own(DEPTH + 1)])
def test_a_function_that_gives_no_route_of_the_model_is_named(result):
    made = register_edit(title="Mine", definition="mine", name="mine")(lambda route: result)
    try:
        with pytest.raises(RouteError, match=rf"mine\(\) returned .*: expected a Route of depth {DEPTH}"):
            made()(OWN)
    finally:
        unregister_edit("mine")
    with pytest.raises(RouteError, match="no edit is registered as 'mine'"):
        made()(OWN)
    with pytest.raises(RouteError, match="unknown edit mine: expected some of swap, drop"):
        check_edits(["mine"])


@given(st.integers(0, 2), st.integers(0, 3), st.integers(1, 9))
def test_a_sweep_stays_within_the_model(first, neighbours, depth):
    sweep = LayerSweep(first=first, neighbours=neighbours)
    assert all(block in range(depth) for layer in sweep.layers(depth) for block in sweep.blocks(layer))
    assert len(sweep.layers(depth)) == max(0, depth - neighbours - first)
