"""Generation along a route, checked: before a model is used so for the first time, its cached steps are compared with replay.

Law: generation with caches equals generation without. What a block keeps between two calls is the model's own matter: each
visit has transformers' `Cache` to itself (`models.routed`), but a model may keep more where nobody sees it. So the first
generation on each route is preceded by a short one, whose logits are compared with those of the route replayed without a
cache. A model for which they differ is refused, by name.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float32
from torch import Tensor

from depthscope.engine.execute import run_route
from depthscope.errors import UnsupportedError
from depthscope.models.generation import TokensSeen, check_length, check_options, generate_ids
from depthscope.models.hooks import hooked
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.shapes import Generated, TokenIds

PROMPT, PADDED, STEPS = 20, 6, 3
"""Tokens of the prompt of the check, how many of them a padded prompt has fewer, and new tokens, all but the first of which
are computed with the caches."""
EXACT = {torch.float32: 1e-3, torch.float64: 1e-8}
ROUGH = 0.05
"""Largest difference that counts as rounding, in units of the largest absolute logit. In 16-bit dtypes it is ROUGH, and only
half of the positions need to be within it: there, rounding may choose another expert."""

_checked: "WeakKeyDictionary[Model, set[tuple[Route, bool, bool]]]" = WeakKeyDictionary()


def generate_tokens(
    model: Model,
    route: Route,
    ids: TokenIds,
    mask: TokenIds | None = None,
    *,
    tokens: int,
    seed: int | None = None,
    seen: TokensSeen | None = None,
    **options: Any,
) -> Generated:
    """Prompts and what follows them on a route, shaped [batch, seq + new], as `models.generation.generate_ids`.

    For whoever has token ids: `ids` are shaped [batch, seq], shorter prompts padded at the left where `mask` is 0. Raises
    UnsupportedError for a model whose caches are not right on this route, or whose prompts cannot be padded; RouteError for a
    route it cannot run; DataError for ids, options or more tokens than fit.
    """
    check_options(options)
    model.check_route(route)
    model.check_ids(ids)
    check_length(model, ids.shape[1], tokens)
    padded = mask is not None and not bool(mask.bool().all())
    check_caches(model, route, padded=padded, cached=options.get("use_cache") is not False)
    return generate_ids(model, route, ids, mask, tokens=tokens, seed=seed, seen=seen, **options)


def left_padded(prompts: list[list[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """(ids, mask) of prompts as one batch, both shaped [batch, seq]: shorter ones are padded at the left, where mask is 0."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.int64)


def check_caches(model: Model, route: Route, padded: bool = False, cached: bool = True) -> None:
    """Raise UnsupportedError unless a few tokens generated with caches have the logits of the route without; each route once.

    `padded`: one of two prompts is padded at the left; `cached` is whether caches are used, without which only padding can make
    a difference. The model's own route without padding is transformers' own generation and not checked.
    """
    done, key = _checked.setdefault(model, set()), (route, padded, cached)
    if key in done or not (padded or (cached and route != Route.own(model.depth))):
        return
    length = min(PROMPT, (model.context or PROMPT + STEPS) - STEPS)
    if length < 1:
        raise UnsupportedError(f"the context of {model.name}, {model.context} tokens, is too short to generate in")
    prompt = model.probe_ids(length)[0].tolist()
    prompts = [prompt, prompt[min(PADDED, len(prompt) - 1) :]] if padded else [prompt]
    ids, mask = (one.to(model.device) for one in left_padded(prompts))
    rows: list[list[Tensor]] = []

    # From the model's output: what reaches a logits processor has passed those of the model's generation config.
    def keep(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        rows.append(list(output.logits[:, -1].float()))

    with hooked(after=[(model.hf, keep)]):
        options = {"min_new_tokens": STEPS, "do_sample": False, "use_cache": cached}
        found = generate_ids(model, route, ids, mask, tokens=STEPS, **options)
    for row, own in enumerate(prompts):
        start = ids.shape[1] - len(own)
        with torch.inference_mode():
            residual = run_route(model, route, found[row : row + 1, start:-1])[:, -STEPS:]
            expected = model.unembedding.logits(model.unembedding.hidden(residual)).float()
        logits = torch.stack([step[row] for step in rows]).to(expected.device).float()
        if not _agree(logits, expected, model.unembedding.weight.dtype):
            raise UnsupportedError(_refusal(model, route, logits, expected, padded=row > 0))
    done.add(key)


def _agree(
    cached: Float32[Tensor, "steps vocab"], expected: Float32[Tensor, "steps vocab"], dtype: torch.dtype
) -> bool:
    differences, largest = _differences(cached, expected)
    within = differences <= EXACT.get(dtype, ROUGH) * largest
    return bool(within.all() if dtype in EXACT else within.float().mean() >= 0.5)


def _differences(
    cached: Float32[Tensor, "steps vocab"], expected: Float32[Tensor, "steps vocab"]
) -> tuple[Tensor, float]:
    """The largest difference of each step, infinite where one is not finite, and the largest logit."""
    finite = expected.isfinite()  # a model may mask entries of its vocabulary with −inf
    expected, cached = expected.where(finite, 0), cached.where(finite, 0)
    differences = (cached - expected).abs().amax(-1).nan_to_num(nan=float("inf"), posinf=float("inf"))
    return differences, max(1.0, float(expected.abs().max()))


def _refusal(model: Model, route: Route, cached: Tensor, expected: Tensor, padded: bool) -> str:
    difference = float(_differences(cached, expected)[0].max())
    if padded:
        return (
            f"{model.name} ({model.family}) computes other logits for a prompt that is padded at the left (largest difference "
            f"{difference:.2g} on the route {route.name!r}): give prompts of one length, or one at a time"
        )
    return (
        f"{model.name} ({model.family}) cannot generate with caches on the route {route.name!r}: its logits differ from those "
        f"of the route without caches by up to {difference:.2g}, so it keeps something between tokens that does not belong to "
        "one visit. Use use_cache=False, which computes every token again"
    )
