"""Quantised checkpoints: which methods are read, what each needs, and which are turned into plain weights while loading.

The checks here come before any weight is read. A method that transformers turns into plain weights where its kernels are
missing (mxfp4, fp8) is turned into plain weights always: a model has the same numbers on every machine, and no kernel is
fetched from a hub.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from depthscope.errors import ModelError, UnsupportedError
from depthscope.printable import shown


@dataclass(frozen=True, slots=True)
class Format:
    """A method of quantisation: modules to import with the package each is in, and whether weights become plain ones."""

    packages: dict[str, str]
    dequantised: bool = False


ACCELERATE, GPTQMODEL = {"accelerate": "accelerate"}, {"gptqmodel": "gptqmodel"}
FORMATS = {
    "bitsandbytes": Format({"bitsandbytes": "bitsandbytes"} | ACCELERATE),
    "torchao": Format({"torchao": "torchao"} | ACCELERATE),
    "compressed-tensors": Format({"compressed_tensors": "compressed-tensors"} | ACCELERATE, dequantised=True),
    "mxfp4": Format(ACCELERATE, dequantised=True),
    "fp8": Format(ACCELERATE, dequantised=True),
    "gptq": Format(GPTQMODEL | {"optimum": "optimum"} | ACCELERATE),
    "awq": Format(GPTQMODEL | ACCELERATE),
}
"""By transformers' name of the method."""
QUANTIZE = {
    "nf4": ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "fp4": ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    # With a threshold, whether a column is an outlier depends on the other windows of a batch.
    "int8": ("bitsandbytes", {"load_in_8bit": True, "llm_int8_threshold": 0.0}),
    "int8-weights": ("torchao", {}),
}
"""Formats that plain weights can be quantised to while loading, each a method and its settings."""
EXTRA = ("bitsandbytes", "torchao", "compressed-tensors", "accelerate")
"""Packages of depthscope[quant]."""


def method_of(config: dict[str, Any]) -> str | None:
    """The method that the `quantization_config` of a configuration declares, None for plain weights."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict) or not settings:
        return None
    if "quant_method" not in settings and settings.keys() & {"load_in_8bit", "load_in_4bit"}:
        return "bitsandbytes"  # as transformers wrote it before it named the method
    return str(settings.get("quant_method"))


def prepared(config: dict[str, Any], source: str) -> dict[str, Any]:
    """A configuration with what decides how its quantised weights are loaded.

    Raises UnsupportedError for a method that is not one of FORMATS, or a scheme that would become another model, and
    ModelError where packages are missing.
    """
    method = method_of(config)
    if method is None:
        return config
    if method not in FORMATS:
        raise UnsupportedError(
            f"{source} is quantised with {method}, which is not supported: expected {', '.join(FORMATS)}, a GGUF file, or "
            "plain weights. Dequantise it where it runs, and save the result"
        )
    _require_packages(method, f"{source} is quantised with {method}, which")
    chosen, settings = FORMATS[method], config["quantization_config"]
    if not chosen.dequantised:
        return config
    if rounded := _rounded_inputs(settings):
        raise UnsupportedError(
            f"{source} is quantised with {method}, and {rounded} rounds what its layers are given too, which plain weights "
            "leave out: the model would be another one. Expected a scheme for weights alone"
        )
    return {**config, "quantization_config": {**settings, "dequantize": True}}


def _require_packages(method: str, what: str) -> None:
    if missing := [package for module, package in FORMATS[method].packages.items() if find_spec(module) is None]:
        whence = "'depthscope[quant]'" if set(missing) <= set(EXTRA) else " ".join(missing)
        raise ModelError(f"{what} requires {' and '.join(missing)}: pip install {whence}")


def quantizing(config: dict[str, Any], quantize: str | None, dtype: Any, source: str) -> dict[str, Any]:
    """What `from_pretrained` is given to quantise plain weights as one of QUANTIZE; nothing where `quantize` is None.

    Raises UnsupportedError for weights that are quantised already and ModelError where packages are missing.
    """
    if quantize is None:
        return {}
    if (method := method_of(config)) is not None:
        raise UnsupportedError(f"{source} is quantised with {method} already: leave out --quantize {quantize}")
    method, settings = QUANTIZE[quantize]
    _require_packages(method, f"--quantize {quantize}")
    if method == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    from transformers import BitsAndBytesConfig

    computed = {"bnb_4bit_compute_dtype": dtype} if "load_in_4bit" in settings else {}
    return {"quantization_config": BitsAndBytesConfig(**settings, **computed)}


def check_quantize(quantize: str) -> None:
    """Raise ModelError for a format that is not one of QUANTIZE."""
    if quantize not in QUANTIZE:
        raise ModelError(f"quantize is {shown(quantize)}: expected one of {', '.join(QUANTIZE)}")


def dequantised(config: dict[str, Any]) -> str | None:
    """The method whose weights become plain ones while loading."""
    method = method_of(config)
    return method if method in FORMATS and FORMATS[method].dequantised else None


def _rounded_inputs(settings: dict[str, Any]) -> str | None:
    """The entry of compressed-tensors' settings that has activations quantised."""
    groups = settings.get("config_groups")
    for name, group in groups.items() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and (group.get("input_activations") or group.get("output_activations")):
            return f"config_groups.{name}"
    return "kv_cache_scheme" if settings.get("kv_cache_scheme") else None
