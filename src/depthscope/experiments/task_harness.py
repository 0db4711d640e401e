"""The lm-evaluation-harness: its tasks, their requests as tokens, and its metrics. The one module that imports it.

The harness builds requests, encodes them (its TemplateLM), and computes and aggregates metrics; depthscope computes the
log-likelihoods and generates the texts. So the same code of the harness gives the result of every edit, from answers that were
computed together.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from lm_eval import evaluator, utils
from lm_eval.api import metrics
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from depthscope.data.tasks import LOCAL_TASKS, local_task, unknown_task
from depthscope.errors import DataError, UnsupportedError
from depthscope.experiments.task_requests import TokenRequest, token_request
from depthscope.experiments.task_texts import TextRequest, likeliest, text_request
from depthscope.experiments.undisturbed import undisturbed
from depthscope.models.model import Model
from depthscope.printable import first_line, shown
from depthscope.statistics.paired import Triple, paired_bootstrap, paired_mean, paired_ratio

GENERATION = "generate_until"
ANSWERED = ("loglikelihood", "loglikelihood_rolling", "multiple_choice", GENERATION)
"""What a task may ask of a model."""
BOOTSTRAP = 1000
"""Resamples for the harness's standard error of metrics that are no means."""
UNBOUNDED = 2048
"""Tokens read of a model without a longest context, as in the harness."""
MOST_TEXT = 256
"""Tokens that are generated where a task does not say how many, as in the harness."""
SHOTS_SEED = 1234
"""Of the examples that precede a question, as in the harness."""

Request = TokenRequest | TextRequest
Answer = tuple[float, bool] | str
"""To a TokenRequest and a TextRequest."""

RATIOS: dict[Callable[..., Any], Callable[[np.ndarray], np.ndarray]] = {
    metrics.perplexity: lambda mean: np.exp(-mean),
    metrics.weighted_perplexity: lambda mean: np.exp(-mean),
    metrics.bits_per_byte: lambda mean: -mean / math.log(2),
}
"""Aggregations that are a function of one sum over another, and that function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One metric of a task, as the harness gives it, with what it aggregates of each example."""

    task: str
    filter: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    examples: Int64[np.ndarray, " examples"]
    clusters: Int64[np.ndarray, " examples"]
    """Number of each example's cluster, the first example in it; the example itself if the task declares none."""
    values: Sequence[Any]
    aggregate: Callable[[list[Any]], float] = field(repr=False)

    @property
    def numbers(self) -> Float64[np.ndarray, " examples"]:
        """The values where they are single numbers, else NaN."""
        return np.array([_number(value) for value in self.values], dtype=np.float64)

    def difference(self, unmodified: "TaskResult") -> Triple:
        """The metric minus the unmodified model's, with a paired 95 % interval: t for means, else bootstrap."""
        if self.aggregate is metrics.mean and np.isfinite(self.numbers).all():
            return paired_mean(self.numbers, unmodified.numbers, self.clusters)
        if self.aggregate in RATIOS:
            pairs = [np.array([_pair(value) for value in one.values]) for one in (self, unmodified)]
            numerators = np.stack([pair[:, 0] for pair in pairs])
            return paired_ratio(numerators, pairs[0][:, 1], self.clusters, RATIOS[self.aggregate])
        with undisturbed():
            return paired_bootstrap(self.values, unmodified.values, self.clusters, self.aggregate)


class HarnessTasks:
    """Tasks of the harness by name, loaded with their data sets; no model is needed for that.

    `include` is a folder with a user's own tasks. Raises DataError for an unknown task, listing similar names and the local
    tasks, or one whose data cannot be had, UnsupportedError for one that needs images, runs generated code or draws tokens at
    random.
    """

    def __init__(
        self, names: Sequence[str], *, limit: int | None = None, shots: int | None = None, include: str | None = None
    ) -> None:
        self.limit = limit
        self._lm: RouteLM | None = None
        with undisturbed():
            self.tasks = _loaded(names, include)
            for task in self.tasks.values():
                _set_shots(task, shots)
            for name, task in self.tasks.items():
                _built(name, lambda task=task: self._build(task))
                if task.OUTPUT_TYPE == GENERATION:
                    likeliest(_text_options(task.config.generation_kwargs or {})[2], name)

    def described(self) -> dict[str, Any]:
        """What determines the requests and metrics of each task, as JSON values."""
        return {
            name: {
                "version": str(task.VERSION),
                "shots": int(task.config.num_fewshot or 0),
                "examples": len({one.doc_id for one in task.instances}),
                "metrics": sorted(task.aggregation()),
                "requests": utils.hash_string(repr([(one.request_type, one.args) for one in task.instances])),
            }
            for name, task in self.tasks.items()
        }

    def requests(self, model: Model) -> tuple[list[TokenRequest], list[TextRequest]]:
        """The requests of all tasks as tokens, each once, sorted: for log-likelihoods and for texts.

        Raises DataError for what the model cannot read, or a task generates in a way that cannot be done.
        """
        scored: set[TokenRequest] = set()
        written: set[TextRequest] = set()

        def noted(request: Request) -> Answer:
            if isinstance(request, TextRequest):
                written.add(request)
                return ""
            scored.add(request)
            return 0.0, False

        lm = self._answering(model, noted)
        with undisturbed():
            for task in self.tasks.values():
                for kind in dict.fromkeys(one.request_type for one in task.instances):
                    getattr(lm, kind)([one for one in task.instances if one.request_type == kind])
        return sorted(scored), sorted(written)

    def results(self, model: Model, answers: Mapping[Request, Answer]) -> list[TaskResult]:
        """All metrics of all tasks, computed and aggregated by the harness from these answers."""

        def answered(request: Request) -> Answer:
            if request not in answers:
                raise DataError(
                    f"a task ({', '.join(self.tasks)}) makes other requests each time it is built: expected the same"
                )
            return answers[request]

        with undisturbed():
            for task in self.tasks.values():
                task.set_fewshot_seed(seed=SHOTS_SEED)  # the harness builds the requests again
            found: Any = evaluator.evaluate(
                self._answering(model, answered),
                {"tasks": dict(self.tasks)},
                limit=self.limit,
                bootstrap_iters=BOOTSTRAP,
            )
        return [one for name, task in self.tasks.items() for one in _results(name, task, found)]

    def _answering(self, model: Model, answer: Callable[[Request], Answer]) -> "RouteLM":
        """The same one for every edit of a model, so that a text is turned into tokens once."""
        if self._lm is None or self._lm.model is not model:
            self._lm = RouteLM(model, answer)
        self._lm.answer = answer
        return self._lm

    def _build(self, task: Any) -> None:
        task.set_fewshot_seed(seed=SHOTS_SEED)
        task.build_all_requests(limit=evaluator.get_sample_size(task, self.limit), rank=0, world_size=1)


class RouteLM(TemplateLM):
    """The harness's interface to a model: it encodes requests as the harness's own HFLM does, and looks the answers up.

    `answer` is called with each request as tokens. Text is encoded as the tokenizer does by itself (with its BOS token if it
    adds one), an empty context is the BOS token or else EOS, and a context that is too long loses its first tokens.
    """

    def __init__(self, model: Model, answer: Callable[[Request], Answer]) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = model.require_tokenizer()
        self.answer = answer
        self._encoded: dict[tuple[str, bool | None], array[int]] = {}
        self.max_length = _longest(model, self.tokenizer)
        self._prefix = self.tokenizer.decode([self.prefix_token_id])

    @property
    def eot_token_id(self) -> int:
        """The id of the EOS token. Raises DataError for a tokenizer without one."""
        return _required(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The id of the token before a request without context: BOS, or else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds unless the text begins with one."""
        if add_special_tokens is None and string.startswith(self._prefix):
            add_special_tokens = False
        key = (string, add_special_tokens)
        if key not in self._encoded:
            given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            self._encoded[key] = array("l", self.tokenizer.encode(string, verbose=False, **given))
        return self._encoded[key].tolist()

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        answers = [self.answer(token_request(before, after, self.max_length)) for _, before, after in requests]
        return [answer for answer in answers if not isinstance(answer, str)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, read in windows of the model's context, each token scored once."""
        found = []
        for (text,) in (one.args for one in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            answers = self._loglikelihood_tokens([(None, *utils.make_disjoint_window(one)) for one in windows])
            found.append(sum(log for log, _ in answers))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The texts after contexts, each up to the strings that end it, with the harness's defaults for what is not given."""
        found = []
        for context, given in (one.args for one in requests):
            until, tokens, options = _text_options(given)
            ids = self.tok_encode(context) or [self.prefix_token_id]
            found.append(str(self.answer(text_request(ids, tokens, until, options, self.max_length))))
        return found


def _loaded(names: Sequence[str], include: str | None) -> dict[str, Any]:
    """Tasks by name; of groups and tags, their tasks. The user's come before the local ones, and those before the harness's."""
    manager = TaskManager(include_path=include, include_defaults=False)
    local = [name for name in names if name not in manager.all_tasks and name in LOCAL_TASKS]
    others = [name for name in names if name not in local]
    if not set(others) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include)  # lists 15,000 tasks, which takes seconds
    for name in others:
        if name not in manager.all_tasks:
            raise DataError(unknown_task(name, manager.all_tasks))
    found: dict[str, Any] = {}
    for name in names:
        spec: Any = local_task(name) if name in local else name
        loaded = _built(name, lambda spec=spec: manager.load([spec])["tasks"])
        for leaf, task in loaded.items():
            _require_answered(leaf, task)
        found |= loaded
    return found


def _text_options(given: Mapping[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """The strings that end a text, its most tokens, and what else a request says of how it is generated."""
    options: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), MOST_TEXT))
    return options.pop("until", []), options.pop("max_gen_toks"), options


def _require_answered(name: str, task: Any) -> None:
    if task.OUTPUT_TYPE not in ANSWERED:
        raise UnsupportedError(
            f"the task {name} asks for {shown(task.OUTPUT_TYPE)}: expected one of {', '.join(ANSWERED)}"
        )
    if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
        raise UnsupportedError(f"the task {name} needs images or runs generated code: expected one that scores text")


def _built(name: str, build: Callable[[], Any]) -> Any:
    """What `build` returns. Raises DataError for whatever goes wrong there: a missing network raises dozens of kinds."""
    try:
        return build()
    except (DataError, UnsupportedError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"the task {name} cannot be loaded: {type(error).__name__}: {first_line(error)}. Most tasks read a data set of the "
            f"Hugging Face hub, which needs a network or an earlier download; {', '.join(LOCAL_TASKS)} need none"
        ) from error


def _set_shots(task: Any, shots: int | None) -> None:
    """As the harness does: a task that sets 0 itself keeps it, one that sets none has 0."""
    default = task.get_config("num_fewshot")
    if shots is not None and default != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)


def _results(name: str, task: Any, found: Any) -> Iterator[TaskResult]:
    rows, samples = found["results"][name], found["samples"][name]
    by_cluster = (task.config.metadata or {}).get("cluster")
    for key in (key for key in rows if "," in key and "_stderr," not in key):
        metric, _, kept = key.partition(",")
        mine = [one for one in samples if one["filter"] == kept and metric in one]
        ids = [one["doc_id"] for one in mine]
        first: dict[Any, int] = {}
        belongs = [
            one["doc"].get(by_cluster, number) if by_cluster else number for number, one in zip(ids, mine, strict=True)
        ]
        yield TaskResult(
            task=name,
            filter=kept,
            metric=metric,
            value=_number(rows[key]),
            stderr=None if math.isnan(error := _number(rows.get(f"{metric}_stderr,{kept}"))) else error,
            higher_is_better=task.higher_is_better().get(metric),
            examples=np.array(ids, dtype=np.int64),
            clusters=np.array([first.setdefault(str(one), number) for one, number in zip(belongs, ids, strict=True)]),
            values=[one[metric] for one in mine],
            aggregate=task.aggregation()[metric],
        )


def _number(value: Any) -> float:
    """A value as a number; NaN for what is none, such as the harness's N/A."""
    return float(value) if isinstance(value, int | float | np.number | np.bool_) else math.nan


def _pair(value: Any) -> tuple[float, float]:
    return (_number(value[0]), _number(value[1])) if isinstance(value, tuple | list) else (_number(value), 1.0)


def _longest(model: Model, tokenizer: Any) -> int:
    if model.context is not None:
        return model.context
    stated = getattr(tokenizer, "model_max_length", None) or UNBOUNDED
    return stated if stated < 1 << 24 else UNBOUNDED


def _required(token: int | None) -> int:
    if token is None:
        raise DataError(
            "the tokenizer has no BOS and no EOS token, one of which stands before a text without context: expected one"
        )
    return token
