"""The environment that chat templates run in: what transformers gives them, with every operation paid for.

The points where jinja lets work be counted are: the code generator (each block of statements, comparisons, slices,
`~`), intercepted operators, calls, item access, filters, tests, and what is written. An environment serves one render.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from markupsafe import Markup

from zoo.chat import bills
from zoo.chat.compiler import GenerationTag, MeteringGenerator, TokenLimit
from zoo.chat.limits import CONTAINERS, LimitExceeded, Meter, MeteredIterator
from zoo.chat.shield import Shield

_CALL = 10  # steps of a call of a filter, a method or a function
_OBJECT = 20  # steps of a namespace or a dict: they weigh several hundred bytes
_MOST_ODD_KEYS = 64
_LONGEST_INDENT = 16
_STRFTIME_GROWTH = 256  # the C library gives up past this factor
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}
_COMPARING_TESTS = {
    **dict.fromkeys(("==", "eq", "equalto"), "eq"),
    **dict.fromkeys(("!=", "ne"), "ne"),
    **dict.fromkeys((">", "gt", "greaterthan"), "gt"),
    **dict.fromkeys(("<", "lt", "lessthan"), "lt"),
    **{">=": "gteq", "ge": "gteq", "<=": "lteq", "le": "lteq"},
}


class TemplateNamespace(Namespace):
    """`namespace(...)`; names with a leading underscore are refused, for they reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        Namespace.__setitem__(self, name, value)


class TemplateDict:
    """`dict(...)` and `dict.fromkeys(...)`, without the attributes of the real type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Return a new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dict with the given keys and one value."""
        return dict.fromkeys(*args)


class FormatMethod:
    """`str.format` and `str.format_map` of one string."""

    def __init__(self, environment: PromptEnvironment, method: Any) -> None:
        self._environment = environment
        self._text: str = method.__self__
        self._mapping = method.__name__ == "format_map"

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """Return the formatted text."""
        if self._mapping:
            (kwargs,), args = args, ()
        self._environment.meter.step(len(self._text))
        formatter: SandboxedFormatter = _TextFormatter(self._environment)
        if isinstance(self._text, Markup):
            formatter = _MarkupFormatter(self._environment, escape=self._text.escape)
        return type(self._text)(formatter.vformat(self._text, args, kwargs))


class _MeteredFields(SandboxedFormatter):
    _env: PromptEnvironment

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._env.meter.weigh([value])
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        bills.format_spec(self._env.meter, format_spec)
        self._env.meter.weigh([value])
        return super().format_field(value, format_spec)


class _TextFormatter(_MeteredFields):
    pass


class _MarkupFormatter(_MeteredFields, SandboxedEscapeFormatter):
    pass


class PromptEnvironment(ImmutableSandboxedEnvironment):
    """The jinja environment of one render (or of compiling one template): see the module's docstring.

    `now` is the time that `strftime_now` formats.
    """

    code_generator_class = MeteringGenerator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, meter: Meter, shield: Shield, now: datetime) -> None:
        self.meter = meter
        self._shield = shield
        self._now = now
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[TokenLimit, GenerationTag, loopcontrols],
            optimized=False,  # constants are not folded: nothing runs before it is paid for
            finalize=_written,
            cache_size=0,
        )
        own = {"tojson": self._tojson, "from_json": self._from_json, "e": self._escape, "escape": self._escape}
        self.filters = {name: self._metered(name, self.filters[name]) for name in bills.FILTER_BILLS} | own
        self.tests = {name: self._metered_test(name, test) for name, test in TESTS.items()}
        self.globals = {
            "dict": TemplateDict(),
            "namespace": TemplateNamespace,
            "raise_exception": _raise_exception,
            "range": self.globals["range"],
            "strftime_now": self._strftime_now,
        }
        self.passed = _passed

    # -- operations that the generated code calls

    def concatenate(self, parts: Iterable[Any]) -> str:
        """`a ~ b`."""
        parts = tuple(parts)
        self.meter.weigh(*parts)
        return "".join(map(str, parts))

    def compare(self, operation: str, left: Any, right: Any) -> Any:
        """`left == right` and so on; `operation` is jinja's name of it."""
        if operation in ("in", "notin"):
            return self._contains(right, left) is (operation == "in")
        self.meter.step()
        same_size = operation not in ("eq", "ne") or _same_length(left, right)
        if same_size and isinstance(left, str) and isinstance(right, str):
            self.meter.text(min(len(left), len(right)))
        elif same_size and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            self.meter.weigh(left, right)
        return _COMPARE[operation](left, right)

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`."""
        where = slice(start, stop, step)
        if isinstance(value, str):
            self.meter.text(len(range(*where.indices(len(value)))))
        elif isinstance(value, (list, tuple)):
            self.meter.step(len(range(*where.indices(len(value)))))
        return value[where]

    def key(self, value: Any) -> Any:
        """Return a key of a dict literal: its hash is paid for."""
        if isinstance(value, tuple):
            self.meter.weigh(value)
        return value

    def mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        """Return a dict that the template has made; a look-up costs up to as much as it has keys that can collide."""
        if len(value) > _MOST_ODD_KEYS:
            self.meter.step(len(value))
            if sum(not isinstance(key, str) for key in value) > _MOST_ODD_KEYS:
                raise LimitExceeded(f"it makes a dict with more than {_MOST_ODD_KEYS} keys that are not strings")
        return value

    # -- jinja's hooks

    def concat(self, parts: Iterable[Any]) -> str:
        """Join what macros and `{% set %}` blocks have written."""
        return self.concatenate(parts)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`, also for each step of `map(attribute="a.b")`."""
        self.meter.step()
        return super().getitem(obj, self.key(argument))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Put `FormatMethod` in the place of `str.format`, wherever it is looked up."""
        return None if super().wrap_str_format(value) is None else FormatMethod(self, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left + right` and so on."""
        meter = self.meter
        if operator == "%" and isinstance(left, str):
            bills.printf(meter, [left, *(right if isinstance(right, tuple) else (right,))], {})
        elif operator == "*" and isinstance(left, _REPEATED) != isinstance(right, _REPEATED):
            sequence, times = (left, right) if isinstance(left, _REPEATED) else (right, left)
            size = len(sequence) * max(times, 0) if isinstance(times, int) else 0
            (meter.text if isinstance(sequence, str) else meter.step)(size)
        elif operator == "-" and any(isinstance(value, (KeysView, ItemsView)) for value in (left, right)):
            raise SecurityError("differences of keys or items are not available in chat templates")
        elif isinstance(left, (str, *CONTAINERS)) or isinstance(right, (str, *CONTAINERS)):
            self._bill_sum(left, right)
        else:
            _bill_numbers(meter, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """`obj(...)`: macros, loops, functions of the environment and methods in `bills.py`; nothing else."""
        if obj is self.passed:
            self.meter.step()
            return args[0]
        self.meter.step(_CALL + len(args) + len(kwargs))
        if isinstance(obj, (Macro, LoopContext)):
            self.meter.enter()
            try:
                return super().call(context, obj, *args, **kwargs)
            finally:
                self.meter.leave()
        if isinstance(obj, Undefined):
            return super().call(context, obj, *args, **kwargs)
        for name in ("_loop_vars", "_block_vars"):
            kwargs.pop(name, None)
        if isinstance(obj, TemplateDict) or isinstance(getattr(obj, "__self__", None), TemplateDict):
            args = tuple(bills.drain(self.meter, arg) if isinstance(arg, Iterator) else arg for arg in args)
            self.meter.hashes(sum(len(arg) for arg in args[:1] if not isinstance(arg, dict)))
        if any(obj is function for function in self.globals.values()):
            self.meter.step(_OBJECT)
            self.meter.weigh(*args, *kwargs.values())
        elif not isinstance(obj, FormatMethod) and not self._bill_method(obj, args, kwargs):
            raise SecurityError(f"{getattr(obj, '__name__', type(obj).__name__)!r} cannot be called in chat templates")
        return self._account(obj(*args, **kwargs), args)

    # -- bills

    def _bill_method(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not isinstance(method, (BuiltinMethodType, MethodType)):
            return False
        owner, name = method.__self__, method.__name__
        if isinstance(owner, LoopContext) or (isinstance(owner, TemplateDict) and name == "fromkeys"):
            self.meter.weigh(*args, *kwargs.values())
            return name in ("changed", "cycle", "fromkeys")
        for kind, methods in bills.METHOD_BILLS.items():
            if isinstance(owner, kind) and name in methods:
                methods[name](self.meter, [owner, *args], kwargs)
                return True
        return False

    def _bill_sum(self, left: Any, right: Any) -> None:
        if isinstance(left, str) and isinstance(right, str):
            self.meter.weigh(left, right)
        elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            self.meter.step(len(left) + len(right))
        else:
            self.meter.weigh(left, right)

    def _contains(self, container: Any, item: Any) -> bool:
        self.meter.step()
        if isinstance(container, str):
            bills.search(self.meter, [container, item], {})
        elif isinstance(container, (dict, KeysView)):
            self.meter.weigh(item)
        elif isinstance(container, range):
            self.meter.step(0 if isinstance(item, int) else len(container))
        elif hasattr(type(container), "__iter__") and not isinstance(container, Undefined):
            return any(item is element or self.compare("eq", element, item) for element in container)
        return bool(item in container)

    def _account(self, result: Any, values: Iterable[Any]) -> Any:
        if isinstance(result, str):
            self.meter.text(len(result))
        elif isinstance(result, dict):
            self.meter.step(len(result))
            return self.mapping(result)
        elif isinstance(result, (list, tuple)):
            self.meter.step(len(result))
        elif isinstance(result, Iterator) and not isinstance(result, (MeteredIterator, LoopContext)):
            return MeteredIterator(self.meter, result, next(iter(values), None))
        return result

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        hidden = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context, for example
        bill = bills.FILTER_BILLS[name]

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.meter.step(_CALL + len(args) + len(kwargs))
            values = list(args[hidden:])
            if name in bills.CONSUMING and isinstance(values[0], Iterator):
                values[0] = bills.drain(self.meter, values[0])
            bill(self.meter, values, kwargs)
            return self._account(function(*args[:hidden], *values, **kwargs), values)

        return run

    def _metered_test(self, name: str, function: Any) -> Callable[..., Any]:
        if name in _COMPARING_TESTS:
            return lambda left, right: self.compare(_COMPARING_TESTS[name], left, right)
        if name == "in":
            return lambda item, container: self._contains(container, item)

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.meter.step()
            if name in ("odd", "even", "divisibleby") and not isinstance(args[0], (int, float)):
                raise TypeError(f"the test {name!r} needs a number, not {type(args[0]).__name__}")
            if name in ("filter", "lower", "test", "upper"):  # hash() and str() of the value
                self.meter.weigh(args[-1])
            return function(*args, **kwargs)

        return run

    # -- filters and functions that transformers gives, or that have to know what is hidden

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        self.meter.step(_CALL)
        self.meter.weigh([value])
        sizes = [len(part) if isinstance(part, str) else part for part in (indent or 0, *(separators or ()))]
        if any(size > _LONGEST_INDENT for size in sizes):
            raise LimitExceeded(f"it calls tojson with an indent or separator longer than {_LONGEST_INDENT} characters")
        encoder = json.JSONEncoder(ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is None:
            text = encoder.encode(value)
            self.meter.text(len(text))
        else:  # blanks grow with the nesting: paid for piece by piece
            text = "".join(self._paid(encoder.iterencode(value)))
        return self._shield.as_json(text, ensure_ascii=ensure_ascii)

    def _paid(self, parts: Iterable[str]) -> Iterator[str]:
        for part in parts:
            self.meter.step()
            self.meter.text(len(part))
            yield part

    def _from_json(self, text: str) -> Any:
        self.meter.step(_CALL)
        self.meter.step(self.meter.weigh(text) // 2)
        return self._shield.from_json(text)

    def _escape(self, value: Any) -> Markup:
        self.meter.step(_CALL)
        bills.escape(self.meter, [value], {})
        if hasattr(value, "__html__"):
            return Markup(value)
        return Markup(self._shield.rewrite(str(Markup.escape(value)), lambda text: str(Markup.escape(text))))

    def _strftime_now(self, format: str) -> str:
        self.meter.text(_STRFTIME_GROWTH * len(format))
        return self._now.strftime(format)


_SIZED = (str, dict, *CONTAINERS)
_REPEATED = (str, list, tuple)


@pass_context
def _written(context: Context, value: Any) -> str:
    """Turn the value of `{{ ... }}` into text. That it takes the context keeps jinja from folding constants."""
    environment = context.environment
    assert isinstance(environment, PromptEnvironment)
    environment.meter.weigh(value)
    return str(value)


def _passed(value: Any) -> Any:
    """Return the value: the call that a loop's test is wrapped in is what costs."""
    return value


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


def _bill_numbers(meter: Meter, operator: str, left: Any, right: Any) -> None:
    sizes = [abs(value).bit_length() if isinstance(value, int) else 0 for value in (left, right)]
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        meter.number(sizes[0] * abs(right))
    elif operator == "*":
        meter.number(sum(sizes))
    meter.number(max(sizes))


def _same_length(left: Any, right: Any) -> bool:
    return all(isinstance(value, _SIZED) for value in (left, right)) and len(left) == len(right)
