"""The sweep end to end, through the command line, against brute force; its table against its tokens; resuming."""

import shutil
from pathlib import Path

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import tiny_model
from killing import KILLED, SAME_BYTES, whole_and_killed
from rebuilt import logits_of, with_order, without_component
from scipy import stats
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.data.windows import make_windows
from depthscope.errors import UnsupportedError
from depthscope.models.load import load
from depthscope.models.located import EMBEDDED
from depthscope.schema.sweep import DOCUMENT_SHARD, MEASURED, METRICS, SWEEP_TABLE, TOKEN_SHARD
from depthscope.studies.run_study import run_study
from depthscope.studies.settings import study_settings

DEPTH = 4


@pytest.fixture(params=["gpt2", "gpt_neox", "phi", "llama", "qwen2"])
def folder(request, tmp_path) -> Path:
    """A random model with the embedded tokenizer, saved as a user would have it."""
    return save(request.param, tmp_path / request.param)


def save(family: str, path: Path) -> Path:
    tiny_model(family, vocab_size=4096).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "bookshelf-gpt2" / name, path)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_per_token_numbers_equal_brute_force(folder, tmp_path):
    run("sweep", folder, "--per-token", "--tokens", 160, "--window", 20, "--out", tmp_path / "run")
    rows = pl.concat(pl.read_parquet(file) for file in sorted((tmp_path / "run" / "shards" / "sweep").iterdir()))
    assert dict(rows.schema) == TOKEN_SHARD
    model = load(folder)
    windows = make_windows(ds.corpus(tokens=160), model, length=20)
    ids, targets = windows.batch()
    own = logits_of(model.hf, ids)
    edited = {("none", -1): own}
    for layer in range(DEPTH):
        order = list(range(DEPTH))
        edited["drop", layer] = logits_of(with_order(model.hf, order[:layer] + order[layer + 1 :]), ids)
        edited["drop_attn", layer] = logits_of(without_component(model.hf, layer, "attention"), ids)
        edited["drop_mlp", layer] = logits_of(without_component(model.hf, layer, "mlp"), ids)
        if layer < DEPTH - 1:
            order[layer : layer + 2] = order[layer + 1], order[layer]
            edited["swap", layer] = logits_of(with_order(model.hf, order), ids)
    assert set(rows.select("edit", "layer").unique().iter_rows()) == set(edited)
    for (edit, layer), logits in edited.items():
        found = rows.filter((pl.col("edit") == edit) & (pl.col("layer") == layer))
        assert found["token"].to_list() == ids.flatten().tolist()
        assert found["next_token"].to_list() == targets.flatten().tolist()
        assert found["document"].to_list() == np.repeat(windows.document, 20).tolist()
        for name, value in naive.measures(own, logits, targets).items():
            np.testing.assert_allclose(
                found[name].to_numpy(), value.flatten().numpy(), atol=1e-4, rtol=1e-5, err_msg=name
            )


def test_the_table_is_the_mean_over_tokens_with_intervals_over_documents(tmp_path):
    model = load(save("gpt_neox", tmp_path / "model"))
    study = ds.study(
        model,
        ds.corpus(tokens=1200),
        out=tmp_path / "run",
        per_token=True,
        window=20,
        experiments=["sweep"],
        progress=False,
    )
    rows = pl.concat(pl.read_parquet(file) for file in sorted((tmp_path / "run" / "shards" / "sweep").iterdir()))
    base = rows.filter(pl.col("edit") == "none").select("document", "position", b_entropy="entropy", b_loss="loss")
    rows = rows.join(base, on=["document", "position"], maintain_order="left").with_columns(
        pl.col("agreement").cast(pl.Float64),
        entropy_change=pl.col("entropy").cast(pl.Float64) - pl.col("b_entropy"),
        loss_change=pl.col("loss").cast(pl.Float64) - pl.col("b_loss"),
    )
    table = study.table("sweep")
    assert dict(table.schema) == SWEEP_TABLE
    assert len(table) == (1 + 3 + 3 * DEPTH) * len(METRICS)
    assert table["tokens"].unique().to_list() == [1200]
    for edit, layer, metric, unit, mean, low, high, _, documents in table.iter_rows():
        values = rows.filter((pl.col("edit") == edit) & (pl.col("layer") == layer))
        per_document = values.group_by("document").agg(pl.col(metric).cast(pl.Float64).sum(), n=pl.len())
        s, n = per_document[metric].to_numpy(), per_document["n"].to_numpy()
        expected = s.sum() / n.sum()
        error = np.sqrt(len(n) / (len(n) - 1) * ((s - expected * n) ** 2).sum()) / n.sum()
        half = stats.t.ppf(0.975, len(n) - 1) * error
        assert unit == METRICS[metric].unit
        assert documents == len(n) > 50
        assert mean == pytest.approx(expected, abs=1e-9)
        clip = (METRICS[metric].lowest, METRICS[metric].highest)
        assert low == pytest.approx(np.clip(expected - half, *clip), abs=1e-7)
        assert high == pytest.approx(np.clip(expected + half, *clip), abs=1e-7)


def test_keeping_every_token_changes_no_number_of_the_table(tmp_path):
    model = load(save("llama", tmp_path / "model"))
    text = ds.corpus(tokens=1200)
    for name, per_token in (("a", False), ("b", True)):
        ds.study(
            model, text, out=tmp_path / name, per_token=per_token, window=30, experiments=["sweep"], progress=False
        )
    a, b = (pl.read_parquet(tmp_path / name / "tables" / "sweep.parquet") for name in ("a", "b"))
    assert a.equals(b)
    shard = pl.read_parquet(tmp_path / "a" / "shards" / "sweep" / "00000.parquet")
    assert dict(shard.schema) == DOCUMENT_SHARD
    assert [metric.name for metric in MEASURED] == ["kl", "agreement", "entropy", "loss"]


def test_a_document_may_go_on_in_the_next_unit(few, tmp_path):
    """Its parts are put together before intervals are made, however the windows fall into units."""
    model = load(save("gpt2", tmp_path / "model"))
    text = ds.corpus(str(few), tokens=23 * 12)
    counts = [count for _, count in make_windows(text, model, length=12).per_document()]
    assert min(counts) == 4
    assert max(counts) == 5
    tables = []
    for unit_tokens in (12, 36, 100_000):
        settings = study_settings(experiments=("sweep",), edits=("swap",), window=12, unit_tokens=unit_tokens)
        run_study(model, text, tmp_path / str(unit_tokens), settings)
        tables.append(ds.Study(tmp_path / str(unit_tokens)).table("sweep"))
    assert tables[0]["documents"][0] == 5
    for other in tables[1:]:
        for column in ("mean", "ci_low", "ci_high"):
            np.testing.assert_allclose(other[column].to_numpy(), tables[0][column].to_numpy(), rtol=1e-9, atol=1e-12)


def test_a_model_without_components_is_swept_by_swaps_and_drops(tmp_path):
    model = load(save("mamba", tmp_path / "model"))
    study = ds.study(
        model, ds.corpus(tokens=200), out=tmp_path / "run", window=20, experiments=["sweep"], progress=False
    )
    assert set(study.table("sweep")["edit"]) == {"none", "swap", "drop"}
    assert set(study.run.manifest.not_done) == {"drop_attn", "drop_mlp"}
    with pytest.raises(UnsupportedError, match="no separate attention and MLP"):
        ds.study(
            model,
            ds.corpus(tokens=200),
            out=tmp_path / "other",
            edits=["drop_attn"],
            window=20,
            experiments=["sweep"],
            progress=False,
        )
    assert not (tmp_path / "other").exists()


def test_an_edit_named_twice_is_measured_once(tmp_path, gpt2):
    study = ds.study(
        gpt2,
        ds.corpus(tokens=40),
        out=tmp_path,
        edits=["swap", "swap"],
        window=20,
        experiments=["sweep"],
        progress=False,
    )
    assert len(study.table("sweep")) == (1 + 11) * len(METRICS)


def test_one_document_has_means_but_no_interval(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("It was a dark and stormy night, and nobody was out. " * 12)
    study = ds.study(
        gpt2,
        str(tmp_path / "a.txt"),
        out=tmp_path / "run",
        edits=["drop"],
        window=64,
        experiments=["sweep"],
        progress=False,
    )
    assert study.table("sweep")["ci_low"].null_count() == len(study.table("sweep"))
    assert study.table("sweep")["mean"].null_count() == 0


@pytest.mark.fault(KILLED, SAME_BYTES)
def test_killed_at_six_moments_and_resumed_gives_the_same_bytes(few, tmp_path, tries):
    """SIGKILL, as a scheduler or a power cut would: tables of the resumed run equal those of an uninterrupted one."""
    model = save("gpt2", tmp_path / "model")
    settings = study_settings(experiments=("sweep",), window=16, unit_tokens=16)
    about = {"settings": settings, "after": (0, 1, 3, 0, 7, 2), "seed": 0, "kills": tries(6, of=24)}
    whole, killed = whole_and_killed(tmp_path, model, few, None, **about)
    for one in killed:
        assert (one / "tables" / "sweep.parquet").read_bytes() == (whole / "tables" / "sweep.parquet").read_bytes()


def test_trained_models_show_the_papers_robustness(shelf, tmp_path):
    """Figure 3 on the embedded models: the first layer is catastrophic, the middle is robust, swaps cost less than drops."""
    study = ds.study(
        shelf,
        ds.corpus(tokens=10 * 64),
        out=tmp_path,
        window=64,
        edits=["swap", "drop"],
        experiments=["sweep"],
        progress=False,
    )
    table = study.table("sweep")

    def values(edit: str, metric: str) -> list[float]:
        return table.filter((pl.col("edit") == edit) & (pl.col("metric") == metric)).sort("layer")["mean"].to_list()

    assert values("drop", "kl")[0] > 5 * max(values("drop", "kl")[1:])
    assert values("swap", "kl")[0] > 5 * max(values("swap", "kl")[1:])
    assert values("drop", "entropy_change")[0] > 0.5
    assert min(values("drop", "agreement")[1:-1]) > 0.6
    assert np.mean(values("swap", "kl")[2:9]) < np.mean(values("drop", "kl")[2:9])
    torch.testing.assert_close(table.filter(pl.col("edit") == "none")["mean"][0], 0.0)
