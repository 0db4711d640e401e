"""The findings page and the README's paragraph as Markdown, from reference runs and measurements of single layers."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from benchmarks.findings.claims import CLAIMS, DEPTH, SHARE, Claim
from benchmarks.findings.evidence import ABSENT, FAILS, HOLDS, OPEN, VERDICTS, Finding, swept
from benchmarks.findings.layer_sections import layer_sections
from benchmarks.findings.markdown import shown_value, table
from benchmarks.findings.stage_answers import stage_sections
from depthscope.report.wording import joined
from depthscope.run.references import about
from depthscope.run.store import RunDirectory
from depthscope.schema.sweep import AGREEMENT, KL

Judged = dict[str, dict[str, Finding]]
"""What each run says of each claim: by the claim's name, then the run's."""
PICTURE = "findings-drops.png"
EVERY: tuple[Claim, ...] = tuple(claim for claims in CLAIMS.values() for claim in claims)


def judged(runs: Sequence[RunDirectory]) -> Judged:
    """What each run says of each claim."""
    return {claim.name: {run.path.name: claim.of(run) for run in runs} for claim in EVERY}


def render(runs: Sequence[RunDirectory], layers: Mapping[str, dict[str, Any]]) -> str:
    """The page. `layers` are measurements of single layers by model."""
    found = judged(runs)
    stored = [run for run in runs if about(run).get("quantisation")]
    parts = [
        "# Findings",
        INTRODUCTION.format(
            claims=len(EVERY),
            models=joined(titles(runs)),
            quantised=QUANTISED.format(models=joined(titles(stored))) if stored else "",
        ),
        f"![Share of predictions that stay the same when a layer is dropped, for {joined(titles(runs))}](../images/{PICTURE})",
        "## In short",
        "\n".join(f"- {sentence}" for sentence in in_short(runs, found)),
        "## What was measured",
        _models(runs),
        "## Verdicts",
        "Every claim of the paper that depthscope measures, for every model. Details follow below, claim by claim.",
        _verdicts(runs, found),
        METHOD,
        *(part for heading, claims in CLAIMS.items() for part in (f"## {heading}", *_details(claims, runs, found))),
        *stage_sections(runs),
        *layer_sections(layers, {run.path.name: swept(run, "drop", KL) for run in runs}),
        REMAKING,
    ]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """
The paper states what it saw in GPT-2, Pythia and Phi models. This page puts {claims} of its claims to a test on {models}. It is
made by one command from tables that ship with the package, so every number can be recomputed without any model
([how](#how-this-page-is-made)).{quantised}

Everything here is exploratory: the tests were written after a first look at these models. The text is one source, nine novels
in English, and intervals are over documents of that source, not over kinds of text. A few models are no sample of all models.
""".strip()

QUANTISED = """ Published, quantised to 4 bits and dequantised again: {models}. These are real models, but not
exactly the published ones."""

METHOD = """
**Holds** and **does not hold** mean that the 95 % interval of the effect lies on one side of the threshold; anything else is
*inconclusive*. Layers share documents, and the tables have no covariances, so intervals of sums, differences and ratios of
layers are by interval arithmetic, which is right whatever the correlation and wider than needed; where a claim is about all
layers of a set, they hold for all of them together (Bonferroni). Verdicts are per claim and model: nothing is corrected over
the claims. Counts of neurons come from the weights alone and have no interval. Middle layers are all but the first and the
last. Relative depth is l / (L − 1).
""".strip()

REMAKING = """
## How this page is made

```console
$ depthscope study MODEL --out runs/NAME                          # once per model; see the table of models for the tokens
$ python -m benchmarks.findings.costly_layers MODEL --layers 11 --name NAME --out benchmarks/findings/measured/NAME.json
$ python -m benchmarks.findings NAME=runs/NAME … --write          # keep the tables that are needed, write page and pictures
$ make findings                                                   # write page and pictures again from what is kept
```

What is kept is under `src/depthscope/data/reference`: measurements only, no weights and no text. The same curves are
reference lines for other models: `depthscope compare RUN --reference all`, `depthscope report RUN --reference smollm2-135m`,
and `ds.reference()` as a frame. Claims and their tests are in `benchmarks/findings/claims.py`.
""".strip()


def title(run: RunDirectory) -> str:
    """A model's title."""
    return about(run).get("title") or run.path.name


def titles(runs: Sequence[RunDirectory]) -> list[str]:
    """The models' titles."""
    return [title(run) for run in runs]


def in_short(runs: Sequence[RunDirectory], found: Judged) -> list[str]:
    """The main findings, a sentence each."""
    said = []
    for verdict, how in ((HOLDS, "hold on every model"), (FAILS, "hold on none")):
        names = [claim.sentence for claim in EVERY if {one.verdict for one in found[claim.name].values()} == {verdict}]
        listed = " ".join(f"*{name}*" for name in names) or "none"
        said.append(f"**{len(names)} of {len(EVERY)} claims {how}**: {listed}")
    for run in runs:
        verdicts = [found[claim.name][run.path.name].verdict for claim in EVERY]
        counted = joined(
            [f"{verdicts.count(one)} {_counted(one, verdicts.count(one))}" for one in VERDICTS if one in verdicts]
        )
        said.append(f"{title(run)}: {counted}. {_kept(run)}")
    return said


def _counted(verdict: str, count: int) -> str:
    """The verb for a number of claims."""
    one = {HOLDS: "holds", FAILS: "does not hold", OPEN: "is inconclusive", ABSENT: "is not measured"}
    many = {HOLDS: "hold", FAILS: "do not hold", OPEN: "are inconclusive", ABSENT: "are not measured"}
    return (one if count == 1 else many)[verdict]


def _kept(run: RunDirectory) -> str:
    """The middle layers' range of agreement, as a sentence."""
    return f"Dropping a middle layer keeps {_range(run)} of predictions."


def _range(run: RunDirectory) -> str:
    curve = swept(run, "drop", AGREEMENT)
    middle = {layer: curve.values[layer].mean for layer in curve.middle}
    worst, best = min(middle, key=middle.__getitem__), max(middle, key=middle.__getitem__)
    return f"{middle[worst]:.0%} (layer {worst}) to {middle[best]:.0%} (layer {best})"


def _models(runs: Sequence[RunDirectory]) -> str:
    rows = []
    for run in runs:
        facts, model, settings = about(run), run.manifest.model, run.settings
        stored = facts.get("quantisation")
        rows.append(
            (
                title(run),
                f"{model.family}, {model.layers} layers, {model.layout}",
                f"{(model.parameters or 0) / 1e6:,.1f} M",
                f"dequantised from {stored}" if stored else "as published",
                f"{settings.dtype}",
                f"{settings.tokens:,}",
                f"{run.manifest.text.documents}",
                f"{settings.window}, BOS {settings.bos}",
                facts.get("date", ""),
                facts.get("licence", ""),
            )
        )
    head = ("model", "kind", "parameters", "weights", "dtype", "tokens", "documents", "window", "date", "licence")
    return table(head, rows, right=(2, 5, 6))


def _verdicts(runs: Sequence[RunDirectory], found: Judged) -> str:
    rows = [
        (
            f"[{claim.sentence}](#{claim.name})",
            claim.where,
            *(_marked(found[claim.name][run.path.name]) for run in runs),
        )
        for claim in EVERY
    ]
    return table(("claim", "paper", *titles(runs)), rows)


def _marked(one: Finding) -> str:
    return f"**{one.verdict}**" if one.verdict == FAILS else one.verdict if one.verdict == HOLDS else f"*{one.verdict}*"


def _details(claims: Sequence[Claim], runs: Sequence[RunDirectory], found: Judged) -> list[str]:
    parts = []
    for claim in claims:
        rows = []
        for run in runs:
            one = found[claim.name][run.path.name]
            tokens = f"{one.tokens:,}" if one.tokens else "–"
            rows.append(
                (title(run), _marked(one), shown(one, claim.unit), tokens, f"{one.documents or '–'}", one.words)
            )
        effect = "effect" if claim.unit in (SHARE, DEPTH) else f"effect, {claim.unit}"
        parts += [
            f'<a id="{claim.name}"></a>\n**{claim.sentence}** {claim.experiment}; section {claim.where}.\n'
            f"Effect: {claim.effect}. Holds if {claim.test}.",
            table(("model", "verdict", effect, "tokens", "documents", ""), rows, right=(3, 4)),
        ]
    return parts


def shown(one: Finding, unit: str) -> str:
    """An effect with its interval."""
    return "–" if one.effect is None else shown_value(one.effect, unit)


def readme(runs: Sequence[RunDirectory]) -> str:
    """The README's paragraph and picture."""
    found = judged(runs)
    everywhere = {
        verdict: sum(all(one.verdict == verdict for one in found[claim.name].values()) for claim in EVERY)
        for verdict in (HOLDS, FAILS)
    }
    kept = "; ".join(f"{title(run)} {_range(run)}" for run in runs)
    said = (
        "What happens when you drop each layer of a language model? The paper reports that 72–95 % of predictions stay the "
        f"same without a middle layer; here: {kept}. Of {len(EVERY)} claims of the paper, {everywhere[HOLDS]} hold on all of "
        f"these models and {everywhere[FAILS]} on none: [every claim on every model, with intervals]({LINK}). [Why one layer "
        f"of SmolLM2 costs so much more than its neighbours]({LINK}#{ANCHOR})."
    )
    picture = f"![Share of predictions that stay the same when a layer is dropped, for {joined(titles(runs))}]"
    return f"{picture}(docs/images/{PICTURE})\n\n{fill(said, 120, break_long_words=False, break_on_hyphens=False)}\n"


LINK, ANCHOR = "docs/findings/index.md", "costly-layer"
