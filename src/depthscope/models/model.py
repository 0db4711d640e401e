"""A loaded model as the rest of depthscope sees it: blocks, unembedding, components, tokenizer and facts."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthscope.errors import PANIC, DataError, NumericError, RouteError, UnsupportedError
from depthscope.models import components_search
from depthscope.models.adapter import Adapter
from depthscope.models.components import Components
from depthscope.models.facts import ModelFacts, parameters, quantisation, stored
from depthscope.models.identity import buffers_hash, configuration, tokenizer_hash
from depthscope.models.inside import Inside
from depthscope.models.kernels import Kernels
from depthscope.models.offload.hooked import devices_of
from depthscope.models.offload.residency import Residency
from depthscope.models.projections import ProjectionFinder
from depthscope.models.stack import BlockStack
from depthscope.models.state import State
from depthscope.models.substitutes import reference_ids
from depthscope.models.unembedding import Unembedding
from depthscope.models.widths import widths
from depthscope.models.writes import Writers, adds_exactly, find_writers
from depthscope.routes import ATTN, COMPONENT_NAMES, MLP, Replaced, Route, Step
from depthscope.schema.manifest import GgufEntry
from depthscope.shapes import Residual, TokenIds

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


class Model:
    """A causal language model taken apart: `stack` of blocks, `unembedding`, `components`, `tokenizer`.

    Made by `depthscope.load`. The transformers model stays as it is in `hf`; nothing of it is changed for longer than
    one call. Of a streamed model the blocks' weights are there while a block runs, and not otherwise.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        name: str,
        revision: str | None = None,
        residency: Residency | None = None,
    ) -> None:
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.unused: tuple[str, ...] = ()
        """Tensors of the checkpoint that the model does not read, where loading went on all the same."""
        self.adapter: Adapter | None = None
        """The adapter that was put into the model."""
        self.gguf: GgufEntry | None = None
        """The GGUF file that the model came from."""
        self.dequantised: str | None = None
        """The method of quantisation that its weights were stored in, where loading made plain ones of them."""
        self.folder: Path | None = None
        """The folder its files are in; None for a model that was handed in."""
        self.source: Mapping[str, Any] | None = None
        """Arguments of `load` that give the same model in another process; None for a model that was handed in."""
        with torch.inference_mode():
            self.stack = BlockStack(hf, residency)
            self.require_finite(hf(input_ids=torch.arange(3, device=hf.device)[None], use_cache=False).logits)
            # Finding the unembedding needs no blocks, and those of a streamed model would be read three times more.
            with self.stack.passed_on() if residency else nullcontext():
                self.unembedding = Unembedding(hf, self.stack)

    def __repr__(self) -> str:
        where = f"{str(self.unembedding.weight.dtype).removeprefix('torch.')} on {self.device}"
        return f"Model({self.name!r}: {self.family}, {self.depth} blocks, d_model {self.unembedding.weight.shape[1]}, {where})"

    @cached_property
    def kernels(self) -> Kernels:
        """Faster forms of the model's operations."""
        self.stack.release()  # kernels know weights by address: that of a streamed block will be another block's
        return Kernels(self.hf, self.unembedding.linear, self.stack.moving)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inference with the model's kernels, for everything that measures. Numbers are the model's own within rounding."""
        with torch.inference_mode(), self.kernels.active():
            yield

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.stack.depth

    @property
    def known_tokens(self) -> int:
        """How many token ids the model can read and predict; its tokenizer may have more, for images for instance."""
        embedding: Any = self.hf.get_input_embeddings()
        return min(self.unembedding.vocabulary, embedding.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf.device

    @property
    def context(self) -> int | None:
        """The longest window the model takes; None where positions have no limit."""
        config = self.hf.config.get_text_config(decoder=True)
        return next((int(value) for name in CONTEXT_NAMES if (value := getattr(config, name, None))), None)

    @cached_property
    def components(self) -> Components | None:
        """Where attention, MLP and whatever else adds to the residual stream are in each block; None where they cannot be
        taken apart."""
        with torch.inference_mode():
            return components_search.find(self.stack, self.family, self.stack.enter(self.probe_ids()))

    @cached_property
    def writers(self) -> Writers:
        """What the components add to the residual stream. Raises UnsupportedError where that cannot be read."""
        components = self.require_components()
        with torch.inference_mode():
            found = find_writers(self.stack, components, self.stack.enter(self.probe_ids()))
        if found is None:
            raise UnsupportedError(
                f"{self.name} ({self.family}): a block's output is not the residual stream plus what "
                f"{' and '.join(components.paths.values())} write, so their shares cannot be read"
            )
        return found

    @cached_property
    def shares_components(self) -> bool:
        """Whether what a block gives without its MLP (and, in a parallel block, without its attention) is the residual stream
        plus what the other component wrote in the block's own run, bit for bit.
        """
        try:
            writers = self.writers
        except UnsupportedError:
            return False
        with torch.inference_mode():
            return adds_exactly(self.stack, self.require_components(), writers, self.stack.enter(self.probe_ids()))

    @cached_property
    def inside(self) -> Inside:
        """Attention heads and MLP neurons, to be ablated one by one. Raises UnsupportedError as `require_components` does."""
        finder = ProjectionFinder(
            self.name, self.family, self.hf, self.stack, self.require_components(), self.probe_ids()
        )
        return Inside(finder, self.reference_ids)

    @property
    def family(self) -> str:
        """transformers' model type."""
        return self.hf.config.model_type

    @cached_property
    def facts(self) -> ModelFacts:
        """What `depthscope info` says."""
        found = self.components
        others = [kind for kind in found.kinds if kind not in (ATTN, MLP)] if found else []
        embedding = self.hf.get_input_embeddings().weight
        return ModelFacts(
            name=self.name,
            family=self.family,
            revision=self.revision,
            layers=self.depth,
            d_model=self.unembedding.weight.shape[1],
            **widths(self.hf.config.get_text_config(decoder=True), found, self.unembedding.weight.shape[1]),
            vocabulary=self.unembedding.vocabulary,
            context=self.context,
            parameters=parameters(self.hf),
            stored=stored(self.hf),
            quantisation=self._quantisation(),
            layout="unknown" if found is None else found.layout,
            norm=self._norm(),
            tied=embedding is self.unembedding.weight,
            attention_module=found.paths.get(ATTN) if found else None,
            mlp_module=found.paths.get(MLP) if found else None,
            other_modules=None if found is None or not others else ", ".join(found.paths[kind] for kind in others),
            logit_map=self.unembedding.map.kind,
            attention_backend=str(getattr(self.hf.config, "_attn_implementation", None)),
            dtype=str(self.unembedding.weight.dtype).removeprefix("torch."),
            device=", ".join(devices_of(self.hf)) or str(self.device),
            streamed=self.stack.streamed,
        )

    def probe_ids(self, length: int = 32) -> Tensor:
        """Token ids to check the model on, shaped [1, length]: real text where there is a tokenizer, else spread ids.

        What a model consists of is found by what it does with these ids. If all were alike, so would all positions be, and
        attention to others could not be seen: a tokenizer that gives fewer than FEWEST_DISTINCT different ids is not used.
        """
        length = min(length, self.context or length)
        if self.tokenizer is not None:
            ids = self.tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"][:length]
            # Otherwise the tokenizer does not belong to the model, which loading reports once the model is taken apart.
            enough = len(ids) >= 2 and len(set(ids)) >= min(FEWEST_DISTINCT, length)
            if enough and max(ids) < self.unembedding.vocabulary:
                return torch.tensor([ids], device=self.device)
        # A prime as the step, so that ids differ from each other in any vocabulary that it does not divide.
        step = 7919 if self.unembedding.vocabulary % 7919 else 1
        return (torch.arange(length, device=self.device) * step % self.unembedding.vocabulary)[None]

    def reference_ids(self) -> TokenIds:
        """The tokens that mean and resample ablation take their values from (models.substitutes), [documents, positions]."""
        tokenize = partial(self.tokenize, special_tokens="text")
        return reference_ids(self.tokenizer, self.known_tokens, self.context, tokenize).to(self.device)

    def require_components(self) -> Components:
        """The components, or UnsupportedError where the model's blocks cannot be taken apart into such."""
        if self.components is None:
            raise UnsupportedError(
                f"{self.name} ({self.family}) has no separate attention and MLP that its blocks add to the residual "
                "stream: experiments on one of the two are not possible; swaps, drops and lenses are"
            )
        return self.components

    def check_route(self, route: Route) -> None:
        """Raise unless the route can be run on this model."""
        if route.depth != self.depth:
            raise RouteError(f"the route is for {route.depth} blocks, but {self.name} has {self.depth}")
        for step in route.steps():
            for kind in step.silent:
                self._check_component(kind, step.block)
            if step.inside:
                self.inside.check(step)
        self.stack.check_state(route)

    def require_pairs(self) -> Writers:
        """What the blocks write. Raises UnsupportedError unless every block has an attention and an MLP, read apart."""
        for block in range(self.depth):
            for kind in (ATTN, MLP):
                self.component(kind, block)
        return self.writers

    def component(self, kind: str, block: int) -> tuple[torch.nn.Module, ...]:
        """The modules of one component of a block, nearly always one. Raises UnsupportedError where it has none."""
        parts = self.require_components().parts[block]
        if kind not in parts:
            has = " and ".join(COMPONENT_NAMES[other] for other in parts)
            raise UnsupportedError(
                f"{self.name} ({self.family}): block {block} has no {COMPONENT_NAMES[kind]}, only {has}"
            )
        return parts[kind]

    def _check_component(self, kind: str, block: int) -> None:
        if kind not in self.require_components().parts[block]:
            raise RouteError(
                f"{self.name}: drop_{kind}({block}) cannot be done, because block {block} has no {COMPONENT_NAMES[kind]}"
            )

    def check_ids(self, ids: TokenIds) -> None:
        """Raise DataError for token ids outside the vocabulary or a window longer than the context."""
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self.known_tokens:
            raise DataError(
                f"token id {highest if lowest >= 0 else lowest} is outside the vocabulary of {self.name}: "
                f"expected 0 … {self.known_tokens - 1}"
            )
        if self.context is not None and ids.shape[1] > self.context:
            raise DataError(
                f"a window of {ids.shape[1]} tokens is longer than the context of {self.name}, {self.context}"
            )

    def routes_under_way(self, tokens: int, together: int) -> int:
        """How many routes a plan should run at once on a batch of `tokens` tokens, `together` of them in one call.

        On a streamed model as many as there is memory for, so that a block serves them all once it has been read.
        """
        if self.stack.residency is None:
            return together
        stream = tokens * self.unembedding.weight.shape[1] * self.unembedding.weight.dtype.itemsize
        return max(together, self.stack.residency.room // stream)

    def visit(self, step: Step, residual: Residual, arguments: Any, state: State | None = None) -> Residual:
        """The residual stream after one visit; `state` is what earlier blocks stored for later ones, and is written to."""
        if isinstance(step, Replaced):
            assert step.function is not None
            return step.function(residual)
        if step.whole:
            return self.stack.call(step.block, residual, arguments, state)
        inside = self.inside.ablated(step, tuple(residual.shape[:2])) if step.inside else nullcontext()
        with self.require_components().silenced(step), inside:
            return self.stack.call(step.block, residual, arguments, state)

    def tokenize(self, text: str, special_tokens: str = "keep") -> list[int]:
        """Token ids of a text, no special tokens added. Raises DataError without a tokenizer, or where it fails on the text.

        The name of a special token in the text is that token, or with `special_tokens` "text" the characters that are there.
        """
        settings: dict[str, Any] = {"split_special_tokens": special_tokens == "text", "verbose": False}
        tokenizer = self.require_tokenizer()
        try:
            return list(tokenizer(text, add_special_tokens=False, **settings)["input_ids"])
        except BaseException as error:
            if type(error).__name__ != PANIC:
                raise
            raise DataError(
                f"the tokenizer of {self.name} fails on a text of {len(text):,} characters: {error}"
            ) from error

    def require_tokenizer(self) -> Any:
        """The tokenizer, or DataError for a model that came without one."""
        if self.tokenizer is None:
            raise DataError(f"{self.name} came without a tokenizer, so text cannot be used with it: give token ids")
        return self.tokenizer

    def require_finite(self, logits: Tensor) -> None:
        """Raise NumericError, naming the weights that are not finite, where the model's own logits are not."""
        if bool(torch.isfinite(logits).all()):
            return
        whole = ((name, weight) for name, weight in self.stack.weights() if weight.dtype.itemsize > 1)
        broken = [name for name, weight in whole if not bool(torch.isfinite(weight).all())]
        # Buffers that are not part of a checkpoint, such as the frequencies of rotary positions.
        broken += [
            name for name, one in self.hf.named_buffers() if name not in broken and not bool(one.isfinite().all())
        ]
        where = f"weights with NaN or infinity: {', '.join(broken[:5])}" if broken else "though all weights are finite"
        hint = "" if broken or logits.dtype != torch.float16 else ": float16 overflows above 65,504; try another dtype"
        raise NumericError(f"{self.name} gives logits with NaN or infinity ({where}{hint})")

    def weight_hash(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all weights as they are run."""
        digest = hashlib.sha256()
        for name, tensor in self.stack.weights():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # As bytes: numpy has no bfloat16.
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What identifies the model besides its weights, as entries of a run's settings (`schema.manifest.IDENTITY`)."""
        tokenizer = self.tokenizer
        return {
            "configuration": configuration(self.hf.config),
            "buffers": buffers_hash(self.hf),
            "tokenizer": None if tokenizer is None else tokenizer_hash(tokenizer),
            "bos_token": None if tokenizer is None else tokenizer.bos_token_id,
        }

    def _quantisation(self) -> str | None:
        if self.gguf is not None:
            return str(self.gguf)
        return quantisation(self.hf.config) if self.dequantised is None else f"dequantised from {self.dequantised}"

    def _norm(self) -> str:
        """The kind of the final norm, by what it does, not by its name: LayerNorm removes the mean, RMSNorm does not."""
        if not self.unembedding.modules:
            return "none"
        with torch.inference_mode():
            at_random = torch.randn(1, 4, self.unembedding.weight.shape[1], generator=torch.Generator().manual_seed(0))
            x = at_random.to(self.device, self.unembedding.weight.dtype)
            first = self.unembedding.modules[0]
            shifted, plain = first(x + 3).float(), first(x).float()
        return "LayerNorm" if torch.allclose(shifted, plain, atol=0.05, rtol=0.05) else "RMSNorm"


FEWEST_DISTINCT = 4
"""With fewer different token ids a text says little about what a model does with positions that differ."""
PROBE_TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair."
)
"""Dickens, A Tale of Two Cities (public domain)."""
