"""The study as a whole: every experiment from one pass, gaps said, experiments that join, resumption byte for byte."""

from pathlib import Path

import polars as pl
import pytest
from families import tiny_model
from killing import KILLED, SAME_BYTES, whole_and_killed
from test_sweep import save
from typer.main import get_command
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.cli.console import console
from depthscope.engine.baseline import Baseline
from depthscope.errors import DepthscopeError, UnsupportedError
from depthscope.models.load import load
from depthscope.run.store import RunDirectory
from depthscope.schema.experiments import EXPERIMENTS, experiment_names, on_request
from depthscope.studies.settings import command_options, study_options, study_settings

TABLES = [
    "attention",
    "attention_heads",
    "effective_depth",
    "effective_depth_curves",
    "geometry",
    "guess_refine",
    "head_positions",
    "heads",
    "influence",
    "lens",
    "massive",
    "massive_blocks",
    "massive_dimensions",
    "massive_extremes",
    "massive_tokens",
    "neuron_counts",
    "neuron_tokens",
    "neurons",
    "norms",
    "probe_neurons",
    "probes",
    "similarity",
    "sink_heads",
    "sinks",
    "sinks_model",
    "sweep",
]
MAY_BE_EMPTY = ("massive_dimensions", "massive_tokens")
"""Tables of what a model need not have."""


def contents(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in [*(run / "tables").iterdir(), run / "stages.json"]}


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_every_experiment_has_its_tables(family, short_text, tmp_path):
    model = load(save(family, tmp_path / "model"))
    study = ds.study(model, ds.corpus(short_text, tokens=200), out=tmp_path / "run", window=20, progress=False)
    assert study.run.manifest.not_done == {}
    assert study.run.tables() == TABLES
    assert study.run.complete
    assert set(study.run.settings.experiments) == set(EXPERIMENTS) - set(on_request())
    for name in TABLES:
        table = study.table(name)
        assert len(table) > 0 or name in MAY_BE_EMPTY
        if "mean" in table.columns and name != "guess_refine":  # a band may never be predicted at a depth
            assert table["mean"].null_count() == 0, name
    assert study.stages.found is False  # a random model predicts nothing


def test_what_a_model_cannot_do_is_said_and_the_rest_is_done(tmp_path):
    model = load(save("mamba", tmp_path / "model"))
    study = ds.study(model, ds.corpus(tokens=200), out=tmp_path / "run", window=20, progress=False)
    not_done = study.run.manifest.not_done
    blocks = {"norms", "similarity", "neurons", "heads", "probes"}
    assert set(not_done) == {"drop_attn", "drop_mlp", "attention", "sinks", *blocks}
    assert all("\n" not in reason and len(reason) > 20 for reason in not_done.values())
    massive = [name for name in TABLES if name.startswith("massive")]
    depths = ["effective_depth", "effective_depth_curves"]
    assert study.run.tables() == [*depths, "geometry", "guess_refine", "influence", "lens", *massive, "sweep"]
    assert study.run.complete
    for name in ("norms", "attention", "similarity", "neurons", "heads", "probes"):
        with pytest.raises(UnsupportedError, match="has no"):
            ds.study(model, ds.corpus(tokens=200), out=tmp_path / name, window=20, experiments=[name], progress=False)
        assert not (tmp_path / name).exists()


def test_too_little_text_is_said(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("It was a dark and stormy night, and nobody was out. " * 12)
    study = ds.study(gpt2, str(tmp_path / "a.txt"), out=tmp_path / "run", window=64, progress=False)
    assert set(study.run.manifest.not_done) == {"heads", "probes"}
    assert "words of several tokens" in study.run.manifest.not_done["heads"]
    assert study.run.complete
    assert "cannot be told" in {one.verdict for one in study.stages.signatures}


def test_a_suffix_no_token_has(tmp_path, gpt2):
    with pytest.raises(DepthscopeError, match="qqq"):
        ds.study(gpt2, out=tmp_path, experiments=["probes"], suffix="qqq", progress=False)


def test_experts_are_counted_and_not_probed(tmp_path):
    model = load(save("mixtral", tmp_path / "model"))
    names = ["neurons", "norms", "probes"]
    study = ds.study(model, ds.corpus(tokens=200), out=tmp_path / "run", window=20, experiments=names, progress=False)
    assert study.table("neuron_counts")["neurons"].unique().to_list() == [4 * 48]
    assert "experts" in study.run.manifest.not_done["probes"]


def test_a_model_of_one_layer_is_studied_as_far_as_it_goes(tmp_path):
    tiny_model("gpt2", n_layer=1, vocab_size=4096).save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", tokenizer=load("bookshelf-gpt2").tokenizer)
    names = [name for name in experiment_names() if name not in ("heads", "probes")]
    study = ds.study(model, ds.corpus(tokens=200), out=tmp_path / "run", window=20, experiments=names, progress=False)
    assert "has one layer" in study.run.manifest.not_done["similarity"]
    assert "1 layers are too few" in study.stages.summary


def test_one_run_of_the_model_serves_all_readings(tmp_path, monkeypatch):
    model = load(save("gpt2", tmp_path / "model"))
    made = []
    whole = Baseline.__init__
    monkeypatch.setattr(Baseline, "__init__", lambda self, *a, **k: (made.append(1), whole(self, *a, **k))[1])
    readings = ["sweep", "lens", "norms", "attention", "similarity", "influence", "geometry"]
    ds.study(
        model,
        ds.corpus(tokens=2200),
        out=tmp_path / "run",
        window=50,
        edits=["swap"],
        experiments=readings,
        progress=False,
    )
    assert len(made) == 3


def test_experiments_join_a_run_and_change_nothing_in_it(few, tmp_path):
    model = load(save("llama", tmp_path / "model"))
    text = ds.corpus(str(few))

    def study(out: str, *names: str) -> ds.Study:
        return ds.study(model, text, out=tmp_path / out, window=20, experiments=names, progress=False)

    study("apart", "lens")
    study("apart", "norms", "attention")
    study("apart", "sweep", "neurons", "stages")
    study("together", "sweep", "lens", "norms", "attention", "neurons", "stages")
    assert contents(tmp_path / "apart") == contents(tmp_path / "together")
    apart = RunDirectory.reading(tmp_path / "apart")
    assert apart.complete
    assert set(apart.settings.experiments) == {"lens", "norms", "attention", "sweep", "neurons"}
    with pytest.raises(DepthscopeError, match=r"experiments\.lens\.protocol: 'text' stored, 'lad2024' requested"):
        ds.study(
            model, text, out=tmp_path / "apart", window=20, protocol="lad2024", experiments=["lens"], progress=False
        )


@pytest.mark.fault(KILLED, SAME_BYTES)
def test_killed_and_resumed_gives_the_same_bytes_for_all_readings(few, tmp_path, tries):
    model = save("gpt2", tmp_path / "model")
    # These two resume in their own tests, and take longer.
    names = tuple(name for name in experiment_names() if name not in ("heads", "probes"))
    settings = study_settings(experiments=names, window=16, unit_tokens=48)
    about = {"settings": settings, "after": (0, 5, 12, 1), "seed": 1, "kills": tries(4, of=16)}
    whole, killed = whole_and_killed(tmp_path, model, few, None, **about)
    for run in killed:
        assert contents(whole) == contents(run)


def test_the_protocol_of_the_script_changes_what_it_says_it_does(tmp_path, gpt2):
    readings = ["lens", "attention"]
    text, script = (
        ds.study(
            gpt2, ds.corpus(tokens=512), out=tmp_path / p, window=64, protocol=p, experiments=readings, progress=False
        )
        for p in ("text", "lad2024")
    )

    def mean(study: ds.Study, table: str, metric: str, layer: int) -> float:
        rows = study.table(table).filter((pl.col("metric") == metric) & (pl.col("layer") == layer))
        return rows["mean"].item()

    assert mean(text, "lens", "entropy", 12) == pytest.approx(mean(script, "lens", "entropy", 12), rel=1e-4)
    assert mean(text, "lens", "entropy", 2) != pytest.approx(mean(script, "lens", "entropy", 2), rel=0.05)
    assert mean(script, "attention", "band_5", 5) == pytest.approx(
        mean(text, "attention", "previous_5", 5) / 5, rel=0.3
    )
    assert "previous_5" not in script.table("attention")["metric"].to_list()


def unescaped(text: str) -> str:
    return text.replace("\\[", "[")


def test_names_of_experiments():
    assert experiment_names(()) == (*(name for name in EXPERIMENTS if name not in on_request()), "stages")
    assert experiment_names(["painters", "sweep", "map"]) == ("sweep", "map", "painters")
    assert experiment_names(["lens", "sweep", "lens"]) == ("sweep", "lens")
    with pytest.raises(DepthscopeError, match="unknown experiment melt: expected some of sweep, lens"):
        experiment_names(["melt"])


def test_every_command_has_the_declared_settings_of_its_experiments():
    commands = get_command(app).commands
    for command, settings in {
        "study": study_options(),
        **{name.replace("_", "-"): command_options(name) for name, one in EXPERIMENTS.items() if one.command == name},
    }.items():
        for name, option in settings.items():
            (shown,) = [parameter for parameter in commands[command].params if parameter.name == name]
            assert unescaped(shown.help) == option.text
            assert shown.default == option.default or option.type is tuple
    assert ", ".join(experiment_names()) in study_options()["experiments"].text
    assert commands["similarity"].help == EXPERIMENTS["similarity"].question
    assert "influence" not in commands


def test_lens_of_a_prompt_is_the_models_own_prediction_at_the_end(gpt2):
    text = "It was the best of times, it was the"
    found = ds.lens(gpt2, text, top=3)
    own = ds.logits(gpt2, text).float().softmax(-1)[0]
    last = found.filter(pl.col("layer") == gpt2.depth)
    assert last["kl"].max() == 0
    for position, rows in last.group_by("position", maintain_order=True):
        best = own[int(position[0])].topk(3)
        assert rows["predicted_id"].to_list() == best.indices.tolist()
        assert rows["probability"].to_list() == pytest.approx(best.values.tolist(), rel=1e-5)
    assert found["layer"].n_unique() == gpt2.depth + 1
    with pytest.raises(DepthscopeError, match="top of 1 to 4096"):
        ds.lens(gpt2, text, top=0)
    with pytest.raises(DepthscopeError, match="the text is empty"):
        ds.lens(gpt2, "")


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_study_ends_with_the_stage_map(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    names = "sweep,lens,norms,attention,neurons,stages"
    said = shown("study", "--tokens", 384, "--window", 48, "--experiments", names, "--out", tmp_path / "run")
    for words in (
        "Stages of inference",
        "12 layers are too few to tell stages from smooth change with depth",
        "detokenization → feature engineering: not named",
        "layer 0 is exceptional: cost of dropping the layer",
        "The first layer is catastrophic to lose",
        "Lens entropy",
        "prediction neurons",
    ):
        assert words in said, words


def test_prompts_and_single_neurons_on_the_command_line(monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    said = shown("lens", "--prompt", "It was the best of", "--top", 2)
    assert "most likely next tokens" in said
    assert len([line for line in said.splitlines() if line.strip()[:2].strip().isdigit()]) == 13
    said = shown("neurons", "--neuron", "10.228")
    assert "layer 10, neuron 228" in said
    assert "promotes" in said
