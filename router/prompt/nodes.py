"""Nodes that are added to a template after it was parsed."""

from __future__ import annotations

from jinja2 import nodes


def place(node: nodes.Node, like: nodes.Node) -> None:
    """The line and the environment that a parsed node would have."""
    assert like.environment is not None
    node.set_lineno(like.lineno)
    node.set_environment(like.environment)


def ask(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    """A call of `resumption.Resumption`'s method."""
    target = nodes.EnvironmentAttribute(f"resumption_{method}")
    return nodes.Call(target, arguments, [], None, None)
