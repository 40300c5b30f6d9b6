"""What a render leaves of a loop's beginning, for later renders (see `resume`): snapshots, and what they depend on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from operator import eq, ge, gt, le, lt, ne
from typing import Any, NamedTuple

from jinja2.exceptions import UndefinedError
from jinja2.runtime import Undefined

from router.prompt.history import Message, SharedList

_OVERHEAD = 1500  # a snapshot's own objects, and the messages it keeps alive beyond their texts
_SMALL = 32
PASSED = frozenset({"messages", "tools", "documents"})
"""A template's variables that are followed by their items, not by their value."""

Key = tuple[int, int, bool, int]
"""(loop, first of its last items, whether that is all of the list, hash of everything before)"""


class Answer(NamedTuple):
    """`result` of comparing `other` with the loop's number of that `place`; `flipped`: the number came first."""

    place: int
    operator: str
    flipped: bool
    other: Any
    result: bool

    def holds(self, numbers: Sequence[Any]) -> bool:
        """Would the answer be the same now?"""
        try:
            return compare_numbers(self.operator, self.flipped, self.other, numbers[self.place]) is self.result
        except (TypeError, UndefinedError):
            return False


_OPERATORS = {"gt": gt, "gteq": ge, "lt": lt, "lteq": le, "eq": eq, "ne": ne}


def compare_numbers(operator: str, flipped: bool, other: Any, number: Any) -> Any:
    return _OPERATORS[operator](number, other) if flipped else _OPERATORS[operator](other, number)


class Unkeyable(Exception):
    """A value that can't be compared between renders."""


class Snapshot:
    """After so many iterations. `chunk`: the items since `parent`; `ahead`: those looked up beyond; all kept alive.

    `inputs`: what the loop began with; its descendants share it. `answers`: what its iterations were told when they
    compared their places.
    """

    __slots__ = ("ahead", "answers", "chunk", "inputs", "parent", "pins", "size", "state", "text")

    def __init__(
        self,
        parent: Snapshot | None,
        inputs: tuple[Any, ...],
        text: str,
        chunk: tuple[Any, ...],
        ahead: tuple[Any, ...],
        answers: tuple[Answer, ...],
        state: list[dict[str, Any]],
        pins: list[Any],
    ) -> None:
        self.parent = parent
        self.inputs = inputs
        self.text = text
        self.chunk = chunk
        self.ahead = ahead
        self.answers = answers
        self.state = state
        self.pins = pins
        self.size = _OVERHEAD + (2 if text.isascii() else 5) * len(text)


class Snapshots:
    """The snapshots of one template, least recently used out first, bounded in bytes. For one thread at a time."""

    def __init__(self, max_bytes: int = 32 << 20) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.resumed = 0
        """Iterations that were not rendered again."""
        self._known: OrderedDict[Key, Snapshot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: Key) -> Snapshot | None:
        return self._known.get(key)

    def used(self, keys: Sequence[Key]) -> None:
        """Refresh a chain, first to last: a snapshot goes no later than those that grew out of it."""
        for key in reversed(keys):
            if key in self._known:
                self._known.move_to_end(key)

    def keep(self, key: Key, snapshot: Snapshot) -> None:
        if snapshot.size > self.max_bytes >> 3:
            return
        old = self._known.pop(key, None)
        if old is not None:
            self.bytes -= old.size
        self._known[key] = snapshot
        self.bytes += snapshot.size
        while self.bytes > self.max_bytes:
            self.bytes -= self._known.popitem(last=False)[1].size


def keyed(value: Any, pins: list[Any]) -> Any:
    """What a value is compared by between renders; objects compared by identity are added to `pins`.

    Raises RecursionError for what is nested too deeply.
    """
    kind = type(value)
    if value is None or kind in (str, int, bool):
        return (kind, value)
    if kind is float:
        return (kind, repr(value))  # 0.0 == -0.0
    if kind in (Message, SharedList):
        pins.append(value)
        return ("same", id(value))
    if isinstance(value, Undefined):
        return ("undefined",)
    if kind in (list, tuple) and len(value) <= _SMALL:
        return (kind, *(keyed(item, pins) for item in value))
    if kind is dict and len(value) <= _SMALL:
        return (kind, *((keyed(key, pins), keyed(item, pins)) for key, item in value.items()))
    raise Unkeyable
