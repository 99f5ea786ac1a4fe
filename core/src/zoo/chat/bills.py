"""What the filters and methods of a chat template cost, and which exist.

A bill is paid before the call. It is called with the meter, the positional values (the receiver first) and the keyword
arguments, and raises LimitExceeded. Filters and methods of the same name share their bill.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from zoo.chat.limits import LimitExceeded, Meter

Bill: TypeAlias = Callable[[Meter, list[Any], dict[str, Any]], object]

_SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_DIGITS = re.compile(r"[0-9]+")
_LONGEST_FLOAT = 320
_MAX_DECIMALS = 100


def _argument(values: list[Any], keywords: dict[str, Any], index: int, name: str, default: Any) -> Any:
    return values[index] if len(values) > index else keywords.get(name, default)


def _count(text: str, characters: str) -> int:
    return sum(map(text.count, characters))


def deep(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> int:
    """Everything inside the arguments is read once. Returns the characters paid for."""
    return meter.weigh(*values, *keywords.values())


def free(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Constant time, or lazy: the items are paid for as they come."""


def shallow(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """The items of the receiver are visited or copied, not what is inside them."""
    items = values[0]
    if hasattr(items, "__len__"):
        meter.step(2 * len(items))


def each_character(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Python code runs for pieces of the text."""
    meter.step(deep(meter, values, keywords))


def search(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Short needles may be compared at every place of the text; for long ones Python has a linear method."""
    _bill_search(meter, values, keywords, 100)


def search_back(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """From the end Python compares needles of any length at every place."""
    _bill_search(meter, values, keywords, None)


def _bill_search(meter: Meter, values: list[Any], keywords: dict[str, Any], longest: int | None) -> None:
    deep(meter, values, keywords)
    text, needle = values[0], _argument(values, keywords, 1, "sep", None)
    if isinstance(text, str) and isinstance(needle, str):
        meter.text(len(text) * len(needle[:longest]) // 8)


def strip(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Every character that goes is looked up among the given ones."""
    text, characters = values[0], _argument(values, keywords, 1, "chars", None)
    meter.text(deep(meter, values, keywords) + (len(str(text)) * len(characters) if isinstance(characters, str) else 0))


def split(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Every piece is a string of its own."""
    search(meter, values, keywords)
    _bill_pieces(meter, values, keywords)


def split_back(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """As `split`, from the end."""
    search_back(meter, values, keywords)
    _bill_pieces(meter, values, keywords)


def _bill_pieces(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    text, separator = values[0], _argument(values, keywords, 1, "sep", None)
    pieces = text.count(separator) if isinstance(separator, str) and separator else _count(text, _SPACES)
    meter.step(2 * pieces)


def splitlines(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Every line is a string of its own."""
    deep(meter, values, keywords)
    meter.step(2 * _count(values[0], _LINE_ENDS))


def pad(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """The result is as wide as asked."""
    deep(meter, values, keywords)
    width = _argument(values, keywords, 1, "width", 80)
    if isinstance(width, int):
        meter.text(max(width, 0))


def expandtabs(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Every tab becomes so many blanks."""
    deep(meter, values, keywords)
    size = _argument(values, keywords, 1, "tabsize", 8)
    if isinstance(size, int):
        meter.text(values[0].count("\t") * max(size, 0))


def indent(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Every line grows by the width."""
    deep(meter, values, keywords)
    width = _argument(values, keywords, 1, "width", 4)
    size = len(width) if isinstance(width, str) else width
    if isinstance(values[0], str) and isinstance(size, int):
        lines = _count(values[0], _LINE_ENDS) + 2
        meter.step(2 * lines)
        meter.text(lines * max(size, 0))


def replace(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Every occurrence grows to the new text."""
    deep(meter, values, keywords)
    text, old, new = (str(value) for value in [*values, "", ""][:3])
    meter.text(len(text) * min(len(old), 100) // 8)
    meter.text(text.count(old) * len(new))


def join(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """`items|join(separator)`."""
    deep(meter, values, keywords)
    separator = _argument(values, keywords, 1, "d", "")
    if hasattr(values[0], "__len__"):
        meter.text(len(values[0]) * len(str(separator)))


def join_method(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """`separator.join(items)`."""
    join(meter, [values[1], values[0]] if len(values) > 1 else values, keywords)


def sort(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Every item is compared about log2(n) times."""
    before = meter.balance()
    deep(meter, values, keywords)
    steps, chars = (then - now for then, now in zip(before, meter.balance(), strict=True))
    rounds = len(values[0]).bit_length() if hasattr(values[0], "__len__") else 1
    meter.step(steps * rounds)
    meter.text(chars * rounds)


def unique(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Every item goes into a set."""
    deep(meter, values, keywords)
    if hasattr(values[0], "__len__"):
        meter.hashes(len(values[0]))


def total(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """Sums of lists copy what is there again for every item."""
    before, _ = meter.balance()
    deep(meter, values, keywords)
    after, _ = meter.balance()
    start = _argument(values, keywords, 2, "start", 0)
    if not isinstance(start, (int, float)) and hasattr(values[0], "__len__"):
        meter.step((before - after) * len(values[0]))


def batch(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """The last row is filled up to the size of a row."""
    shallow(meter, values, keywords)
    size = _argument(values, keywords, 1, "linecount", 0)
    if isinstance(size, int) and _argument(values, keywords, 2, "fill_with", None) is not None:
        meter.step(max(size, 0))


def rounding(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """`round` multiplies by a power of ten: by a sequence that would be repetition."""
    deep(meter, values, keywords)
    decimals = _argument(values, keywords, 1, "precision", 0)
    if not isinstance(values[0], (int, float)):
        raise TypeError(f"round needs a number, not {type(values[0]).__name__}")
    if isinstance(decimals, int) and abs(decimals) > _MAX_DECIMALS:
        raise LimitExceeded(f"it rounds to more than {_MAX_DECIMALS} decimals")


def escape(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """HTML escaping writes up to five characters for one."""
    meter.text(5 * deep(meter, values, keywords))


def printf(meter: Meter, values: list[Any], keywords: dict[str, Any]) -> None:
    """`format % values`: widths and precisions, and mappings whose values are written again and again."""
    meter.weigh(values[0])
    template, right = str(values[0]), values[1:]
    fields = template.count("%")
    meter.text(len(template) + fields * _LONGEST_FLOAT)
    meter.step(fields)
    meter.text(sum(int(number) for number in _DIGITS.findall(template, template.find("%") + 1)) if fields else 0)
    if "*" in template:
        meter.text(sum(abs(value) for value in right if isinstance(value, int)))
    chars = meter.weigh(right, keywords)
    if keywords or any(isinstance(value, Mapping) for value in right):
        meter.text(chars * fields)


def format_spec(meter: Meter, spec: str) -> None:
    """The part of a `{}` field after the colon: every number in it may be a width or a precision."""
    meter.text(len(spec) + sum(int(number) for number in _DIGITS.findall(spec)))


FILTER_BILLS: Mapping[str, Bill] = {
    **dict.fromkeys(("abs", "capitalize", "float", "int", "lower", "max", "min", "safe", "string"), deep),
    **dict.fromkeys(("truncate", "upper"), deep),
    **dict.fromkeys(("attr", "count", "d", "default", "first", "items", "last", "length", "map"), free),
    **dict.fromkeys(("reject", "rejectattr", "select", "selectattr"), free),
    **dict.fromkeys(("list", "reverse", "slice"), shallow),
    **dict.fromkeys(("title", "wordcount"), each_character),
    **dict.fromkeys(("dictsort", "groupby", "sort"), sort),
    **dict.fromkeys(("e", "escape"), escape),
    "batch": batch,
    "center": pad,
    "format": printf,
    "indent": indent,
    "join": join,
    "replace": replace,
    "round": rounding,
    "sum": total,
    "trim": strip,
    "unique": unique,
}
"""The filters of jinja that exist here. Those for web pages (urlize, striptags, ...) and pprint, wordwrap and random do
not: their cost is not bounded by their input, or the prompt would change from call to call."""

CONSUMING = frozenset(("batch", "groupby", "join", "list", "max", "min", "slice", "sort", "sum", "unique"))
"""Filters that read an iterator to its end at once: it is made a list first, so that it can be paid for."""

_STR: Mapping[str, Bill] = {
    **dict.fromkeys(("capitalize", "casefold", "endswith", "isalnum", "isalpha", "isascii", "isdecimal"), deep),
    **dict.fromkeys(("isdigit", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper"), deep),
    **dict.fromkeys(("lower", "removeprefix", "removesuffix", "startswith", "swapcase", "title", "upper"), deep),
    **dict.fromkeys(("count", "find", "index", "partition"), search),
    **dict.fromkeys(("rfind", "rindex", "rpartition"), search_back),
    **dict.fromkeys(("lstrip", "rstrip", "strip"), strip),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), pad),
    "expandtabs": expandtabs,
    "join": join_method,
    "replace": replace,
    "rsplit": split_back,
    "split": split,
    "splitlines": splitlines,
}
_SEQUENCE: Mapping[str, Bill] = dict.fromkeys(("count", "index"), deep)
METHOD_BILLS: Mapping[type, Mapping[str, Bill]] = {
    str: _STR,
    list: {**_SEQUENCE, "copy": shallow},
    tuple: _SEQUENCE,
    range: _SEQUENCE,
    dict: {
        **dict.fromkeys(("items", "keys", "values"), free),
        "copy": shallow,
        "get": lambda meter, values, keywords: deep(meter, values[1:2], keywords),
    },
}
"""The methods that templates may call, by the type of their object (`format` and `format_map` apart)."""


def drain(meter: Meter, items: Iterator[Any]) -> list[Any]:
    """Read an iterator to its end, a step for every item."""
    result = []
    for item in items:
        meter.step()
        result.append(item)
    return result
