"""The hook contract: specifications, markers and the types that hooks exchange. Imports no torch."""

from zoo.hooks.spec import HOOKS, PROJECT, ModelPlugin, hookimpl, hookspec
from zoo.hooks.types import HOOK_API_VERSION, CausalLM, Detection, LoadOptions

__all__ = [
    "HOOKS",
    "HOOK_API_VERSION",
    "PROJECT",
    "CausalLM",
    "Detection",
    "LoadOptions",
    "ModelPlugin",
    "hookimpl",
    "hookspec",
]
