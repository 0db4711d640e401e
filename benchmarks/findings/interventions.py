"""Tests of the paper's claims about dropped and swapped layers (section 4 and appendix B)."""

from collections.abc import Callable, Sequence

from benchmarks.findings.evidence import (
    FAILS,
    HOLDS,
    OPEN,
    Curve,
    Finding,
    above,
    minus,
    over,
    swept,
)
from depthscope.report.measured import Value
from depthscope.report.wording import layer_list
from depthscope.run.store import RunDirectory
from depthscope.schema.sweep import AGREEMENT, ENTROPY_CHANGE, KL

KEPT = 0.72
"""The least share of predictions that the paper says a middle layer's drop or swap keeps."""
LOST = 0.5
"""An edit that keeps less than this share of predictions is catastrophic."""


def catastrophic(edit: str, place: Callable[[Curve], int]) -> Callable[[RunDirectory], Finding]:
    """Whether an edit at one layer loses most predictions, which is what we take "catastrophic" and "breaks" to mean."""

    def judge(run: RunDirectory) -> Finding:
        curve, kl = swept(run, edit, AGREEMENT), swept(run, edit, KL)
        at = place(curve)
        others = {layer: kl.values[layer].mean for layer in _inner(kl, edit) if layer != at}
        verdict = above(minus(Value(LOST, LOST, LOST), curve.values[at]))
        words = f"KL {kl.values[at].mean:.2f} nats"
        if others:
            most = max(others, key=others.__getitem__)
            words += f"; the costliest middle layer: {others[most]:.2f}, {edit}({most})"
        return curve.found(verdict, curve.values[at], words)

    return judge


def first(_curve: Curve) -> int:
    """The first layer."""
    return 0


def last(curve: Curve) -> int:
    """The last layer with a value: of swaps the one before the model's last."""
    return max(curve.values)


def entropy_rises(edit: str, place: Callable[[Curve], int]) -> Callable[[RunDirectory], Finding]:
    """Whether an edit raises the entropy of the predictions."""

    def judge(run: RunDirectory) -> Finding:
        curve = swept(run, edit, ENTROPY_CHANGE)
        effect = curve.values[place(curve)]
        return curve.found(above(effect), effect)

    return judge


def robust_middle(edit: str) -> Callable[[RunDirectory], Finding]:
    """Whether every middle layer keeps at least 72 % of predictions."""

    def judge(run: RunDirectory) -> Finding:
        curve = swept(run, edit, AGREEMENT)
        kept = curve.together(_inner(curve, edit))
        worst = min(kept, key=lambda layer: kept[layer].mean)
        below = [layer for layer, value in kept.items() if value.high is not None and value.high < KEPT]
        settled = all(value.low is not None and value.low >= KEPT for value in kept.values())
        verdict = FAILS if below else HOLDS if settled else OPEN
        words = f"least at layer {worst}"
        words += f"; surely below {KEPT:.0%}: {layer_list(below)} of {len(kept)} middle layers" if below else ""
        return curve.found(verdict, kept[worst], words)

    return judge


def swaps_cost_less(run: RunDirectory) -> Finding:
    """Whether swapping middle layers costs less KL than dropping them, on average."""
    swaps, drops = swept(run, "swap", KL), swept(run, "drop", KL)
    layers = _inner(swaps, "swap")
    effect = minus(drops.mean(layers), swaps.mean(layers))
    cheaper = sum(swaps.values[layer].mean < drops.values[layer].mean for layer in layers)
    return drops.found(above(effect), effect, f"swap cheaper at {cheaper} of {len(layers)} middle layers")


def mlp_matters_late(run: RunDirectory) -> Finding:
    """Whether ablating the last layer's MLP costs more than a middle layer's does on average."""
    curve = swept(run, "drop_mlp", KL)
    effect = minus(curve.values[max(curve.values)], curve.mean(curve.middle))
    return curve.found(above(effect), effect)


def mlp_gains(run: RunDirectory) -> Finding:
    """Whether the MLPs' share of the damage, against attention's, is larger in the second half. Layer 0 is left out."""
    mlp, attn = swept(run, "drop_mlp", KL), swept(run, "drop_attn", KL)

    def ratio(start: float, stop: float) -> Value:
        layers: Sequence[int] = [layer for layer in mlp.part(start, stop) if layer > 0]
        return over(mlp.mean(layers), attn.mean(layers))

    early, late = ratio(0.0, 0.5), ratio(0.5, 1.01)
    effect = over(late, early)
    return mlp.found(above(effect, 1.0), effect, f"MLP over attention {early.mean:.2g}, then {late.mean:.2g}")


def _inner(curve: Curve, edit: str) -> list[int]:
    """The middle layers; a swap of the last two layers is not one of them."""
    return [layer for layer in curve.middle if edit != "swap" or layer < curve.depth - 2]
