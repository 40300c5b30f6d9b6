"""Changes a chat template's syntax tree so that the sandbox gets to see what jinja2 would do without asking it.

| in the template | becomes |
|---|---|
| `a + b + c` | `a\\|router_add(b, c)`: measured, and joined once instead of once for each `+` |
| `text[1:]` | `text[1:]\\|router_made` |
| `(a, b)`, `a == b`, unless one is a constant | `\\|router_flat` of the tuple, or of both sides |
| `{% for %}` | its body begins with `router_tick` |
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from router.prompt.nodes import place

_STEP = 64  # bytes an iteration is charged, beside those of what it prints
_REFERENCE = 8


class Unsupported(Exception):
    """A statement that isn't allowed; its line."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


def measure(tree: nodes.Template) -> None:
    """Change the tree, in place. Raises Unsupported."""
    _Measure().visit(tree)


class _Measure(NodeTransformer):
    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        parts: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            parts.insert(0, self.visit(left.right))
            left = left.left
        return _filter("add", self.visit(left), parts, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter("made", node, [], node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        if node.ctx != "load" or all(isinstance(item, nodes.Const) for item in node.items):
            return node
        return _filter("flat", node, [], node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if not any(isinstance(side, nodes.Const) for side in (node.expr, *(one.expr for one in node.ops))):
            node.expr = _filter("flat", node.expr, [], node)
            for operand in node.ops:
                operand.expr = _filter("flat", operand.expr, [], node)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        printed = sum(len(output.nodes) for part in node.body for output in _outputs(part))
        self.generic_visit(node)
        weight = nodes.Const(_STEP + _REFERENCE * printed)
        tick = nodes.ExprStmt(_filter("tick", weight, [], node))
        place(tick, node)
        node.body.insert(0, tick)
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        raise Unsupported("{% autoescape %} is not allowed", node.lineno)


def _outputs(node: nodes.Node) -> list[nodes.Output]:
    return [*([node] if isinstance(node, nodes.Output) else []), *node.find_all(nodes.Output)]


def _filter(name: str, value: nodes.Expr, arguments: list[Any], like: nodes.Node) -> nodes.Filter:
    node = nodes.Filter(value, f"router_{name}", arguments, [], None, None)
    place(node, like)
    return node
