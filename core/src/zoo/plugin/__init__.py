"""What a plugin's author needs: the plugin object made of tables, the markers, and every type in a hook's signature.

Importing this package imports no torch; `Batch` does when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.hooks import HOOK_API_VERSION, CausalLM, Detection, LoadOptions, hookimpl
from zoo.plugin.architecture import ArchitecturePlugin, Claim
from zoo.plugin.config import ConfigReader
from zoo.source import ModelSource

if TYPE_CHECKING:
    from zoo.batch import Batch

__all__ = [
    "HOOK_API_VERSION",
    "ArchitecturePlugin",
    "Batch",
    "CausalLM",
    "Claim",
    "ConfigReader",
    "Detection",
    "LoadOptions",
    "ModelSource",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    if name == "Batch":
        from zoo.batch import Batch  # imports torch

        return Batch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
