"""Healing an export: low-rank adapters (LoRA, Hu et al. 2021) trained so that it predicts what the original predicts.

The loss is KL(p‖q) from the original's next-token distribution p to the export's q, on windows of the user's text, one pass
in random order; the step size falls linearly to 0. Only the adapters' weights are trained, on every linear map of the layers;
at the end they are added to the weights, rounded as checkpoints of the model are, and the result is written as an export.
Every 8th document is held out: KL, agreement and loss before and after are measured there, and where the KL is not lower
afterwards the weights stay as they were.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.errors import DataError, ModelError, NumericError, UnsupportedError
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.exports.card import Card, Exported, write_card
from depthscope.exports.export_route import bytes_before, check_export, export_route, shown_name, written_dtype
from depthscope.exports.heal_state import HealState
from depthscope.models.configuration import model_errors
from depthscope.models.facts import parameters
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.models.quiet import quiet
from depthscope.routes import Route
from depthscope.schema.measures import AGREEMENT, KL, LOSS
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import BASELINE_EDIT
from depthscope.shapes import TokenIds

HELD_OUT_EVERY = 8
BEFORE, AFTER = "before healing", "after healing"
MEASURES = (KL, AGREEMENT, LOSS)
CHANGE = Metric("kl_change", "nats", "Change in KL divergence", "KL after healing − KL before")
LARGEST_LOGITS = 1 << 26
"""Numbers of one array of logits at once."""

Tell = Callable[[str, int, int], None]
PerToken = Float[Tensor, "measures windows length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How healing is done. Recorded in the card."""

    rank: int = 8
    rate: float = 1e-3
    """Adam's first step size."""
    batch_tokens: int = 1024
    """Tokens of a step, at least one window."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 1024:
            raise ModelError(f"rank is {self.rank}: expected a whole number from 1 to 1024")
        if not 0 < self.rate <= 1:
            raise ModelError(f"rate is {self.rate}: expected a number above 0, at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Healed:
    """The result: the checkpoint, whether its weights are healed, and what was measured on held-out documents."""

    exported: Exported
    improved: bool
    """False where healing did not lower the KL, so that the weights are those from before."""
    table: pl.DataFrame
    """KL, agreement and loss of the original (`none`), before and after healing, and the paired change in KL."""


def split(windows: Windows) -> tuple[Windows, Windows]:
    """Windows of the training and of the held-out documents, every 8th. Raises DataError for fewer than 16 documents."""
    turn = np.unique(windows.document, return_inverse=True)[1] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if windows.documents < 2 * HELD_OUT_EVERY:
        raise DataError(
            f"too little text to heal on: {windows.documents} documents of at least one window; expected at least "
            f"{2 * HELD_OUT_EVERY}, every {HELD_OUT_EVERY}th of which is held out"
        )
    return windows.take(~turn), windows.take(turn)


def check_pair(student: Model, teacher: Model, out: Path) -> None:
    """Raise DepthscopeError where one cannot be healed towards the other, or not at `out`. Nothing is computed yet."""
    if find_spec("peft") is None:
        raise ModelError("healing needs the peft package: pip install 'depthscope[heal]'")
    if student.folder is None or student.gguf is not None:
        raise ModelError(
            f"{student.name} is not the folder of a checkpoint: give the folder that an export was written to"
        )
    if student.stack.streamed:
        raise UnsupportedError(f"{student.name} is streamed, and training needs its weights in memory: use --stream no")
    if not student.hf.dtype.is_floating_point or student.hf.dtype == torch.float16:
        raise UnsupportedError(
            f"{student.name} is in {student.hf.dtype}, in which training overflows: use --dtype float32"
        )
    if student.unembedding.vocabulary != teacher.unembedding.vocabulary or (
        student.identity()["tokenizer"] != teacher.identity()["tokenizer"]
    ):
        raise ModelError(
            f"{student.name} and {teacher.name} have different vocabularies ({student.unembedding.vocabulary:,} and "
            f"{teacher.unembedding.vocabulary:,} tokens) or tokenizers: expected an export and the model it was cut from"
        )
    check_export(student, Route.own(student.depth), out)


def heal(
    student: Model,
    teacher: Model,
    windows: Windows,
    out: Path,
    recipe: Recipe,
    command: str | None = None,
    *,
    fresh: bool = True,
    tell: Tell = lambda what, done, units: None,
) -> Healed:
    """Train, merge, measure and write. Interrupted, the same call resumes. The weights of `student` are changed.

    Raises NumericError, with nothing kept, where training gives NaN or infinity.
    """
    check_pair(student, teacher, out)
    training, held_out = split(windows)
    settings = {
        **asdict(recipe),
        "student": student.weight_hash(),
        "teacher": teacher.weight_hash(),
        "text": training.token_hash(),
    }
    before = _measured(student, teacher, held_out, tell)
    state = _train(student, teacher, training, out, recipe, settings, tell)
    after = _measured(student, teacher, held_out, tell)
    improved = bool(after[1][0].mean() < before[1][0].mean())
    table = _table(held_out, {BASELINE_EDIT: before[0], BEFORE: before[1], AFTER: after[1]})
    kept = student if improved else load(str(student.folder), dtype=_name(student.hf.dtype), device=str(student.device))
    card = Card(
        about=f"{shown_name(student)}, a cut of {shown_name(teacher)} ({teacher.family}), healed.",
        chosen=_watched(student, teacher, training, held_out, recipe, state, table, improved),
        command=command,
        quality=table.filter(pl.col("edit").is_in([BASELINE_EDIT, AFTER if improved else BEFORE])),
        text="held-out documents",
    )
    exported = export_route(kept, Route.own(kept.depth), out, card, fresh=fresh, tell=tell)
    exported = replace(
        exported,
        model=shown_name(teacher),
        layers=(teacher.depth, student.depth),
        parameters=(parameters(teacher.hf), exported.parameters[1]),
        bytes=(bytes_before(teacher, written_dtype(student)), exported.bytes[1]),
    )
    write_card(exported, card)
    state.remove()
    return Healed(exported=exported, improved=improved, table=table)


def _train(
    student: Model, teacher: Model, windows: Windows, out: Path, recipe: Recipe, settings: dict[str, Any], tell: Tell
) -> HealState:
    """Train adapters, and add them to the student's weights."""
    import peft

    failed = f"adapters cannot be put into {student.name} ({student.family})"
    with model_errors(failed, kind=UnsupportedError), quiet(), torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        asked = peft.LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules="all-linear")
        wrapped = peft.get_peft_model(student.hf, asked)
    weights = {name: one for name, one in wrapped.named_parameters() if one.requires_grad}
    adam = torch.optim.AdamW(weights.values(), lr=recipe.rate, weight_decay=0.0)
    state = HealState.of(out, settings, weights, adam)
    each = max(1, min(recipe.batch_tokens, LARGEST_LOGITS // teacher.unembedding.vocabulary) // windows.length)
    order = np.random.default_rng(recipe.seed).permutation(len(windows))
    steps = -(-len(order) // each)
    for step in range(state.step, steps):
        ids = windows.take(order[step * each : (step + 1) * each]).batch()[0]
        adam.param_groups[0]["lr"] = recipe.rate * (1 - step / steps)
        loss = _kl(
            _log_probabilities(teacher, ids, trained=False), _log_probabilities(student, ids, trained=True)
        ).mean()
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(norm)):
            state.remove()
            raise NumericError(
                f"healing {student.name} gives NaN or infinity at step {step + 1} of {steps}: expected a lower --rate, or "
                "--dtype float32. Nothing was written"
            )
        adam.step()
        state.step = step + 1
        state.losses.append(loss.item())
        state.store(now=state.step == steps)
        tell("healing", state.step, steps)
    with quiet():
        wrapped.merge_and_unload()
    dtype = written_dtype(student)
    with torch.no_grad():
        for parameter in student.hf.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(parameter.to(dtype).to(parameter.dtype))  # what is measured is what is written
    return state


def _log_probabilities(model: Model, ids: TokenIds, trained: bool) -> Float[Tensor, "windows length vocab"]:
    with torch.set_grad_enabled(trained):
        return model.hf(input_ids=ids.to(model.device), use_cache=False).logits.float().log_softmax(-1)


def _kl(log_p: Float[Tensor, "*shape vocab"], log_q: Float[Tensor, "*shape vocab"]) -> Float[Tensor, "*shape"]:
    """KL(p‖q) at every position in nats."""
    return torch.nn.functional.kl_div(log_q, log_p.to(log_q.device), reduction="none", log_target=True).sum(-1)


def _measured(student: Model, teacher: Model, windows: Windows, tell: Tell) -> tuple[PerToken, PerToken]:
    """Values per token of the teacher and of the student."""
    each = max(1, LARGEST_LOGITS // teacher.unembedding.vocabulary // windows.length)
    found: list[list[Tensor]] = [[], []]
    starts = range(0, len(windows), each)
    for done, start in enumerate(starts, 1):
        ids, targets = windows.part(start, min(start + each, len(windows))).batch()
        log_p = _log_probabilities(teacher, ids, trained=False).cpu()
        log_q = _log_probabilities(student, ids, trained=False).cpu()
        for seen, one in zip(found, (log_p, log_q), strict=True):
            loss = -one.gather(-1, targets[..., None]).squeeze(-1)
            same = (one.argmax(-1) == log_p.argmax(-1)).float()
            seen.append(torch.stack([_kl(log_p, one), same, loss]))
        tell("measuring held-out text", done, len(starts))
    own, other = (torch.cat(seen, 1) for seen in found)
    if not bool(torch.isfinite(other).all() and torch.isfinite(own).all()):
        raise NumericError(
            f"{student.name} or {teacher.name} gives NaN or infinity on the held-out text: nothing was written"
        )
    return own, other


def _table(windows: Windows, values: dict[str, PerToken]) -> pl.DataFrame:
    """Estimates with intervals over documents; the change in KL is that of the same tokens."""
    names = [(name,) for name in values]
    whole = np.stack([one.flatten(1).numpy() for one in values.values()], 1)
    change = (values[AFTER][0] - values[BEFORE][0]).flatten().numpy()[None, None]
    tables = []
    for rows, numbers in ((Rows(KEYS, names, MEASURES), whole), (Rows(KEYS, [(AFTER,)], (CHANGE,)), change)):
        shard = rows.shard(window_sums(numbers, len(windows)), windows.length, windows.document)
        tables.append(rows.estimated(rows.documents([shard]), lambda sums: sums))
    return pl.concat(tables)


KEYS = {"edit": pl.String}


def _watched(
    student: Model,
    teacher: Model,
    training: Windows,
    held_out: Windows,
    recipe: Recipe,
    state: HealState,
    table: pl.DataFrame,
    improved: bool,
) -> str:
    """What the card says of healing."""
    rows = {(row["edit"], row["metric"]): row for row in table.iter_rows(named=True)}
    before, after, change = rows[BEFORE, "kl"], rows[AFTER, "kl"], rows[AFTER, "kl_change"]
    shown = "" if change["ci_low"] is None else f" [{change['ci_low']:.4f}, {change['ci_high']:.4f}]"
    kept = "" if improved else " **The KL is not lower after healing, so these are the weights from before it.**"
    how = f"rank {recipe.rank}, every linear map of the layers, merged"
    text = f"{training.tokens:,} tokens of {training.documents} documents"
    return (
        f"How the layers were chosen is in the card of `{shown_name(student)}`. Healed with LoRA ({how}) on {text}, "
        f"{state.step} steps of Adam from {recipe.rate:g} falling to 0, minimising the KL from `{shown_name(teacher)}`. On "
        f"{held_out.tokens:,} tokens of {held_out.documents} other documents the KL was {before['mean']:.4f} nats before and "
        f"{after['mean']:.4f} after; change {change['mean']:.4f}{shown}.{kept}"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
