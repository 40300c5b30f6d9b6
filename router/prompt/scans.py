"""Loops that look for something from the end of the messages (a part of `resumable`), and what they remember.

    {% for message in messages[::-1] %}
        {% set index = ... %}
        {% if ns.searching and message.role == "user" and ... %}...{% endif %}
    {% endfor %}

A growing history moves every message's place in such a loop, so it can't be resumed. But an iteration whose condition
does not hold does nothing, and the condition reads the message only: messages of which it was seen not to hold are
passed over. And where nothing can happen any more (`ns.searching` is false), the loop ends. The same for loops over
`range(messages|length - 1, -1, -1)` whose condition reads `messages[index]` only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import Any, cast

from jinja2 import nodes

from router.prompt.nodes import ask, place

_IMPURE_FILTERS = frozenset({"random"})
_PLACES = frozenset({"index", "index0", "revindex", "revindex0"})
_OVERHEAD = 600  # bytes: a small message's dict and its entry


def make_scan(loop: nodes.For, number: int, outer: Collection[str]) -> bool:
    """Rewrite the loop, in place, if it is one.

    `number`: no other loop's of the template. `outer`: names assigned at the top level.
    """
    if loop.else_ or loop.test is not None or loop.recursive or not isinstance(loop.target, nodes.Name):
        return False
    found = loop.body[-1] if loop.body else None
    if not isinstance(found, nodes.If) or found.elif_ or found.else_:
        return False
    if not all(isinstance(each, nodes.Assign) and _harmless(each) for each in loop.body[:-1]):
        return False
    item = loop.target.name
    places = _downward(loop.iter)
    if (places and _names(loop, "loop")) or not (places or _backward(loop.iter)):
        return False
    test = cast(nodes.Expr, found.test)
    flag, rest = (None, test) if places else _split(test, item)
    read = _item_of(test, item) if places else nodes.Name(item, "load")
    if rest is None or read is None or not _reads_only(rest, read):
        return False
    used = {item, "messages", *(name.name for one in (read, flag) if one for name in one.find_all(nodes.Name))}
    if any(cast(nodes.Name, cast(nodes.Assign, each).target).name in used for each in loop.body[:-1]):
        return False
    if "messages" in outer and any(_names(each, "messages") for each in loop.body[:-1]):
        return False  # which may have no length then
    telling: nodes.Expr = ask("telling", [nodes.Name(item, "load"), rest])
    seen = [deepcopy(read.node)] if isinstance(read, nodes.Getitem) else []
    if flag is not None:
        seen.append(deepcopy(flag.node))
        telling = nodes.And(flag, telling)
        ended = nodes.If(nodes.Not(deepcopy(flag)), [nodes.Break()], [], [])
        place(ended, loop)
        loop.body.insert(0, ended)
    found.test = telling
    of = cast(nodes.Expr, loop.iter)
    loop.iter = ask("places" if places else "scan", [nodes.Const(number), of, *seen])
    place(telling, loop)
    place(loop.iter, loop)
    return True


def _names(node: nodes.Node, name: str) -> bool:
    return any(one.name == name for one in node.find_all(nodes.Name))


def _backward(expr: nodes.Node) -> bool:
    """Is it `something[::-1]` or `something|reverse`?"""
    if isinstance(expr, nodes.Filter):
        return expr.name == "reverse"
    return isinstance(expr, nodes.Getitem) and isinstance(expr.arg, nodes.Slice) and _minus_one(expr.arg.step)


def _downward(expr: nodes.Node) -> bool:
    """Is it `range(from, to, -1)`?"""
    if not isinstance(expr, nodes.Call) or not isinstance(expr.node, nodes.Name) or expr.node.name != "range":
        return False
    return len(expr.args) == 3 and not expr.kwargs and _minus_one(expr.args[2])


def _minus_one(expr: nodes.Expr | None) -> bool:
    return expr == nodes.Const(-1) or expr == nodes.Neg(nodes.Const(1))


def _harmless(assign: nodes.Assign) -> bool:
    """A number worked out from the loop's place: it can neither fail nor change anything but its own name."""
    if not isinstance(assign.target, nodes.Name):
        return False
    left: list[nodes.Node] = [assign.node]
    while left:
        node = left.pop()
        if isinstance(node, nodes.Getattr):
            if not (isinstance(node.node, nodes.Name) and node.node.name == "loop" and node.attr in _PLACES):
                return False
        elif isinstance(node, nodes.Filter):
            if node.name not in ("length", "count") or node.args or not _is_messages(node.node):
                return False
        elif isinstance(node, nodes.Add | nodes.Sub):
            left += [node.left, node.right]
        elif not isinstance(node, nodes.Const) or type(node.value) is not int:
            return False
    return True


def _is_messages(expr: nodes.Expr | None) -> bool:
    return isinstance(expr, nodes.Name) and expr.name == "messages"


def _split(test: nodes.Expr, item: str) -> tuple[nodes.Getattr | None, nodes.Expr | None]:
    """`ns.flag and rest`: both; the flag is None where the condition begins in another way."""
    parts: list[nodes.Expr] = []
    left = test
    while isinstance(left, nodes.And):
        parts.insert(0, left.right)
        left = left.left
    if not (isinstance(left, nodes.Getattr) and isinstance(left.node, nodes.Name) and left.node.name != item):
        return None, test
    if not parts or left.node.name == "loop":
        return None, None
    rest = parts[0]
    for part in parts[1:]:
        rest = nodes.And(rest, part)
    return left, rest


def _item_of(test: nodes.Expr, index: str) -> nodes.Getitem | None:
    """The `sequence[index]` that a condition looks at."""
    for one in test.find_all(nodes.Getitem):
        if isinstance(one.node, nodes.Name) and one.arg == nodes.Name(index, "load"):
            return one
    return None


def _reads_only(test: nodes.Expr, read: nodes.Expr) -> bool:
    """Does the condition depend on that one item, and do nothing else?"""
    left: list[nodes.Node] = [test]
    seen = False
    while left:
        node = left.pop()
        if node == read:
            seen = True
            continue
        if isinstance(node, nodes.Name | nodes.EnvironmentAttribute):
            return False
        if isinstance(node, nodes.Call) and not isinstance(node.node, nodes.Getattr):
            return False
        if isinstance(node, nodes.Filter) and node.name in _IMPURE_FILTERS:
            return False
        left.extend(node.iter_child_nodes())
    return seen


class Idle:
    """Messages that a loop has nothing to do with, by their identity; the first noted go first. Bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0
        self._known: dict[tuple[int, int], Any] = {}

    def note(self, number: int, item: Any) -> None:
        """The loop has nothing to do with the item, which must not be changed."""
        if not isinstance(item, dict) or (number, id(item)) in self._known:
            return
        self._known[number, id(item)] = item
        self.bytes += _size(item)
        while self.bytes > self._max_bytes:
            first = next(iter(self._known))
            self.bytes -= _size(self._known.pop(first))

    def has(self, number: int, item: Any) -> bool:
        return (number, id(item)) in self._known


def _size(item: dict[str, Any]) -> int:
    return _OVERHEAD + sum([len(value) for value in item.values() if isinstance(value, str)])


class Scan:
    """What a scan iterates over."""

    __slots__ = ("_by_place", "_idle", "_number", "items")

    def __init__(self, items: Sequence[Any], idle: Idle, number: int, *, by_place: bool = False) -> None:
        """`by_place`: the loop goes by the items' indexes."""
        self._by_place = by_place
        self.items = items
        self._idle = idle
        self._number = number

    def __len__(self) -> int:
        return len(self.items)

    def idle(self, item: Any) -> bool:
        """Is there nothing to do with it?"""
        return self._idle.has(self._number, item)

    def tested(self, item: Any, result: Any) -> Any:
        if not result and not self._by_place:
            self._idle.note(self._number, item)
        elif not result and 0 <= item < len(self.items):
            self._idle.note(self._number, self.items[item])
        return result

    def __iter__(self) -> Iterator[Any]:
        return (item for item in self.items if not self.idle(item))

    def places(self, indexes: range) -> Iterator[int]:
        """Those of which there is something to do with the item."""
        items, count = self.items, len(self.items)
        return (at for at in indexes if not (0 <= at < count and self.idle(items[at])))
