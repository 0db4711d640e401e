"""Choosing blocks to remove by measured KL, with criteria that estimate it compared on documents that no search saw.

The text is split by document: every 2nd one is held out. On the others the searches (`prune_search`) measure KL to the
unmodified model, and block influence (Men et al. 2024) and angular distance (Gromov et al. 2024) are read from the unmodified
model's residual streams. The set of each criterion is then measured on the held-out documents, for every number of items
removed.

A work unit is one request of a search: its candidates are measured as routes of one plan, which share their common prefixes,
and a set that was measured on a text before is not measured again.
"""

from collections.abc import Generator, Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.engine.plan import block_calls, make_plan
from depthscope.engine.reductions import reductions_for
from depthscope.engine.sizes import sizes_for
from depthscope.errors import DepthscopeError
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.experiments.prune_criteria import Readings, angular_path, influence_path, random_paths
from depthscope.experiments.prune_search import (
    Known,
    Request,
    Requests,
    Scores,
    beam,
    evolution,
    greedy,
    single,
)
from depthscope.experiments.prune_tables import Found, methods_table, steps_table
from depthscope.experiments.prune_text import Texts
from depthscope.experiments.removals import NOTHING, Removals, Removed, name_of, require_count, require_some_kept
from depthscope.routes import Route, Step
from depthscope.schema.manifest import PruneOutcome
from depthscope.schema.prune import (
    ANGULAR,
    BEAM,
    EVOLUTION,
    GIVEN,
    GREEDY,
    HELD_OUT,
    INFLUENCE,
    MEASURED,
    METHODS,
    NAME,
    OF_BLOCKS,
    OF_METHODS,
    PRUNE_SHARD,
    RANDOM,
    SEARCH,
    SINGLE,
    dropped,
    share_kept,
)

KEYS = {"text": pl.String, "blocks": pl.String}


class Course:
    """The searches one after the other, then the held-out measurement, driven through the shards of their units."""

    def __init__(self, removals: Removals, settings: Mapping[str, Any], given: Removed = NOTHING) -> None:
        self.removals, self.settings, self.given = removals, settings, given
        self.scores = Scores()
        self.known = Known(removals, self.scores, settings["remove"])
        self.readings = Readings()
        self.found = Found()
        self._requests = self._course()
        self.pending: Request | None = next(self._requests)

    def units(self) -> int:
        """How many requests there are in total."""
        if self.given:
            return 1
        of = {GREEDY: self.known.remove, BEAM: self.known.remove, SINGLE: 1}
        of[EVOLUTION] = 2 * (self.settings.get("generations", 0) + 1)
        methods = self.settings["methods"]
        return sum(of.get(method, 0) for method in methods) + self._reads + 2

    @property
    def _reads(self) -> bool:
        """Whether a criterion reads the residual streams."""
        return bool({*self.settings["methods"]} & {*OF_BLOCKS}) and not self.removals.components

    def missing(self, request: Request) -> list[Removed]:
        """The sets of a request that have not been measured on its text, each once."""
        return [one for one in dict.fromkeys(request.sets) if not self.scores.knows(request.text, one)]

    def take(self, shard: pl.DataFrame) -> None:
        """The shard of the pending request; afterwards the next one is pending, or None at the end."""
        request = self.pending
        assert request is not None, "there are as many shards as units"
        if request.readings:
            self.readings.read(shard)
        elif missing := self.missing(request):
            values = (
                shard.select(metric.name for metric in MEASURED).to_numpy().T.reshape(len(MEASURED), -1, len(missing))
            )
            self.scores.tokens[request.text] = shard["tokens"].to_numpy()[:: len(missing)]
            for place, one in enumerate(missing):
                self.scores.sums[request.text, one] = values[:, :, place]
                self.scores.unit[request.text, one] = self.known.unit
        self.pending = next(self._requests, None)
        self.known.unit += 1

    def _course(self) -> Generator[Request, None, None]:
        found, known = self.found, self.known
        if self.given:
            found.paths[GIVEN] = {len(self.given): self.given}
            yield Request(HELD_OUT, (NOTHING, self.given))
            found.chosen = GIVEN
            return
        if self._reads:
            yield Request(SEARCH, readings=True)
        for method in self.settings["methods"]:
            path = yield from self._of(method)
            if known.remove in path:
                found.paths[method] = path
            elif method != RANDOM:
                found.not_found[method] = self._why_not(method)
        if RANDOM in self.settings["methods"]:
            found.draws = random_paths(self.removals, known.remove, self.settings["draws"], self.settings["seed"])
        finals = {method: path[known.remove] for method, path in found.paths.items()}
        if not finals and not found.draws:
            raise DepthscopeError(
                f"no set of {known.remove} {self.removals.kind} was found that {self.removals.model.name} can run without: "
                f"{next(iter(found.not_found.values()), 'no random one could be drawn')}"
            )
        drawn = [path[known.remove] for path in found.draws]
        yield Request(SEARCH, (NOTHING, *finals.values(), *drawn))
        found.chosen = min(finals, key=lambda method: self.scores.kl(SEARCH, finals[method]), default=RANDOM)
        every = [one for path in (*found.paths.values(), *found.draws) for one in path.values()]
        yield Request(HELD_OUT, (NOTHING, *dict.fromkeys(every)))

    def _of(self, method: str) -> Requests:
        known, settings = self.known, self.settings
        if method == GREEDY:
            return (yield from greedy(known))
        if method == BEAM:
            return (yield from beam(known, settings["width"]))
        if method == SINGLE:
            return (yield from single(known))
        if method == EVOLUTION:
            sizes = (settings[name] for name in ("generations", "offspring", "survivors", "seed"))
            return (yield from evolution(known, *sizes))
        if method == INFLUENCE and not self.removals.components:
            return influence_path(self.removals, self.readings, known.remove)
        if method == ANGULAR and not self.removals.components:
            return angular_path(self.removals, self.readings, known.remove)
        return {}

    def _why_not(self, method: str) -> str:
        if method in OF_BLOCKS and self.removals.components:
            return "it ranks whole blocks, not attentions and MLPs"
        if method == ANGULAR and self.known.remove >= self.removals.model.depth:
            return "the last block is never removed"
        why = next(iter(self.removals.refused.values()), None)
        return f"no set of {self.known.remove} was found" + (f": {why}" if why else "")


class Prune:
    """The search and its comparison. A unit is a request of the course; `Sequential`, `Explained` and `Partial`."""

    name = NAME

    def __init__(self, subject: Subject) -> None:
        model, options = subject.model, subject.options
        given: Removed = NOTHING
        if options["drop"] is not None:
            items = dropped(options["drop"])
            given = frozenset(Step(block, () if component is None else (component,)) for block, component in items)
            require_some_kept(model, given)
        self.model, self.given = model, given
        self.removals = Removals(model, options["components"])
        self.texts = Texts(subject.windows, options["seed"], searching=not given)
        self.settings = self._settings(options)
        self.course = self._fresh()
        self.units = self.course.units()
        alone = [frozenset({item}) for item in self.removals.items] if not given else []
        refused = [one for one in alone if not self.removals.possible(one)]
        self.not_done = {f"removing {name_of(one)}": self.removals.refused[one] for one in refused}

    def _settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.given:
            return {"remove": len(self.given), "drop": name_of(self.given), **self.texts.record()}
        remove = options["remove"]
        if remove is None:
            there = len(self.removals.items)
            kept = share_kept(options["keep"]) * there
            remove = there - -(-kept.numerator // kept.denominator)
            if remove == 0:
                raise DepthscopeError(
                    f"--keep {options['keep']} of {there} {self.removals.kind} of {self.model.name} removes none: expected at "
                    f"most {100 * (there - 1) / there:.1f}%"
                )
        require_count(self.removals, remove)
        methods = [method for method in METHODS if method in options["method"]]
        used = {option.name: options[option.name] for method in methods for option in OF_METHODS.get(method, ())}
        return {
            "remove": remove,
            "components": options["components"],
            "methods": methods,
            **used,
            **self.texts.record(),
        }

    def _fresh(self) -> Course:
        return Course(self.removals, self.settings, self.given)

    def take_up(self, shard: pl.DataFrame) -> None:
        """Go on with the search after the next unit."""
        self.course.take(shard)

    def work(self, unit: int) -> pl.DataFrame:
        """The shard of the pending request: rows of PRUNE_SHARD."""
        request = self.course.pending
        assert request is not None
        assert unit == self.course.known.unit, "units are taken up in order"
        if request.readings:
            frame = Readings.measured(self.model, self._pieces(self.texts[SEARCH]), self.course.known.remove)
        else:
            frame = self._measured(request.text, self.course.missing(request))
        lacking = [
            pl.lit(None, dtype=kind).alias(name) for name, kind in PRUNE_SHARD.items() if name not in frame.columns
        ]
        return frame.with_columns(lacking).select(*PRUNE_SHARD)

    def _pieces(self, windows: Windows) -> list[Windows]:
        """Windows in pieces that are run at once."""
        at_once = max(1, sizes_for(self.model.device, self.model.unembedding.weight.shape[1]).tokens // windows.length)
        return [windows.part(start, min(start + at_once, len(windows))) for start in range(0, len(windows), at_once)]

    def _measured(self, text: str, sets: list[Removed]) -> pl.DataFrame:
        """One row per document and set, sums over its tokens; nothing for no sets."""
        rows = Rows(KEYS, [(text, name_of(one)) for one in sets], MEASURED)
        if not sets:
            return pl.DataFrame(schema=rows.shard_schema)
        model, windows = self.model, self.texts[text]
        meter = RouteMeter(model, [self.removals.route(one) for one in sets], measures=MEASURED)
        logits = float(windows.tokens) * model.unembedding.vocabulary * (len(sets) + 1)
        sizes = sizes_for(model.device, model.unembedding.weight.shape[1])
        form, _ = reductions_for(model.device, logits, sizes.reductions)
        shards = []
        for part in self._pieces(windows):
            found = meter.against(Baseline(model, *part.batch(), keep=meter.keep, reductions=form, named=part.called))
            # The first route of a meter is the unmodified model, which is in `sets` only where it is needed.
            values = np.stack([found[measure.name][1:].flatten(1).float().numpy() for measure in MEASURED])
            shards.append(rows.shard(window_sums(values, len(part)), part.length, part.document))
        return _by_document(rows, shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """PRUNE_STEPS_TABLE and PRUNE_METHODS_TABLE."""
        course = self.course = self._fresh()
        for shard in shards:
            course.take(shard)
        assert course.pending is None
        methods = methods_table(course.scores, course.found, course.known.remove)
        return {"prune_steps": steps_table(course.known), "prune_methods": methods}

    def facts(self, tables: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
        """What was chosen, for run.json."""
        course = self.course
        chosen = course.found.chosen_set(course.known.remove, course.scores)
        together, alone = self._block_calls()
        return {
            "prune": PruneOutcome(
                method=course.found.chosen,
                blocks=[item.name for item in sorted(chosen)],
                route=self.removals.route(chosen).name,
                not_found=course.found.not_found,
                cannot_run=len(self.removals.refused),
                block_calls=together,
                block_calls_alone=alone,
            )
        }

    def _block_calls(self) -> tuple[int, int]:
        """How often blocks were applied to a window, and how often they would have been with each set on its own.

        Counted from the plans, with the baseline run of each unit in both; a step that shares a set with an earlier one
        counts in the second number only.
        """
        course, depth = self.course, self.model.depth
        windows = {text: len(self.texts[text]) for text in course.scores.tokens}
        measured: dict[tuple[int, str], list[Route]] = {}
        for (text, removed), unit in course.scores.unit.items():
            measured.setdefault((unit, text), []).append(self.removals.route(removed))
        together = sum(
            windows[text] * block_calls(make_plan([Route.own(depth), *routes]))
            for (_, text), routes in measured.items()
        )
        tried = {(one.unit, one.text, one.removed) for one in course.known.tried}
        tried |= {(unit, text, removed) for (text, removed), unit in course.scores.unit.items()}
        units = {(unit, text) for unit, text, _ in tried}
        alone = sum(windows[text] * len(self.removals.route(removed).visits) for _, text, removed in tried)
        return together, alone + sum(windows[text] * depth for _, text in units)


def _by_document(rows: Rows, shards: list[pl.DataFrame]) -> pl.DataFrame:
    """Shards of pieces with the parts of each document added up, in the order of the documents and of `rows.names`."""
    parts = list(rows.documents(shards))
    sums = np.stack([one.sums for one in parts], 2)
    tokens = np.stack([one.tokens for one in parts], 1)
    return rows.shard(sums, tokens, np.array([one.document for one in parts]))


def make(subject: Subject) -> Prune:
    """The search that was requested."""
    return Prune(subject)
