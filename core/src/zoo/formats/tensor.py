"""Where a tensor lies, whatever file holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header of its file describes it.

    `type` is the element or block type by its name in the format: "F32", "BF16", "F8_E4M3", "Q4_K", ...
    `shape` is in torch's order, outermost first. `offset` counts bytes from the start of `path`.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements (not of blocks)."""
        return math.prod(self.shape)
