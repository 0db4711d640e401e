"""Model folders as a stranger could make them: what is done to a saved tiny GPT-2 with a tokenizer.

Each is a change of the folder's files. CONFIGS are entries put into config.json; the others write files.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]
DEEP = "[" * 100_000 + "]" * 100_000
PICKLE = b"cos\nsystem\n(S'touch ran'\ntR."

CONFIGS: dict[str, dict[str, Any]] = {
    "no heads": {"n_head": 0},
    "negative heads": {"n_head": -2},
    "negative width": {"n_embd": -32},
    "no width": {"n_embd": 0},
    "a wide model": {"n_embd": 10**9},
    "a wide model that stays below the limit of numbers": {"n_embd": 10**7},
    "a million layers": {"n_layer": 10**6},
    "a thousand layers": {"n_layer": 1000},
    "layers of thirty digits": {"n_layer": 10**30},
    "negative layers": {"n_layer": -1},
    "layers as text": {"n_layer": "4"},
    "a large vocabulary": {"vocab_size": 10**9},
    "no vocabulary": {"vocab_size": 0},
    "many positions": {"n_positions": 10**7},
    "ten million labels": {"num_labels": 10**7},
    "a wide MLP": {"n_inner": 10**8},
    "a list for a function": {"activation_function": ["gelu"]},
    "an object for a function": {"activation_function": {"a": 1}},
    "text for a number": {"layer_norm_epsilon": "tiny"},
    "not a number": {"layer_norm_epsilon": float("nan")},
    "a number for a list": {"architectures": 5},
    "an object for a list": {"architectures": {"a": 1}},
    "an object for a name": {"model_type": {}},
    "a function of torch as dtype": {"dtype": "load"},
    "text for a switch": {"tie_word_embeddings": "maybe"},
    "a list for an object": {"text_config": [1]},
    "labels in a list": {"id2label": [1, 2]},
    "labels without numbers": {"id2label": {"x": "y"}},
    "a layer's own entry": {"per_layer_config": {"0": {"n_head": 3}}},
    "layers' own entries in a list": {"per_layer_config": [1]},
    "two BOS tokens": {"bos_token_id": [1, 2]},
    "quantised, as text": {"quantization_config": "awq"},
    "quantised, as a list": {"quantization_config": [1]},
    "quantised by a list": {"quantization_config": {"quant_method": ["awq"]}},
    "quantised, a switch as text": {"quantization_config": {"load_in_8bit": "yes"}},
    "quantised by a package that is not here": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "quantised by another that is not here": {"quantization_config": {"quant_method": "hqq"}},
    "attention of a repository": {"_attn_implementation": "somebody/kernels"},
    "attention of a repository, by part": {"attn_implementation": {"": "somebody/kernels"}},
    "attention of a repository, within": {"text_config": {"attn_implementation": "somebody/kernels"}},
    "attention that is not here": {"_attn_implementation": "flash_attention_2"},
    "a pickle named as the weights": {"transformers_weights": "adapter_model.bin"},
    "weights out of the folder": {"transformers_weights": "../outside.safetensors"},
    "another configuration": {"configuration_files": ["config.4.0.json"]},
    "modules replaced": {"fusion_config": {"mlp": True}},
}
"""Refused, each with one line that is depthscope's own."""


def write(name: str, content: str | bytes) -> Change:
    data = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    return lambda folder: (folder / name).write_bytes(data)


def put(name: str, **entries: Any) -> Change:
    """Entries put into a JSON file, which is made where there is none."""

    def change(folder: Path) -> None:
        file = folder / name
        there = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(there | entries))

    return change


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def index(*names: object) -> Change:
    """The weights under an index that names these files."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        (folder / "model.safetensors").with_suffix(".safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {f"tensor{i}": name for i, name in enumerate(names)}})
        )

    return change


def raw_index(content: str) -> Change:
    def change(folder: Path) -> None:
        index()(folder)
        (folder / "model.safetensors.index.json").write_text(content)

    return change


def tokenizer(**parts: Any) -> Change:
    return put("tokenizer.json", **parts)


def pattern(regex: str) -> Change:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return tokenizer(pre_tokenizer=split)


FILES: dict[str, Change] = {
    "a configuration that is a list": write("config.json", "[]"),
    "a configuration that is null": write("config.json", "null"),
    "a configuration that is cut": write("config.json", '{"model_type": "gpt2"'),
    "a configuration nested deep": write("config.json", DEEP),
    "a configuration in Latin-1": write("config.json", '{"model_type": "gpt2", "é": 1}'.encode("latin-1")),
    "half a surrogate pair": write("config.json", '{"model_type": "gpt2", "a": "\\ud800"}'),
    "a number of 5,000 digits": write("config.json", '{"model_type": "gpt2", "a": ' + "9" * 5000 + "}"),
    "a pipe for a configuration": instead("config.json", os.mkfifo),
    "a folder for a configuration": instead("config.json", Path.mkdir),
    "a link to a device for a configuration": instead("config.json", lambda path: path.symlink_to("/dev/zero")),
    "a link in a circle": instead("config.json", lambda path: path.symlink_to(path)),
    "a pipe for the weights": instead("model.safetensors", os.mkfifo),
    "a folder for the weights": instead("model.safetensors", Path.mkdir),
    "a link out of the folder": instead("model.safetensors", lambda path: path.symlink_to("/etc/hostname")),
    "weights with a header of 2^60 bytes": write("model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"),
    "weights that are empty": write("model.safetensors", b""),
    "weights without tensors": write("model.safetensors", (2).to_bytes(8, "little") + b"{}"),
    "an index that names a pickle": index("pytorch_model.bin"),
    "an index that names a file outside": index("../outside.safetensors"),
    "an index that names an absolute path": index("/tmp/outside.safetensors"),
    "an index that names a folder": index("x/weights.safetensors"),
    "an index that names an adapter": index("adapter_model.safetensors"),
    "an index that names numbers": index(5),
    "an index that names what is not there": index("model-00001-of-00001.safetensors"),
    "an index that is a list": raw_index("[]"),
    "an index without a map": raw_index("{}"),
    "an index with a list for a map": raw_index('{"weight_map": ["weights.safetensors"]}'),
    "an index nested deep": raw_index(DEEP),
    "a pickle for the weights": instead(
        "model.safetensors", lambda path: path.with_name("pytorch_model.bin").write_bytes(PICKLE)
    ),
    "a tokenizer that is a list": write("tokenizer.json", "[]"),
    "a tokenizer that is empty": write("tokenizer.json", "{}"),
    "a tokenizer nested deep": write("tokenizer.json", DEEP),
    "a tokenizer that is not UTF-8": write("tokenizer.json", b"\xff\xfe"),
    "a pipe for a tokenizer": instead("tokenizer.json", os.mkfifo),
    "a tokenizer with a list for its model": tokenizer(model=[]),
    "a tokenizer of a newer library": tokenizer(pre_tokenizer={"type": "NewThing"}),
    "a tokenizer with a list for its tokens": tokenizer(added_tokens=[1]),
    "a tokenizer with tokens of other types": tokenizer(added_tokens=[{"id": "x", "content": 5}]),
    "a pattern that needs exponential time": pattern("([A-Za-z ,]|[A-Za-z ,]{2})+$"),
    "a pattern that cannot be parsed": pattern("(("),
    "tokenizer settings that are a list": write("tokenizer_config.json", "[]"),
    "tokenizer settings that are cut": write("tokenizer_config.json", "{"),
    "tokenizer settings: a number for a class": put("tokenizer_config.json", tokenizer_class=5),
    "tokenizer settings: a list of tokens for an object": put("tokenizer_config.json", added_tokens_decoder=[1]),
    "tokenizer settings: tokens without numbers": put("tokenizer_config.json", added_tokens_decoder={"x": {}}),
    "tokenizer settings: a number for a list": put("tokenizer_config.json", extra_special_tokens=5),
    "tokenizer settings: an object for a token": put("tokenizer_config.json", bos_token={"a": 1}),
    "tokenizer settings: code named by a number": put("tokenizer_config.json", auto_map=5),
    "tokens in a list": write("special_tokens_map.json", "[]"),
}
"""Refused, each with one line that is depthscope's own."""

HARMLESS: dict[str, Change] = {
    "settings for generation: a list": write("generation_config.json", "[]"),
    "settings for generation: cut": write("generation_config.json", "{"),
    "settings for generation: other types": put("generation_config.json", max_length={"a": []}, temperature="hot"),
    "a pipe for the settings for generation": instead("generation_config.json", os.mkfifo),
    "a pickle next to the weights": write("pytorch_model.bin", PICKLE),
    "a checkpoint of parts next to the weights": write(".metadata", PICKLE),
    "code next to the weights": write("modeling_evil.py", "raise SystemExit('ran')"),
    "code named by the tokenizer's settings": put(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.A", "evil.B"]}
    ),
    "tokenizer settings that name files": put(
        "tokenizer_config.json",
        **{
            "vocab_file": "/etc/passwd",
            "init_inputs": ["/etc/passwd"],
            "fast_tokenizer_files": ["../tokenizer.9.json"],
        },
    ),
}
"""Loaded, as if what was added were not there."""
