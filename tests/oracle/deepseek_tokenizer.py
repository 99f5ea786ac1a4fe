"""Small tokenizers and chat templates in the form of DeepSeek's, for both formats. Knows nothing of zoo.

The way of cutting text is written down as the tokenizer.json of DeepSeek-V3 and DeepSeek-LLM have it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
TOOLS = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁outputs▁end｜>",
)  # fmt: skip
THINK = ("<think>", "</think>")
CONTROL = (BOS, EOS, PAD)  # special in tokenizer.json; the others there are added, but not special
ADDED = (*CONTROL, USER, ASSISTANT, *TOOLS, *THINK)

_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
SPLITS = {
    "deepseek-v3": (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    ),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_LETTERS}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    ),
}

_CORPUS = (
    "The capital of France is Paris, isn't it? 1234567 12345 2024-01-02 3.14159 and 1,000,000.\n\n",
    "def f(x: int) -> int:\n    if x != 0:\n\t\treturn x**2  # c\n\n\nfor(;;){a[i]+=b->c;}\r\n",
    "日本語のテキストとカタカナ、中文字符。한국어 텍스트 漢字ABC漢字123 你好，世界！",
    "Привет МИР ελληνικά naïve café Ünïcödé   three   spaces \t tabs",
    "let me think about that: two and two are four, so the answer is four. ",
)
SAMPLES = (
    *_CORPUS,
    "1 12 123 1234 12345 123456789 ٣٤٥ ½",
    "a\nb\n\nc\n\n\n d\n \ne\r\n\r\nf \n  \n\n\tg\n",
    "😀 👍🏽 👩‍👩‍👧 ✨text✨ “so” ‘it’ 「や」… ｆｕｌｌ　ｗｉｄｔｈ",
    "हिन्दी ภาษาไทย مرحبا שלום",
    "x<y>z {'a': [1, 2]} $5 ~/path/to/file.py https://e.org/?q=1&r=%20 _snake_case camelCase",
    "",
    " ",
    "   leading and trailing   ",
)


@cache
def _trained() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Tokens and merges, learnt without cutting: merges cross every border, so that ids tell how text is cut."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=640, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), max_token_length=8,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([text for text in _CORPUS for _ in range(3)], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return tuple(sorted(state["vocab"], key=state["vocab"].get)), tuple(tuple(merge) for merge in state["merges"])


def vocabulary() -> list[str]:
    """Tokens by id: the three special ones as in V3, ordinary ones, then what was added later."""
    return [*CONTROL, *_trained()[0], *ADDED[len(CONTROL) :]]


def library(pre: str = "deepseek-v3") -> Tokenizer:
    """The tokenizer as tokenizer.json holds it."""
    tokens, merges = vocabulary(), _trained()[1]
    plain = {token: id for id, token in enumerate(tokens) if token not in ADDED or token in CONTROL}
    tokenizer = Tokenizer(models.BPE(plain, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ADDED[len(CONTROL) :]])
    assert [tokenizer.token_to_id(token) for token in tokens] == list(range(len(tokens)))
    return tokenizer


def save_library(directory: Path, template: str | None, pre: str = "deepseek-v3") -> None:
    """tokenizer.json and tokenizer_config.json."""
    library(pre).save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {"add_bos_token": True, "add_eos_token": False, "bos_token": BOS, "eos_token": EOS}
    config |= {"pad_token": PAD, "tokenizer_class": "LlamaTokenizerFast", "clean_up_tokenization_spaces": False}
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def gguf_keys(template: str | None, pre: str = "deepseek-v3", *, think_is_control: bool = False) -> dict[str, Any]:
    """The same vocabulary as the converter writes it."""
    control = {*CONTROL, USER, ASSISTANT, *(THINK if think_is_control else ())}
    kinds = {token: TokenType.CONTROL if token in control else TokenType.USER_DEFINED for token in ADDED}
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocabulary(),
        "tokenizer.ggml.token_type": [int(kinds.get(token, TokenType.NORMAL)) for token in vocabulary()],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in _trained()[1]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
    return keys if template is None else {**keys, "tokenizer.chat_template": template}


# Written for these tests, in the manner of those that are published with the models.
_V2 = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}
    {%- elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

_HEAD = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=true, is_tool=false, system='') %}
{%- for message in messages if message['role'] == 'system' %}
    {%- set ns.system = ns.system + ('' if loop.first else '\\n\\n') + message['content'] %}
{%- endfor %}{{ bos_token }}{{ ns.system }}"""

_TOOL_TURNS = """
    {%- elif message['role'] == 'tool' %}
        {%- if not ns.is_tool %}{{ '<｜tool▁outputs▁begin｜>' }}{% endif %}{% set ns.is_tool = true %}
        {{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}"""

_V25 = (
    _HEAD
    + """
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}{{ '<｜Assistant｜>' + message['content'] + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""
)


def _r1(opening: str, cut: str) -> str:
    return (
        _HEAD
        + """
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{% set ns.is_tool = false %}{{ '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' and message['tool_calls'] %}
        {{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
        {%- for tool in message['tool_calls'] %}
            {{- '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] }}
            {{- '\\n```json\\n' + tool['function']['arguments'] | tojson + '\\n```<｜tool▁call▁end｜>' }}
        {%- endfor %}{{ '<｜tool▁calls▁end｜>' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {%- set content = message['content'] %}"""
        + cut
        + """
        {%- if ns.is_tool %}{{ '<｜tool▁outputs▁end｜>' + content + eos_token }}{% set ns.is_tool = false %}
        {%- else %}{{ '<｜Assistant｜>' + content + eos_token }}{% endif %}"""
        + _TOOL_TURNS
        + """
    {%- endif %}
{%- endfor %}
{%- if ns.is_tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}
{%- if add_generation_prompt and not ns.is_tool %}{{ '"""
        + opening
        + """' }}{% endif %}"""
    )


_CUT = """
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"""

_V31 = (
    _HEAD
    + """
{%- if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% set ns.is_first = true %}
    {%- elif message['role'] == 'assistant' %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>', 1)[1] %}{% endif %}
        {{- '<｜Assistant｜></think>' + content + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}"""
)

TEMPLATES = {
    "v2": _V2,
    "v2.5": _V25,
    "v3": _r1("<｜Assistant｜>", ""),
    "r1": _r1("<｜Assistant｜><think>\\n", _CUT),
    "v3.1": _V31,
}
