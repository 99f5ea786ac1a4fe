"""Text to token ids and back, from `tokenizer.json`, Mistral's `tekken.json` or the vocabulary inside a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from zoo.tokenizer.base import Tokenizer
from zoo.tokenizer.stream import TokenStream

if TYPE_CHECKING:
    from zoo.source import ModelSource

__all__ = ["TokenStream", "Tokenizer", "load_tokenizer"]


def load_tokenizer(source: ModelSource, extra_pre: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Tokenizer:
    """The tokenizer of a model. `extra_pre`: pre-tokenisers that a plugin adds, name -> patterns applied in turn.

    tokenizer.json comes before tekken.json. Raises TokenizerError when the model has none, or one that is damaged or
    unknown.
    """
    if source.format == "gguf":
        from zoo.tokenizer.gguf import load_gguf

        return load_gguf(source, extra_pre)
    from zoo.tokenizer.hf import FILE, load_hf
    from zoo.tokenizer.tekken import FILE as TEKKEN
    from zoo.tokenizer.tekken import load_tekken

    directory = source.directory
    if directory is not None and not (directory / FILE).is_file() and (directory / TEKKEN).is_file():
        return load_tekken(source)
    return load_hf(source)
