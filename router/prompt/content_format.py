"""Which form of message content a chat template wants: a string, or a list of typed parts (engine-protocol.md F.1.3).

Both vLLM and SGLang look at the template's syntax tree: a template with a `for` loop over a message's content wants
the "openai" form (a list), every other one the "string" form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "openai"]
_Predicate = Callable[[nodes.Node], bool]


def detect_content_format(tree: nodes.Template) -> ContentFormat:
    """ "openai" iff the template loops over `message.content`, directly or through an alias.

    Aliases followed: `set x = ...`, attributes of a namespace, the parameter of a macro that receives the content, and
    any variable literally named `content`.
    """
    lists = _aliases(tree, {"messages"}, lambda node: False)
    items = {"message"} | {
        loop.target.name
        for loop in tree.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and _refers(loop.iter, lists, _never)
    }

    def one_message(node: nodes.Node) -> bool:
        return (
            isinstance(node, nodes.Getitem)
            and not isinstance(node.arg, nodes.Slice)
            and _refers(node.node, lists, _never)
        )

    items = _aliases(tree, items, one_message)

    def content_of_message(node: nodes.Node) -> bool:
        return _key(node) == "content" and (_refers(_owner(node), items, _never) or one_message(_owner(node)))

    contents = _aliases(tree, {"content"}, content_of_message)
    contents |= _macro_parameters(tree, lambda node: _refers(node, contents, content_of_message))
    loops = tree.find_all(nodes.For)
    return "openai" if any(_refers(loop.iter, contents, content_of_message) for loop in loops) else "string"


def detect_sglang_format(source: str, tree: nodes.Template) -> ContentFormat:
    """SGLang's narrower rule: only `message`, `msg` or `m`, no aliases; a template that names media is "openai"."""
    if any(word in source for word in ("image", "audio", "video", "vision")):
        return "openai"

    def content_of_message(node: nodes.Node) -> bool:
        return _key(node) == "content" and _dotted(_owner(node)) in ("message", "msg", "m")

    loops = tree.find_all(nodes.For)
    return "openai" if any(_refers(loop.iter, set(), content_of_message) for loop in loops) else "string"


def _never(node: nodes.Node) -> bool:
    return False


def _key(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return node.arg.value
    return None


def _owner(node: nodes.Node) -> nodes.Node:
    assert isinstance(node, nodes.Getattr | nodes.Getitem)
    return node.node


def _dotted(node: nodes.Node) -> str | None:
    """`x` for a name, `ns.x` for an attribute of a namespace."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.NSRef):
        return f"{node.name}.{node.attr}"
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
        return f"{node.node.name}.{node.attr}"
    return None


def _refers(node: nodes.Node | None, names: set[str], is_source: _Predicate) -> bool:
    """Is the expression one of `names` or a source, possibly filtered, tested, or sliced?"""
    while node is not None:
        if _dotted(node) in names or is_source(node):
            return True
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
        else:
            return False
    return False


def _assignments(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    for assign in tree.find_all(nodes.Assign):
        name = _dotted(assign.target)
        if name is not None:
            yield name, assign.node
            if isinstance(assign.node, nodes.Call) and _dotted(assign.node.node) == "namespace":
                for keyword in assign.node.kwargs:
                    yield f"{name}.{keyword.key}", keyword.value


def _aliases(tree: nodes.Template, names: set[str], is_source: _Predicate) -> set[str]:
    """`names` and whatever is assigned from them or from a source, to a fixed point."""
    found = set(names)
    assignments = list(_assignments(tree))
    while True:
        more = {name for name, value in assignments if name not in found and _refers(value, found, is_source)}
        if not more:
            return found
        found |= more


def _macro_parameters(tree: nodes.Template, is_content: _Predicate) -> set[str]:
    macros = {macro.name: [argument.name for argument in macro.args] for macro in tree.find_all(nodes.Macro)}
    found: set[str] = set()
    for call in tree.find_all(nodes.Call):
        parameters = macros.get(_dotted(call.node) or "", [])
        for parameter, argument in zip(parameters, call.args, strict=False):
            if is_content(argument):
                found.add(parameter)
        found |= {keyword.key for keyword in call.kwargs if keyword.key in parameters and is_content(keyword.value)}
    return found
