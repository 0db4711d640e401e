"""The content of RUN/run.json as objects: settings, model and text, versions, and the run's outcome. Imports no torch.

A manifest from another version, or one that was edited, may lack almost any entry: missing entries are None or empty.
"""

import hashlib
import json
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from typing import Any, ClassVar

from depthscope.schema.stored import ALWAYS, MOST_LAYERS, Entry, StoredFile, require_name, require_range

RUNNING, COMPLETE = "running", "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEntry(Entry):
    """The adapter (LoRA and similar) in the model: its source, PEFT's name for its kind, its SHA-256."""

    source: str
    kind: str
    sha256: str


PLAIN = ("F64", "F32", "F16", "BF16")
"""Tensor types of a GGUF file that are not quantised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufEntry(Entry):
    """The GGUF file the model came from: its name, its SHA-256, how it is quantised, how many tensors it has of each type."""

    file: str
    sha256: str
    quantisation: str
    tensor_types: dict[str, int]

    def __str__(self) -> str:
        """How its weights were made, such as `dequantised from Q4_1`."""
        return f"{'dequantised from' if self.quantised else 'stored as'} {self.quantisation}"

    @property
    def quantised(self) -> bool:
        """Whether any tensor had to be dequantised."""
        return not set(self.tensor_types) <= set(PLAIN)


INFORMATION = (
    "model",
    "revision",
    "data",
    "adapter.source",
    "gguf.file",
    "experiments.lens.tuned_lens.data",
    "experiments.lens.jacobian_lens.data",
)
"""Settings that name a place: a run whose model or text was moved is the same run."""
IDENTITY = ("configuration", "buffers", "tokenizer", "bos_token")
"""Settings that identify a model together with its weights, adapter and dtype; runs of earlier versions lack them."""
BY_LIBRARY = ("configuration", "tokenizer")
"""Of these, what depends on how a version of transformers or tokenizers writes it down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Entry):
    """What determines the numbers of a run. A run can be resumed only with the same settings.

    Names and paths (INFORMATION) say where model and text were read from; what they hold is identified by the other entries.
    """

    model: str | None = None
    revision: str | None
    weights: str | None = None
    """SHA-256 of the weights."""
    configuration: dict[str, Any] | None = None
    """The model's configuration as it is used, defaults included. This and the next three are unknown (None) in runs of earlier
    versions."""
    buffers: str | None = None
    """SHA-256 of the tables that the model computes from its configuration."""
    tokenizer: str | None = None
    """SHA-256 of what the tokenizer does."""
    bos_token: int | None = None
    """The id of the tokenizer's BOS token."""
    adapter: AdapterEntry | None = None
    gguf: GgufEntry | None = None
    dtype: str | None = None
    device: str | None = None
    attention_backend: str | None = None
    data: str | None = None
    tokens: int | None = None
    """Tokens measured; with a precision goal, known and written at the end."""
    precision: float | None = None
    """The largest half-width of an interval, as a share of its mean, that the sweep should reach."""
    precision_of: str | None = None
    """The experiment that should reach it instead of the sweep."""
    most_tokens: int | None = None
    document_order_seed: int | None = None
    """Of runs of earlier versions, which read whole documents."""
    window_order_seed: int | None = None
    """Seed of the random order in which windows are read for a precision goal."""
    look_growth: float | None = None
    """Windows at a look at the precision as a multiple of those at the look before."""
    window: int | None = None
    """Tokens of a window."""
    bos: str | None = None
    chat: bool = False
    pack: str | None = None
    """The separator between documents joined in a window."""
    cluster: str | None = None
    """The field whose values are clusters of documents."""
    token_hash: str | None = None
    """SHA-256 of the token ids."""
    windows_per_unit: int | None = None
    most_windows_per_unit: int | None = None
    """For a run with a precision goal, where a work unit ends at every look."""
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each experiment's settings, by its name."""
    others: dict[str, Any] = field(default_factory=dict)

    def check(self, at: str) -> None:
        """Experiments have names that can be those of files."""
        for name in self.experiments:
            require_name(f"{at}.experiments" if at else "experiments", name)

    @property
    def subject(self) -> str:
        """The model as a reader should know it: its name, and what was done to its weights."""
        name = self.model or "a model"
        return name if self.gguf is None else f"{name} ({self.gguf})"

    def fingerprint(self, experiment: str | None = None) -> str:
        """SHA-256 of what is fixed when a run begins and determines an experiment's shards; without one, what all share.

        A precision goal may become finer, and the number of tokens it takes is a result. Where model and text are identified by
        what they hold, names and paths are left out.
        """
        content = self.to_json()
        content["experiments"] = {
            name: own for name, own in content.get("experiments", {}).items() if name == experiment
        }
        for place in INFORMATION if self.configuration is not None else ():
            *outer, name = place.split(".")
            holder: Any = reduce(lambda entry, key: (entry or {}).get(key), outer, content)
            if holder is not None:
                holder.pop(name, None)
        if content.pop("precision", None) is not None:
            content.pop("tokens", None)
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def of(self, experiment: str) -> dict[str, Any]:
        """An experiment's settings; empty if it was not requested."""
        return self.experiments.get(experiment, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloorEntry(Entry):
    """How the noise floor was measured: mean KL in nats between the run's dtype and a finer one."""

    kl: float | None
    dtype: str
    finer: str
    tokens: int


class Unmeasured(Enum):
    """Marks an entry that a manifest lacks, as opposed to null, which marks a measurement that was tried and failed."""

    UNMEASURED = "unmeasured"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry(Entry):
    """What `depthscope info` shows about the model: the fields of `depthscope.models.facts.ModelFacts`."""

    name: str | None
    family: str | None
    revision: str | None
    layers: int | None
    d_model: int | None
    heads: int | None
    kv_heads: int | None
    head_width: int | None
    mlp_width: int | None
    experts: int | None
    vocabulary: int | None
    context: int | None
    parameters: int | None
    stored: int | None
    quantisation: str | None
    layout: str | None
    norm: str | None
    tied: bool | None
    attention_module: str | None
    mlp_module: str | None
    other_modules: str | None
    logit_map: str | None
    attention_backend: str | None
    dtype: str | None
    device: str | None
    streamed: bool | None

    def check(self, at: str) -> None:
        """The model has a possible number of layers."""
        require_range(at, "layers", self.layers, 1, MOST_LAYERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedEntry(Entry):
    """The result of joining short documents. `documents` were used; a window that holds several counts as one unit."""

    separator: str
    documents: int
    windows_with_boundary: int
    positions_after_boundary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusteredEntry(Entry):
    """Documents with the same value of `field` are one unit. `documents` were used; `largest_share` is of all tokens."""

    field: str
    documents: int
    largest_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEntry(Entry):
    """What was read from the source: documents used and read, those too short for a window, and rows without text."""

    documents: int | None
    """Independent units, over which intervals are: documents, packed windows, or clusters."""
    documents_read: int | None
    too_short: int | None
    skipped: int | None
    given_up: bool | None
    """Whether reading ended early because too many documents in a row were too short."""
    token_entropy: float | None
    """Loss, in nats, of predicting the next tokens by their frequencies in the text."""
    special_tokens: int | None
    packed: PackedEntry | None = None
    clustered: ClusteredEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Width(Entry):
    """The half-width of the interval of a row of the sweep or map, as a share of its mean."""

    edit: str
    layer: int
    other: int | None = None
    """The last layer, of a range or pair of several."""
    half_width_relative: float

    @property
    def row(self) -> str:
        """The row as a reader should know it: `drop(3)`, `drop_range(3, 5)`."""
        return f"{self.edit}({self.layer})" if self.other is None else f"{self.edit}({self.layer}, {self.other})"


PER_ROW = "95% per row: each edit at each layer alone, not all together"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionOutcome(Entry):
    """Whether the sweep reached its precision goal, with how much text, and which rows did not, widest first."""

    goal: float
    reached: bool
    tokens: int
    documents: int
    text_ended: bool
    """Whether the text was shorter than the amount that should be read."""
    rows: int
    rows_reached: int
    rows_under_noise_floor: int
    widest: Width | None
    missed: list[Width]
    paper_tokens: int
    projected_at_paper_tokens: float | None
    """Half-width of the widest row as a share of its mean, extrapolated by the square root law."""
    fewest_documents: int
    tightest_documents: int | None = None
    """Of runs of earlier versions, which looked after every document."""
    measured_share: float | None = None
    """Tokens that a row was measured on, as a share of those read, mean over rows: rows that are known are left out."""
    looks: list[int] | None = None
    """Windows after which intervals were or would have been looked at."""
    critical_value: float | None = None
    """Half-width of these intervals in standard errors, before the correction for the number of documents."""
    intervals: str = PER_ROW
    """What the 95 % of the intervals holds for."""

    def check(self, at: str) -> None:
        """There was text."""
        require_range(at, "tokens", self.tokens, 1, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronRows(Entry):
    """What a row of the neuron tables represents: a neuron of the MLP, or of each of its experts."""

    rows: str
    experts: int | None = None
    neurons_of_an_expert: int | None = None
    neurons_of_shared_experts: int | None = None
    numbering: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOutcome(Entry):
    """What a search for blocks to remove found, and what it cost."""

    method: str
    """The criterion whose set has the lowest KL on the search's documents; `given` without a search."""
    blocks: list[str]
    """The chosen blocks or components, such as `3` and `7~mlp`."""
    route: str
    """The route without them."""
    not_found: dict[str, str]
    """Criteria without a set, and why."""
    cannot_run: int
    """How many sets of blocks were not tried because the model cannot run without them."""
    block_calls: int
    """How often a block was applied to a window."""
    block_calls_alone: int
    """How often it would have been if every set of every step had been run from the first block on."""
    exported: str | None = None
    """The route of the checkpoint that was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(StoredFile):
    """The content of RUN/run.json."""

    format: ClassVar[int] = 2
    sealed_from: ClassVar[int] = 2
    migrations: ClassVar = {0: lambda content: content, 1: lambda content: content | {"unsealed": True}}
    remedy: ClassVar[str] = (
        "Restore it from a copy, or give the command that made this run again: it resumes from the intact shards and writes "
        "run.json again"
    )

    settings: Settings
    status: str | None = None
    """RUNNING or COMPLETE."""
    noise_floor: float | Unmeasured | None = Unmeasured.UNMEASURED
    """In nats. None if it could not be measured."""
    noise_floor_of: NoiseFloorEntry | Unmeasured | None = Unmeasured.UNMEASURED
    model: ModelEntry = field(default_factory=lambda: ModelEntry.from_json({}))
    unused_tensors: list[str] = field(default_factory=list, metadata=ALWAYS)
    """Tensors of the checkpoint that the model does not read."""
    text: TextEntry = field(default_factory=lambda: TextEntry.from_json({}))
    versions: dict[str, str] = field(default_factory=dict)
    not_done: dict[str, str] = field(default_factory=dict, metadata=ALWAYS)
    """Experiments and edits that could not be done, with the reason."""
    kernels: dict[str, str] = field(default_factory=dict)
    """How matrix products and the sums over the vocabulary are computed."""
    precision: PrecisionOutcome | None = None
    neurons: NeuronRows | None = None
    prune: PruneOutcome | None = None
    finished: list[str] = field(default_factory=list)
    """Experiments that have all their tables."""
    units: dict[str, int] = field(default_factory=dict)
    """How many work units, and so shards, each finished experiment has."""
    tables: list[str] = field(default_factory=list)
    """The tables that were written."""
    stages: bool = False
    """Whether stages.json was written."""
    unsealed: bool = False
    """Whether the run was begun before files had seals: those without one are then read unverified."""
    earlier_versions: list[dict[str, str]] = field(default_factory=list)
    """Versions with which earlier parts of the run were made."""
    earlier_kernels: list[dict[str, str]] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the run is complete."""
        return self.status == COMPLETE
