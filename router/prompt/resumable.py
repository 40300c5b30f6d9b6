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

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from jinja2 import nodes
from jinja2.idtracking import Symbols

from router.prompt.compared import compare_places
from router.prompt.nodes import ask, place
from router.prompt.scans import make_scan
from router.prompt.snapshots import PASSED

_Kind = TypeVar("_Kind", bound=nodes.Node)
_Loads = Mapping[str, tuple[str, str | None]]

_PURE = frozenset({"raise_exception", "namespace", "range", "dict"})
_OPAQUE = (
    nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block, nodes.ScopedEvalContextModifier,
    nodes.EvalContextModifier, nodes.Scope, nodes.OverlayScope, nodes.With, nodes.CallBlock,
)  # fmt: skip
_BY_PLACE = {"resumption_item": 1, "resumption_upto": 2}
_IMPURE_FILTERS = frozenset({"random"})


def make_resumable(tree: nodes.Template) -> int:
    """Make the template's top-level loops resumable, in place; how many. They call `environment.resumption`.

    0: the template can't be resumed, and the tree is of no use any more.
    """
    names = [macro.name for macro in tree.find_all(nodes.Macro)]
    if len(set(names)) < len(names):
        return 0  # one replaces another on the way
    if any(tree.find_all((nodes.Extends, nodes.Block, nodes.Import, nodes.FromImport, nodes.Include))):
        return 0
    if any(map(_is_identity, tree.find_all((nodes.Test, nodes.Const)))):
        return 0  # values that are remembered are equal to those of a render from the start, not the same
    macros = {macro.name: macro for macro in _macros(tree.body)}
    before = _symbols(tree)
    count = _rewrite(tree.body, macros, before.stores, 0)
    return count if _mean_the_same(before.loads, _symbols(tree).loads, tree) else 0


def _symbols(tree: nodes.Template) -> Symbols:
    """The top level's variables."""
    symbols = Symbols()
    symbols.analyze_node(tree)
    return symbols


def _mean_the_same(before: _Loads, after: _Loads, tree: nodes.Template) -> bool:
    """Do names still mean what they did, though what a loop reads is read before it, at the top level?

    jinja2 decides by the order of a block's statements, and by what is around it, what a name is before its assignment.
    """
    assigned = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    return all(
        before[variable] == how if variable in before else how[1] not in assigned for variable, how in after.items()
    )


def _is_identity(node: nodes.Node) -> bool:
    """Does it compare by identity with something of which there may be two?"""
    if isinstance(node, nodes.Test):
        one = node.args[0] if node.args else None
        single = isinstance(one, nodes.Const) and (one.value is None or type(one.value) is bool)
        return node.name == "sameas" and not single
    return isinstance(node, nodes.Const) and node.value == "sameas"


def _macros(body: list[nodes.Node]) -> Iterator[nodes.Macro]:
    """Those of the top level, and those that are there under a condition: without it, their names are undefined."""
    for node in body:
        if isinstance(node, nodes.Macro):
            yield node
        elif isinstance(node, nodes.If):
            yield from _macros([*node.body, *node.elif_, *node.else_])


def _rewrite(body: list[nodes.Node], macros: dict[str, nodes.Macro], outer: set[str], count: int) -> int:
    position = 0
    while position < len(body):
        node = body[position]
        if isinstance(node, nodes.If):
            count = _rewrite(node.body, macros, outer, count)
            for branch in node.elif_:
                count = _rewrite(branch.body, macros, outer, count)
            count = _rewrite(node.else_, macros, outer, count)
        elif isinstance(node, nodes.For) and make_scan(node, count, outer):
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
    read = _reads(loop, macros)
    if read is None or any(_assigned_in(loop, name) for name in read & PASSED):
        return None
    compared = compare_places(loop, macros, outer)
    read = _reads(loop, macros)
    assert read is not None
    names = read & (outer | PASSED | macros.keys())
    parts = [*loop.body, *(macros[name] for name in sorted(read & macros.keys()))]
    watched = sorted(name for name in names if name not in macros and _only_by_place(parts, name))
    inputs = sorted(names - set(watched) - macros.keys())
    for name in watched:
        for part in parts:
            _watch(part, name)
    spared = [pair for pair in compared.of if pair[0] in inputs and not _reads_attribute(loop, macros, *pair)]
    arguments: list[nodes.Expr] = [
        nodes.Const(number),
        loop.iter,  # type: ignore[list-item]
        nodes.List([nodes.Name(name, "load") for name in watched]),
        nodes.List([nodes.Name(name, "load") for name in inputs]),
        nodes.List([_pair(name, name) for name in sorted(names & macros.keys())]),
        nodes.List(compared.numbers),
        nodes.List([_pair(*pair) for pair in spared]),
    ]
    loop.iter = ask("tail", [])
    printed = nodes.Output([ask("enter", arguments)])
    place(loop.iter, loop)
    place(printed, loop)
    return printed


def _pair(name: str, text: str) -> nodes.Expr:
    return nodes.List([nodes.Name(name, "load"), nodes.Const(text)])


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


def _reads(loop: nodes.For, macros: dict[str, nodes.Macro]) -> set[str] | None:
    """Names read by the body and by the macros it calls; None if it does something that can't be followed."""
    found: set[str] = set()
    called_macros: set[str] = set()
    target = loop.target.name  # type: ignore[attr-defined]
    left = [(node, False) for node in loop.body]
    own = _store_names(loop)
    while left:
        node, in_macro = left.pop()
        if isinstance(node, _OPAQUE) or (isinstance(node, nodes.Filter) and node.name in _IMPURE_FILTERS):
            return None
        if isinstance(node, nodes.Macro):
            return None  # defined anew by each iteration
        if isinstance(node, nodes.Name):
            if node.name in ("self", "super", "caller", "strftime_now"):
                return None
            if node.name == "loop" and not in_macro:
                return None  # handed on: whoever has it may take its next item
            if node.name != target or in_macro:
                found.add(node.name)
            if node.name in macros and node.name not in called_macros:
                called_macros.add(node.name)
                left += [(part, True) for part in (*macros[node.name].body, *macros[node.name].defaults)]
        if isinstance(node, nodes.NSRef):
            found.add(node.name)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
            called = node.node.name
            if called not in macros and called not in _PURE:
                return None
        elif isinstance(node, nodes.Call) and not isinstance(node.node, nodes.Getattr | nodes.EnvironmentAttribute):
            return None
        if isinstance(node, nodes.Getattr) and _is_name(node.node, "loop") and not in_macro:
            continue
        left += [(child, in_macro) for child in node.iter_child_nodes()]
    return None if any(name in macros for name in own) else found


def _store_names(loop: nodes.For) -> set[str]:
    return {name.name for name in loop.find_all(nodes.Name) if name.ctx == "store"}


def _assigned_in(loop: nodes.For, name: str) -> bool:
    return name in _store_names(loop)


def _only_by_place(parts: Sequence[nodes.Node], name: str) -> bool:
    """Do the loop's body and its macros use the variable as `name[some number]`, or to count up to its length, only?"""
    uses = [one for part in parts for one in _names(part) if one.name == name]
    if any(one.ctx != "load" for one in uses):
        return False
    placed = sum(_is_item_of(one, name) for part in parts for one in _getitems(part))
    counted = sum(_counts_up_to(one, name) for part in parts for one in _all(part, nodes.For))
    asked = sum(_asked(one, name) for part in parts for one in _all(part, nodes.Call))  # for a loop before this one
    return len(uses) == placed + counted + asked


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


def _counts_up_to(node: nodes.For, name: str) -> bool:
    """Is it a loop over `range(begin, name|length)`?"""
    call = node.iter
    if not isinstance(call, nodes.Call) or len(call.args) != 2 or call.kwargs or call.dyn_args or call.dyn_kwargs:
        return False
    if not isinstance(call.node, nodes.Name) or call.node.name != "range":
        return False
    end = call.args[1]
    return isinstance(end, nodes.Filter) and end.name in ("length", "count") and _is_name(end.node, name)


def _asked(call: nodes.Call, name: str) -> int:
    """How often a call that was put there by `_watch` names the variable."""
    if not isinstance(call.node, nodes.EnvironmentAttribute) or not call.args or not _is_name(call.args[0], name):
        return 0
    return _BY_PLACE.get(call.node.name, 0)


def _is_name(node: nodes.Node | None, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _watch(part: nodes.Node, name: str) -> None:
    """`name[i]` -> `item(name, i)[0]`, and `range(begin, name|length)` -> `upto(name, range(...))`."""
    for node in [one for one in _getitems(part) if _is_item_of(one, name)]:
        call = ask("item", [node.node, node.arg])
        node.node, node.arg = call, nodes.Const(0)
        place(node, node)
    for loop in [one for one in _all(part, nodes.For) if _counts_up_to(one, name)]:
        loop.iter = ask("upto", [nodes.Name(name, "load"), loop.iter])  # type: ignore[list-item]
        place(loop.iter, loop)
