"""The pre-tokenisers of byte-level BPE vocabularies, by the name that a GGUF file gives in `tokenizer.ggml.pre`.

A GGUF file holds only the name. The patterns are in `pretokenizers.json`, as the makers of the models published them.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from zoo.errors import TokenizerError


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut into pieces before merging.

    `patterns` are regular expressions (Oniguruma syntax) applied in turn: the matches and what lies between them become
    pieces. `ignore_merges`: a piece that is a token stays whole. `add_bos`: BOS comes first unless the file says
    otherwise. `nfc`: text is brought to Unicode's composed form first.
    """

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


class PreTokenizers:
    """The table of known pre-tokenisers, with those that a plugin adds (`extra`: name -> patterns)."""

    def __init__(self, extra: Mapping[str, Sequence[str]]) -> None:
        self._table: dict[str, Any] = json.loads(files(__package__).joinpath("pretokenizers.json").read_bytes())
        self._extra = extra

    def names(self) -> list[str]:
        """Every name that `find` accepts, sorted."""
        return sorted({*self._table["split"], *self._table["same_as"], *self._extra})

    def find(self, name: str, *, where: str) -> PreTokenizer:
        """The pre-tokeniser of that name; `where` names file and key in the TokenizerError for an unknown one."""
        if name in self._extra:
            return PreTokenizer(name, tuple(self._extra[name]))
        patterns = self._table["split"].get(self._table["same_as"].get(name, name))
        if patterns is None:
            raise TokenizerError(
                f"{where} names the unknown pre-tokeniser {name!r}",
                remedy=f"update zoo or the model's plugin, or choose one by --set tokenizer.ggml.pre=NAME from "
                f"{', '.join(self.names())}",
            )
        flags = {flag: name in self._table[flag] for flag in ("ignore_merges", "add_bos", "nfc")}
        return PreTokenizer(name, tuple(patterns), **flags)

    def guess(self, tokens: Container[str], size: int) -> str:
        """The name that fits a vocabulary of `size` tokens, for files that give none; "default" if nothing does."""
        for rule in self._table["guess"]:
            if rule["least"] <= size <= rule["most"] and all(token in tokens for token in rule["tokens"]):
                return str(rule["pre"])
        return "default"
