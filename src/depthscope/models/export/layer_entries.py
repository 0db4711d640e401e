"""The entries of a configuration that speak of single layers, changed as the layers are.

A configuration says in several ways which layer is what, and every family has ways of its own. They are told apart by form,
with the entry's name as a guard: a list with one member for each layer, a mapping from layer numbers, a list of layer
numbers, a text with one letter for each layer. Two entries have rules of their own (ATTENTION_TYPES, SPARSE). Nothing here is
believed: what the configuration gives is compared with the model itself, block by block (`target`), and numbers that count
layers from an end or say a period are then searched for (`counts`).

Works on JSON values and knows neither torch nor transformers.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Names of the number of layers."""
NO_LAYERS = re.compile(r"token_id|architectures|_section|label|keys_to|languages|task_|token$")
"""Names of lists that are never one of layers, though one may be as long as the model is deep."""
OF_LAYERS = re.compile(r"layer|block")
"""Names of lists of layer numbers, and of mappings from them, contain one of these."""
LETTERS = re.compile(r"pattern")
ATTENTION_TYPES = "attention_types"
"""GPT-Neo's kinds of attention: pairs of a list of kinds and how often it is repeated."""
SPARSE, STEP = "mlp_only_layers", "decoder_sparse_step"
"""Which layers have no experts (Qwen): those listed, and those whose number from 1 is not a multiple of the step."""
COUNTS = re.compile(r"layer|interval|period|offset|pattern|step|first_k|_freq")
NO_COUNT = re.compile(r"size|dim|scale|head|eps|token|drop|std|rank|expert(s|_)|input")
"""Names of whole numbers that may say which layers are of a kind: a period, or how many at one end."""


def rearranged(entries: dict[str, Any], depth: int, order: Sequence[int]) -> dict[str, Any]:
    """The entries of a configuration of `depth` layers for a model whose layers are those of `order`, by their numbers."""
    result = copy.deepcopy(entries)
    for name, value in result.items():
        if name in DEPTHS and value == depth:
            result[name] = len(order)
        elif not NO_LAYERS.search(name):
            result[name] = _rearranged(name, value, depth, order)
    if result.get(STEP) is not None and SPARSE in result:
        step, listed = entries[STEP], entries[SPARSE] or []
        dense = [layer in listed or bool((layer + 1) % step) for layer in order]
        result[SPARSE], result[STEP] = [place for place, one in enumerate(dense) if one], 1
    return result


def _rearranged(name: str, value: Any, depth: int, order: Sequence[int]) -> Any:
    if name == ATTENTION_TYPES and isinstance(value, list):
        kinds = [kind for group, times in value for kind in list(group) * times]
        return [[[kinds[layer]], 1] for layer in order] if len(kinds) == depth else value
    if isinstance(value, list):
        if _numbers_layers(name, value, depth):
            return [place for place, layer in enumerate(order) if layer in value]
        return [value[layer] for layer in order] if len(value) == depth else value
    if isinstance(value, dict) and OF_LAYERS.search(name) and value and all(_is_layer(key, depth) for key in value):
        by_layer = {int(key): one for key, one in value.items()}
        return {str(place): by_layer[layer] for place, layer in enumerate(order) if layer in by_layer}
    if isinstance(value, str) and LETTERS.search(name) and len(value) == depth:
        return "".join(value[layer] for layer in order)
    return value


def _numbers_layers(name: str, value: list[Any], depth: int) -> bool:
    """Whether a list holds numbers of layers: different ones, in order. A list as long as the model is deep does so only where
    it names every layer."""
    whole = all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < depth for one in value)
    ordered = whole and value == sorted(set(value))
    return bool(OF_LAYERS.search(name)) and bool(value) and ordered and (len(value) != depth or depth > 2)


def _is_layer(key: Any, depth: int) -> bool:
    return str(key).isdecimal() and int(key) < depth


def counts(entries: dict[str, Any]) -> list[str]:
    """The names of the entries that may count layers or say a period."""
    return [
        name
        for name, value in entries.items()
        if isinstance(value, int)
        and not isinstance(value, bool)
        and name not in DEPTHS
        and COUNTS.search(name)
        and not NO_COUNT.search(name)
    ]


def variations(entries: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The entries with one count changed to every value that makes a difference."""
    depth = next((entries[key] for key in DEPTHS if isinstance(entries.get(key), int)), 0)
    for value in range(depth + 2):
        if value != entries[name]:
            yield {**entries, name: value}
