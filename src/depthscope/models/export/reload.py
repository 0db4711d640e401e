"""Whether an exported checkpoint is the route: loaded again as any user would load it, its logits are the route's.

Loading happens in a new Python process that imports torch and transformers and nothing of depthscope, or, for tests of many
families, in this one. A streamed model's export is read as the model itself is, block by block: it would not fit otherwise.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from depthscope.errors import UnsupportedError
from depthscope.models.configuration import model_errors
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.models.quiet import quiet
from depthscope.models.state import copied
from depthscope.models.verify import TOLERANCE
from depthscope.routes import Parallel, Route
from depthscope.shapes import TokenIds

LONGEST_WINDOW = 1024
"""Sliding windows up to this many tokens are exceeded by the tokens that are compared; longer ones would take too long."""
TOKENS = 48
ASKED, GIVEN, IDS = "asked.json", "logits.safetensors", "ids.safetensors"
SCRIPT = """
import json, sys, torch, transformers
from safetensors.torch import load_file, save_file
asked = json.load(open(sys.argv[1]))
torch.set_num_threads(asked["threads"])
made_by = getattr(transformers, asked["class"])
model, report = made_by.from_pretrained(
    asked["folder"], dtype=getattr(torch, asked["dtype"]), attn_implementation=asked["attention"], output_loading_info=True
)
if report["missing_keys"] or report["mismatched_keys"]:
    raise SystemExit(f"missing {sorted(report['missing_keys'])[:3]}, other shapes {sorted(report['mismatched_keys'])[:3]}")
model = model.to(asked["device"]).eval()
with torch.inference_mode():
    logits = model(input_ids=load_file(asked["ids"])["ids"].to(asked["device"]), use_cache=False).logits
save_file({"logits": logits.cpu().contiguous()}, asked["logits"])
"""
"""All that the new process does."""


def compared_ids(model: Model) -> TokenIds:
    """Token ids shaped [1, seq] to compare on: as many as exceed the model's sliding window where that is short."""
    window = getattr(model.hf.config.get_text_config(decoder=True), "sliding_window", None)
    longer = window + 8 if isinstance(window, int) and TOKENS <= window + 8 <= LONGEST_WINDOW else TOKENS
    length = min(longer, model.context or longer)
    ids = model.probe_ids(length)
    return ids.repeat(1, -(-length // ids.shape[1]))[:, :length]


def route_logits(model: Model, route: Route, ids: TokenIds) -> Float[Tensor, "batch seq vocab"]:
    """The logits of a route without parallel visits, by replay."""
    with torch.inference_mode():
        entry = model.stack.enter(ids)
        residual, state = entry.residual, copied(entry.state)
        model.stack.expect([step.block for step in route.steps()])
        for visit in route.visits:
            assert not isinstance(visit, Parallel)
            residual = model.visit(visit, residual, entry.arguments, state)
        return model.unembedding.logits(model.unembedding.hidden(residual)).unflatten(0, ids.shape)


def reloaded_logits(model: Model, folder: Path, ids: TokenIds, fresh: bool) -> Float[Tensor, "batch seq vocab"]:
    """The logits of the checkpoint in `folder`, loaded by transformers in the model's dtype. Raises UnsupportedError where it
    cannot be loaded."""
    failed = (
        f"{model.name} ({model.family}) cannot be exported on this route: transformers does not load the checkpoint"
    )
    if model.stack.streamed:
        again = load(folder, dtype=str(model.hf.dtype).removeprefix("torch."), device=str(model.device), stream="yes")
        return route_logits(again, Route.own(again.depth), ids)
    if fresh:
        return _in_new_process(model, folder, ids, failed)
    with model_errors(failed, kind=UnsupportedError), quiet():
        made_by: Any = getattr(transformers, _class(model))
        attention = getattr(model.hf.config, "_attn_implementation", None)
        loaded = made_by.from_pretrained(str(folder), dtype=model.hf.dtype, attn_implementation=attention)
        with torch.inference_mode():
            return loaded.to(model.device).eval()(input_ids=ids, use_cache=False).logits


def difference(model: Model, own: Tensor, reloaded: Tensor) -> float:
    """The largest difference between two arrays of logits. Raises UnsupportedError where it is more than rounding."""
    if own.shape != reloaded.shape:
        raise UnsupportedError(
            f"{model.name} ({model.family}) cannot be exported on this route: the checkpoint gives logits shaped "
            f"{list(reloaded.shape)}, expected {list(own.shape)}"
        )
    if torch.equal(own, reloaded):  # with masked entries, which are −inf in both
        return 0.0
    seen = (own.double() - reloaded.double()).nan_to_num(0.0, posinf=float("inf"), neginf=float("inf")).abs()
    largest = float(seen.masked_fill(own == reloaded, 0.0).max())
    allowed = TOLERANCE.get(own.dtype, float(own.abs().max()) / 100)
    if not largest <= allowed:
        raise UnsupportedError(
            f"{model.name} ({model.family}) cannot be exported on this route: the checkpoint, loaded again with transformers, "
            f"gives logits that differ from the route's by up to {largest:.2g} (rounding is at most {allowed:.2g}). Something "
            "in the family depends on a layer's place in the model"
        )
    return largest


def _class(model: Model) -> str:
    """The class that a user would load the checkpoint with."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.hf.config), None)
    return "AutoModelForCausalLM" if found is type(model.hf) else type(model.hf).__name__


def _in_new_process(model: Model, folder: Path, ids: TokenIds, failed: str) -> Tensor:
    asked = {
        "folder": str(folder.resolve()),
        "class": _class(model),
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "attention": getattr(model.hf.config, "_attn_implementation", None),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }
    # Next to the checkpoint, which is not at its place yet: where there is room, and gone with it.
    scratch = folder / "comparison"
    scratch.mkdir()
    try:
        save_file({"ids": ids.cpu().contiguous()}, scratch / IDS)
        asked |= {"ids": str((scratch / IDS).resolve()), "logits": str((scratch / GIVEN).resolve())}
        (scratch / ASKED).write_text(json.dumps(asked), encoding="utf-8")
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, str((scratch / ASKED).resolve())],
            cwd=scratch,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical"},
            capture_output=True,
            check=False,
        )
        if ran.returncode != 0:
            lines = ran.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a message"]
            killed = f" (ended by signal {-ran.returncode}; the memory may be too small)" if ran.returncode < 0 else ""
            raise UnsupportedError(f"{failed} in a new process{killed}: {lines[-1]}")
        return load_file(scratch / GIVEN)["logits"].to(model.device)
    finally:
        for file in (IDS, ASKED, GIVEN):
            (scratch / file).unlink(missing_ok=True)
        scratch.rmdir()
