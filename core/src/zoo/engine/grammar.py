"""Answers of a given form, by llguidance: JSON schemas and Lark grammars as constraints on tokens. No torch."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import llguidance

from zoo.errors import UsageError
from zoo.tokenizer import Tokenizer

_LONGEST_MESSAGE = 500


# Between the parts of a JSON text. Without a bound, a small model may go on with spaces for ever.
_SPACE = r"[ \n\t\r]{0,16}"
_START = re.compile(r"^start[ \t]*:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Thought:
    """What may stand before an answer of a given form: `open` says that the prompt has opened it already."""

    opening: str
    closing: str
    open: bool


class GrammarCompiler:
    """Compiles grammars for one model; any thread may ask.

    `vocab_size`: columns of the logits; `stop_ids`: what ends an answer, allowed where the grammar may end.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_ids = sorted(id for id in stop_ids if 0 <= id < vocab_size)
        self._lock = threading.Lock()
        self._compiled: llguidance.LLTokenizer | None = None
        # Bounds on what a grammar from outside may cost: tens of milliseconds to compile, a few per token.
        self._limits = llguidance.LLParserLimits(
            max_grammar_size=100_000, max_lexer_states=50_000, max_items_in_row=1000, verbose_errors=False
        )

    def json_schema(self, schema: Mapping[str, Any], thought: Thought | None = None) -> Grammar:
        """JSON text of a schema. Raises UsageError for a schema that cannot be compiled."""
        options = {**schema, "x-guidance": {"whitespace_pattern": _SPACE}}
        return self.lark(f"start: answer\nanswer: %json {json.dumps(options)}", thought)

    def lark(self, grammar: str, thought: Thought | None = None) -> Grammar:
        """What a grammar in llguidance's Lark allows, after a thought in any words where `thought` is given.

        Raises UsageError for a grammar that cannot be compiled.
        """
        if thought is not None:
            grammar = self._after(thought, grammar)
        matcher = llguidance.LLMatcher(
            self._ll_tokenizer(), llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0, limits=self._limits
        )
        if matcher.is_error():
            raise UsageError(
                f"the grammar cannot be used: {_short(matcher.get_error())}", remedy="correct or simplify it"
            )
        return Grammar(matcher)

    def _after(self, thought: Thought, grammar: str) -> str:
        renamed, count = _START.subn("zoo_answer:", grammar)
        if not count:
            raise UsageError("the grammar has no rule `start:`", remedy="add one")
        close = self._tokenizer.control_tokens.get(thought.closing)
        if close is None:  # spelled in several tokens, or in one that text may spell
            words = f"zoo_words[suffix={json.dumps(thought.closing)}]: /(?s:.*)/"
            whole = "zoo_words"
        else:
            words, whole = "zoo_words: /(?s:.*)/", f"zoo_words <[{close}]>"
        if not thought.open:
            opening = self._tokenizer.control_tokens.get(thought.opening)
            whole = f"({json.dumps(thought.opening) if opening is None else f'<[{opening}]>'} {whole})?"
        return f"start: {whole} zoo_gap zoo_answer\n{words}\nzoo_gap: /{_SPACE}/\n{renamed}"

    def _ll_tokenizer(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._compiled is None:
                wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size, self._stop_ids))
                self._compiled = llguidance.LLTokenizer(wrapper, eos_token=self._stop_ids)
            return self._compiled


class Grammar:
    """The state of one answer in its grammar: a `Constraint`."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def mask(self) -> bytes:
        """One bit per token id: whether it may come next. Raises UsageError where the grammar costs too much."""
        bits = self._matcher.compute_bitmask()
        self._check()
        return bits

    def accept(self, token_id: int) -> None:
        """Take a token. Raises UsageError for one that may not come."""
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing more can come."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the grammar failed: {_short(self._matcher.get_error())}", remedy="simplify it")


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: list[int]) -> None:
        if not stop_ids:
            raise UsageError("the model has no end token, which a grammar needs", remedy="answer without one")
        self._tokenizer = tokenizer
        self.eos_token_id = stop_ids[0]
        self.bos_token_id = tokenizer.bos_id
        known = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [tokenizer.piece(id) for id in range(known)] + [b""] * (vocab_size - known)
        self.special_token_ids = sorted({*tokenizer.control_tokens.values(), *stop_ids} & set(range(vocab_size)))

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, add_special=False)


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + "…"
