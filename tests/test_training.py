"""The training recipe: resuming, learning, baselines, and the cutting of the evaluation text."""

import json
import lzma
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import all_tables, made_up_stages, make_run
from tokenizers import Tokenizer

from depthscope.experiments.neurons import Neurons
from depthscope.models.load import load

sys.path.insert(0, str(Path(__file__).parents[1]))  # the recipe lies beside the package, not in it

from training import baselines, card, evaluation_text
from training.atomic import atomic_writer, sha256
from training.corpus import open_token_map, write_token_map
from training.evaluate import estimate, evaluate, held_out_windows
from training.export import export
from training.settings import Settings
from training.tokenizer import train_tokenizer, write_tokenizer
from training.train import Run

VOCABULARY = 300
SMALL = (("n_embd", 16), ("n_head", 2), ("n_layer", 4), ("n_positions", 16), ("vocab_size", VOCABULARY))
SETTINGS = Settings(
    preset="bookshelf-gpt2",
    map_sha256="",
    tokens=20 * 4 * 16,
    batch=4,
    window=16,
    learning_rate=1e-2,
    warmup_steps=2,
    dtype="float32",
    compile=False,
    overrides=SMALL,
)


def paragraphs(count: int, seed: int) -> str:
    words = ["the", "cat", "sat", "on", "a", "mat", "while", "old", "dogs", "slept", "under", "warm", "stars", "came"]
    drawn = np.random.default_rng(seed).integers(len(words), size=(count, 12))
    return "\n".join(" ".join(words[i] for i in row) + "." for row in drawn)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training books and four held-out ones, one of them short and two with front matter."""
    folder = tmp_path_factory.mktemp("corpus")
    training = "\n\n".join(paragraphs(40, seed) for seed in range(3))
    (folder / "train-0.txt.xz").write_bytes(lzma.compress(training.encode()))
    held_out = [
        "Produced by someone\n" + paragraphs(60, 10),
        paragraphs(12, 11),
        "I. One II. Two III. Three\n" + paragraphs(60, 12),
        paragraphs(60, 13),
    ]
    (folder / "held-out.txt.xz").write_bytes(lzma.compress("\n\n".join(held_out).encode()))
    titles = ["First Tale", "A Short One", "Third", "The Coxon Fund"]
    rows = ["train-0\tX\tY", *(f"held-out\tSomebody\t{title}" for title in titles)]
    (folder / "books.tsv").write_text("part\tauthor\ttitle\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_tokenizer(corpus, vocabulary=VOCABULARY), folder)
    return folder


@pytest.fixture(scope="module")
def token_map(corpus: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.bin"
    write_token_map(corpus, tokenizer_folder, path)
    return path


@pytest.fixture(scope="module")
def finished(token_map: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run which nothing interrupted."""
    folder = tmp_path_factory.mktemp("run")
    Run(SETTINGS, open_token_map(token_map)[0], folder).go(log_every=1)
    return folder


def test_resumed_run_equals_uninterrupted_run(token_map: Path, finished: Path, tmp_path: Path) -> None:
    tokens, _ = open_token_map(token_map)
    for stop in (7, 13, None):
        Run(SETTINGS, tokens, tmp_path).go(log_every=1, stop_at=stop)
    whole = torch.load(finished / "checkpoint.pt", weights_only=True)
    parts = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert parts["progress"]["step"] == whole["progress"]["step"] == 20
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name]), name
    losses = [
        [json.loads(line)["loss"] for line in (f / "log.jsonl").read_text().splitlines()] for f in (finished, tmp_path)
    ]
    assert losses[0] == losses[1]


def test_log_forgets_steps_after_the_checkpoint_and_torn_lines(token_map: Path, tmp_path: Path) -> None:
    tokens, _ = open_token_map(token_map)
    Run(SETTINGS, tokens, tmp_path).go(log_every=1, stop_at=3)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    Run(SETTINGS, tokens, tmp_path)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_other_settings_are_refused(token_map: Path, finished: Path) -> None:
    tokens, _ = open_token_map(token_map)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.01, now 0\.02"):
        Run(replace(SETTINGS, learning_rate=2e-2), tokens, finished)


def test_loss_falls(finished: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (finished / "log.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.3)
    assert sum(losses[-5:]) / 5 < losses[0] - 1


@pytest.mark.parametrize(
    "change", [{"tokens": None}, {"minutes": 1.0}, {"preset": "gpt5"}, {"dtype": "float16"}, {"flat": 1.0}]
)
def test_senseless_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"minutes|preset|dtype|flat"):
        replace(SETTINGS, **change)


def test_learning_rate_rises_stays_and_falls() -> None:
    settings = replace(SETTINGS, learning_rate=1.0, warmup_steps=10, flat=0.5, final=0.1)
    assert settings.learning_rate_at(0, 0.0) == pytest.approx(0.1)
    assert settings.learning_rate_at(50, 0.4) == 1.0
    assert settings.learning_rate_at(50, 0.75) == pytest.approx(0.55)
    assert settings.learning_rate_at(50, 1.0) == pytest.approx(0.1)


def test_token_map_holds_every_book_after_an_end_of_text_token(corpus: Path, token_map: Path) -> None:
    tokens, facts = open_token_map(token_map)
    assert facts["tokens"] == len(tokens)
    assert facts["books"] == int((np.asarray(tokens) == 0).sum()) == 3
    assert tokens[0] == 0


def test_truncated_token_map_is_refused(token_map: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.bin").write_bytes(token_map.read_bytes()[:-2])
    (tmp_path / "tokens.json").write_text(token_map.with_suffix(".json").read_text())
    with pytest.raises(ValueError, match="says"):
        open_token_map(tmp_path / "tokens.bin")


def test_baselines_equal_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "PAIRS_AT_ONCE", 7)
    stream = np.random.default_rng(0).integers(5, size=40).astype(np.uint16)
    fitted = baselines.fit(stream, 6)
    single, pair = Counter(stream.tolist()), Counter(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))
    inputs, targets = np.array([0, 1, 5]), np.array([1, 5, 2])
    for a, b, unigram, bigram in zip(
        inputs, targets, fitted.unigram_loss(targets), fitted.bigram_loss(inputs, targets), strict=True
    ):
        p = (single[b] + 1) / (40 + 6)
        after = sum(pair[a, c] for c in range(6))
        assert unigram == pytest.approx(-math.log(p))
        assert bigram == pytest.approx(-math.log((pair[a, b] + 10 * p) / (after + 10)))
    assert fitted.unigram().sum() == pytest.approx(1)


def test_estimate_is_the_mean_and_its_interval_holds_it() -> None:
    losses = np.random.default_rng(0).normal(3, 1, size=(12, 8))
    result = estimate(losses, np.repeat(np.arange(6), 2))
    assert result["mean"] == pytest.approx(losses.mean())
    assert result["ci_low"] < result["mean"] < result["ci_high"]


def test_windows_predict_each_token_once(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    text = paragraphs(5, 3)
    windows = held_out_windows([text, "too short", text], tokenizer, window=16, tokens=10_000)
    ids = tokenizer.encode(text).ids
    per_text = (len(ids) - 1) // 16
    assert windows.targets[:per_text].flatten().tolist() == ids[1 : 16 * per_text + 1]
    assert set(windows.documents.tolist()) == {0, 2}
    assert len(held_out_windows([text], tokenizer, window=16, tokens=33).tokens) == 3


def test_export_evaluation_and_card(
    corpus: Path, token_map: Path, tokenizer_folder: Path, finished: Path, tmp_path: Path
) -> None:
    folder, evaluation = tmp_path / "model", tmp_path / "e.json"
    export(finished, tokenizer_folder, folder)
    result = evaluate(folder, corpus / "held-out.txt.xz", token_map, 500, "the cat", seed=0, device="cpu")
    assert result["predicted_tokens"] >= 500
    assert result["loss"]["model"]["mean"] < result["loss"]["unigram"]["mean"] + 1
    evaluation.write_text(json.dumps(result))
    model = load(folder, device="cpu")
    tables, stages = all_tables(4), made_up_stages(4)
    run = make_run(tmp_path / "run", 4, tables=tables, stages=stages, weights=model.weight_hash())
    text = card.card(folder, evaluation, None, run.path)
    assert "20 steps of 4 × 16 tokens" in text
    assert "| bigram baseline |" in text
    plain = Neurons(model, processed=False)
    kinds = plain.tables(plain.work(unit) for unit in range(4))["neurons"]
    predicting = [int(((kinds["layer"] == i) & (kinds["kind"] == "prediction")).sum()) for i in range(4)]
    assert f"weights as they are: prediction {' '.join(map(str, predicting))}; suppression" in text
    assert "(of 64 each" in text
    assert "nan" not in text.lower()
    result["weights_sha256"] = "0" * 64
    evaluation.write_text(json.dumps(result))
    with pytest.raises(ValueError, match="other weights"):
        card.card(folder, evaluation, None, run.path)


def test_evaluation_text_is_deterministic_and_goes_round_the_books(corpus: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluation_text.write_documents(evaluation_text.evaluation_text(corpus, 14, 400), tmp_path / f"{name}.jsonl.xz")
    assert sha256(tmp_path / "a.jsonl.xz") == sha256(tmp_path / "b.jsonl.xz")
    lines = lzma.decompress((tmp_path / "a.jsonl.xz").read_bytes()).decode().splitlines()
    documents = [json.loads(line) for line in lines]
    assert [d["id"] for d in documents[:4]] == ["first-tale-01", "a-short-one-01", "third-01", "coxon-fund-01"]
    assert len(documents) == len({d["id"] for d in documents}) == 14
    held_out = lzma.decompress((corpus / "held-out.txt.xz").read_bytes()).decode()
    for document in documents:
        assert len(document["text"]) >= 400
        assert "\n" + document["text"] + "\n" in "\n" + held_out + "\n"
        assert "Produced by" not in document["text"]


def test_evaluation_text_without_a_corpus_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="corpus folder"):
        evaluation_text.held_out_books(tmp_path)


def test_shares_are_equal_up_to_capacity() -> None:
    assert evaluation_text.share_out([100, 2, 100], 11) == [5, 2, 4]
    assert evaluation_text.share_out([1, 2], 11) == [1, 2]


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_writer(file) as opened:  # noqa: PT012 - the write comes first
        opened.write(b"new")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
