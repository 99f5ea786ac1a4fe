"""Typed reading of a model's configuration, config.json or GGUF metadata, with one set of checks. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoo.errors import ConfigError
from zoo.source import ModelSource

_ABSENT: Any = object()

# Far above any model, far below what would exhaust memory while modules are built.
_MAX_LAYERS = 4096


class ConfigReader:
    """Reads keys of one source; every error names the file and the key."""

    def __init__(self, source: ModelSource, where: str, lookup: Callable[[str], Any], token_embedding: str) -> None:
        self.source = source
        self.where = where
        self._lookup = lookup
        self._token_embedding = token_embedding

    @classmethod
    def hf(cls, source: ModelSource) -> ConfigReader:
        """Keys of config.json or params.json, with dots into nested objects; null counts as absent."""

        def lookup(key: str) -> Any:
            value: Any = source.config
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            return value

        return cls(source, f"{source.path}/{source.config_name}", lookup, "model.embed_tokens.weight")

    @classmethod
    def gguf(cls, source: ModelSource) -> ConfigReader:
        """GGUF metadata; a key that starts with "." gets the architecture in front."""
        return cls(source, str(source.path), lambda key: source.key(key, None), "token_embd.weight")

    def get(self, key: str, default: Any = _ABSENT) -> Any:
        """The raw value. Raises ConfigError if it is absent and there is no default."""
        value = self._lookup(key)
        if value is not None:
            return value
        if default is _ABSENT:
            raise ConfigError(
                f"{self.where}: {self._spelling(key)} is missing",
                remedy=f"give it with --set {self._spelling(key)}=VALUE if you know it",
            )
        return default

    def size(self, key: str, default: Any = _ABSENT) -> int:
        """A positive integer."""
        value = self._one(key, self.get(key, default))
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
            raise self._bad(key, value, "a positive integer")
        return value

    def count(self, key: str, default: Any = _ABSENT) -> int:
        """An integer of 0 or more."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
            raise self._bad(key, value, "an integer of 0 or more")
        return value

    def layers(self, key: str) -> int:
        """A number of layers."""
        value = self.size(key)
        if value > _MAX_LAYERS:
            raise self._bad(key, value, f"at most {_MAX_LAYERS}")
        return value

    def number(self, key: str, default: Any = _ABSENT) -> float:
        """A positive, finite number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self._bad(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: Any = _ABSENT) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self._bad(key, value, "true or false")
        return value

    def require(self, key: str, *allowed: Any, default: Any = _ABSENT) -> Any:
        """One of the values that this architecture can run."""
        value = self.get(key, default)
        if value not in allowed:
            raise self._bad(key, value, f"{' or '.join(map(repr, allowed))}, which is all this plugin runs")
        return value

    def heads(self, heads_key: str, kv_heads_key: str) -> tuple[int, int]:
        """Attention heads and key-value heads, the second dividing the first (absent: equal)."""
        heads = self.size(heads_key)
        kv_heads = self._one(kv_heads_key, self.get(kv_heads_key, heads))
        if isinstance(kv_heads, bool) or not isinstance(kv_heads, int) or not 0 < kv_heads <= heads or heads % kv_heads:
            raise self._bad(kv_heads_key, kv_heads, f"a divisor of {self._spelling(heads_key)} = {heads}")
        return heads, kv_heads

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids, given as one integer or a list; absent: none."""
        value = self.get(key, ())
        values: Sequence[Any] = (value,) if isinstance(value, int) else value
        if not isinstance(values, list | tuple) or any(
            isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in values
        ):
            raise self._bad(key, value, "a token id or a list of them")
        return tuple(values)

    def vocab_size(self) -> int:
        """Rows of the token embedding: what the file holds, whatever its metadata say."""
        info = self.source.tensors.get(self._token_embedding)
        if info is None or len(info.shape) != 2:
            raise ConfigError(
                f"{self.where}: there is no tensor {self._token_embedding}", remedy="the file is incomplete"
            )
        return info.shape[0]

    def has(self, *names: str) -> bool:
        """Whether the source holds any of these tensors."""
        return any(name in self.source.tensors for name in names)

    def _one(self, key: str, value: Any) -> Any:
        """The value that a GGUF gives once per layer, where all are equal; any other value as it is."""
        if not key.startswith(".") or not isinstance(value, Sequence) or isinstance(value, str):
            return value
        return value[0] if len(value) == self._lookup(".block_count") and len(set(value)) == 1 else value

    def _spelling(self, key: str) -> str:
        return f"{self.source.architectures[0]}{key}" if key.startswith(".") else key

    def _bad(self, key: str, value: Any, wanted: str) -> ConfigError:
        return ConfigError(f"{self.where}: {self._spelling(key)} is {value!r}", remedy=f"it must be {wanted}")
