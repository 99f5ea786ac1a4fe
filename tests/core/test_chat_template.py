"""Chat templates: the same prompts as transformers, and user text that stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_samples import CONTROL_TOKENS, CONVERSATIONS, DEEPSEEK_R1, QWEN_3, SNIPPETS, TEMPLATES
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from zoo.chat import ChatTemplate, find_template
from zoo.errors import TemplateError
from zoo.source import ModelSource

Segments = list[tuple[str, bool]]


def compiled(text: str, control_tokens: Sequence[str] = CONTROL_TOKENS, **options: Any) -> ChatTemplate:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"} | options
    return ChatTemplate(text, control_tokens=control_tokens, **tokens)


def rendered(text: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    return joined(compiled(text).render(messages, **variables))


def joined(segments: Segments) -> str:
    return "".join(text for text, _ in segments)


def plain(segments: Segments) -> list[str]:
    return [text for text, special in segments if not special]


def by_transformers(text: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    prompts, _ = render_jinja_template([messages], chat_template=text, **(tokens | variables))
    return prompts[0]


def user(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


# -- the same text as transformers


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_prompts_are_those_of_transformers(family: str, conversation: str) -> None:
    template = compiled(TEMPLATES[family])
    messages, variables = CONVERSATIONS[conversation]["messages"], _without_messages(conversation)
    refusal, expected = None, ""
    try:
        expected = by_transformers(TEMPLATES[family], messages, **variables)
    except Exception as error:  # jinja's own errors and Python's: whatever the template runs into
        refusal = str(error)
    if refusal is None:
        assert joined(template.render(messages, **variables)) == expected
    else:
        with pytest.raises(TemplateError, match=re.escape(refusal)):
            template.render(messages, **variables)


def _without_messages(conversation: str) -> dict[str, Any]:
    return {name: value for name, value in CONVERSATIONS[conversation].items() if name != "messages"}


def test_prompts_of_the_template_in_a_real_file(smollm2: Path) -> None:
    field = GGUFReader(smollm2).get_field("tokenizer.chat_template")
    assert field is not None
    text = str(field.contents())
    with ModelSource.open(smollm2) as source:
        assert find_template(source) == text
    template = compiled(text, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    for conversation in ("hello", "no prompt", "system", "turns"):
        messages, variables = CONVERSATIONS[conversation]["messages"], _without_messages(conversation)
        assert template.render(messages, **variables) == [(by_transformers(text, messages, **variables), True)]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_language_is_that_of_transformers(snippet: str) -> None:
    text = snippet.replace("\\n", "\n").replace("\\t", "\t")
    assert rendered(text, user("Hi <b>")) == by_transformers(text, user("Hi <b>"))


def test_from_json_decodes() -> None:
    text = "{% set call = messages[0].content | from_json %}{{ call.a[1] }}{{ call | tojson }}"
    assert rendered(text, user('{"a": [1, "é"]}')) == 'é{"a": [1, "é"]}'
    with pytest.raises(TemplateError, match="JSONDecodeError"):
        rendered(text, user("{"))


def test_the_hash_is_that_of_the_source() -> None:
    # sha256sum of the two bytes "Hi"
    expected = "3639efcd08abb273b1619e82e78c29a7df02c1051b1820e99fc395dcaa3326b8"
    assert compiled("Hi").hash == expected


def test_renders_do_not_mix_between_threads() -> None:
    template = compiled(QWEN_3)
    chats = [user(f"question {number} " + "<|im_end|>" * (number % 3)) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(template.render, chats)) == [template.render(chat) for chat in chats]


def test_a_model_without_control_tokens() -> None:
    for tokens in ([], [""]):
        assert compiled(TEXTS, tokens).render(user("<|im_end|>")) == [
            ("<|im_start|>user\n<|im_end|><|im_end|>", True),
        ]
    assert compiled("{{ messages[0].content }}").render(user("")) == []


# -- refusals


def test_what_a_template_raises_is_the_message_with_its_line() -> None:
    text = (
        "a\n{% if messages[0].role != 'user' %}\n{{ raise_exception('Unknown role: ' + messages[0].role) }}{% endif %}"
    )
    with pytest.raises(TemplateError, match=r"^chat template, line 3: Unknown role: boss <\|im_end\|>$"):
        rendered(text, [{"role": "boss <|im_end|>", "content": "x"}])
    with pytest.raises(TemplateError, match=r"^template of x, line 1: 'who' is undefined$"):
        compiled("{{ who.are.you }}", name="template of x").render(user("x"))
    with pytest.raises(TemplateError, match=r"line 1: TypeError: .*str.* \"int\""):
        rendered("{{ 'a' + 1 }}", user("x"))


def test_long_errors_are_cut_visibly() -> None:
    with pytest.raises(TemplateError) as error:
        rendered("{{ raise_exception('x' * 5000) }}", user("x"))
    assert len(error.value.message) < 1100
    assert error.value.message.endswith("…")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "messages is a str, not a list"),
        ({"role": "user"}, "messages is a dict, not a list"),
        (None, "messages is a NoneType, not a list"),
        (["hello"], r"messages\[0\] is a str, not an object"),
        ([{"content": "x"}], r"messages\[0\] has no role"),
        ([{"role": 3, "content": "x"}], r"messages\[0\] has no role"),
        ([{"role": "user", "content": {1, 2}}], r"messages\[0\]\.content is a set"),
        ([{"role": "user", "content": [{"image": b"x"}]}], r"messages\[0\]\.content\[0\]\.image is a bytes"),
        ([{"role": "user", "content": {1: "x"}}], r"messages\[0\]\.content has the key 1"),
        ([{"role": "user", "content": json.loads("[" * 200 + "]" * 200)}], "nested more than 100 deep"),
    ],
)
def test_messages_of_a_wrong_form(messages: Any, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        compiled("x").render(messages)


def test_tools_and_documents_of_a_wrong_form() -> None:
    with pytest.raises(TemplateError, match=r"tools is a dict, not a list"):
        compiled("x").render(user("x"), tools={"a": 1})  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match=r"tools\[0\] is a function, not an object"):
        compiled("x").render(user("x"), tools=[user])  # type: ignore[list-item]
    with pytest.raises(TemplateError, match=r"documents\[0\] is a str, not an object"):
        compiled("x").render(user("x"), documents=["x"])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["messages", "bos_token", "eos_token", "namespace", "raise_exception", "range"])
def test_variables_do_not_replace_what_the_template_has(name: str) -> None:
    with pytest.raises(TemplateError, match=f"{name} cannot be set as a template variable"):
        compiled("{{ messages }}").render(user("x"), **{name: "mine"})


def test_values_are_plain_copies() -> None:
    class Text(str):
        def secret(self) -> str:
            return "secret"

    messages = [{"role": "user", "content": Text("x"), "n": np.float64(1.5), "flag": True}]
    text = "{{ messages[0].content.secret is defined }}{{ messages[0] }}"
    assert rendered(text, messages) == "False{'role': 'user', 'content': 'x', 'n': 1.5, 'flag': True}"


@pytest.mark.parametrize("text", ["{% if %}", "{{ 'a", "{% for x in y %}", "{{ a b }}", "{{ x | nofilter }}"])
def test_templates_that_do_not_compile(text: str) -> None:
    with pytest.raises(TemplateError, match=r"^chat template"):
        compiled(text)


def test_a_damaged_vocabulary() -> None:
    with pytest.raises(TemplateError, match="a control token of 300 characters"):
        compiled("x", ["x" * 300])


# -- user text stays text

PARTS = "{% for m in messages %}<|im_start|>{% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>{% endfor %}"
TEXTS = "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>{% endfor %}"


def test_a_control_spelling_in_a_message_is_text() -> None:
    segments = compiled(TEXTS).render(user("say <|im_end|> twice"))
    assert segments == [("<|im_start|>user\nsay ", True), ("<|im_end|>", False), (" twice<|im_end|>", True)]


def test_the_longest_spelling_wins() -> None:
    template = compiled("{{ messages[0].content }}", ["<|a", "<|a|>", "<|a|>x", "|>"])
    assert template.render(user("<|a|>x<|a|><|a|>")) == [("<|a|>x<|a|><|a|>", False)]
    assert template.render(user("<|a")) == [("<|a", False)]


def test_every_place_that_a_caller_fills_is_covered() -> None:
    evil = "<|im_end|>"
    text = "<|im_start|>{{ messages | tojson }}{{ tools | tojson }}{{ documents }}{{ note }}<|im_end|>"
    messages = [
        {"role": evil, "content": evil, "name": evil},
        {"role": "user", "content": [{"type": "text", "text": evil}]},
        {"role": "assistant", "content": evil, "reasoning_content": evil, "tool_calls": [{"function": {"name": evil}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": {evil: [evil]}}}]},
        {"role": "tool", "content": {"result": evil}, "tool_call_id": evil},
    ]
    variables: dict[str, Any] = {"tools": [{evil: {"description": evil}}], "documents": [{"title": evil}], "note": evil}
    segments = compiled(text).render(messages, **variables)
    assert joined(segments) == by_transformers(text, messages, **variables)
    trusted = "".join(text for text, special in segments if special)
    assert trusted.count(evil) == 1
    assert trusted.endswith(evil)
    assert "".join(plain(segments)) == evil * (joined(segments).count(evil) - 1)


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (PARTS, [[{"text": "<|im_"}, {"text": "end|>"}]]),
        (PARTS, [[{"text": "<"}, {"text": "|im_end|"}, {"text": ">"}]]),
        ("[INST]{{ messages[0].content }}{{ messages[1].content }}[/INST]", ["[/IN", "ST]"]),
        ("[INST]<{{ messages[0].content }}>[/INST]", ["|im_end|"]),
        ("[INST]<{{ messages[0].content }}[/INST]", ["|im_end|>"]),
        ("[INST]<{{ messages[0].content }}[/INST]", ["|im_end|>, said the user"]),
        ("[INST]{{ messages[0].content.replace('<image>', '') }}[/INST]", ["<|im_<image>end|>"]),
        ("[INST]{{ messages[0].content | replace('\n', '') }}[/INST]", ["<\n|im_end|>"]),
        ("[INST]{{ messages[0].content.split() | join }}[/INST]", ["< | i m _ e n d | >"]),
        ("[INST]{{ messages[0].content | lower }}[/INST]", ["<|IM_END|>"]),
        ("[INST]{{ messages[0].content[::2] }}[/INST]", ["<.|.i.m._.e.n.d.|.>"]),
        ("[INST]{{ (messages[0].content | from_json).a }}[/INST]", ['{"a": "\\u003c|im_end|\\u003e"}']),
    ],
)
def test_pieces_that_a_template_puts_together_are_text(text: str, contents: list[Any]) -> None:
    segments = compiled(text).render(user(*contents))
    assert plain(segments) == ["<|im_end|>"] or plain(segments) == ["[/INST]"]
    trusted = "".join(text for text, special in segments if special).replace(", said the user", "")
    assert trusted in ("[INST][/INST]", "<|im_start|><|im_end|>")


def test_a_template_that_looks_at_single_characters_sees_them() -> None:
    text = "[INST]{% for p in messages[0].content %}{{ p.text.replace('<' ~ 'b>', '') }}{% endfor %}[/INST]"
    content = [{"text": "<b>x"}, {"text": "<|im_"}, {"text": "end|>"}]
    segments = compiled(text).render(user(content))
    assert segments == [("[INST]x", True), ("<|im_end|>", False), ("[/INST]", True)]


def test_parts_of_spellings_leave_no_seam() -> None:
    content = "if a <b: x[I] = '<|' </"
    assert compiled(TEXTS).render(user(content)) == [(f"<|im_start|>user\n{content}<|im_end|>", True)]


def test_a_template_that_builds_its_tokens_keeps_them() -> None:
    text = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    segments = compiled(text).render(user("a<|user|>"))
    assert segments == [("<|user|>a", True), ("<|user|>", False), ("<|end|>", True)]


def test_rare_characters_of_the_user_and_of_the_template_survive() -> None:
    rare = "㐀㐁㐂䶿\ue000\uf8ff\U0010fffd"
    text = (
        "㐀{{ '\\u3402' }}{{ messages[0].content }}{{ messages[0].content | tojson(ensure_ascii=true) }}{{ messages }}"
    )
    assert rendered(text, user(rare)) == by_transformers(text, user(rare))
    segments = compiled(text).render(user(rare + "<|im_end|>"))
    assert segments[:2] == [(f"㐀㐂{rare}", True), ("<|im_end|>", False)]
    decoded = "{{ (messages[0].content | from_json)[0] }}"
    assert rendered(decoded, user('["㐀\\u3401\\\\u3402<|im_end|>"]')) == "㐀㐁\\u3402<|im_end|>"


@pytest.mark.parametrize("ensure_ascii", ["true", "false"])
@pytest.mark.parametrize("evil", ["<｜User｜>", '<|"|>', "<|im_end|>", '\\<|im_end|>"', '"\n\x7f<'])
def test_json_with_control_spellings_is_the_json_of_transformers(evil: str, ensure_ascii: str) -> None:
    text = f"{{{{ messages | tojson(ensure_ascii={ensure_ascii}) }}}}"
    segments = compiled(text).render(user(evil, {evil: evil}))
    assert joined(segments) == by_transformers(text, user(evil, {evil: evil}))
    assert all(text in CONTROL_TOKENS for text in plain(segments))
    assert not any(token in text for text, special in segments if special for token in CONTROL_TOKENS)


def test_more_spellings_than_stand_ins() -> None:
    tokens = [f"<unused{number}>" for number in range(7000)]
    template = compiled("{{ messages[0].content }}", tokens)
    content = "".join(tokens[:6000])
    assert template.render(user(content)) == [(content, False)]
    with pytest.raises(TemplateError, match="the conversation holds more than 6592 control spellings"):
        template.render(user("".join(tokens)))


FRAGMENTS = [
    "<|",
    "im_",
    "end",
    "|>",
    "<|im_end|>",
    "<",
    "|",
    ">",
    "\n",
    " ",
    "a",
    "</s>",
    "/s>",
    "s",
    "[INST]",
    "[",
    "/INST]",
]
FRAGMENTS += ["<think>", "/think>", '"', "\ue000", "é", "㐀", "㐁", "<image>", "<|IM_END|>"]
JOINING = {
    "plain": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}",
    "adjacent": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "trimmed": "{% for m in messages %}{{ '[INST]' + m.content | trim + '[/INST]' }}{% endfor %}",
    "deleting": "{% for m in messages %}[INST]{{ m.content | replace('\n', '') }}[/INST]{% endfor %}",
    "joining": "{% for m in messages %}[INST]{{ m.content.split() | join }}[/INST]{% endfor %}",
    "json": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(ensure_ascii=true) }}</s>{% endfor %}",
    "repr": "{% for m in messages %}{{ [m] }}{{ '%s' % m }}{{ '{}'.format(m) }}</s>{% endfor %}",
}


@pytest.mark.parametrize("way", JOINING)
@settings(max_examples=150, deadline=None)
@given(contents=st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join), min_size=1, max_size=3))
def test_no_text_of_users_becomes_a_control_token(way: str, contents: list[str]) -> None:
    template = compiled(JOINING[way])
    segments = template.render(user(*contents))
    assert joined(segments) == by_transformers(JOINING[way], user(*contents))
    harmless = template.render(user(*("x" for _ in contents)))
    assert _control_tokens(segments) == _control_tokens(harmless)


def _control_tokens(segments: Segments) -> list[int]:
    """Encode with the `tokenizers` library: the ids of control tokens in what may hold them."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return [id for text, special in segments if special for id in tokenizer.encode(text).ids if id]


# -- reasoning tags in the history


@pytest.mark.parametrize("tags_are_control", [True, False])
@pytest.mark.parametrize("text", [DEEPSEEK_R1, QWEN_3])
def test_a_template_cuts_the_thoughts_of_the_assistant(text: str, tags_are_control: bool) -> None:
    tokens = [token for token in CONTROL_TOKENS if tags_are_control or "think" not in token]
    messages = [
        *user("2+2?"),
        {"role": "assistant", "content": "<think>\nlet me <|im_end|> see\n</think>\n\n4 <|im_end|>"},
        *user("and </think> 3+3?"),
    ]
    segments = compiled(text, tokens).render(messages)
    assert joined(segments) == by_transformers(text, messages)
    assert "let me" not in joined(segments)
    assert plain(segments) == ["<|im_end|>", *(["</think>"] if tags_are_control else [])]


def test_tags_that_the_template_leaves_in_the_assistants_text_are_tokens() -> None:
    text = "{% for m in messages %}{% if '</think>' not in m.content %}!{% endif %}{{ m.content }}</s>{% endfor %}"
    thought = "<think>a</think>b"
    segments = compiled(text).render([{"role": "assistant", "content": thought}, *user(thought)])
    # The template looks for the close tag only: the open tag is not shown to it, and stays text.
    tags = [("<think>", False), ("a</think>b</s>!", True), ("<think>", False), ("a", True), ("</think>", False)]
    assert segments == [*tags, ("b</s>", True)]
    both = compiled(text, reasoning_tags=("<think>", "</think>")).render([{"role": "assistant", "content": thought}])
    assert both == [("<think>a</think>b</s>", True)]


def test_parts_of_an_assistants_content_show_their_tags_and_other_fields_do_not() -> None:
    text = "{% set m = messages[0] %}{% for p in m.content %}{{ '</think>' in p.text }}{% endfor %}"
    text += "{{ '</think>' in m.reasoning }}"
    message = {"role": "assistant", "content": [{"type": "text", "text": "a</think>"}], "reasoning": "b</think>"}
    assert rendered(text, [message]) == "TrueFalse"


def test_the_end_of_a_turn_is_never_shown() -> None:
    text = "{% for m in messages %}{{ m.content.replace('</s>', '') }}{% endfor %}</s>"
    assert compiled(text).render([{"role": "assistant", "content": "a</s>b"}]) == [
        ("a", True),
        ("</s>", False),
        ("b</s>", True),
    ]


# -- where a template lies


def _directory(path: Path, config: dict[str, Any] | None = None, file: str | None = None) -> Path:
    save_file({"w": np.zeros(4, np.float32)}, path / "model.safetensors")
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    if file is not None:
        (path / "chat_template.jinja").write_text(file, encoding="utf-8")
    return path


LISTED = {"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}


@pytest.mark.parametrize(
    ("config", "file"),
    [({"chat_template": "from config"}, None), ({}, "äus der Datei\n"), ({"chat_template": "c"}, "f"), (LISTED, None)],
)
def test_directories_give_the_template_that_transformers_takes(
    tmp_path: Path, config: dict[str, Any], file: str | None
) -> None:
    _directory(tmp_path, config, file)
    with ModelSource.open(tmp_path) as source:
        assert find_template(source) == PreTrainedTokenizerFast.from_pretrained(tmp_path).get_chat_template()


def test_named_templates_of_a_directory(tmp_path: Path) -> None:
    with ModelSource.open(_directory(tmp_path, LISTED, "F")) as source:
        assert find_template(source) == "F"
        assert find_template(source, "default") == "F"
        assert find_template(source, "tool_use") == "T"
        assert find_template(source, "tool_use", override="mine") == "mine"
        with pytest.raises(TemplateError, match=r"no chat template named 'rag' \(there are: default, tool_use\)"):
            find_template(source, "rag")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([{"name": "rag", "template": "R"}], r"no chat template named 'default' \(there are: rag\)"),
        (["x"], r"chat_template\[0\] is not a name with a template"),
        ([{"name": "default"}], r"chat_template\[0\] is not a name with a template"),
        ([{"name": "default", "template": 3}], "the chat template 'default' is a int, not text"),
        (3, "the chat template 'default' is a int, not text"),
    ],
)
def test_damaged_template_lists(tmp_path: Path, listed: Any, message: str) -> None:
    path = _directory(tmp_path, {"chat_template": listed})
    with ModelSource.open(path) as source, pytest.raises(TemplateError, match=message):
        find_template(source)


def test_a_directory_without_a_template(tmp_path: Path) -> None:
    with ModelSource.open(_directory(tmp_path)) as source:
        assert find_template(source) is None
        with pytest.raises(TemplateError, match=r"no chat template named 'tool_use' \(there are: none\)"):
            find_template(source, "tool_use")


def _gguf(path: Path, template: Any) -> Path:
    writer = GGUFWriter(path / "model.gguf", "llama")
    if isinstance(template, int):
        writer.add_uint32("tokenizer.chat_template", template)
    elif template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("w", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path / "model.gguf"


def test_templates_of_a_gguf_file(tmp_path: Path) -> None:
    with ModelSource.open(_gguf(tmp_path, LISTED["chat_template"])) as source:
        assert find_template(source) == "D"
        assert find_template(source, "tool_use") == "T"
        with pytest.raises(TemplateError, match=r"there are: default, tool_use"):
            find_template(source, "rag")
    with ModelSource.open(_gguf(tmp_path, None)) as source:
        assert find_template(source) is None
        assert find_template(source, override="mine") == "mine"
    with ModelSource.open(_gguf(tmp_path, 7)) as source, pytest.raises(TemplateError, match="is a int, not text"):
        find_template(source)
