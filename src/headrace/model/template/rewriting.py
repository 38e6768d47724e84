"""Puts a price on what Jinja would compile to bare Python, in the syntax tree, before it does.

Loops and macros pay for their bodies each time round. Operations whose cost depends on values
become filters of `operations.py`, which have the render's meter.
"""

from __future__ import annotations

from typing import cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class Metering(NodeTransformer):
    """Visit a template's tree with it, once."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - how Jinja dispatches
        step = _stepping(node, node.body)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._pay_for_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._pay_for_body(node)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("!made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("!made", node) if node.ctx == "load" else node

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802
        is_made_by_a_call = node.ctx == "load" and node.name in ("varargs", "kwargs")
        return _filtered("!made", node) if is_made_by_a_call else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        # As pairs, so that keys are paid for before they are hashed.
        pairs: list[nodes.Expr] = [
            nodes.Tuple([pair.key, pair.value], "load", lineno=pair.lineno) for pair in node.items
        ]
        return _filtered("!dict", nodes.List(pairs, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("!made", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("!tilde", *node.nodes)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        # A chain becomes one flat call: Python compiles no deep nesting.
        terms: list[nodes.Expr] = []
        term: nodes.Expr = node
        while isinstance(term, nodes.Add):
            terms.append(term.right)
            term = term.left
        terms.append(term)
        return _filtered("!add", *(cast(nodes.Expr, self.visit(term)) for term in reversed(terms)))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if len(node.ops) == 1:
            (operand,) = node.ops
            name = nodes.Const(operand.op, lineno=node.lineno)
            return _filtered("!compare", node.expr, name, operand.expr)
        node.expr = _filtered("!operand", node.expr)
        for operand in node.ops:
            operand.expr = _filtered("!operand", operand.expr)
        return node

    def _pay_for_body(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        step = _stepping(node, node.body)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node


def _filtered(name: str, *args: nodes.Expr) -> nodes.Filter:
    first, *rest = args
    return nodes.Filter(first, name, rest, [], None, None, lineno=first.lineno)


def _stepping(node: nodes.Node, body: list[nodes.Node]) -> nodes.Expr:
    """An expression that is true and costs what `body` contains."""
    steps = 1
    for part in body:
        steps += 1 + sum(1 for _ in part.find_all(nodes.Node))
        steps += sum(len(data.data) >> 6 for data in part.find_all(nodes.TemplateData))
    true = nodes.Const(True, lineno=node.lineno)
    return _filtered("!step", true, nodes.Const(steps, lineno=node.lineno))
