"""Write a finished training run as a plain transformers folder with float16 weights.

    python -m training.export --run training/runs/neox --tokenizer FOLDER --out training/runs/neox/model

`training.json` in the folder says how the weights were made: settings, steps, tokens seen, last training loss.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from training.architectures import fresh_model
from training.atomic import write_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
LAST_LINES = 10
"""Lines of the log whose mean is the last training loss: one line alone is noisy."""


def checkpointed(run: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of a run's checkpoint, in float32, and the rest of its state.

    Raises FileNotFoundError where the run has no checkpoint.
    """
    file = run / "checkpoint.pt"
    if not file.exists():
        raise FileNotFoundError(f"{run} holds no checkpoint.pt: is it a folder made by python -m training.train?")
    state = torch.load(file, map_location="cpu", weights_only=True)
    settings = state["settings"]
    model = fresh_model(settings["preset"], settings["seed"], **settings["overrides"])
    model.load_state_dict(state["model"])
    return model.eval(), state


def history(run: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What the model card says of the training: settings, lengths, and the mean loss of the log's last lines."""
    settings, progress = state["settings"], state["progress"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = log[-LAST_LINES:]
    return {
        "settings": settings,
        "steps": progress["step"],
        "tokens": progress["tokens"],
        "tokens_total": settings["seen_before"] + progress["tokens"],
        "seconds": round(progress["seconds"], 1),
        "last_training_loss": sum(line["loss"] for line in last) / len(last) if last else None,
        "last_training_loss_lines": len(last),
        "learning_rate_at_end": last[-1]["learning_rate"] if last else None,
    }


def export(run: Path, tokenizer: Path, out: Path) -> None:
    """Write model, tokenizer and training.json of `run` to the folder `out`.

    Raises ValueError where a weight does not fit float16.
    """
    model, state = checkpointed(run)
    write_folder(model, tokenizer, out)
    write_json(out / "training.json", history(run, state))


def write_folder(model: PreTrainedModel, tokenizer: Path, out: Path) -> None:
    """Write the model with float16 weights, which it has afterwards, and its tokenizer as a transformers folder.

    Raises ValueError where a weight does not fit float16.
    """
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight.half()).all():
            raise ValueError(f"{name} has a value which is not finite in float16")
    model.half().save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)  # its defaults say nothing of the model
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, out / name)


def main() -> None:
    """Export the run the command line names."""
    parser = argparse.ArgumentParser(description="Write a training run as a transformers folder in float16.")
    parser.add_argument("--run", type=Path, required=True, help="folder made by python -m training.train")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args()
    export(arguments.run, arguments.tokenizer, arguments.out)
    print(f"exported to {arguments.out}")


if __name__ == "__main__":
    main()
