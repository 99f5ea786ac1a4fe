"""Small templates in the manner of the model families, and conversations that every one of them is tried with."""

from __future__ import annotations

from typing import Any

LLAMA_3 = """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not tools_in_user_message is defined %}{% set tools_in_user_message = true %}{% endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{% set date_string = "26 Jul 2024" %}{% endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}{% set system_message = "" %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content'] | trim %}
        {%- set messages = messages[1:] %}
    {%- else %}{{- raise_exception("Cannot put tools in the first user message when there is none!") }}{% endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{% endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception("One call at once!") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{% endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

CHATML = """{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
Be brief.<|im_end|>
    {% endif %}
{{ '<|im_start|>' ~ message.role ~ '\\n' }}{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{% set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}{% set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant!") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.function.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{% endif %}
                    {%- if not loop.last %}{{- ", " }}{% endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{% else %}{{- "]" }}{% endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{% endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- if not call.id is defined or call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- (call.function|tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] in ["tool_results", "tool"] %}
        {%- set content = message.content.content if message.content is mapping else message.content %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception("Only user, assistant and tool roles are supported!") }}{% endif %}
{%- endfor %}"""

DEEPSEEK_R1 = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}
{%- for message in messages if message['role'] == 'system' %}
    {%- set ns.system_prompt = ns.system_prompt + message['content'] %}
{%- endfor %}
{{- bos_token }}{{- ns.system_prompt }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set ns.is_tool = false %}{{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' and message['tool_calls'] %}
        {%- set ns.is_first = true %}{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
        {%- for tool in message['tool_calls'] %}
            {{- '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] }}
            {{- '\\n```json\\n' }}
            {{- tool['function']['arguments'] | tojson + '\\n```<｜tool▁call▁end｜>' }}
        {%- endfor %}{{- '<｜tool▁calls▁end｜>' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<｜Assistant｜>' + content + eos_token }}
    {%- else %}
        {%- set ns.is_tool = true %}
        {{- '<｜tool▁output▁begin｜>' ~ message['content'] ~ '<｜tool▁output▁end｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.is_tool %}{{- '<｜Assistant｜><think>\\n' }}{% endif %}"""

GEMMA_3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}{%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

QWEN_3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{% endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{% set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{% set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{% endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{% endif %}
            {%- if tool_call.function %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{% endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

PHI_4_MINI = """{% for message in messages %}
{%- if message['role'] == 'system' and tools %}
{{- '<|system|>' + message['content'] + '<|tool|>' + tools | tojson + '<|/tool|>' + '<|end|>' }}
{%- else %}{{- '<|' + message['role'] + '|>' + (message['content'] or '') + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""

MACROS = """{% macro value(item, depth=0) -%}
{%- if item is mapping -%}{ {%- for key, inner in item | dictsort -%}
{{ key }}:{{ value(inner, depth + 1) }}{{ ", " if not loop.last }}{%- endfor -%} }
{%- elif item is string -%}<|"|>{{ item }}<|"|>
{%- elif item is sequence -%}[{{ item | map('string') | join('; ') }}]
{%- elif item is boolean -%}{{ 'yes' if item else 'no' }}
{%- else -%}{{ item }}{{ '' if depth else '!' }}{%- endif -%}
{%- endmacro -%}
{%- for document in documents or [] recursive %}{{ loop.depth }}:{{ document.title }}
{{- loop(document.parts) if document.parts }};{% endfor %}
{%- for tool in tools or [] %}{% if loop.index > 2 %}{% break %}{% endif %}{{ value(tool.function) }}{% endfor %}
{%- for message in messages %}
{%- if not message.content %}{% continue %}{% endif %}
<|turn>{{ message.role }}{% if loop.changed(message.role) %}*{% endif %}{{ loop.cycle('a', 'b') }}
{%- call(text) wrap(message) %}({{ text }}){% endcall %}<turn|>
{%- else %}nothing{% endfor %}"""
MACROS = (
    "{% macro wrap(message) %}{{ caller(message.content if message.content is string else 'parts') }}{% endmacro %}"
    + MACROS
)

TEMPLATES = {
    "llama": LLAMA_3,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK_R1,
    "gemma": GEMMA_3,
    "qwen": QWEN_3,
    "phi": PHI_4_MINI,
    "macros": MACROS,
}

SNIPPETS = r"""
a\n   {% if true %}\n  b\n  {% endif %}\n c {%- if true -%} d {%+ if true %} e {% endif %}{% endif %}
{# note #}\nx{% raw %}{{ y }}{% endraw %}
{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}
{% for i in range(3) %}{{ loop.index }}{{ loop.revindex }}{{ loop.first }}{{ loop.length }}{% endfor %}
{% for i in [1, 2, 3] | map('string') %}{{ loop.length }}{{ loop.nextitem }}{{ loop.previtem }}{% endfor %}
{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}{% for x in [] %}{% else %}none{% endfor %}
{% for x in [1, 2, 3, 4] if x is even %}{{ x }}{{ loop.index0 }}{% endfor %}
{% for x in [[1, [2, []]], [3, []]] recursive %}{{ x[0] }}{{ loop([x[1]]) if x[1] }}{% endfor %}
{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}
{% set ns = namespace(a=1) %}{% for i in [1] %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}
{% set x %}a{{ 1 }}{% endset %}{{ x }}{% set y | upper %}abc{% endset %}{{ y }}
{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}{{ m(1, 3, 4, c=5) }}
{% macro m() %}[{{ caller(3) }}]{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}
{% set ns = namespace(a=1) %}{{ ns.b is defined }}{% macro m() %}{% endmacro %}{{ m.name }}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{% filter upper %}abc{{ 1 }}{% endfilter %}
{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q is defined }}
{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 3 > 2 >= 2 != 1 }}{{ 1 in [1] == true }}{{ 'a' not in 'abc' }}
{{ 'a' in 'abc' }}{{ 1 in [1, 2] }}{{ 'k' in {'k': 1} }}{{ [1] in [[1]] }}{{ 2 in range(3) }}
{{ (1, 2) in {(1, 2): 3} }}
{{ [1, 2] == [1, 2] }}{{ [1] == (1,) }}{{ {'a': [1]} == {'a': [1]} }}{{ [1, 2] < [1, 3] }}{{ 'a' < 'b' }}
{{ 1 == 1.0 }}
{{ 1 + 2 * 3 - 4 / 2 }}{{ 7 // 2 }}{{ 7 % 3 }}{{ 2 ** 10 }}{{ -3 }}{{ +3 }}{{ 1.5 * 2 }}{{ 2 ** -1 }}
{{ 2 ** 0.5 }}
{{ 'a' + 'b' }}{{ 'a' ~ 1 ~ none ~ [1] }}{{ 'ab' * 3 }}{{ 3 * [1] }}{{ [1] + [2] }}{{ (1,) + (2,) }}
{{ 'abc'[1] }}{{ 'abc'[-1] }}{{ 'abcdef'[1:4] }}{{ 'abcdef'[::-1] }}{{ [1, 2, 3][1:] }}{{ (1, 2, 3)[:-1] }}
{{ range(9)[::4] }}
{{ {'a': 1}.a }}{{ {'a': 1}['a'] }}{{ {'a': 1}.b is defined }}{{ {'items': 1}['items'] }}{{ 'abc'['upper']() }}
{{ 1 if true else 2 }}{{ 1 if false }}{{ none or 'x' }}{{ 1 and 2 }}{{ not 1 }}
{{ 'Ab'.upper() }}{{ 'Ab'.lower() }}{{ ' a '.strip() }}{{ 'xax'.strip('x') }}{{ 'a,b'.split(',') }}
{{ ' a  b '.split() }}
{{ 'a,b,c'.rsplit(',', 1) }}{{ 'a-b'.partition('-') }}{{ 'a\nb'.splitlines() }}{{ 'aXa'.replace('a', 'b') }}
{{ 'abc'.find('c') }}
{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('c', 'x')) }}{{ '-'.join(['a', 'b']) }}{{ 'a'.center(5) }}
{{ '7'.zfill(3) }}
{{ 'abc'.removeprefix('a') }}{{ 'abc'.title() }}{{ 'a'.isalpha() }}{{ 'aa'.count('a') }}
{{ 'a\tb'.expandtabs(4) }}
{{ '%s-%5d-%.2f-%%' % ('a', 3, 1.5) }}{{ '%(x)s' % {'x': 1} }}{{ '%s' % 'a' }}{{ '%s=%s' | format('a', 1) }}
{{ '{}-{:>5}-{a!r}-{0[0]}'.format('xy', 1, a='b') }}{{ '{a}'.format_map({'a': 1}) }}{{ '{:.2f}'.format(1.5) }}
{{ [1, 2].index(2) }}{{ [1, 1].count(1) }}{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.keys() | list }}
{{ {'a': 1}.values() | list }}
{{ dict(a=1) }}{{ dict([('a', 1)]) }}{{ dict.fromkeys(['a'], 1) }}{{ range(3) | list }}
{{ range(1, 6, 2) | list }}
{{ {'a': 'ä<', 'b': [1, none, true, 1.5]} | tojson }}{{ [1, {'b': 2}] | tojson(indent=2) }}
{{ 'é😀' | tojson(ensure_ascii=true) }}
{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}{{ [] | tojson(indent='--') }}
{{ "it's" | tojson }}
{{ [3, 1, 2] | sort }}{{ ['b', 'A'] | sort(case_sensitive=true) }}
{{ [{'a': 2}, {'a': 1}] | sort(attribute='a') }}{{ [1, 2] | sum }}
{{ [1, 2, 3] | first }}{{ [1, 2, 3] | last }}{{ [1, 2] | length }}{{ 'abc' | count }}{{ [1, 2] | join('-') }}
{{ [2, 9] | max }}{{ [2, 9] | min }}
{{ [{'a': 1}, {'a': 2}] | map(attribute='a') | list }}{{ ['a'] | map('upper') | list }}
{{ [1, 2, 3] | select('odd') | list }}
{{ [{'r': 'u'}, {'r': 'a'}] | selectattr('r', 'equalto', 'u') | list }}{{ [{'r': 1}] | rejectattr('r') | list }}
{{ [0, 1] | reject | list }}
{{ {'b': 1, 'a': 2} | dictsort }}{{ {'b': 1} | items | list }}{{ [1, 1, 2] | unique | list }}
{{ [1, 2, 3] | batch(2, 'x') | list }}
{{ [1, 2, 3] | slice(2) | list }}{{ [3, 1] | reverse | list }}{{ 'abc' | reverse }}
{{ [{'k': 1, 'v': 2}] | groupby('k') }}
{{ ' a ' | trim }}{{ 'xax' | trim('x') }}{{ 'abc' | replace('b', 'x') }}{{ 'ab' | upper }}{{ 'AB' | lower }}
{{ 'ab cd' | title }}{{ 'ab' | capitalize }}
{{ 'a\nb' | indent }}{{ 'a\nb' | indent(2, true) }}{{ 'a' | center(5) }}{{ 'a b c' | truncate(3) }}
{{ 'a b' | wordcount }}{{ '<' | e }}{{ '<' | escape }}
{{ '<' | safe }}{{ '<' | safe | e }}{{ '<' | e | e }}{{ ('<' | safe) + '<' }}
{{ 'x' | string }}{{ '42' | int }}{{ 'x' | int(7) }}{{ '1.5' | float }}
{{ 1.55 | round(1) }}{{ -1 | abs }}
{{ x | default('d') }}{{ '' | default('d', true) }}{{ x | d('e') }}{{ 'ab' | list }}
{{ 'abc' | attr('upper') is defined }}
{{ x is defined }}{{ x is undefined }}{{ none is none }}{{ 1 is number }}{{ 'a' is string }}{{ {} is mapping }}
{{ [] is sequence }}{{ [] is iterable }}
{{ 1 is odd }}{{ 2 is even }}{{ 6 is divisibleby 3 }}{{ true is boolean }}{{ true is true }}{{ 1 is integer }}
{{ 1.5 is float }}{{ 'a' is lower }}{{ 'A' is upper }}
{{ 1 is eq 1 }}{{ 1 is sameas 1 }}{{ 1 is in [1] }}{{ 'upper' is filter }}{{ 'odd' is test }}
{{ range is callable }}{{ 1 is gt 0 }}{{ 'a' is ne 'b' }}
{{ tools is defined }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}
{{ strftime_now('%Y-%m') }}
{{ messages[0].content | length }}{{ messages | length }}{{ messages[0] }}{{ messages[-1]['role'] }}
{{ messages[0] == messages[-1] }}
""".strip().split("\n")

CONTROL_TOKENS = (
    *("<s>", "</s>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>"),
    *("<|im_end|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
    *(
        "[/AVAILABLE_TOOLS]",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        "<｜tool▁calls▁begin｜>",
        "<think>",
    ),
    *("</think>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|turn>"),
    *("<turn|>", '<|"|>'),
)

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather — now & <here>, it's 'so'",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "enum": [1, 2, 3]}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "Zeit, 時間", "strict": True, "parameters": {}}},
]

_CALL = {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "hello": {"messages": [{"role": "user", "content": "Hello, wörld! 你好 👋"}]},
    "no prompt": {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": False},
    "system": {
        "messages": [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "a < b && c > d"}]
    },
    "turns": {
        "messages": [
            {"role": "user", "content": "  first\n"},
            {"role": "assistant", "content": "second <b>"},
            {"role": "user", "content": "third {{ messages }} {% raw %}"},
        ]
    },
    "wrong order": {"messages": [{"role": "assistant", "content": "me first"}, {"role": "user", "content": "why"}]},
    "thought": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "<think>\nhm, 4\n</think>\n\n4"},
            {"role": "user", "content": "sure?"},
            {"role": "assistant", "content": "<think>yes</think>yes"},
        ],
    },
    "reasoning field": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4", "reasoning": "let me see"},
        ],
    },
    "tools": {"messages": [{"role": "user", "content": "Weather?"}], "tools": TOOLS},
    "tool loop": {
        "messages": [
            {"role": "user", "content": "Weather in Zürich?"},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": '{"temperature": 21.5}', "tool_call_id": "abcdef123"},
            {"role": "assistant", "content": "21.5 degrees", "tool_calls": None},
            {"role": "user", "content": "Thanks"},
        ],
        "tools": TOOLS,
    },
    "open tool loop": {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "One moment.", "tool_calls": [_CALL, _CALL]},
            {"role": "tool", "content": "21", "tool_call_id": "abcdef123"},
            {"role": "tool", "content": "22", "tool_call_id": "abcdef123"},
        ],
    },
    "parts": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Look."}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what is it "}]},
        ]
    },
    "documents": {
        "messages": [{"role": "user", "content": "Summarise"}],
        "documents": [{"title": "A", "parts": [{"title": "A1"}, {"title": "A2", "parts": []}]}, {"title": "B"}],
    },
    "variables": {
        "messages": [{"role": "user", "content": "Hi"}],
        "enable_thinking": False,
        "date_string": "1 Jan 2020",
        "builtin_tools": ["code_interpreter", "brave_search"],
        "custom_tools": TOOLS[:1],
        "tools_in_user_message": True,
    },
}
