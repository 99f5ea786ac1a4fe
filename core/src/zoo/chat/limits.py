"""How much work a chat template may do, counted instead of timed: a thread that hangs cannot be stopped.

Two budgets cover everything. A *step* is about one Python operation (a node of the template that runs, an item that is
visited or stored). A *char* is one character that is read, compared or written by C code. Work that depends on data is
paid before it is done, so a template that asks for too much ends before it gets the time or the memory.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from jinja2.utils import Namespace
from markupsafe import Markup

CONTAINERS: tuple[type, ...] = (list, tuple, KeysView, ValuesView, ItemsView)

_NESTED_TEXT = 4  # repr and JSON write up to four bytes for one byte of a string inside a container
_MARKUP_TEXT = 6  # HTML escaping writes up to five characters for one
_MAX_STEPS = 50_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one chat template. The defaults suit a small conversation; `scaled` adds room for a larger one.

    template_chars and tokens bound the source (characters, jinja tokens); steps, chars and output_chars one render;
    nesting how deep containers nest; calls how deep macros and recursive loops call; int_bits the size of an integer.
    """

    template_chars: int = 256 * 1024
    tokens: int = 16_384
    steps: int = 1_000_000
    chars: int = 16_000_000
    output_chars: int = 4_000_000
    nesting: int = 100
    calls: int = 64
    int_bits: int = 4096

    def scaled(self, *, nodes: int, chars: int, messages: int) -> Limits:
        """Return limits for an input of so many JSON values, characters and messages.

        Some templates look from every message at every later one: hence the square.
        """
        steps = self.steps + 100 * nodes + 20 * messages**2
        return replace(
            self,
            steps=min(steps, max(_MAX_STEPS, self.steps)),
            chars=self.chars + 64 * chars,
            output_chars=self.output_chars + 8 * chars,
        )


class LimitExceeded(Exception):
    """A template asked for more than its limits allow. Not a ValueError: jinja swallows some of those."""


class Meter:
    """The budgets that one render has left."""

    __slots__ = ("_calls", "_chars", "_steps", "limits")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._steps = limits.steps
        self._chars = limits.chars
        self._calls = 0

    def step(self, count: int = 1) -> None:
        """Pay for `count` steps. Raises LimitExceeded."""
        self._steps -= count
        if self._steps < 0:
            raise LimitExceeded(f"it needs more than {self.limits.steps} steps for this conversation")

    def text(self, chars: int) -> None:
        """Pay for reading or writing `chars` characters. Raises LimitExceeded."""
        self._chars -= chars
        if self._chars < 0:
            raise LimitExceeded(f"it handles more than {self.limits.chars} characters for this conversation")

    def balance(self) -> tuple[int, int]:
        """Return the steps and chars left."""
        return self._steps, self._chars

    def enter(self) -> None:
        """Begin a call of a macro or of a recursive loop. Raises LimitExceeded; no `leave` is due then."""
        if self._calls >= self.limits.calls:
            raise LimitExceeded(f"its macros or loops call each other more than {self.limits.calls} deep")
        self._calls += 1

    def leave(self) -> None:
        """End what `enter` began."""
        self._calls -= 1

    def hashes(self, count: int) -> None:
        """Pay for putting `count` keys into a dict or set: numbers can be chosen so that all of them collide."""
        self.step(count + count**2 // 64)

    def number(self, bits: int) -> None:
        """Check the size of an integer. Raises LimitExceeded."""
        if bits > self.limits.int_bits:
            raise LimitExceeded(f"it computes with integers of more than {self.limits.int_bits} bits")

    def weigh(self, *values: object) -> int:
        """Pay for one walk over all that is inside `values`, as str(), ==, hash() or JSON do; return the chars paid.

        A container held twice is walked twice: a few nested lists can stand for a walk without end. Nesting is checked
        too, because hash() of a deep tuple overflows the C stack. Raises LimitExceeded.
        """
        before = self._chars
        factor = _MARKUP_TEXT if any(isinstance(value, Markup) for value in values) else 1
        open_containers: list[Iterator[object]] = [iter(values)]
        while open_containers:
            nested = len(open_containers) > 1
            for value in open_containers[-1]:
                if nested:
                    self.step()
                if isinstance(value, str):
                    self.text(len(value) * (_NESTED_TEXT if nested else factor))
                elif isinstance(value, range):
                    self.step(len(value))
                elif (children := _children(value)) is not None:
                    if len(open_containers) > self.limits.nesting:
                        raise LimitExceeded(f"it nests lists or mappings more than {self.limits.nesting} deep")
                    self.step(2)
                    open_containers.append(children)
                    break
            else:
                open_containers.pop()
        return before - self._chars


class MeteredIterator:
    """What a lazy filter returns: every item costs a step, and iterators over iterators end at the nesting limit.

    Freeing a long chain of generators recurses in C without a check, so such a chain must not come to be.
    """

    __slots__ = ("_meter", "_source", "depth")

    def __init__(self, meter: Meter, source: Iterator[Any], inner: object) -> None:
        self._meter = meter
        self._source = source
        self.depth: int = inner.depth + 1 if isinstance(inner, MeteredIterator) else 1
        if self.depth > meter.limits.nesting:
            raise LimitExceeded(f"it chains more than {meter.limits.nesting} lazy filters")

    def __iter__(self) -> MeteredIterator:
        return self

    def __next__(self) -> Any:
        self._meter.step(3)
        return next(self._source)


def _children(value: object) -> Iterator[object] | None:
    if value is None or isinstance(value, (int, float)):
        return None
    if isinstance(value, (list, tuple)):
        return iter(value)
    if isinstance(value, dict):
        return chain(value, value.values())
    if isinstance(value, Namespace):
        attributes: dict[str, object] = object.__getattribute__(value, "_Namespace__attrs")
        return iter(attributes.values())
    if isinstance(value, (KeysView, ValuesView, ItemsView)):
        return iter(value)
    return None
