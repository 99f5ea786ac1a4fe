"""Text around a Qwen: chat templates in the style of the releases, reasoning, and the tokenizer of R1-Distill-Qwen.

The templates are short ones that make the same choices: Qwen2.5 writes a system prompt of its own and calls tools as
Hermes does, Qwen3 drops the thoughts of earlier turns and closes the thought at once where thinking is off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from oracle.checkpoints import tiny_tokenizer
from oracle.gguf_writer import write
from oracle.llamacpp import LlamaCpp
from oracle.qwen_checkpoints import save_qwen
from oracle.qwen_gguf import qwen_contents
from plugins.parity import loaded
from zoo import LLM, SamplingParams
from zoo.chat import starts_inside
from zoo_qwen.plugin import plugin

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{% else %}{{- 'You are helpful.' }}{% endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{% endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first)
        or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{% endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' + tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{% endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" %}{% set ns.searching = false %}{% set ns.last = index %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}{% set thought = '' %}
        {%- if message.reasoning_content is string %}{% set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

QWQ = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{{- '<|im_start|>assistant\n<think>\n' }}"""

TEMPLATES = {"qwen2.5": QWEN25, "qwen3": QWEN3, "qwq": QWQ}

_TOOL = {
    "type": "function",
    "function": {
        "name": "weather", "description": "Wetter <heute>", "parameters": {"type": "object", "properties": {}}
    },
}  # fmt: skip
_CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}}}
_USER = {"role": "user", "content": "Wie ist das Wetter?"}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "no system": {"messages": [_USER]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, _USER]},
    "turns": {"messages": [_USER, {"role": "assistant", "content": "Good."}, {"role": "user", "content": "Sure?"}]},
    "no thinking": {"messages": [_USER], "enable_thinking": False},
    "thinking": {"messages": [_USER], "enable_thinking": True},
    "old thought": {
        "messages": [
            _USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGood."}, {"role": "user", "content": "?"}
        ]
    },
    "thought field": {
        "messages": [_USER, {"role": "assistant", "content": "Good.", "reasoning_content": "hm"}],
        "add_generation_prompt": False,
    },
    "tools": {"messages": [{"role": "system", "content": "Be brief."}, _USER], "tools": [_TOOL, _TOOL]},
    "tool loop": {
        "messages": [
            _USER,
            {"role": "assistant", "content": "One moment.", "tool_calls": [_CALL, _CALL]},
            {"role": "tool", "content": "21"},
            {"role": "tool", "content": "22"},
        ],
        "tools": [_TOOL],
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, Any]]:
    """A Qwen with a chat template in zoo, and its tokenizer in transformers."""
    path = tmp_path_factory.mktemp("chat")
    save_qwen(path, "qwen3", max_position_embeddings=4096, num_hidden_layers=1, vocab_size=324)
    tokenizer = chat_tokenizer()
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"chat_template": TEMPLATES[request.param], "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **config)
    with loaded(path) as llm:
        yield llm, theirs


def chat_tokenizer() -> Tokenizer:
    """The tiny vocabulary with the tokens of Qwen's chats; as there, those of thoughts are no control tokens."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True)])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>", "<tool_call>")])
    return tokenizer


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_prompts_and_their_ids_are_those_of_transformers(model: tuple[LLM, Any], conversation: str) -> None:
    llm, theirs = model
    given = {"add_generation_prompt": True, **CONVERSATIONS[conversation]}
    messages = given.pop("messages")
    wanted = theirs.apply_chat_template(messages, tokenize=False, **given)
    segments = llm.render(messages, **given)
    assert "".join(text for text, _ in segments) == wanted
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **given)
    assert llm.tokenizer.encode_segments(segments) == ids


def test_what_the_templates_do() -> None:
    """The choices above are in these templates: or a comparison of two renderings would show nothing."""

    def text(family: str, conversation: str) -> str:
        given = {"add_generation_prompt": True, **CONVERSATIONS[conversation]}
        made = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer(), chat_template=TEMPLATES[family])
        rendered: str = made.apply_chat_template(given.pop("messages"), tokenize=False, **given)
        return rendered

    assert text("qwen2.5", "no system").startswith("<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user")
    assert text("qwen3", "no system").startswith("<|im_start|>user\n")
    assert text("qwen3", "no thinking").endswith("assistant\n<think>\n\n</think>\n\n")
    assert "hm" not in text("qwen3", "old thought")
    assert "<think>\nhm\n</think>\n\nGood." in text("qwen3", "thought field")
    for family in ("qwen2.5", "qwen3"):
        loop = text(family, "tool loop")
        assert loop.count('<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}}') == 2
        assert "user\n<tool_response>\n21\n</tool_response>\n<tool_response>\n22\n</tool_response><|im_end|>" in loop


def test_thoughts_and_tool_calls_of_the_family() -> None:
    assert plugin.reasoning_tags == ("<think>", "</think>")
    assert plugin.tool_call_format == "hermes"
    assert starts_inside("<|im_start|>assistant\n<think>\n", *plugin.reasoning_tags)
    assert not starts_inside("<|im_start|>assistant\n<think>\n\n</think>\n\n", *plugin.reasoning_tags)


def test_a_chat_ends_at_the_end_of_the_turn(model: tuple[LLM, Any]) -> None:
    llm, _ = model
    end = llm.tokenizer.id("<|im_end|>")
    assert end in llm._stop_ids
    answer = llm.chat([_USER], SamplingParams(max_tokens=3, temperature=0))
    assert answer.finish_reason in ("length", "stop")
    assert end not in answer.token_ids


# --- R1-Distill-Qwen ---


@pytest.mark.parametrize("add_bos", [True, False])
def test_the_tokenizer_of_r1_distill_qwen(tmp_path: Path, add_bos: bool) -> None:
    """Qwen's patterns under another name; the beginning of sequence, which Qwen has not, comes where the file says."""
    contents = qwen_contents(save_qwen(tmp_path / "hf", "qwen2"), pre="deepseek-r1-qwen")
    contents.keys["tokenizer.ggml.add_bos_token"] = add_bos
    (path,) = write(tmp_path / "model.gguf", contents)
    texts = ["the theory 12345 2024", " isn't\n\n  it: 3.14159, 99 dogs\n", ""]
    with LlamaCpp(path, vocab_only=True) as theirs, loaded(path) as llm:
        assert llm.info.plugin == "qwen"
        for text in texts:
            assert llm.tokenizer.encode(text) == theirs.tokenize(text, add_special=True)
        assert (llm.tokenizer.encode("the")[0] == 0) is add_bos
