"""The paper's table 1 as tests: each signature's effect with its interval from resampling documents, and a verdict.

Supported: the whole 95 % interval reaches the threshold. Not supported: the whole interval is below it. Otherwise the test is
inconclusive, as it is if the model is too shallow, a measurement is missing, no lens can be read or there are too few
documents for an interval. Neuron counts have no interval: they cover all neurons, not a sample.
"""

from collections.abc import Sequence

import numpy as np

from depthscope.schema import lens
from depthscope.schema.found_stages import SignatureVerdict
from depthscope.schema.signatures import SIGNATURES, THRESHOLDS_DATE, Signature
from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED
from depthscope.stages.effects import EFFECTS, Effects
from depthscope.stages.readable import lens_to_read
from depthscope.stages.signals import ResampledLayers
from depthscope.statistics.jackknife import Scale, effective_number, jackknife_interval

FEWEST_LAYERS = 4
"""With fewer there is no middle to compare the first and last layer with."""
FEWEST_DOCUMENTS = 8


def verdicts(measured: ResampledLayers) -> list[SignatureVerdict]:
    """All signatures, in the order of depth."""
    return [_verdict(signature, measured) for signature in SIGNATURES.values()]


def _verdict(signature: Signature, measured: ResampledLayers) -> SignatureVerdict:
    def concluded(verdict: str, reason: str, value=None, low=None, high=None) -> SignatureVerdict:
        return SignatureVerdict(
            name=signature.name,
            title=signature.title,
            stage=signature.stage,
            test=signature.definition,
            unit=signature.unit,
            threshold=signature.threshold,
            effect=value,
            ci_low=low,
            ci_high=high,
            verdict=verdict,
            reason=reason,
            defining=signature.defining,
            threshold_date=THRESHOLDS_DATE.isoformat(),
        )

    if signature.shown_by:
        return concluded(CANNOT_TELL, f"not tested: the experiment {signature.shown_by} shows it by depth")
    names, effect = EFFECTS[signature.name]
    needs, reason = _needs(names, measured)
    if reason is not None:
        return concluded(CANNOT_TELL, reason)
    effects = effect(*(measured.values[need] for need in needs))
    value = float(effects[0])
    if not np.isfinite(value):
        return concluded(CANNOT_TELL, "the effect is not a number on this model")
    if len(effects) == 1:
        reached = value >= signature.threshold
        return concluded(SUPPORTED if reached else NOT_SUPPORTED, "counted, not sampled: no interval", value)
    if measured.documents < FEWEST_DOCUMENTS:
        few = f"{measured.documents} documents are too few for an interval: expected at least {FEWEST_DOCUMENTS}"
        return concluded(CANNOT_TELL, few, value)
    low, high = _interval(signature, effects, needs, measured)
    if not np.isfinite([low, high]).all():
        return concluded(CANNOT_TELL, "the interval is not bounded: documents differ too much", value)
    fitted = next((name for need in needs if (name := need.split(".")[0]) in lens.FITTED), None)
    read_by = f", read by the {lens.LENSES[fitted].called}" if fitted else ""
    if low >= signature.threshold:
        return concluded(SUPPORTED, f"the whole interval reaches the threshold{read_by}", value, low, high)
    if high < signature.threshold:
        return concluded(NOT_SUPPORTED, f"the whole interval stays below the threshold{read_by}", value, low, high)
    return concluded(CANNOT_TELL, f"the interval contains the threshold{read_by}", value, low, high)


def _needs(names: tuple[str, ...], measured: ResampledLayers) -> tuple[list[str], str | None]:
    """The measurements to read, with the lens that can be read, and the reason if there is nothing to test."""
    if measured.depth < FEWEST_LAYERS:
        return [], f"{measured.depth} layers leave no middle: expected at least {FEWEST_LAYERS}"
    needs = list(names)
    if any(name.startswith("lens.") for name in names) and "lens.kl" in measured.values:
        readable = lens_to_read(measured.values)
        if readable is None:
            others = [lens.LENSES[name].called for name in lens.FITTED if f"{name}.kl" in measured.values]
            fitted = f"that of the {' and the '.join(others)} does not fall either" if others else "no fitted lens"
            return [], f"the KL of the lens does not fall with depth, so it cannot be read ({fitted})"
        needs = [name.replace("lens.", f"{readable}.") for name in names]
    missing = [need for need in needs if need not in measured.values]
    return needs, f"not measured: {', '.join(missing)}" if missing else None


def _interval(
    signature: Signature, effects: Effects, needs: Sequence[str], measured: ResampledLayers
) -> tuple[float, float]:
    """From the effects of the documents and replicates, and of the jackknife groups where there are any."""
    without, number = np.empty(0), float(measured.documents)
    if measured.group_tokens is not None and all(need in measured.without for need in needs):
        number = effective_number(measured.group_tokens)
        groups = [measured.without[need] for need in needs]
        whole = np.logical_and.reduce([np.isfinite(rows).all(1) for rows in groups])  # groups that have documents
        without = EFFECTS[signature.name][1](*(rows[whole] for rows in groups))
    return jackknife_interval(
        float(effects[0]), without, effects[1:], number, Scale(signature.lowest, signature.highest)
    )
