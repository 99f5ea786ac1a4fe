"""zoo: run local language models from safetensors and GGUF; every architecture is a pip package.

The names below are imported on first use, so that `import zoo` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from zoo.garbage import paused

if TYPE_CHECKING:
    from zoo.engine.sequence import SamplingParams
    from zoo.hooks import hookimpl
    from zoo.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__", "hookimpl"]

_HOMES = {"LLM": "zoo.llm", "SamplingParams": "zoo.engine.sequence", "hookimpl": "zoo.hooks"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        with paused():
            return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
