"""Train an embedded model, or continue one; run the same command again to go on where it was interrupted.

    python -m training.train bookshelf-neox --tokens-map training/runs/tokens.bin --minutes 60 --out training/runs/neox

The run's folder holds checkpoint.pt (weights, optimizer, random state, settings) and log.jsonl (one line per interval). With
`--keep 1,4,16 --tokenizer FOLDER` it also holds steps/step1, steps/step4 …: the model after those steps as transformers
folders, which `depthscope study … --revisions` reads.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import shutil
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from training.architectures import PRESETS, fresh_model, trained_model
from training.atomic import atomic_writer, sha256
from training.corpus import TokenMap, open_token_map
from training.export import write_folder
from training.settings import Settings, difference

LogLine = dict[str, float]


@dataclass(slots=True)
class Progress:
    """Where a run is: optimizer steps taken, tokens seen, seconds of training."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def make_optimizer(model: PreTrainedModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW which decays matrices only: biases and norms are left alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def random_windows(tokens: TokenMap, settings: Settings, generator: torch.Generator) -> Tensor:
    """Windows at random places of the token stream, int64 [batch, window + 1]: inputs and, one later, their targets."""
    starts = torch.randint(len(tokens) - settings.window, (settings.batch,), generator=generator)
    rows = [torch.from_numpy(tokens[s : s + settings.window + 1].astype("int64")) for s in starts.tolist()]
    return torch.stack(rows)


def loss_function(model: PreTrainedModel, settings: Settings) -> Callable[[Tensor], Tensor]:
    """The mean cross-entropy, in nats per token, of windows [batch, window + 1]; compiled if the settings say so."""
    reduced = settings.dtype == "bfloat16"

    def loss(windows: Tensor) -> Tensor:
        with torch.autocast(settings.device, dtype=torch.bfloat16, enabled=reduced):
            logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())

    return torch.compile(loss, dynamic=False) if settings.compile else loss


class Run:
    """A training run in its folder: fresh, or as the folder's checkpoint left it."""

    def __init__(self, settings: Settings, tokens: TokenMap, folder: Path, source: Path | None = None) -> None:
        """Open `folder`, which is made where it does not exist.

        Raises ValueError where the folder's run has other settings, or the tokens are fewer than one window.
        """
        if len(tokens) <= settings.window:
            raise ValueError(f"{len(tokens):,} tokens are too few for windows of {settings.window} and a next token")
        self.settings, self.token_map, self.folder = settings, tokens, folder
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.at = Progress()
        if source is None:
            self.model = fresh_model(settings.preset, settings.seed, **dict(settings.overrides))
        else:
            self.model = trained_model(source)
        self.model.set_attn_implementation(settings.attention)
        self.model.to(settings.device)  # pyright: ignore[reportArgumentType]
        self.optimizer = make_optimizer(self.model, settings)
        if self.checkpoint_file.exists():
            self._restore()
        self.loss = loss_function(self.model, settings)

    @property
    def checkpoint_file(self) -> Path:
        """Where the run's state is kept."""
        return self.folder / "checkpoint.pt"

    @property
    def finished(self) -> bool:
        """Whether the asked minutes or tokens are done."""
        return self.settings.progress(self.at.tokens, self.at.seconds) >= 1

    def _restore(self) -> None:
        state = torch.load(self.checkpoint_file, map_location=self.settings.device, weights_only=True)
        differs = difference(state["settings"], self.settings.as_json())
        if differs:
            raise ValueError(f"{self.folder} was begun with other settings ({differs}): choose another --out")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.at = Progress(**state["progress"])
        self._forget_log_after(self.at.step)

    def _forget_log_after(self, step: int) -> None:
        log = self.folder / "log.jsonl"
        if not log.exists():
            return
        # A killed run may have left a torn last line, and lines of steps which will now be taken again.
        kept = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in kept if json.loads(line)["step"] <= step]
        with atomic_writer(log) as file:
            file.write("".join(kept).encode())

    def save(self) -> None:
        """Write the whole state, atomically."""
        state = {
            "settings": self.settings.as_json(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "progress": {"step": self.at.step, "tokens": self.at.tokens, "seconds": self.at.seconds},
        }
        with atomic_writer(self.checkpoint_file) as file:
            torch.save(state, file)

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step. Returns its loss and the norm of its gradient before clipping, both scalars."""
        rate = self.settings.learning_rate_at(self.at.step, self.settings.progress(self.at.tokens, self.at.seconds))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        windows = random_windows(self.token_map, self.settings, self.generator).to(self.settings.device)
        loss = self.loss(windows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.at.step += 1
        self.at.tokens += self.settings.batch * self.settings.window
        return loss.detach(), norm.detach()

    def log(self, line: LogLine) -> None:
        """Print one line of progress and append it to log.jsonl."""
        print("  ".join(f"{name} {value:,.5g}" for name, value in line.items()), flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def warm_loss(self) -> None:
        """Compile the loss and its gradient before the clock starts; where that fails, say so and go on without."""
        shape = (self.settings.batch, self.settings.window + 1)
        try:
            self.loss(torch.zeros(shape, dtype=torch.int64, device=self.settings.device)).backward()
        except Exception as error:  # the compiler's failures have no common class, and none of them stops the recipe
            print(f"not compiled, which is slower: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            self.loss = loss_function(self.model, replace(self.settings, compile=False))
        self.optimizer.zero_grad(set_to_none=True)

    def keep(self, tokenizer: Path) -> None:
        """Write the model after this step as a transformers folder in float16, whole or not at all."""
        folder = self.folder / "steps" / f"step{self.at.step}"
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_folder(copy.deepcopy(self.model).to("cpu"), tokenizer, unfinished)  # pyright: ignore[reportArgumentType]
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)

    def go(
        self,
        *,
        log_every: int = 50,
        checkpoint_minutes: float = 3.0,
        stop_at: int | None = None,
        keep: Collection[int] = (),
        tokenizer: Path | None = None,
    ) -> None:
        """Train until the run is finished, interrupted (SIGINT, SIGTERM) or, for tests, at step `stop_at`.

        After each step in `keep` the model is written out, with this `tokenizer`. However it ends, short of a kill, the
        state is saved. A loss which is not finite raises FloatingPointError and leaves the last good checkpoint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        losses: list[Tensor] = []
        kept = {} if tokenizer is None else dict.fromkeys(keep, tokenizer)
        if self.at.step == 0 and 0 in kept:
            self.keep(kept[0])
        if self.settings.compile and not self.finished:
            self.warm_loss()
        last_save = last_log = clock = time.monotonic()
        with interruption() as interrupted:
            while not (self.finished or interrupted() or self.at.step == stop_at):
                loss, norm = self.step()
                losses.append(loss)
                now = time.monotonic()
                self.at.seconds += now - clock
                clock = now
                if self.at.step in kept:
                    self.keep(kept[self.at.step])
                    clock = time.monotonic()
                if self.at.step % log_every == 0:
                    mean = torch.stack(losses).mean().item()
                    if not mean < float("inf"):
                        raise FloatingPointError(f"the loss is {mean} at step {self.at.step}: lower the learning rate")
                    speed = len(losses) * self.settings.batch * self.settings.window / (now - last_log)
                    self.log(self._line(mean, norm.item(), speed))
                    losses, last_log = [], now
                    if now - last_save > 60 * checkpoint_minutes:
                        self.save()
                        last_save = now
        self.save()

    def _line(self, loss: float, norm: float, speed: float) -> LogLine:
        return {
            "step": self.at.step,
            "tokens": self.at.tokens,
            "seconds": round(self.at.seconds, 1),
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm,
            "tokens_per_second": speed,
        }


@contextlib.contextmanager
def interruption():
    """Within it, SIGINT and SIGTERM only make the yielded function return True, so that a run can save and stop."""
    received: list[int] = []
    handlers = {s: signal.signal(s, lambda number, _: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; `arguments` defaults to the process's own."""
    parser = argparse.ArgumentParser(description="Train or continue an embedded model; the same command resumes.")
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("--tokens-map", type=Path, required=True, help="made by python -m training.corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--from", dest="source", type=Path, help="transformers folder whose weights to continue from")
    parser.add_argument("--seen-before", type=int, default=0, help="tokens those weights have already seen")
    parser.add_argument("--minutes", type=float, help="length of the run in minutes of training")
    parser.add_argument("--tokens", type=int, help="length of the run in tokens")
    parser.add_argument("--batch", type=int, default=16, help="windows per step")
    parser.add_argument("--window", type=int, default=256, help="tokens per window")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--flat", type=float, default=0.3, help="part of the run at full learning rate")
    parser.add_argument("--final", type=float, default=0.02, help="last learning rate as a part of the full one")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--attention", default="eager", choices=["eager", "sdpa"], help="eager is faster on CPUs")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--log-every", type=int, default=50, help="steps between lines of progress")
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    parser.add_argument(
        "--keep", type=_steps, default=(), help="write out the model after these steps, such as 1,10,100"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json, for --keep")
    found = parser.parse_args(arguments)
    if found.keep and found.tokenizer is None:
        parser.error("--keep writes transformers folders: give the tokenizer's folder with --tokenizer")
    return found


def _steps(text: str) -> tuple[int, ...]:
    return tuple(int(step) for step in text.split(","))


def settings_of(arguments: argparse.Namespace, facts: dict[str, Any]) -> Settings:
    """The run's settings, with hashes of what it reads in place of this machine's paths."""
    same = "preset minutes tokens batch window learning_rate warmup_steps flat final weight_decay seed"
    same += " device dtype attention compile"
    source: Path | None = arguments.source
    return Settings(
        **{name: getattr(arguments, name) for name in same.split()},
        map_sha256=facts["map_sha256"],
        source=source.name if source else None,
        source_sha256=sha256(source / "model.safetensors") if source else None,
        seen_before=arguments.seen_before,
    )


def main() -> None:
    """Run or resume the training the command line asks for."""
    arguments = parse_arguments()
    tokens, facts = open_token_map(arguments.tokens_map)
    run = Run(settings_of(arguments, facts), tokens, arguments.out, arguments.source)
    if run.at.step:
        print(f"resuming at step {run.at.step:,}, {run.at.tokens:,} tokens", flush=True)
    run.go(
        log_every=arguments.log_every,
        checkpoint_minutes=arguments.checkpoint_minutes,
        keep=arguments.keep,
        tokenizer=arguments.tokenizer,
    )
    print("finished" if run.finished else "stopped; the same command goes on", flush=True)


if __name__ == "__main__":
    main()
