"""Grammars as constraints: what they let through is what jsonschema's validator accepts."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from oracle.checkpoints import llama_config, save_checkpoint
from zoo.engine.grammar import Grammar, GrammarCompiler, Thought
from zoo.errors import UsageError
from zoo.source import ModelSource
from zoo.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    save_checkpoint(path, llama_config(num_hidden_layers=1))
    return load_tokenizer(ModelSource.open(path))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + 5, {1})


def allowed(grammar: Grammar) -> set[int]:
    return set(np.unpackbits(np.frombuffer(grammar.mask(), np.uint8), bitorder="little").nonzero()[0].tolist())


def walk(grammar: Grammar, tokenizer: Tokenizer, seed: int, most: int = 400) -> str:
    """A random text that the grammar allows, to its end."""
    draw, ids = np.random.default_rng(seed), []
    while not grammar.finished:
        ids.append(int(draw.choice(sorted(allowed(grammar)))))
        if ids[-1] == 1:
            break
        grammar.accept(ids[-1])
        assert len(ids) < most, tokenizer.decode(ids)
    return tokenizer.decode(ids)


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer", "maximum": 999, "minimum": -5}}, "required": ["a"],
     "additionalProperties": False},
    {"type": "array", "items": {"enum": ["x", 1, None]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 4}]},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"v": {"const": 1}}, "required": ["v"],
     "additionalProperties": False}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_comes_out_is_valid(compiler: GrammarCompiler, tokenizer: Tokenizer, schema: dict[str, Any]) -> None:
    validator = jsonschema_rs.validator_for(schema)
    for seed in range(8):
        text = walk(compiler.json_schema(schema), tokenizer, seed)
        assert validator.is_valid(json.loads(text)), text


def test_ids_beyond_the_vocabulary_and_control_tokens_are_never_allowed(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.lark("start: /(?s:.*)/")
    ids = allowed(grammar)
    assert max(ids) < tokenizer.vocab_size
    assert ids & set(tokenizer.control_tokens.values()) == {1}


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("closing", ["</think>", "<|im_end|>"])  # spelled in pieces, and a control token
def test_an_answer_comes_after_any_thought(
    compiler: GrammarCompiler, tokenizer: Tokenizer, opened: bool, closing: str
) -> None:
    grammar = compiler.json_schema({"const": 12}, Thought("<think>", closing, opened))
    said = f"{'' if opened else '<think>'}so <b> 1 {{ é </thin{closing}\n\n12"
    for id in tokenizer.encode(said, add_special=False, parse_special=True):
        assert id in allowed(grammar), tokenizer.token(id)
        grammar.accept(id)
    assert grammar.finished
    if not opened:
        direct = compiler.json_schema({"const": 12}, Thought("<think>", closing, False))
        for id in tokenizer.encode("12", add_special=False):
            direct.accept(id)
        assert direct.finished


def test_a_grammar_of_ones_own_after_a_thought(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.lark('word: "yes"\nstart: word "!"', Thought("<think>", "</think>", True))
    for id in tokenizer.encode("hm</think>yes!", add_special=False):
        grammar.accept(id)
    assert grammar.finished


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("start: (", "cannot be used"),
        ("begin: /a/", "cannot be used"),
        ("start: nowhere", "nowhere"),
        ("start: /(/", "cannot be used"),
    ],
)
def test_bad_grammars(compiler: GrammarCompiler, grammar: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compiler.lark(grammar)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nonsense"}, {"$ref": "https://example.invalid/x"}, {"$ref": "#/nowhere"}, {"pattern": "("}, {"type": 5}],
)
def test_bad_schemas(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the grammar cannot be used"):
        compiler.json_schema(schema)


def test_a_token_that_may_not_come_is_refused(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.lark('start: "a"')
    with pytest.raises(UsageError, match="the grammar failed"):
        grammar.accept(tokenizer.encode("b", add_special=False)[0])


def test_without_an_end_token(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="no end token"):
        GrammarCompiler(tokenizer, 320, ()).lark('start: "a"')


@pytest.mark.parametrize(
    "grammar",
    [
        "start: /(a{1,30000}){1,30000}/",
        "start: /(.*a.{200}){20}/",
        "start: e\ne: e e | /[a-z]*/",
        "start: /(?s:.*)(a|b)*(ab|ba)*x/",
    ],
)
def test_an_expensive_grammar_ends_soon(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: str) -> None:
    started = time.process_time()
    with suppress(UsageError):
        state = compiler.lark(grammar)
        for id in tokenizer.encode("abab" * 8, add_special=False):
            state.mask()
            state.accept(id)
    assert time.process_time() - started < 3
