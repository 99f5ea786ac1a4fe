"""Every error that zoo raises on purpose, in one tree.

    ZooError
    ├── UsageError            an option or argument is wrong (exit code 2)
    ├── FormatError           a file is damaged or breaks its format; says the file and the byte
    │   ├── GGUFError
    │   └── SafetensorsError
    ├── SourceError           a path holds nothing that zoo opens (missing, pickle, GPTQ, ...)
    ├── ConfigError           a configuration key is missing, unknown or contradicts another
    ├── WeightError           a tensor is missing, unmapped, of a wrong shape or of an unknown type
    ├── TokenizerError        the vocabulary cannot be built, or an id lies outside it
    ├── TemplateError         a chat template is broken, refuses the conversation or runs too long
    ├── PluginError           no plugin, two plugins, or a broken plugin for a model
    ├── ContextLengthError    a prompt does not fit the context
    ├── CapacityError         memory does not hold what was asked for
    ├── DeviceError           the asked device or dtype is not there
    └── HubError              a download failed or a name is not in any catalogue

Each message says what was found and where; `remedy` says what to do about it.
"""

from __future__ import annotations

from pathlib import Path


class ZooError(Exception):
    """Base of all errors of zoo. `message` says what is wrong, `remedy` what to do; `str()` joins them in one line."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class UsageError(ZooError):
    """An option, argument or parameter has a value that cannot be used."""


class FormatError(ZooError):
    """A file breaks its format. `path` is the file, `position` the byte where reading stopped (None: not one byte)."""

    def __init__(self, message: str, *, path: Path | str, position: int | None = None, remedy: str = "") -> None:
        where = f"{path}" if position is None else f"{path}, byte {position}"
        super().__init__(f"{where}: {message}", remedy=remedy)
        self.path = Path(path)
        self.position = position


class GGUFError(FormatError):
    """A GGUF file breaks the format."""


class SafetensorsError(FormatError):
    """A safetensors file or its index breaks the format."""


class SourceError(ZooError):
    """A path holds no model, or one in a form that zoo does not open."""


class ConfigError(ZooError):
    """A configuration or metadata key is missing, has a wrong value or contradicts another."""


class WeightError(ZooError):
    """A tensor is missing, unmapped, misshapen, or of a type nobody can compute with."""


class TokenizerError(ZooError):
    """A tokenizer cannot be built from what the model ships, or was given an id outside its vocabulary."""


class TemplateError(ZooError):
    """A chat template does not compile, refuses the conversation, or exceeds its limits."""


class PluginError(ZooError):
    """No plugin knows the model, several claim it, or the one asked for is broken."""


class ContextLengthError(ZooError):
    """A prompt is longer than the context. `tokens` and `context` are both counts of tokens."""

    def __init__(self, message: str, *, tokens: int, context: int, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.tokens = tokens
        self.context = context


class CapacityError(ZooError):
    """The memory of the device does not hold what was asked for."""


class DeviceError(ZooError):
    """The device or compute type asked for is not available here."""


class HubError(ZooError):
    """A model cannot be fetched: unknown name, no network, wrong checksum, no space."""
