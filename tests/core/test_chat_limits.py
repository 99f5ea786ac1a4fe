"""Templates that mean harm: each ends in an error, soon and with little memory."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import sys
import time
from typing import Any

import pytest

from zoo.chat import ChatTemplate, Limits
from zoo.errors import TemplateError

CHAT = [{"role": "user", "content": "hi"}]
# The limits: one second, 100 MB. The slack is for a loaded machine and for what a new process touches.
SECONDS, MEGABYTES = 4.0, 125.0


def measured(text: str) -> tuple[float, float, str]:
    """Compile and render in a process of its own: its processor's seconds, the megabytes it grew by, how it ended."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        gc.freeze()  # what the tests before made is not this template's, and collecting garbage would walk through it
        ended, began, before = "", time.process_time(), _peak()
        try:
            template = ChatTemplate(text, bos_token="<s>", eos_token="</s>", control_tokens=["<s>", "</s>"])
            ended = "rendered: " + "".join(piece for piece, _ in template.render(CHAT))[:100]
        except TemplateError as error:
            ended = str(error)
        except BaseException as error:
            ended = f"leaked {type(error).__name__}"
        os.write(writer, json.dumps([time.process_time() - began, _peak() - before, ended]).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(process, 0)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    assert status == 0, f"the process died: status {status}"
    seconds, megabytes, ended = json.loads(answer)
    return seconds, megabytes, ended


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


NAMES = "{% set ns = namespace(x=[1], y=[1], s='a', t=(1,), i=2) %}"
# Sixty lists of two references each: small to hold, endless to walk.
SIXTY = "{% for i in range(60) %}"
LISTS = NAMES + SIXTY + "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
TUPLES = NAMES + SIXTY + "{% set ns.t = (ns.t, ns.t) %}{% endfor %}"
DEEP = NAMES + "{% for i in range(40000) %}{% set ns.x = [ns.x] %}{% set ns.t = (ns.t,) %}{% endfor %}"
LONG = "{% set s = 'a' * 1000000 %}{% set t = 'a' * 999999 ~ 'b' %}{% set n = 'a' * 49 ~ 'b' ~ 'a' * 49 %}"
COLLIDING = 2**61 - 1  # all multiples have the same hash
FOREVER = "{% for i in range(100000) %}"

STEPS, CHARS, OUTPUT = "more than 100[0-9]{4} steps", "more than 160[0-9]{5} characters", "output is longer than"
DEEPLY = "nests too deeply"

ATTACKS: dict[str, dict[str, str]] = {
    STEPS: {
        "nested loops": FOREVER + "{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "loop test": FOREVER + "{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
        "macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 50 }}{% endfor %}",
        "generation": "{% generation %}" + FOREVER + FOREVER + "{% endfor %}{% endfor %}{% endgeneration %}",
        "map": FOREVER + "{{ range(100000)|map('string')|list|length }}{% endfor %}",
        "map of map": "{{ ([range(100000)] * 99)|map('map', 'string')|map('list')|list|length }}",
        "select": FOREVER + "{{ range(100000)|select('odd')|list|length }}{% endfor %}",
        "sort": FOREVER + "{{ range(100000)|sort|first }}{% endfor %}",
        "sum": FOREVER + "{{ range(100000)|sum }}{% endfor %}",
        "in a range": FOREVER + "{{ 0.5 in range(100000) }}{% endfor %}",
        "index of a range": FOREVER + "{{ range(100000).count(0.5) }}{% endfor %}",
        "slices of a list": "{% set s = [1]*100000 %}" + FOREVER + "{% set x = s[1:] %}{% endfor %}",
        "long list": "{{ [1] * 300000000 }}",
        "long tuple": "{{ ((1,) * 300000000)|length }}",
        "list doubling": NAMES + FOREVER + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "list growing": NAMES + FOREVER + "{% set ns.x = ns.x + [i] %}{% endfor %}",
        "list by sum": NAMES + FOREVER + "{% set ns.x = [ns.x, ns.x]|sum(start=[]) %}{% endfor %}",
        "batch": "{{ [1]|batch(1000000000, 0)|list|length }}",
        "slice": "{{ [1]|slice(1000000000)|list|length }}",
        "star arguments": "{% macro m() %}{{ varargs|length }}{% endmacro %}"
        + FOREVER
        + "{{ m(*range(100000)) }}{% endfor %}",
        "attribute path": "{% set d = [{'a': 1}] * 1000 %}{{ d|sort(attribute='a,' * 100000)|length }}",
        "split": "{{ ('ab ' * 2000000).split()|length }}",
        "splitlines": "{{ ('ab\x0b' * 2000000).splitlines()|length }}",
        "list of a text": "{{ ('\u4e2d' * 15000000)|list|length }}",
        "loop over a text": "{% for c in 'x' * 15000000 %}{% endfor %}",
        "title": "{{ ('a-' * 1000000)|title|length }}",
        "from_json": "{{ ('[' ~ '[],' * 1000000 ~ '1]')|from_json|length }}",
        "many lists": NAMES + FOREVER + "{% set ns.x = [ns.x, " + "[], " * 200 + "] %}{% endfor %}",
        "many dicts": NAMES + FOREVER + "{% set ns.x = [ns.x, " + "{1: 1}, " * 100 + "] %}{% endfor %}",
        "many namespaces": NAMES + FOREVER + "{% set ns.x = [ns.x, namespace()] %}{% endfor %}",
        "many methods": NAMES + FOREVER + "{% set ns.x = [ns.x, " + "'a'.format, " * 100 + "] %}{% endfor %}",
        "many undefined": NAMES + FOREVER + "{% set ns.x = [ns.x, " + "[].foo, " * 100 + "] %}{% endfor %}",
        "colliding keys": "{{ dict.fromkeys(range(0, " + f"{COLLIDING} * 100000, {COLLIDING}))|length }}}}",
        "colliding pairs": "{{ dict(range(0, " + f"{COLLIDING} * 100000, {COLLIDING})|batch(2))|length }}}}",
        "colliding items": "{{ range(0, " + f"{COLLIDING} * 100000, {COLLIDING})|unique|list|length }}}}",
        "walk: written": LISTS + "{{ ns.x }}",
        "walk: ==": LISTS + "{{ ns.x == ns.y }}",
        "walk: <": LISTS + "{{ ns.x < ns.y }}",
        "walk: in": LISTS + "{{ ns.x in [ns.y] }}",
        "walk: test": LISTS + "{{ ns.x is eq ns.y }}",
        "walk: sort": LISTS + "{{ [ns.x, ns.y]|sort }}",
        "walk: index": LISTS + "{{ [ns.x].index(ns.y) }}",
        "walk: changed": LISTS + "{% for i in [1] %}{{ loop.changed(ns.x) }}{% endfor %}",
        "walk: hash": TUPLES + "{{ {ns.t: 1}|length }}",
        "walk: hash of an item": TUPLES + "{{ {1: 1}[ns.t] }}",
        "walk: hash of get": TUPLES + "{{ {1: 1}.get(ns.t) }}",
        "walk: hash of in": TUPLES + "{{ ns.t in {1: 1} }}",
        "walk: hash of unique": TUPLES + "{{ [ns.t]|unique|list }}",
        "walk: hash of dict": TUPLES + "{{ dict([(ns.t, 1)])|length }}",
        "walk: hash of fromkeys": TUPLES + "{{ dict.fromkeys([ns.t])|length }}",
        "walk: hash of a test": TUPLES + "{{ ns.t is filter }}",
        "walk: tojson": LISTS + "{{ ns.x|tojson }}",
        "walk: string": LISTS + "{{ ns.x|string|length }}",
        "walk: %": LISTS + "{{ '%s' % ns.x }}",
        "walk: % of a list": LISTS + "{{ ns.x|format(1) }}",
        "walk: format": LISTS + "{{ '{!r}'.format(ns.x) }}",
        "walk: ~": LISTS + "{{ ns.x ~ '' }}",
        "walk: join": LISTS + "{{ ns.x|join }}",
        "walk: upper": LISTS + "{{ ns.x is upper }}",
        "walk: replace": LISTS + "{{ 'a'|replace('a', ns.x) }}",
        "walk: raise": LISTS + "{{ raise_exception(ns.x) }}",
        "walk: namespaces": NAMES + SIXTY + "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
        "walk: views": NAMES + SIXTY + "{% set ns.x = {1: ns.x, 2: ns.x}.values() %}{% endfor %}{{ ns.x }}",
    },
    CHARS: {
        "text times": "{{ 'x' * 300000000 }}",
        "times text": "{{ 300000000 * 'x' }}",
        "constant": "{{ 'x'|center(1000000000) }}",
        "filter block": "{% filter center(1000000000) %}x{% endfilter %}",
        "center": "{{ 'x'.center(1000000000) }}",
        "zfill": "{{ 'x'.zfill(1000000000) }}",
        "expandtabs": "{{ '\t'.expandtabs(tabsize=1000000000) }}",
        "%": "{{ '%1000000000d' % 1 }}",
        "% *": "{{ '%*d' % (1000000000, 1) }}",
        "% .": "{{ '%.1000000000f' % 1 }}",
        "% .*": "{{ '%.*f' % (1000000000, 1.0) }}",
        "% with a nested key": "{{ '%((a))1000000000d' % {'(a)': 1} }}",
        "% again and again": "{% set a = 'x' * 1000000 %}{{ ('%(a)s' * 200) % {'a': a} }}",
        "format filter": "{{ '%(a)1000000000d'|format(a=1) }}",
        "format": "{{ '{:1000000000}'.format(1) }}",
        "format, nested": "{{ '{:{}}'.format(1, 1000000000) }}",
        "format, precision": "{{ '{:.1000000000f}'.format(1.0) }}",
        "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
        "format, safe": "{{ ('{:1000000000}'|safe).format(1) }}",
        "format, stored": "{% set f = '{:1000000000}'.format %}{{ f(1) }}",
        "format again and again": "{% set a = 'x' * 1000000 %}{{ ('{0}' * 200).format(a) }}",
        "indent": "{{ 'a\nb'|indent(1000000000) }}",
        "indent by text": "{{ ('a\n' * 10000)|indent('x' * 100000) }}",
        "replace": "{{ ('a' * 1000000).replace('a', 'b' * 10000) }}",
        "replace nothing": "{{ ('a' * 1000000)|replace('', 'b' * 10000) }}",
        "join": "{{ range(20000)|map('string')|join('x' * 100000) }}",
        "join method": "{{ ('x' * 100000).join('y' * 100000) }}",
        "text doubling": NAMES + FOREVER + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "~ doubling": NAMES + FOREVER + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "set doubling": NAMES + FOREVER + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "% doubling": NAMES + FOREVER + "{% set ns.s = '%s%s'|format(ns.s, ns.s) %}{% endfor %}",
        "text growing": NAMES + FOREVER + "{% set ns.s = ns.s + 'x' %}{% endfor %}",
        "==": LONG + FOREVER + "{{ s == t }}{% endfor %}",
        "in a text": LONG + FOREVER + "{{ 'b' in s }}{% endfor %}",
        "in a list": LONG + "{{ t in [s] * 100000 }}",
        "find": LONG + FOREVER + "{{ s.find(n) }}{% endfor %}",
        "find backwards": "{{ ('a' * 500000).rfind('ab' ~ 'a' * 200000) }}",
        "split backwards": "{{ ('a' * 500000).rsplit('ab' ~ 'a' * 200000) }}",
        "slices": LONG + FOREVER + "{{ s[1:]|length }}{% endfor %}",
        "strip": LONG + "{{ s.strip('b' * 1000000 ~ 'a') }}",
        "escape": "{{ ('<' * 15000000)|e|length }}",
        "escape by +": "{{ (''|safe + '<' * 15000000)|length }}",
        "strftime": FOREVER + "{{ strftime_now('%c' * 1000) }}{% endfor %}",
        "json indent of a deep list": NAMES
        + "{% for i in range(60) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ([ns.x] * 1000)|tojson(indent=16)|length }}",
        "macro": "{% macro m() %}" + FOREVER + "x" * 100000 + "{% endfor %}{% endmacro %}{{ m() }}",
        "set block": "{% set a %}" + FOREVER + "x" * 100000 + "{% endfor %}{% endset %}",
        "kept texts": NAMES + FOREVER + "{% set ns.x = [ns.x, '\U0001f600' * 100000] %}{% endfor %}",
    },
    OUTPUT: {
        "literal": FOREVER + "x" * 100000 + "{% endfor %}",
        "value": FOREVER + "{{ '\U0001f600' * 1000 }}{% endfor %}",
    },
    "with more than 64 keys": {
        "colliding keys": "{% set d = {" + ",".join(f"{i * COLLIDING}: 1" for i in range(2000)) + "} %}",
        "colliding dict": "{{ dict.fromkeys(range(0, " + f"{COLLIDING} * 1000, {COLLIDING})) }}}}",
    },
    "differences of keys": {
        "colliding set": "{{ range(0, " + f"{COLLIDING} * 100000, {COLLIDING})" + " - {}.keys() }}"
    },
    "integers of more than 4096 bits": {
        "power": "{{ 10**10**10 }}{{ 2**100000 }}",
        "square": NAMES + FOREVER + "{% set ns.i = ns.i * ns.i %}{% endfor %}",
        "double": NAMES + FOREVER + "{% set ns.i = ns.i + ns.i %}{% endfor %}",
        "hexadecimal": "{{ ('f' * 2000000)|int(base=16) % 3 }}",
    },
    "more than 64 deep": {
        "macro calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "caller": "{% macro m() %}{{ caller() }}{% endmacro %}{% macro r() %}{% call m() %}{{ r() }}{% endcall %}"
        "{% endmacro %}{{ r() }}",
        "loop calls itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    },
    "more than 100 deep": {
        "deep list": DEEP + "{{ ns.x }}",
        "deep hash": DEEP + "{{ {ns.t: 1}|length }}",
        "deep json": DEEP + "{{ ns.x|tojson }}",
        "namespace in itself": NAMES + "{% set ns.x = ns %}{{ ns }}",
    },
    "more than 100 lazy filters": {
        "chain of generators": NAMES + FOREVER + "{% set ns.x = ns.x|map('upper') %}{% endfor %}",
    },
    "it cannot be compiled: too many": {
        "ifs": "{% if a %}" * 150 + "{% endif %}" * 150,
        "loops": "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    },
    DEEPLY: {
        "parentheses": "{{" + "(" * 8000 + "1" + ")" * 8000 + "}}",
        "lists": "{{" + "[" * 8000 + "]" * 8000 + "}}",
        "not": "{{" + "not " * 16000 + "1}}",
        "filters": "{{ a" + "|upper" * 8000 + " }}",
        "from_json": "{{ ('[' * 100000)|from_json }}",
    },
    "more than 16384 tokens": {"tokens": "{{ 1 }}" * 30000, "long expression": "{{ [" + "a," * 100000 + "] }}"},
    "10000000 characters, more than the 262144 allowed": {"10 MB": "x" * 10_000_000},
    "Range too big": {"range": "{% for i in range(10**9) %}{% endfor %}"},
    "longer than 16 characters": {"json indent": "{{ [[1]]|tojson(indent=1000000000) }}"},
    "more than 100 decimals": {"round": "{{ 5|round(1000000000, 'floor') }}"},
    "needs a number": {
        "round of a list": "{{ [1]|round(9, 'floor') }}",
        "odd": "{{ '%1000000000d' is odd }}",
        "divisibleby": "{{ '%*d' is divisibleby((1000000000, 1)) }}",
    },
    "unsafe": {
        "class": "{{ ''.__class__.__mro__ }}",
        "class by item": "{{ ''['__class__']['__mro__'] }}",
        "class by format": "{{ '{0.__class__.__mro__}'.format('') }}",
        "class by attr": "{{ (''|attr('__class__')).x }}",
        "environment": "{{ '{0._environment.meter}'.format('{}'.format) }}",
        "class by map": "{{ (['']|map(attribute='__class__')|first).x }}",
        "globals": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
        "init": "{{ namespace.__init__.__globals__ }}",
        "append": "{% set x = [] %}{{ x.append(1) }}",
    },
    "cannot have the attribute": {"namespace": "{{ namespace(__class__=1) }}", "later": NAMES + "{% set ns._x = 1 %}"},
    "cannot be called": {
        "encode": "{{ 'a'.encode() }}",
        "translate": "{{ 'a'.translate({97: 'b'}) }}",
        "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
        "a value": "{{ messages() }}",
    },
    "is undefined": {"lipsum": "{{ lipsum(100000) }}", "cycler": "{{ cycler(1) }}", "joiner": "{{ joiner() }}"},
    "is not available": {
        "include": "{% include '/etc/passwd' %}",
        "import": "{% import 'x' as y %}",
        "from": "{% from 'x' import y %}",
        "extends": "{% extends 'x' %}",
        "block": "{% block a %}{{ self.a() }}{% endblock %}",
        "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    },
    "No filter named": {
        "wordwrap": "{{ ('x' * 100000)|wordwrap(1) }}",
        "striptags": "{{ ('<!--' * 100000)|striptags }}",
        "urlize": "{{ 'x'|urlize }}",
        "pprint": "{{ messages|pprint }}",
        "random": "{{ [1]|random }}",
        "by name": "{{ ['x']|map('pprint')|list }}",
    },
    "integer string conversion": {"digits": "{{ " + "1" * 100000 + " }}"},
    "no attribute 'xxx": {"long name": "{{ {}['x' * 15000000].y }}"},
}


@pytest.mark.parametrize(
    ("text", "ending"),
    [pytest.param(text, ending, id=name) for ending, group in ATTACKS.items() for name, text in group.items()],
)
def test_attacks_end_soon(text: str, ending: str) -> None:
    seconds, megabytes, ended = measured(text)
    assert ended.startswith("chat template"), ended
    assert re.search(ending, ended), ended
    assert seconds < SECONDS
    assert megabytes < MEGABYTES


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        NAMES + "{% for i in range(40000) %}{% set ns.x = {1: ns.x} %}{% endfor %}",
        NAMES + "{% for i in range(20000) %}{% set ns.x = [1]|map('default', ns.x) %}{% endfor %}",
        NAMES + "{% for i in range(20000) %}{% set ns.x = [ns.x]|reverse %}{% endfor %}",
        NAMES + "{% macro outer(x) %}{% macro inner() %}{{ x }}{% endmacro %}{% set ns.x = inner %}{% endmacro %}"
        "{% for i in range(15000) %}{{ outer(ns.x) }}{% endfor %}",
    ],
)
def test_freeing_long_chains_does_not_overflow_the_stack(text: str) -> None:
    assert measured(text)[2] == "rendered: "


@pytest.mark.parametrize(
    ("limits", "text", "message"),
    [
        ({"template_chars": 3}, "four", "4 characters, more than the 3 allowed"),
        ({"tokens": 5}, "{{ 1 }}{{ 2 }}", "more than 5 tokens"),
        ({"steps": 10}, "{% for x in range(200) %}{{ x }}{% endfor %}", "more than 430 steps"),
        ({"chars": 10}, "{{ 'abc' * 500 }}", "more than 842 characters"),
        ({"output_chars": 10}, "x" * 115, "longer than 114 characters"),
        ({"nesting": 3}, "{{ [[[[1]]]] }}", "more than 3 deep"),
        ({"calls": 3}, "{% macro m(n) %}{{ m(n - 1) if n }}{% endmacro %}{{ m(3) }}", "more than 3 deep"),
        ({"int_bits": 8}, "{{ 200 * 2 }}", "more than 8 bits"),
    ],
)
def test_each_limit_can_be_set(limits: dict[str, Any], text: str, message: str) -> None:
    tokens: dict[str, Any] = {"bos_token": "", "eos_token": "", "control_tokens": []}
    ChatTemplate(text, **tokens).render([{"role": "", "content": "hi"}])
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(text, limits=Limits(**limits), **tokens).render([{"role": "", "content": "hi"}])


def test_limits_grow_with_the_conversation() -> None:
    # Looks from every message at all later ones, as some templates do to find the last answer.
    text = "{% for m in messages %}{% for later in messages[loop.index:] %}{% if later.role == 'tool' %}{% set x = 1 %}"
    text += "{% endif %}{% endfor %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 40}] * 600
    template = ChatTemplate(text, bos_token="", eos_token="", control_tokens=[])
    assert template.render(messages) == [("word " * 24000, True)]
    assert Limits().scaled(nodes=10**9, chars=0, messages=10**6).steps == 50_000_000
