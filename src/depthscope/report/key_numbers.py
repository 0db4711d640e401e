"""The five key numbers of a model, each with its interval where it has one."""

from collections.abc import Callable
from dataclasses import dataclass

from depthscope.errors import RunError
from depthscope.report.measured import Series, Value, interval, read_sweep, read_table, series, with_unit
from depthscope.report.sections import neurons, stages
from depthscope.report.unexpected import as_run_error
from depthscope.run.store import RunDirectory
from depthscope.schema import lens
from depthscope.schema.found_stages import SignatureVerdict
from depthscope.schema.neurons import NEURON_COUNTS_TABLE
from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, verdict_shown
from depthscope.schema.sweep import AGREEMENT, KL

MIDDLE_AGREEMENT = "robust_middle"
"""The signature whose effect is the mean agreement kept over middle layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyNumber:
    """A key number: title, value with unit, 95% interval (may be empty) and a note on what it refers to."""

    title: str
    value: str
    interval: str = ""
    note: str = ""


def key_numbers(run: RunDirectory) -> list[KeyNumber]:
    """The key numbers for which the run has data."""
    found = []
    for read in FIVE:
        try:
            with as_run_error(run.path, "a key number"):
                one = read(run)
        except RunError:  # the section of that experiment reports the problem
            continue
        found += [one] if one else []
    return found


def first_layer(run: RunDirectory) -> KeyNumber | None:
    """KL of dropping layer 0."""
    value = read_sweep(run).series("drop", KL).get(0)
    if value is None:
        return None
    return KeyNumber(
        title="KL of dropping the first layer",
        value=with_unit(value, KL),
        interval=interval(value, KL),
        note="relative to the unmodified model",
    )


def middle_layers(run: RunDirectory) -> KeyNumber | None:
    """Mean over middle layers of the agreement kept when one is dropped. The interval is the stage finder's, from resampling;
    without it there is none: layers share documents, so are not independent, and the table has no covariances."""
    measured = read_sweep(run)
    dropped = measured.series("drop", AGREEMENT)
    kept = [dropped[layer].mean for layer in range(1, measured.depth - 1) if layer in dropped]
    if not kept or len(kept) < measured.depth - 2:
        return None
    value = Value(sum(kept) / len(kept))
    effect = _signature(run, MIDDLE_AGREEMENT)
    if effect and effect.effect is not None and abs(effect.effect - value.mean) < 1e-9:
        value = Value(value.mean, effect.ci_low, effect.ci_high)
    return KeyNumber(
        title="Agreement kept without a middle layer",
        value=with_unit(value, AGREEMENT),
        interval=interval(value, AGREEMENT),
        note=f"top-1, mean over dropping each of {len(kept)}; {100 * min(kept):.0f} to {100 * max(kept):.0f}%",
    )


def lens_halved(run: RunDirectory) -> KeyNumber | None:
    """The first depth from which the lens's KL stays at most half of its value after the first layer.

    The reference is not x_0: that is the embedding, which a lens can read only because of weight tying.
    """
    kl = series(read_table(run, "lens", lens.LENS_TABLE), lens.KL)
    depth = halved_at(kl)
    if depth is None:
        return None
    last = max(kl)
    return KeyNumber(
        title="The lens’s KL has halved at",
        value=f"x_{depth}",
        note=f"{100 * depth / last:.0f}% of depth: {with_unit(kl[depth], lens.KL)}{_bracket(kl[depth])} "
        f"after {with_unit(kl[1], lens.KL)} at x_1",
    )


def halved_at(kl: Series) -> int | None:
    """The first depth from which KL stays at most half of that at x_1; None below three layers or without x_1."""
    last = max(kl, default=0)
    if last < 3 or 1 not in kl:
        return None
    return next(
        (depth for depth in sorted(kl) if depth > 1 and all(kl[d].mean <= kl[1].mean / 2 for d in kl if d >= depth)),
        None,
    )


def neuron_shares(run: RunDirectory) -> KeyNumber | None:
    """Prediction and suppression neurons, as shares of all MLP neurons."""
    table = read_table(run, neurons.COUNTS, NEURON_COUNTS_TABLE)
    whole = int(table.unique("layer")["neurons"].sum())
    if not whole:
        return None
    counts = [int(table.filter(kind=kind)["count"].sum()) for kind in ("prediction", "suppression")]
    first, second = (f"{100 * count / whole:.2g}%" if count else "0%" for count in counts)
    return KeyNumber(
        title="Prediction and suppression neurons",
        value=first if first == second == "0%" else f"{first} and {second}",
        note=f"{counts[0]:,} and {counts[1]:,} of {whole:,}; from the weights alone, no interval",
    )


def signatures(run: RunDirectory) -> KeyNumber | None:
    """The number of supported signatures of the stages."""
    verdicts = [one.verdict for one in stages.read_stages(run).signatures]
    if not verdicts:
        return None
    others = [(verdicts.count(verdict), verdict) for verdict in (NOT_SUPPORTED, CANNOT_TELL)]
    return KeyNumber(
        title="Supported stage signatures",
        value=f"{verdicts.count(SUPPORTED)} of {len(verdicts)}",
        note=", ".join(f"{count} {verdict_shown(verdict)}" for count, verdict in others if count),
    )


FIVE: tuple[Callable[[RunDirectory], KeyNumber | None], ...] = (
    first_layer,
    middle_layers,
    lens_halved,
    neuron_shares,
    signatures,
)


def _bracket(value: Value) -> str:
    return f" ({interval(value, lens.KL)})" if value.has_interval else ""


def _signature(run: RunDirectory, name: str) -> SignatureVerdict | None:
    try:
        return next((one for one in stages.read_stages(run).signatures if one.name == name), None)
    except RunError:
        return None
