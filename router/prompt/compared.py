"""Comparisons of an iteration's place with a number that the loop does not change (a part of `resumable`).

A template that shows the reasoning behind the last question only asks `loop.index0 > ns.last_query_index`, and that
number grows with each question. If it counted as something that iterations read, each question would have the whole
history rendered again; but what an iteration sees of it is a yes or a no. So

    loop.index0 > ns.last_query_index    becomes    compared(0, "gt", false, loop.index0)

and the number is told when the loop begins. A snapshot keeps the answers, and holds for every number that gives the
same ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import NamedTuple

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from router.prompt.nodes import ask, place

_ORDER = frozenset({"gt", "gteq", "lt", "lteq"})
_EQUAL = frozenset({"eq", "ne"})
_LENGTHS = ("length", "count")


class Compared(NamedTuple):
    """`numbers`: an expression for each number. `of`: (namespace, attribute) of those that are one's."""

    numbers: list[nodes.Expr]
    of: list[tuple[str, str]]


def compare_places(loop: nodes.For, macros: Mapping[str, nodes.Macro], outer: Collection[str]) -> Compared:
    """Rewrite the comparisons in the loop's body, in place. `outer`: names assigned at the top level."""
    rewriting = _Rewriting(loop, macros, outer)
    loop.body = [rewriting.visit(node) for node in loop.body]
    return Compared(rewriting.numbers, rewriting.of)


class _Rewriting(NodeTransformer):
    def __init__(self, loop: nodes.For, macros: Mapping[str, nodes.Macro], outer: Collection[str]) -> None:
        self.numbers: list[nodes.Expr] = []
        self.of: list[tuple[str, str]] = []
        self._loop = loop
        stored = {name.name for name in loop.find_all(nodes.Name) if name.ctx == "store"}
        self._constant = {name for name in (*outer, "messages") if name not in stored and name not in macros}
        # A namespace may have two names: an attribute of that name is not to be assigned in any.
        self._assigned = {ref.attr for part in (loop, *macros.values()) for ref in part.find_all(nodes.NSRef)}
        self._depth = 0

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._depth += 1  # `loop` is another one in there
        self.generic_visit(node)
        self._depth -= 1
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) != 1 or self._depth:
            return node
        operator, right = node.ops[0].op, node.ops[0].expr
        for flipped, place_, other in ((False, node.expr, right), (True, right, node.expr)):
            if _tells_place(place_) and (number := self._number(other, operator)) is not None:
                of_loop = isinstance(other, nodes.Getattr) and _is_loop(other.node)
                if of_loop and not isinstance(place_, nodes.Getattr):
                    return node
                arguments = [nodes.Const(len(self.numbers)), nodes.Const(operator), nodes.Const(flipped), place_]
                self.numbers.append(number)
                asked: nodes.Expr = ask("compared", arguments)
                if of_loop:  # what is no list may have no length before its loop runs
                    asked = nodes.CondExpr(ask("counted", []), asked, deepcopy(node))
                place(number, node)
                place(asked, node)
                return asked
        return node

    def _number(self, expr: nodes.Expr, operator: str) -> nodes.Expr | None:
        """What is told of it when the loop begins; that must not raise."""
        if operator not in _ORDER | _EQUAL:
            return None
        if isinstance(expr, nodes.Name):
            return deepcopy(expr) if expr.name in self._constant else None
        if isinstance(expr, nodes.Getattr) and isinstance(expr.node, nodes.Name):
            name, attr = expr.node.name, expr.attr
            if name == "loop" and attr == "length" and isinstance(self._loop.iter, nodes.Name):
                return self._length(self._loop.iter)
            if name in self._constant and attr not in self._assigned and operator in _ORDER:
                self.of.append((name, attr))
                # Without the namespace the comparison has to fail, but not before there is one.
                defined = nodes.Test(nodes.Name(name, "load"), "defined", [], [], None, None)
                return nodes.CondExpr(defined, deepcopy(expr), nodes.Name(name, "load"))
            return None
        less: nodes.Expr | None = None
        counted: nodes.Expr = expr
        if isinstance(expr, nodes.Sub) and isinstance(expr.right, nodes.Const) and type(expr.right.value) is int:
            less = expr.right
            counted = expr.left
        if isinstance(counted, nodes.Filter) and counted.name in _LENGTHS and not counted.args:
            of = counted.node
            if isinstance(of, nodes.Name) and of.name == "messages" and "messages" in self._constant:
                return self._length(of, deepcopy(less))
        return None

    @staticmethod
    def _length(name: nodes.Name, less: nodes.Expr | None = None) -> nodes.Expr:
        return ask("length", [nodes.Name(name.name, "load"), less or nodes.Const(0)])


def _is_loop(expr: nodes.Node) -> bool:
    return isinstance(expr, nodes.Name) and expr.name == "loop"


def _tells_place(expr: nodes.Expr) -> bool:
    return any(
        _is_loop(one.node) and one.attr in ("index", "index0")
        for one in ([expr] if isinstance(expr, nodes.Getattr) else expr.find_all(nodes.Getattr))
    )
