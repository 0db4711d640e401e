"""The paper's claims as data: the sentence, its place in the paper, and the test that a run's tables are put to.

The tests and thresholds are ours; the paper states most claims in words and shows them in figures. Sections and figures are
those of Lad, Gurnee and Tegmark 2024, The Remarkable Robustness of LLMs: Stages of Inference?
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.findings.evidence import ABSENT, Finding
from benchmarks.findings.interventions import (
    catastrophic,
    entropy_rises,
    first,
    last,
    mlp_gains,
    mlp_matters_late,
    robust_middle,
    swaps_cost_less,
)
from benchmarks.findings.readings import (
    LOCAL,
    attention_leads,
    emerge_late,
    entropy_falls,
    falls,
    index_similarity_falls,
    lens_falls_everywhere,
    little_progress_early,
    merging_head_early,
    mlp_norm_peaks,
    peak_at_85,
    probe,
    stays_itself,
    suppression_last,
    suppression_leads,
)
from depthscope.errors import RunError
from depthscope.run.store import RunDirectory
from depthscope.schema import norms, probes

NATS, SHARE, DEPTH, COUNT, RATIO, COSINE = "nats", "share", "relative depth", "neurons", "times", "cosine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of the paper."""

    name: str
    experiment: str
    """The experiment's number in the project's list of what the paper measures: E1 … E12."""
    where: str
    sentence: str
    effect: str
    """What the number is."""
    test: str
    """When the claim holds; it does not hold if the opposite is established, and is inconclusive otherwise."""
    unit: str
    judge: Callable[[RunDirectory], Finding]

    def of(self, run: RunDirectory) -> Finding:
        """What a run says about the claim; ABSENT with the reason if the run cannot say."""
        try:
            return self.judge(run)
        except RunError as error:
            reason = str(error).replace(str(run.path), "the run")
            return Finding(verdict=ABSENT, words=reason if len(reason) < 80 else "")


def _claim(name: str, experiment: str, where: str, sentence: str, effect: str, test: str, unit: str, judge) -> Claim:
    return Claim(
        name=name,
        experiment=experiment,
        where=where,
        sentence=sentence,
        effect=effect,
        test=test,
        unit=unit,
        judge=judge,
    )


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "Dropping and swapping layers": (
        _claim(
            "first_drop",
            "E2",
            "4.1, figure 3",
            "Dropping the first layer is catastrophic.",
            "top-1 agreement kept under drop(0)",
            "below one half, our reading of the word",
            SHARE,
            catastrophic("drop", first),
        ),
        _claim(
            "first_swap",
            "E1",
            "4.1, figure 3",
            "Swapping the first layer is catastrophic.",
            "top-1 agreement kept under swap(0)",
            "below one half, our reading of the word",
            SHARE,
            catastrophic("swap", first),
        ),
        _claim(
            "first_entropy",
            "E2",
            "4.1",
            "Without the first layer the predictions have high entropy, and do not collapse onto one token.",
            "change in entropy under drop(0)",
            "above 0",
            NATS,
            entropy_rises("drop", first),
        ),
        _claim(
            "middle_drop",
            "E2",
            "abstract, 4.1",
            "Dropping a middle layer keeps 72–95 % of predictions.",
            "top-1 agreement kept without the worst middle layer",
            "at least 72 % at every layer but the first and last, intervals together over layers",
            SHARE,
            robust_middle("drop"),
        ),
        _claim(
            "middle_swap",
            "E1",
            "abstract, 4.1",
            "Swapping two middle layers keeps 72–95 % of predictions.",
            "top-1 agreement kept under the worst middle swap",
            "at least 72 % at every pair without the first and last layer, intervals together over pairs",
            SHARE,
            robust_middle("swap"),
        ),
        _claim(
            "swap_less",
            "E1, E2",
            "4.1",
            "Swapping adjacent layers is less harmful than ablating a layer.",
            "mean KL of middle drops minus that of middle swaps",
            "above 0",
            NATS,
            swaps_cost_less,
        ),
        _claim(
            "last_drop",
            "E2",
            "5.4",
            "Removing the final layer breaks the model, as removing the first does.",
            "top-1 agreement kept without the last layer",
            "below one half, our reading of the word",
            SHARE,
            catastrophic("drop", last),
        ),
        _claim(
            "last_swap",
            "E1",
            "4.1, 5.4",
            "Swapping the last two layers is catastrophic (Pythia; GPT-2 largely keeps its predictions).",
            "top-1 agreement kept",
            "below one half, our reading of the word",
            SHARE,
            catastrophic("swap", last),
        ),
        _claim(
            "last_swap_entropy",
            "E1",
            "4.1",
            "Swapping the last two layers gives predictions of high entropy (Pythia).",
            "change in entropy under the last swap",
            "above 0",
            NATS,
            entropy_rises("swap", last),
        ),
        _claim(
            "mlp_late",
            "E3",
            "appendix B",
            "Ablating an MLP costs more in the final layers.",
            "KL of ablating the last MLP minus the mean over middle layers",
            "above 0",
            NATS,
            mlp_matters_late,
        ),
        _claim(
            "mlp_importance",
            "E3, E12",
            "table 1",
            "MLPs gain importance in the second half.",
            "cost of ablating MLPs over that of ablating attention, second half over first (layer 0 left out)",
            "above 1",
            RATIO,
            mlp_gains,
        ),
    ),
    "What attention and MLPs do": (
        _claim(
            "local_attention",
            "E4",
            "5.1, figure 4",
            "Attention is more local in the early layers.",
            "attention to the previous five tokens, first third of layers minus last third",
            "above 0",
            SHARE,
            falls("attention", LOCAL, (0.0, 1 / 3), (2 / 3, 1.01)),
        ),
        _claim(
            "attention_leads",
            "E5",
            "5.1, figure 5",
            "Attention writes more than the MLP in the first few layers.",
            "norm of attention’s output over the MLP’s, mean over the first quarter",
            "above 1",
            RATIO,
            attention_leads,
        ),
        _claim(
            "ratio_falls",
            "E5",
            "5.1, figure 5",
            "The ratio of attention’s norm to the MLP’s falls with depth.",
            "ratio, mean over the first half minus the second",
            "above 0",
            RATIO,
            falls("norms", norms.NORM_RATIO, (0.0, 0.5), (0.5, 1.01)),
        ),
        _claim(
            "mlp_norm",
            "E6",
            "5.3, figure 7",
            "The norm of the MLPs’ output grows and peaks in the final layers.",
            "largest MLP norm of the last fifth of layers over the largest before",
            "above 1, intervals together over layers",
            RATIO,
            mlp_norm_peaks,
        ),
        _claim(
            "mlp_self",
            "E9",
            "appendix A, figure 12",
            "A moved MLP goes on writing what it wrote (self-similarity above index similarity).",
            "self minus index cosine, mean over layers moved one earlier",
            "above 0",
            COSINE,
            stays_itself("mlp"),
        ),
        _claim(
            "index_falls",
            "E9",
            "appendix A, figure 12",
            "MLPs stop resembling their neighbours half-way through the model.",
            "index cosine of MLPs, mean over the first half minus the second",
            "above 0",
            COSINE,
            index_similarity_falls,
        ),
    ),
    "How predictions form": (
        _claim(
            "lens_falls",
            "E7",
            "5.3, figure 6",
            "The logit lens’s KL to the final distribution falls with every layer.",
            "largest lens KL minus that at x_1",
            "no rise from x_1 on, intervals together over depths",
            NATS,
            lens_falls_everywhere,
        ),
        _claim(
            "little_progress",
            "E7",
            "5.2",
            "There is very little progress towards the prediction in the first half.",
            "share of the lens’s KL at x_1 that is gone by mid-depth",
            "below one half; inconclusive if the KL rises",
            SHARE,
            little_progress_early,
        ),
        _claim(
            "entropy_falls",
            "E7",
            "5.4, figure 8",
            "The lens’s entropy falls in the second half.",
            "entropy at mid-depth minus that at the end",
            "above 0",
            NATS,
            entropy_falls,
        ),
        _claim(
            "emerge",
            "E8",
            "5.3, figure 6",
            "Prediction neurons emerge around the midpoint.",
            "share of prediction neurons in the first half of layers",
            "at most 10 % (exact: from weights)",
            SHARE,
            emerge_late,
        ),
        _claim(
            "peak",
            "E8",
            "5.3",
            "The number of prediction neurons peaks at around 85 % of depth and then decreases.",
            "relative depth of the layer with most prediction neurons",
            "between 75 and 95 % (exact: from weights)",
            DEPTH,
            peak_at_85,
        ),
        _claim(
            "suppression_leads",
            "E8, E12",
            "5.3, 5.4, table 1",
            "In the last layer suppression neurons outnumber prediction neurons.",
            "suppression minus prediction neurons in the last layer",
            "above 0 (exact: from weights)",
            COUNT,
            suppression_leads,
        ),
        _claim(
            "suppression_last",
            "E8",
            "5.4",
            "The final layers have the highest density of suppression neurons.",
            "relative depth of the layer with most suppression neurons",
            "at least 80 % (exact: from weights)",
            DEPTH,
            suppression_last,
        ),
    ),
    "Case studies": (
        _claim(
            "merging_head",
            "E10",
            "6.1, figure 9",
            "Heads that join the tokens of a word are in the first half of the model.",
            "relative depth of the head that ranks first, with its score",
            "below one half, with a score above 0",
            DEPTH,
            merging_head_early,
        ),
        _claim(
            "ensemble_single",
            "E11",
            "6.2, figure 10",
            "Prediction neurons together predict “-ing” better than any of them alone.",
            "test accuracy of all probed prediction neurons minus that of the best one",
            "above 0",
            SHARE,
            probe(probes.OVER_SINGLE, probes.PREDICTION),
        ),
        _claim(
            "ensemble_model",
            "E11",
            "6.2, figure 10",
            "Prediction neurons together predict “-ing” better than the model’s own top-1 prediction.",
            "their test accuracy minus the model’s",
            "above 0",
            SHARE,
            probe(probes.OVER_MODEL, probes.PREDICTION),
        ),
    ),
}
"""Claims by the heading they stand under on the page."""
