"""Healing an export."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from depthscope.api.export import telling
from depthscope.api.inputs import corpus, model_of
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.data.windows import make_windows
from depthscope.exports.heal import Healed, Recipe, check_pair
from depthscope.exports.heal import heal as heal_export
from depthscope.models.load import load
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.studies.settings import check_window
from depthscope.studies.studied import Progress

TOKENS = 65_536
"""Tokens of text, held-out documents included."""


@memory_errors("heal the model", "Use a shorter window")
def heal(
    exported: str | Path,
    teacher: Model | str,
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    *,
    out: str | Path,
    tokens: int | None = None,
    window: int | None = None,
    bos: str = "auto",
    rank: int = 8,
    rate: float = 1e-3,
    command: str | None = None,
    progress: bool | Progress = True,
) -> Healed:
    """Train an export to predict what the original (`teacher`) predicts, and write the result as a checkpoint in `out`.

    `exported` is a folder that `export` wrote. Adapters of rank `rank` (LoRA, through peft) on all linear maps of its layers
    are trained on the KL from the teacher's next-token distribution in one pass over `text` (65,536 tokens by default), and
    merged. Every 8th document is held out for KL, agreement and loss before and after, with 95% intervals; where the KL is not
    lower, `out` holds the weights from before and `Healed.improved` is False. Interrupted, the same call resumes. Needs the
    extra `heal`. Raises a DepthscopeError for two models that do not belong together, too little text or a directory that is in
    use, NumericError for NaN or infinity in training.
    """
    recipe = Recipe(rank=rank, rate=rate)
    if window is not None:
        check_window(window)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = replace(text, tokens=tokens or text.tokens or TOKENS)
    teacher = model_of(teacher)
    student = load(str(exported), stream="no", device=str(teacher.device))
    check_pair(student, teacher, Path(out))
    with telling(progress) as tell:
        windows = make_windows(text, teacher, length=window, bos=bos, tell=tell)
        return heal_export(student, teacher, windows, Path(out), recipe, command, tell=tell or _silent)


def _silent(what: str, done: int, units: int) -> None:
    """Progress that nobody asked for."""
