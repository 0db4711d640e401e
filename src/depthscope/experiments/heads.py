"""Heads by what they attend to: sub-word merging (subjoiner), previous-token, duplicate-token and induction heads.

Sub-word merging after the paper (section 5.1, figure 9) and its later version: prompts that end with a word of n tokens,
compared with prompts that end with a word of one token (depthscope.data.word_prompts). Induction heads after Olsson et al. 2022
(In-context Learning and Induction Heads: prefix matching), duplicate-token heads after Wang et al. 2022 (Interpretability in
the Wild), on a repeated sequence of random tokens, whose only structure is the repetition, and on windows of the text. What a
head would score by position alone is measured on the same heads (schema.heads.HEAD_KINDS).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from depthscope.data.corpus import Corpus
from depthscope.data.repeats import random_repeats, without_repetition
from depthscope.data.windows import bos_prefix, make_windows
from depthscope.data.word_prompts import CONTEXT_TOKENS, word_prompts
from depthscope.errors import DataError, RunError, UnsupportedError
from depthscope.experiments.document_sums import estimate_columns
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.models.patterns import attention_patterns, has_patterns
from depthscope.schema.estimates import MOMENTS
from depthscope.schema.heads import (
    ATTENTION,
    FALSE_DISCOVERIES,
    HEAD_KINDS,
    HEAD_METRICS,
    HEAD_POSITIONS_TABLE,
    HEAD_SHARD,
    HEADS_TABLE,
    MERGING,
    NATURAL,
    PLAIN,
    RECENCY_DECAY,
    REPEATED,
    WORD,
)
from depthscope.schema.metric import Metric
from depthscope.shapes import TokenIds
from depthscope.statistics.estimate import ClusterMoments, Estimate, runs
from depthscope.statistics.head_scores import (
    Keys,
    PerHead,
    attention_elsewhere,
    attention_of_final,
    attention_on,
    duplicate_keys,
    even_attention_on,
    induction_keys,
    merge_scores,
    previous_by_recency,
    previous_keys,
    second_previous_keys,
)
from depthscope.statistics.ranking import adjusted, p_above, ranks, standard_error

NAME = "heads"
PROMPTS = "prompts"
WINDOWS, WINDOW_LENGTH = 64, 128
ROUNDINGS = 4
"""Scores within this many roundings of the model's dtype are not above chance: uniform attention has the same rounding error
everywhere."""
PAIRS_PER_UNIT, SEQUENCES_PER_UNIT = 32, 16

KEYS = (previous_keys, duplicate_keys, induction_keys)
"""In the order of the metrics REPEATED and NATURAL."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """Sequences computed together: rows of one of the samples."""

    sample: str
    rows: slice


class Heads:
    """Scores of every query head of a model; an experiment with own units.

    Searches at most a million tokens of `corpus` for words (see word_prompts). `seed` determines which words and random
    tokens are used, `bos` is as for make_windows. Blocks without attention patterns are omitted from the tables and listed
    in `settings`. Raises UnsupportedError if no block has a pattern or the context is too short, DataError if the text has
    too few words. If no document has 128 tokens (or fills the context), the `_natural` metrics are omitted.
    """

    name = NAME

    def __init__(self, model: Model, corpus: Corpus, *, bos: str = "auto", seed: int = 0) -> None:
        self.model = model
        with torch.inference_mode():
            self.blocks = [block for block, has in enumerate(has_patterns(model)) if has]
        if not self.blocks:
            raise UnsupportedError(
                f"{model.name} ({model.family}) has no attention patterns: there are no heads to score"
            )
        self.bos = bos_prefix(model, bos)
        needed = len(self.bos) + CONTEXT_TOKENS + 4
        if model.context is not None and model.context < needed:
            raise UnsupportedError(f"the context of {model.name}, {model.context}, is shorter than {needed} tokens")
        self.prompts = word_prompts(corpus, model, bos=bos, seed=seed)
        self.repeats = random_repeats(model, self.bos, seed=seed)
        self.controls = without_repetition(self.repeats, self.bos, seed=seed)
        self.clustered = corpus.cluster is not None
        self.natural, self.natural_documents = natural_windows(model, corpus, bos)
        natural = (
            _whole_documents(self.natural_documents, SEQUENCES_PER_UNIT) if self.clustered else _even(len(self.natural))
        )
        self.plan = [
            _Unit(sample, rows)
            for sample, units in (
                (PROMPTS, _whole_documents(self.prompts.document, PAIRS_PER_UNIT)),
                ("repeats", _even(len(self.repeats))),
                ("natural", natural),
            )
            for rows in units
        ]
        self.units = len(self.plan)
        self.settings: Mapping[str, Any] = {
            "seed": seed,
            "context_tokens": CONTEXT_TOKENS,
            "word_tokens": self.prompts.word_tokens,
            "pairs": len(self.prompts),
            "token_hash": self._token_hash(),
            "bos": bool(self.bos),
            "repeats": len(self.repeats),
            "repeat_tokens": (self.repeats.shape[1] - len(self.bos)) // 2,
            "windows": len(self.natural),
            "window_tokens": self.natural.shape[1],
            "blocks_without_patterns": [block for block in range(model.depth) if block not in self.blocks],
        }

    def _token_hash(self) -> str:
        """SHA-256 over everything that is read."""
        digest = hashlib.sha256(self.prompts.token_hash().encode())
        units = [self.natural_documents] if self.clustered else []
        for array in (self.repeats.numpy(), self.controls.numpy(), self.natural.numpy(), *units):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def work(self, unit: int) -> pl.DataFrame:
        """The shard of a unit (HEAD_SHARD)."""
        planned = self.plan[unit]
        with torch.inference_mode():
            if planned.sample == PROMPTS:
                return self._prompts(planned.rows)
            if planned.sample == "repeats":
                repeats, controls = self.repeats[planned.rows], self.controls[planned.rows]
                return self._sequences(repeats, np.arange(len(repeats)), REPEATED, controls)
            return self._sequences(self.natural[planned.rows], self.natural_documents[planned.rows], NATURAL)

    def _prompts(self, rows: slice) -> pl.DataFrame:
        """Moments of both classes' attention by offset and of the merge scores; a document's pairs are contiguous."""
        word, plain = self.prompts.batch(rows)
        ids = torch.cat([word, plain]).to(self.model.device)
        starts, pairs = runs(self.prompts.document[rows])
        keys = [(kind, offset) for kind in (WORD, PLAIN) for offset in range(CONTEXT_TOKENS)]
        keys += [(metric.name, None) for metric in MERGING]
        frames = []
        documents = [*self.prompts.document[rows]] * 2

        def named(row: int) -> str:
            return f"a prompt with words of document {documents[row]}"

        for block, pattern in enumerate(attention_patterns(self.model, ids, named=named)):
            if pattern is None:
                continue
            of_word, of_plain = attention_of_final(pattern).chunk(2)
            scores = torch.stack(merge_scores(of_word, of_plain, self.prompts.word_tokens), -1)
            values = torch.cat([of_word, of_plain, scores], -1).transpose(1, 2).cpu().numpy()
            frames.append(_moments(PROMPTS, keys, block, pairs, np.add.reduceat(values, starts, axis=0)))
        return pl.concat(frames)

    def _sequences(
        self,
        ids: TokenIds,
        documents: Int64[np.ndarray, " batch"],
        metrics: Sequence[Metric],
        controls: TokenIds | None = None,
    ) -> pl.DataFrame:
        """Moments of attention to each kind of key; a document's sequences are contiguous.

        `controls` are the same sequences with nothing to be found; without them sequences are each other's controls.
        """
        ids = ids.to(self.model.device)
        starts, _ = runs(documents)
        *keys, second = [made(ids) for made in (*KEYS, second_previous_keys)]
        for wanted in (*keys, second):
            wanted[:, :, : len(self.bos)] = False  # BOS attracts attention whatever surrounds it
        previous, *later = keys
        elsewhere = {} if controls is None else self._on_controls(controls.to(self.model.device), later)
        quantities = [("attention", None), ("excess", None), ("over_null", None)]
        frames = []
        named = partial(_sequence, documents if controls is None else None)
        for block, pattern in enumerate(attention_patterns(self.model, ids, named=named)):
            if pattern is None:
                continue
            weights = pattern.double()
            by_recency = previous_by_recency(weights, previous, second, RECENCY_DECAY)
            by_position = elsewhere.get(block) or [attention_elsewhere(weights, wanted) for wanted in later]
            for metric, wanted, null in zip(metrics, keys, [by_recency, *by_position], strict=True):
                sums = attention_on(weights, wanted)
                values = torch.stack([sums, sums - even_attention_on(wanted)[:, None], sums - null], 1).cpu().numpy()
                values = np.add.reduceat(values, starts, axis=0)
                queries = np.add.reduceat(wanted.any(-1).sum(-1).cpu().numpy(), starts)
                frames.append(_moments(metric.name, quantities, block, queries, values))
        return pl.concat(frames)

    def _on_controls(self, ids: TokenIds, keys: Sequence[Keys]) -> dict[int, list[PerHead]]:
        """By block, the attention in other sequences to positions where the keys would be."""
        return {
            block: [attention_on(pattern, wanted) for wanted in keys]
            for block, pattern in enumerate(attention_patterns(self.model, ids, named=partial(_sequence, None)))
            if pattern is not None
        }

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """`heads` (HEADS_TABLE) and `head_positions` (HEAD_POSITIONS_TABLE)."""
        found = {sample: (keys, moments.estimate()) for sample, (keys, moments) in _merged(shards).items()}
        rounding = ROUNDINGS * torch.finfo(self.model.unembedding.weight.dtype).eps
        heads = [
            _scores(*found[sample], metric, self.prompts.word_tokens, rounding)
            for metric in HEAD_METRICS.values()
            if (sample := PROMPTS if metric in MERGING else metric.name) in found
        ]
        keys, estimate = found[PROMPTS]
        positions = _rows(keys, estimate, keys["quantity"].is_in([WORD, PLAIN]), ATTENTION)
        words = pl.lit(self.prompts.word_tokens)
        positions = positions.with_columns(prompts="quantity", word_tokens=words)
        positions = positions.sort("layer", "head", "prompts", "offset")
        return {
            "heads": pl.concat(heads),
            "head_positions": positions.select(*HEAD_POSITIONS_TABLE).cast(pl.Schema(HEAD_POSITIONS_TABLE)),
        }


def make(subject: Subject) -> Heads:
    """All heads of a model, on prompts built from the text."""
    return Heads(subject.model, subject.corpus, bos=subject.bos)


def _sequence(documents: Int64[np.ndarray, " batch"] | None, row: int) -> str:
    """What a row of a batch is, for messages; random tokens are of no document."""
    return f"a sequence of random tokens (number {row})" if documents is None else f"document {documents[row]}"


def natural_windows(
    model: Model, corpus: Corpus, bos: str
) -> tuple[Int64[Tensor, "sequences seq"], Int64[np.ndarray, " sequences"]]:
    """The first window of each of up to 64 documents, and the independent unit (document, pack or cluster) of each.

    None if no document is long enough.
    """
    length = min(WINDOW_LENGTH, model.context or WINDOW_LENGTH)
    try:
        windows = make_windows(replace(corpus, tokens=WINDOWS * length), model, length=length, bos=bos)
    except DataError:
        return torch.empty((0, length), dtype=torch.int64), np.empty(0, dtype=np.int64)
    first = windows.start == 0
    return torch.from_numpy(windows.ids[first, :-1].astype(np.int64)), windows.document[first]


def _whole_documents(document: Int64[np.ndarray, " rows"], about: int) -> list[slice]:
    """Slices of about so many rows, none of which share a document."""
    starts, pairs = runs(document)
    cuts = [0]
    for end in (starts + pairs).tolist():
        if end - cuts[-1] >= about or end == len(document):
            cuts.append(end)
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _even(sequences: int) -> list[slice]:
    """Slices of at most SEQUENCES_PER_UNIT rows, about equally many in each: a unit's sequences are each other's controls."""
    cuts = np.linspace(0, sequences, -(-sequences // SEQUENCES_PER_UNIT) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _moments(
    sample: str,
    quantities: Sequence[tuple[str, int | None]],
    block: int,
    tokens: Int64[np.ndarray, " documents"],
    sums: Float64[np.ndarray, "documents quantities heads"],
) -> pl.DataFrame:
    """Rows of HEAD_SHARD for one block: documents of `tokens` queries each, over which quantities sum to `sums`.

    Other experiments' shards keep sums per document, so that documents can continue in the next shard and be resampled later
    (see document_sums). Here units hold whole documents, nothing resamples them, and there would be 34 numbers per head and
    document: moments over a unit's documents are all that tables need, and smaller by the number of documents.
    """
    moments = ClusterMoments(sums.shape[1:])
    for count, values in zip(tokens.tolist(), sums, strict=True):
        moments.add(count, values)
    heads = sums.shape[2]
    return pl.DataFrame(
        {
            "sample": [sample] * sums[0].size,
            "quantity": [name for name, _ in quantities for _ in range(heads)],
            "offset": [offset for _, offset in quantities for _ in range(heads)],
            "layer": [block] * sums[0].size,
            "head": list(range(heads)) * len(quantities),
            **moments.stored(),
        },
        schema=HEAD_SHARD,
    )


def _merged(shards: Iterable[pl.DataFrame]) -> dict[str, tuple[pl.DataFrame, ClusterMoments]]:
    """For each sample the keys of its rows and the moments over all documents; samples without queries are omitted."""
    found: dict[str, tuple[pl.DataFrame, ClusterMoments]] = {}
    for shard in shards:
        for (sample,), rows in shard.group_by("sample", maintain_order=True):
            keys = rows.select("quantity", "offset", "layer", "head")
            part = ClusterMoments.read({name: rows[name].to_numpy() for name in MOMENTS})
            kept, moments = found.setdefault(str(sample), (keys, ClusterMoments(len(rows))))
            if not keys.equals(kept):
                raise RunError(
                    f"two shards of {NAME} contain different heads or offsets ({len(keys)} and {len(kept)} rows): one was "
                    "changed, or made by another version. Measure again with another --out"
                )
            moments.merge(part)
    return {sample: (keys, moments) for sample, (keys, moments) in found.items() if np.any(moments.tokens)}


def _rows(keys: pl.DataFrame, estimate: Estimate, chosen: pl.Series, metric: Metric) -> pl.DataFrame:
    """The selected rows of a sample with their estimates of the metric."""
    part = estimate.columns(chosen.to_numpy())
    return keys.filter(chosen).hstack(estimate_columns(part, [metric] * len(part.mean)))


def _scores(
    keys: pl.DataFrame, estimate: Estimate, metric: Metric, word_tokens: int, resolution: float
) -> pl.DataFrame:
    """Rows of HEADS_TABLE for one metric: every head, ranked."""
    merging = metric in MERGING
    chosen = keys["quantity"] == (metric.name if merging else "attention")
    value = estimate.columns(chosen.to_numpy())
    excess = value if merging else estimate.columns((keys["quantity"] == "excess").to_numpy())
    p = p_above(resolution * np.abs(value.mean), excess.mean, standard_error(excess), excess.documents)
    over = value if merging else estimate.columns((keys["quantity"] == "over_null").to_numpy())
    least = HEAD_KINDS[metric.name].least
    p_kind = adjusted(p_above(np.full(len(over.mean), least), over.mean, standard_error(over), over.documents))
    known = ~np.isnan(p_kind)
    return (
        _rows(keys, estimate, chosen, metric)
        .with_columns(
            pl.Series("rank", ranks(value.mean)),
            pl.Series("p_adjusted", adjusted(p)).fill_nan(None),
            word_tokens=pl.lit(word_tokens if merging else None, dtype=pl.Int32),
            chance=pl.lit(0.0) if merging else pl.Series(value.mean - excess.mean),
            null_mean=pl.lit(0.0) if merging else pl.Series(value.mean - over.mean),
            excess=pl.Series(over.mean),
            least_excess=pl.lit(least),
            p_kind=pl.Series(p_kind).fill_nan(None),
            of_kind=pl.when(pl.Series(known)).then(pl.Series(known & (p_kind < FALSE_DISCOVERIES))),
        )
        .select(*HEADS_TABLE)
        .cast(pl.Schema(HEADS_TABLE))
    )
