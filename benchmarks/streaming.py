"""A model larger than the memory it is given: a sweep with blocks streamed, beside the same sweep with the model in memory.

    python benchmarks/streaming.py [--small] [--tokens 128] [--layers 19] [--rounds 2] [--limit-mib 2048]

A random llama-like model is written shard by shard into a temporary folder (4.2 GB in float32; --small: 209 MB). Each sweep
(every layer dropped) runs in a process of its own, streamed and in memory in turns. The streamed process is held to the
limit by RLIMIT_DATA, which counts all memory that is its own: what it may allocate, not what happens to be resident. Pages
of the checkpoint are dropped from the system's cache before the sweep and after every read of a block, so that blocks come
from the disk as they would where nothing has room for them. Peaks are the largest resident set (VmHWM), libraries included.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

MIB = 2**20


def write_model(folder: Path, layers: int, width: int, hidden: int, vocabulary: int) -> int:
    """Write config, index and one shard per block; returns the weights' size in bytes. One shard is in memory at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=hidden,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden)}
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(0.02)

    places: dict[str, str] = {}
    size = 0

    def save(name: str, shard: dict[str, torch.Tensor]) -> int:
        save_file(shard, folder / name, metadata={"format": "pt"})
        with (folder / name).open("rb") as written:
            os.fsync(written.fileno())  # pages that are not on the disk yet cannot be dropped
        places.update(dict.fromkeys(shard, name))
        return sum(tensor.nbytes for tensor in shard.values())

    for layer in range(layers):
        block = {f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            block[f"model.layers.{layer}.{norm}.weight"] = torch.ones(width)
        size += save(f"block-{layer}.safetensors", block)
    size += save(
        "rest.safetensors",
        {"model.embed_tokens.weight": random(vocabulary, width), "model.norm.weight": torch.ones(width)},
    )
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def forget_pages(folder: Path) -> None:
    """Drop the checkpoint from the system's page cache."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sweep(folder: Path, stream: str, tokens: int, limit: int) -> dict[str, Any]:
    """Load and sweep in this process; what it took."""
    if stream == "yes":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import torch

    import depthscope as ds
    from depthscope.engine.measure_routes import RouteMeter
    from depthscope.routes import Route

    started = time.perf_counter()
    model = ds.load(str(folder), stream=stream)
    loaded = time.perf_counter()
    own = Route.own(model.depth)
    meter = RouteMeter(model, [ds.drop(layer)(own) for layer in range(model.depth)])
    ids = torch.randint(0, model.unembedding.vocabulary, (1, tokens + 1), generator=torch.Generator().manual_seed(0))
    meter.measure(ids[:, :9], ids[:, 1:10])  # whatever is made once is made now
    residency = model.stack.residency
    before = list(residency.reader.reads) if residency else []
    if residency:
        residency.release()
        read = residency.reader.read

        def read_from_disk(block: int) -> torch.Tensor:
            made = read(block)
            forget_pages(folder)
            return made

        residency.reader.read = read_from_disk
        forget_pages(folder)
    began = time.perf_counter()
    measured = meter.measure(ids[:, :-1], ids[:, 1:])
    ended = time.perf_counter()
    reads = (
        [after - earlier for after, earlier in zip(residency.reader.reads, before, strict=True)] if residency else []
    )
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "load": loaded - started,
        "seconds": ended - began,
        "peak": int(status["VmHWM"].split()[0]) * 1024,
        "read": sum(residency.reader.bytes(block) * count for block, count in enumerate(reads)) if residency else 0,
        "most_reads": max(reads, default=0),
        "kl": measured.kl[1:].double().mean(dim=(1, 2)).tolist(),
        "note": model.kernels.note,
    }


def in_own_process(options: argparse.Namespace, folder: Path, stream: str) -> dict[str, Any]:
    """The same in a process of its own."""
    arguments = ["--worker", stream, "--folder", str(folder), "--tokens", str(options.tokens)]
    command = [sys.executable, __file__, *arguments, "--limit-mib", str(options.limit_mib)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        sys.exit(f"the {stream} process failed with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> None:
    """Write the model, sweep in turns, print."""
    width, hidden, vocabulary = (512, 1408, 4096) if options.small else (2048, 5632, 32000)
    with tempfile.TemporaryDirectory() as name:
        size = write_model(Path(name), options.layers, width, hidden, vocabulary)
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        print(f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, {date.today()}")
        print(f"{options.layers} blocks of width {width}, {size / MIB:,.0f} MiB of float32 weights")
        print(f"drop sweep of {options.tokens} tokens", flush=True)
        rounds = []
        for _ in range(options.rounds):
            rounds.append({stream: in_own_process(options, Path(name), stream) for stream in ("yes", "no")})
            for stream, what in (("yes", f"streamed, held to {options.limit_mib} MiB"), ("no", "in memory")):
                one = rounds[-1][stream]
                print(
                    f"{what:30} {options.tokens / one['seconds']:7.2f} tokens/s  peak {one['peak'] / MIB:7,.0f} MiB  "
                    f"read {one['read'] / MIB:7,.0f} MiB  loaded in {one['load']:5.1f} s  {one['note']}",
                    flush=True,
                )
        ratios = [one["no"]["seconds"] / one["yes"]["seconds"] for one in rounds]
        pairs = [(a, b) for one in rounds for a, b in zip(one["yes"]["kl"], one["no"]["kl"], strict=True)]
        print(f"streamed at {median(ratios):.2f} of the speed in memory ({', '.join(f'{r:.2f}' for r in ratios)})")
        most = max(one["yes"]["most_reads"] for one in rounds)
        print(f"each block read at most {most} times: for the model's own run, and for all edits")
        print(f"largest relative difference of a layer's mean KL: {max(abs(a - b) / b for a, b in pairs):.1e}")


def main() -> None:
    """Measure and print; or, as a worker, sweep once and print figures for the parent."""
    parser = argparse.ArgumentParser(description="A drop sweep with blocks streamed from disk, and in memory.")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit-mib", type=int, default=2048)
    parser.add_argument("--worker", choices=("yes", "no"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(sweep(options.folder, options.worker, options.tokens, options.limit_mib * MIB)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
