"""Tasks of the lm-evaluation-harness under edits: the harness's own numbers, paired differences, resuming, what is refused."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from families import VOCABULARY, tiny_model
from rebuilt import logits_of, with_order
from scipy import stats
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import depthscope as ds
from depthscope.api.study import Study
from depthscope.data.tasks import HERE, LOCAL_TASKS
from depthscope.errors import DataError, DepthscopeError, RouteError, RunMismatchError, UnsupportedError
from depthscope.experiments import task_harness
from depthscope.experiments.task_batches import batches
from depthscope.experiments.task_requests import RouteScorer, token_request
from depthscope.experiments.task_texts import RouteWriter, before_stops, text_request
from depthscope.experiments.tasks import load_tasks
from depthscope.experiments.undisturbed import undisturbed
from depthscope.models.load import load
from depthscope.run.check import BAD, check_run
from depthscope.statistics.paired import paired_bootstrap, paired_mean, paired_ratio, spearman

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LAST_WORD, NEXT_SENTENCE, WRITE_WORD = LOCAL_TASKS
QUICK = {"tokens": 100, "window": 25, "progress": False}
ASKED = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{text}}", "doc_to_target": "{{next}}"}


@pytest.fixture
def own_tasks(tmp_path) -> Path:
    """A folder with tasks of every kind that is answered, and some that are not."""
    rows = [
        {"text": text, "next": after} for text, after in (("abc", " de"), ("", "fgh"), ("b" * 90, "cd"), ("hat", "e"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    written = {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["q", "xy", "y"], "max_gen_toks": 9},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}, {"metric": "bleu"}],
    }
    kinds = {
        "given": {"output_type": "loglikelihood"},
        "whole": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}{{next}}"},
        "choice": {"output_type": "multiple_choice", "doc_to_choice": ["a", "bc", "de"], "doc_to_target": 1},
        "written": written,
        "drawn": written | {"generation_kwargs": {"until": ["q"], "do_sample": True, "temperature": 0.7}},
        "long": {"output_type": "generate_until"},
        "nowhere": {"output_type": "loglikelihood", "dataset_path": "nobody/nothing", "dataset_kwargs": {}},
    }
    for name, kind in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **ASKED, **files, **kind}))
    return tmp_path


@pytest.fixture(autouse=True)
def only_local_tasks(monkeypatch, tmp_path):
    """The harness's 15,000 tasks take seconds to list, and data sets are cached outside the home folder."""
    manager = task_harness.TaskManager
    monkeypatch.setattr(
        task_harness,
        "TaskManager",
        lambda include_path=None, include_defaults=True: manager(include_path=include_path, include_defaults=False),
    )
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def characters(bos: bool) -> PreTrainedTokenizerFast:
    """A token for each letter, which puts a BOS token before a text or does not."""
    known = {letter: number for number, letter in enumerate(["<s>", *map(chr, range(32, 32 + VOCABULARY - 2))])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="~"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="~")


def requests_of(model, lengths=(1, 6, 6, 9)):
    chance = np.random.default_rng(0)
    made = []
    for length in lengths:
        ids = chance.integers(1, min(90, model.known_tokens), length + 1).tolist()
        scored = int(chance.integers(1, length + 1))
        made.append(token_request(ids[: len(ids) - scored], ids[len(ids) - scored :], 60))
    return sorted(made)


def test_log_likelihoods_are_those_of_the_model_rebuilt_and_no_batch_changes_them(tiny):
    own = ds.Route.own(tiny.depth)
    routes = [ds.swap(1)(own), ds.drop(2)(own), ds.repeat(1)(own)]
    requests = requests_of(tiny)
    scorer = RouteScorer(tiny, routes)
    naive = [tiny.hf, with_order(tiny.hf, [0, 2, 1, 3])]
    for batch in batches(requests, 1024):
        together = [requests[place] for place in batch]
        with tiny.measuring():
            found, greedy = scorer.score(together)
            alone = [scorer.score([request]) for request in together]
        np.testing.assert_allclose(np.concatenate([one for one, _ in alone], 1), found, rtol=1e-5, atol=1e-5)
        for place, request in enumerate(together):
            ids = torch.tensor(request.ids)
            for row, model in enumerate(naive):
                logs = logits_of(model, ids[None, :-1])[0, -request.scored :].double().log_softmax(-1)
                wanted = ids[-request.scored :]
                assert found[row, place] == pytest.approx(float(logs[range(request.scored), wanted].sum()), abs=1e-4)
                assert greedy[row, place] == bool((logs.argmax(-1) == wanted).all())


def test_requests_are_grouped_by_length_and_contexts_lose_their_first_tokens():
    requests = sorted(token_request([1] * length, [2, 3], 8) for length in (1, 2, 2, 3, 30))
    assert [request.length for request in requests] == [2, 3, 3, 4, 8]
    assert requests[-1].ids == (1,) * 7 + (2, 3)
    assert batches(requests, 6) == [[0], [1, 2], [3], [4]]
    for context, after in (([], [1]), ([1], []), ([1], [2] * 9)):
        with pytest.raises(DataError, match="expected at least one of each"):
            token_request(context, after, 8)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mamba"])
def test_texts_are_the_likeliest_tokens_of_the_model_rebuilt_up_to_a_stop(family, cached, monkeypatch):
    model = load(tiny_model(family), tokenizer=characters(bos=False))

    def wrong_caches(*_):
        raise UnsupportedError("its caches are wrong")

    if not cached:
        monkeypatch.setattr("depthscope.experiments.task_texts.check_caches", wrong_caches)
    own = ds.Route.own(model.depth)
    routes = [ds.swap(1)(own), ds.drop(2)(own), ds.repeat(1)(own)]
    requests = [
        text_request([3 * start, *range(20, 27)], 12, stops, {}, 60)
        for start in (1, 2, 9)
        for stops in ((), ("e", "K"))
    ]
    found = {}
    for batch in batches(sorted(requests), 10_000):
        together = [sorted(requests)[place] for place in batch]
        with model.measuring():
            for row, texts in enumerate(RouteWriter(model, routes).write(together)):
                found |= {(row, request): text for request, text in zip(together, texts, strict=True)}
    for row, order in enumerate([[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 3], [0, 1, 1, 2, 3]]):
        rebuilt = with_order(model.hf, order)
        for request in requests:
            ids = list(request.ids)
            for _ in range(request.tokens):
                ids.append(int(logits_of(rebuilt, torch.tensor([ids]))[0, -1].argmax()))
                if ids[-1] == 0:
                    break
            text = model.tokenizer.decode(ids[request.length :], skip_special_tokens=True)
            assert found[row, request] == before_stops(text, request.until)


def test_a_text_ends_where_the_harness_cuts_it():
    from lm_eval.models.utils import postprocess_generated_text

    for text in ("", "abcabc", "xaby", "ab", "ba"):
        for until in ((), ("ab",), ("b", "ab"), ("ca", "bca"), ("", "c")):
            assert before_stops(text, until) == postprocess_generated_text(text, list(until), None)


def test_requests_for_text_that_cannot_be_answered(gpt2):
    with pytest.raises(DataError, match=r"generates up to 64 tokens, and the model's context is 64"):
        text_request([1], 64, (), {}, 64)
    with pytest.raises(UnsupportedError, match="a task draws tokens"):
        text_request([1], 6, (), {"do_sample": True}, 64)
    with pytest.raises(DataError, match="beam search"):
        text_request([1], 6, (), {"num_beams": 2}, 64)
    assert text_request([1, 2, 3], 62, (), {"temperature": 0.0}, 64).ids == (2, 3)


@pytest.mark.parametrize(("family", "bos"), [("llama", True), ("gpt_neox", False), (None, False)])
def test_the_unmodified_model_answers_as_in_the_harness(own_tasks, gpt2, family, bos):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    model = gpt2 if family is None else load(tiny_model(family), tokenizer=characters(bos))
    kinds = ("given", "choice", "whole", "written")
    tasks = load_tasks(kinds, include=str(own_tasks), shots=1)
    requests, texts = tasks.requests(model)
    scorer = RouteScorer(model, [])
    answers = {}
    for batch in batches(requests, 1024):
        with model.measuring():
            logs, greedy = scorer.score([requests[place] for place in batch])
        answers |= {requests[place]: (logs[0, i], bool(greedy[0, i])) for i, place in enumerate(batch)}
    writer = RouteWriter(model, [])
    for batch in batches(texts, 1024):
        (own,) = writer.write([texts[place] for place in batch])
        answers |= dict(zip((texts[place] for place in batch), own, strict=True))
    with undisturbed():
        theirs = HFLM(pretrained=model.hf, tokenizer=model.tokenizer, batch_size=3)
        ours = task_harness.RouteLM(model, answers.__getitem__)
        for task in tasks.tasks.values():
            kind = task.instances[0].request_type
            got, expected = (getattr(lm, kind)(task.instances) for lm in (ours, theirs))
            if kind == "generate_until":
                assert got == expected
                continue
            if kind == "loglikelihood":
                assert [flag for _, flag in got] == [flag for _, flag in expected]
            np.testing.assert_allclose(np.array(got, float), np.array(expected, float), atol=1e-4)
            task.set_fewshot_seed(seed=task_harness.SHOTS_SEED)
        whole = evaluator.evaluate(theirs, {"tasks": dict(tasks.tasks)}, bootstrap_iters=0)["results"]
    for one in tasks.results(model, answers):
        assert one.value == pytest.approx(whole[one.task][f"{one.metric},{one.filter}"], rel=1e-5)


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_tables(tmp_path, gpt2, monkeypatch):
    monkeypatch.setattr("depthscope.experiments.task_batches.BATCHES_PER_UNIT", 1)
    arguments = (gpt2, [LAST_WORD, NEXT_SENTENCE, WRITE_WORD], ["drop(2)", ds.swap(4)])
    whole = ds.evaluate(*arguments, limit=3, out=tmp_path / "whole", **QUICK)

    def stop(what, done, units):
        if what == "eval" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ds.evaluate(*arguments, limit=3, out=tmp_path / "stopped", **QUICK | {"progress": stop})
    stored = sorted((tmp_path / "stopped" / "shards" / "eval").glob("*.parquet"))
    assert len(stored) == 1 < whole.run.manifest.units["eval"]
    written = [file.stat().st_mtime_ns for file in stored]
    resumed = ds.evaluate(*arguments, limit=3, out=tmp_path / "stopped", **QUICK)
    assert [file.stat().st_mtime_ns for file in stored] == written
    for name in ("tasks", "task_examples", "edit_kl", "task_correlations"):
        assert resumed.table(name).equals(whole.table(name)), name
    assert not [one for one in check_run(tmp_path / "stopped") if one.state in BAD]
    assert resumed.run.complete
    with pytest.raises(RunMismatchError, match=r"eval\.limit: 3 stored, 2 requested"):
        ds.evaluate(*arguments, limit=2, out=tmp_path / "stopped", **QUICK)

    table = whole.table("tasks")
    assert table["edit"].unique(maintain_order=True).to_list() == ["none", "drop(2)", "swap(4)"]
    examples = whole.table("task_examples")
    for row in table.filter(pl.col("metric").is_in(["acc", "exact_match"])).iter_rows(named=True):
        own, before = (
            examples.filter(task=row["task"], metric=row["metric"], edit=edit)["value"].to_numpy()
            for edit in (row["edit"], "none")
        )
        assert row["value"] == pytest.approx(own.mean())
        assert row["difference"] == pytest.approx((own - before).mean())
        assert row["changed"] == (own != before).sum()
    page = whole.report().read_text(encoding="utf-8")
    assert "What edits do to tasks" in page
    assert f"{LAST_WORD}, perplexity: difference" in page


def test_an_edit_is_worth_what_the_harness_finds_for_the_rebuilt_model(tmp_path, gpt2):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    study = ds.evaluate(gpt2, NEXT_SENTENCE, "drop(5)", limit=4, out=tmp_path, **QUICK)
    with undisturbed():
        dropped = with_order(gpt2.hf, [layer for layer in range(gpt2.depth) if layer != 5])
        dropped.config.use_cache = False  # its blocks have the numbers of those before
        lm = HFLM(pretrained=dropped, tokenizer=gpt2.tokenizer, batch_size=4)
        tasks = load_tasks([NEXT_SENTENCE], limit=4)
        found = evaluator.evaluate(lm, {"tasks": dict(tasks.tasks)}, limit=4)["results"][NEXT_SENTENCE]
    for row in study.table("tasks").filter(edit="drop(5)").iter_rows(named=True):
        assert row["value"] == pytest.approx(found[f"{row['metric']},none"])
        assert row["stderr"] == pytest.approx(found[f"{row['metric']}_stderr,none"])


def test_paired_intervals_are_their_definitions():
    chance = np.random.default_rng(1)
    a, b = chance.normal(size=(2, 40))
    alone = np.arange(40)
    mean, low, high = paired_mean(a, b, alone)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(a - b), expected.low, expected.high))
    clusters = chance.permutation(np.repeat(np.arange(20), 2))
    sums = np.array([(a - b)[clusters == one].sum() for one in range(20)])
    assert paired_mean(a, b, clusters)[1:] == pytest.approx(
        stats.t.interval(0.95, 19, loc=sums.mean() / 2, scale=sums.std(ddof=1) / np.sqrt(20) / 2)
    )

    def perplexity(rows):
        return float(np.exp(-np.mean(rows)))

    fast = paired_ratio(np.stack([a, b]), np.ones(40), clusters, lambda mean: np.exp(-mean))
    naive = paired_bootstrap(list(a), list(b), clusters, perplexity)
    assert fast[0] == pytest.approx(perplexity(a) - perplexity(b)) == pytest.approx(naive[0])
    assert fast[1:] == pytest.approx(naive[1:], abs=0.15)
    assert np.isnan(paired_ratio(np.stack([a, b]), np.ones(40), np.zeros(40, int), np.exp)[1:]).all()

    rho, low, high = spearman(a, a + b)
    assert rho == pytest.approx(stats.spearmanr(a, a + b).statistic)
    assert low < rho < high
    assert np.isnan(spearman(a, np.zeros(40))).all()
    assert spearman(a, a)[0] == 1
    assert np.isnan(spearman(a[:3], b[:3])).all()


def test_the_local_tasks_are_what_their_script_makes_of_the_embedded_text():
    from training.tasks import examples

    made = examples()
    assert {Path(name).stem for name in made} == {file.stem for file in HERE.glob("*.jsonl")}
    for name, rows in made.items():
        assert [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()] == rows


def refused(error, says, *arguments, **settings):
    with pytest.raises(error, match=says):
        ds.evaluate("no-such-model", *arguments, **settings)


def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(own_tasks, tmp_path, monkeypatch):
    own = {"include_path": own_tasks, "allow_task_code": True}
    refused(
        DataError,
        r"unknown task 'bookshelf_last_wrd' \(did you mean bookshelf_last_word or .*\?\): .*hellaswag",
        "bookshelf_last_wrd",
    )
    refused(DataError, "can run any program on this machine .* add --allow-task-code", "given", include_path=own_tasks)
    refused(DataError, "expected a folder with tasks", "given", include_path=tmp_path / "not", allow_task_code=True)
    refused(UnsupportedError, "drawn draws tokens at random", "drawn", **own)
    refused(DataError, r"nowhere cannot be loaded: .*needs a network.*bookshelf_last_word", "nowhere", **own)
    refused(DepthscopeError, "expected 1 to 200 tasks", ())
    refused(DataError, "the name of a task is '../x'", "../x")
    refused(DepthscopeError, "limit is 0: expected a whole number from 1", LAST_WORD, limit=0)
    refused(DepthscopeError, "shots is True", LAST_WORD, shots=True)
    refused(RouteError, "unknown edit melt", LAST_WORD, sweep="melt")
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "depthscope.experiments.task_harness")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refused(DepthscopeError, r"pip install 'depthscope\[eval\]'", LAST_WORD)


def test_the_command_runs_edits_and_routes_and_a_study_can_join_the_run(tmp_path, gpt2):
    from typer.testing import CliRunner

    from depthscope.cli import app

    invoke = partial(CliRunner().invoke, app, catch_exceptions=False)
    arguments = ["eval", "--tasks", LAST_WORD, "--limit", "1", "--tokens", "50", "--window", "25"]
    arguments += ["--edit", "drop(1) | drop(2)", "--route", "0-2 4 3 5-11", "--out", str(tmp_path / "run")]
    done = invoke(arguments)
    assert done.exit_code == 0, done.output
    assert "difference [95%, paired]" in " ".join(done.output.split())
    edits = Study(tmp_path / "run").table("tasks")["edit"].unique(maintain_order=True).to_list()
    assert edits == ["none", "drop(1) | drop(2)", "0-2 4 3 5-11"]
    text = ds.corpus(tokens=50)
    joined = ds.study(gpt2, text, out=tmp_path / "run", window=25, experiments=("norms",), progress=False)
    assert joined.run.manifest.finished == ["eval", "eval_text", "norms"]
    assert {"norms", "tasks", "edit_kl"} <= set(joined.run.tables())
    assert not [one for one in check_run(tmp_path / "run") if one.state in BAD]
