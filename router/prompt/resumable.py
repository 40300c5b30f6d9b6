"""Makes the loops of a chat template resumable (see `resume`): a rewrite of its syntax tree.

    {% for message in messages %}BODY{% endfor %}
becomes
    {{ enter(number, messages, [lists of which single items are looked up], [variables read], ...) }}
    {% for message in tail() %}BODY{% endfor %}

`enter` prints what is known already, `tail` gives the iterations that are left; in BODY `messages[i]` becomes
`item(messages, i)[0]`, which notes how far an iteration looks. Comparisons of an iteration's place, and loops that look
for something from the end, have ways of their own (`compared`, `scans`).

What can't be followed stays as it is: loops with `else`, a condition, or recursion, and bodies that include, import, or
call something that is neither a macro of the template, a method, nor a pure function.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from jinja2 import nodes

from router.prompt.compared import compare_places
from router.prompt.nodes import ask, place
from router.prompt.resume import PASSED
from router.prompt.scans import make_scan

_Kind = TypeVar("_Kind", bound=nodes.Node)

_PURE = frozenset({"raise_exception", "namespace", "range", "dict"})
_OPAQUE = (
    nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block, nodes.ScopedEvalContextModifier,
    nodes.EvalContextModifier, nodes.Scope, nodes.OverlayScope, nodes.With, nodes.CallBlock,
)  # fmt: skip
_IMPURE_FILTERS = frozenset({"random"})


def make_resumable(tree: nodes.Template) -> int:
    """Make the template's top-level loops resumable, in place; how many. They call `environment.resumption`."""
    macros = {macro.name: macro for macro in tree.body if isinstance(macro, nodes.Macro)}
    if len(macros) < sum(isinstance(node, nodes.Macro) for node in tree.body):
        return 0  # one replaces another on the way
    if any(tree.find_all((nodes.Extends, nodes.Block, nodes.Import, nodes.FromImport, nodes.Include))):
        return 0
    outer = _stored_outside(tree)
    return _rewrite(tree.body, macros, outer, 0)


def _rewrite(body: list[nodes.Node], macros: dict[str, nodes.Macro], outer: set[str], count: int) -> int:
    position = 0
    while position < len(body):
        node = body[position]
        if isinstance(node, nodes.If):
            count = _rewrite(node.body, macros, outer, count)
            for branch in node.elif_:
                count = _rewrite(branch.body, macros, outer, count)
            count = _rewrite(node.else_, macros, outer, count)
        elif isinstance(node, nodes.For) and make_scan(node, count):
            count += 1
        elif isinstance(node, nodes.For) and (entered := _entered(node, macros, outer, count)) is not None:
            body.insert(position, entered)
            position += 1
            count += 1
        position += 1
    return count


def _entered(loop: nodes.For, macros: dict[str, nodes.Macro], outer: set[str], number: int) -> nodes.Output | None:
    """Rewrites the loop; what has to be printed before it. None if it stays as it is."""
    if loop.else_ or loop.test is not None or loop.recursive or not isinstance(loop.target, nodes.Name):
        return None
    if _reads(loop, macros) is None:
        return None
    compared = compare_places(loop, macros, outer)
    read = _reads(loop, macros)
    assert read is not None
    names = read & (outer | PASSED | macros.keys())
    if any(_assigned_in(loop, name) for name in names & PASSED):
        return None
    watched = sorted(name for name in names if name not in macros and _only_by_index(loop, macros, read, name))
    inputs = sorted(names - set(watched))
    for name in watched:
        _watch(loop, name)
    spared = [pair for pair in compared.of if pair[0] in inputs and not _reads_attribute(loop, macros, *pair)]
    arguments: list[nodes.Expr] = [
        nodes.Const(number),
        loop.iter,  # type: ignore[list-item]
        nodes.List([nodes.Name(name, "load") for name in watched]),
        nodes.List([nodes.Name(name, "load") for name in inputs]),
        nodes.List(compared.numbers),
        nodes.List([nodes.List([nodes.Name(name, "load"), nodes.Const(attr)]) for name, attr in spared]),
    ]
    loop.iter = ask("tail", [])
    printed = nodes.Output([ask("enter", arguments)])
    place(loop.iter, loop)
    place(printed, loop)
    return printed


def _reads_attribute(loop: nodes.For, macros: dict[str, nodes.Macro], name: str, attr: str) -> bool:
    """May the body, or a macro, read that attribute of a namespace in any way?"""
    for part in (*loop.body, *macros.values()):
        fields = [one for one in _all(part, nodes.Getattr) if isinstance(one.node, nodes.Name)]
        if any(one.attr == attr for one in _all(part, nodes.Getattr)):
            return True
        uses = sum(one.name == name for one in _names(part))
        if uses != sum(one.node.name == name for one in fields):  # type: ignore[attr-defined]
            return True
    return False


def _stored_outside(tree: nodes.Template) -> set[str]:
    """Names that are assigned outside of loops and macros."""
    found: set[str] = set()
    left: list[nodes.Node] = list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, nodes.For | nodes.Macro):
            continue
        if isinstance(node, nodes.Name) and node.ctx == "store":
            found.add(node.name)
        left.extend(node.iter_child_nodes())
    return found


def _reads(loop: nodes.For, macros: dict[str, nodes.Macro]) -> set[str] | None:
    """Names read by the body and by the macros it calls; None if it does something that can't be followed."""
    found: set[str] = set()
    seen: set[str] = set()
    left: list[nodes.Node] = list(loop.body)
    own = _store_names(loop)
    while left:
        node = left.pop()
        if isinstance(node, _OPAQUE) or (isinstance(node, nodes.Filter) and node.name in _IMPURE_FILTERS):
            return None
        if isinstance(node, nodes.Macro):
            return None  # defined anew by each iteration
        if isinstance(node, nodes.Name):
            if node.name in ("self", "super", "caller"):
                return None
            found.add(node.name)
            if node.name in macros and node.name not in seen:
                seen.add(node.name)
                left += macros[node.name].body
                left += macros[node.name].defaults
        if isinstance(node, nodes.NSRef):
            found.add(node.name)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
            called = node.node.name
            if called not in macros and called not in _PURE:
                return None
        elif isinstance(node, nodes.Call) and not isinstance(node.node, nodes.Getattr | nodes.EnvironmentAttribute):
            return None
        if isinstance(node, nodes.Name) and node.name == "loop" and node.ctx == "store":
            return None
        left.extend(node.iter_child_nodes())
    if any(name in macros for name in own):
        return None
    return found - {loop.target.name, "loop"}  # type: ignore[attr-defined]


def _store_names(loop: nodes.For) -> set[str]:
    return {name.name for name in loop.find_all(nodes.Name) if name.ctx == "store"}


def _assigned_in(loop: nodes.For, name: str) -> bool:
    return name in _store_names(loop)


def _only_by_index(loop: nodes.For, macros: dict[str, nodes.Macro], read: set[str], name: str) -> bool:
    """Does the body use the variable in no other way than `name[some number]`, and no macro at all?"""
    if _assigned_in(loop, name):
        return False
    if any(one.name == name for macro in macros.values() if macro.name in read for one in macro.find_all(nodes.Name)):
        return False
    uses = sum(one.name == name for part in loop.body for one in _names(part))
    indexed = sum(_is_item_of(one, name) for part in loop.body for one in _getitems(part))
    return uses == indexed


def _all(node: nodes.Node, kind: type[_Kind]) -> Iterator[_Kind]:
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    return _all(node, nodes.Name)


def _getitems(node: nodes.Node) -> Iterator[nodes.Getitem]:
    return _all(node, nodes.Getitem)


def _is_item_of(node: nodes.Getitem, name: str) -> bool:
    return (
        isinstance(node.node, nodes.Name)
        and node.node.name == name
        and not isinstance(node.arg, nodes.Slice)
        and not (isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str))
    )


def _watch(loop: nodes.For, name: str) -> None:
    """`name[i]` -> `environment.resumption_item(name, i)[0]`."""
    for node in [one for part in loop.body for one in _getitems(part) if _is_item_of(one, name)]:
        call = ask("item", [node.node, node.arg])
        node.node, node.arg = call, nodes.Const(0)
        place(node, node)
