"""Products of every time step with one weight become one product: of an opened recurrence, all that does not recur.

Inputs are multiplied before the recursion, errors after it, and a gradient is one product of all steps' errors and
inputs. Sums are taken in another order than step by step.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import fx

from pccompile.lowering.fragments import fakes
from pccompile.lowering.parts import is_inner_sum, is_sum, terms_of

__all__ = ["batch_products"]

_aten = torch.ops.aten
_FEWEST = 8  # steps: what is multiplied is copied first, which a few products are not worth
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)

Scaled = tuple[fx.Node | None, fx.Node]  # a gain, if there is one, and a matrix


def batch_products(graph: fx.Graph) -> None:
    """Rewrite a flat graph in place; its results are the same to rounding."""
    _multiply_first(graph)
    rows: dict[Hashable, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is _aten.stack.default:
            _multiply_last(node, rows)
        elif is_sum(node) and not is_inner_sum(node):
            _sum_at_once(node, rows)
    graph.eliminate_dead_code()


def _multiply_first(graph: fx.Graph) -> None:
    """addmm(b, select(x, d, t), W) of many t -> select(addmm(b, x, W), d, t)."""
    groups: dict[tuple[Any, ...], list[fx.Node]] = defaultdict(list)
    for node in graph.find_nodes(op="call_function", target=_aten.addmm.default):
        bias, chosen, weight = node.args
        weight = weight.args[0] if weight.target is _aten.t.default else weight
        if chosen.target is _aten.select.int and not node.kwargs and chosen.args[0].meta["val"].dim() == 3:
            groups[bias, weight, chosen.args[0], chosen.args[1] % 3].append(node)
    for (_, _, source, dimension), products in groups.items():
        first = products[0]
        if len(products) < _FEWEST or dimension == 2 or not source.meta["val"].is_contiguous():
            continue
        bias, _, weight = first.args
        sizes = list(source.meta["val"].shape[:2])
        flat = _call(first, _aten.view.default, source, [-1, source.meta["val"].shape[2]])
        whole = _call(first, _aten.addmm.default, bias, flat, weight)
        whole = _call(first, _aten.view.default, whole, [*sizes, whole.meta["val"].shape[1]])
        for product in products:
            product.replace_all_uses_with(_call(product, *_selection(product, whole)))


def _selection(product: fx.Node, whole: fx.Node) -> tuple[Any, ...]:
    _, dimension, index = product.args[1].args  # type: ignore[union-attr]
    return _aten.select.int, whole, dimension, index


def _multiply_last(stack: fx.Node, rows: dict[Hashable, fx.Node]) -> None:
    """stack([mm(e_t, W)]) -> mm(cat(e_t), W)."""
    products, dimension = stack.args[0], stack.args[1] if len(stack.args) > 1 else 0
    if len(products) < _FEWEST or not all(_is_lone(node, _aten.mm.default) for node in products):
        return
    if len({node.args[1] for node in products}) > 1:
        return
    errors = _rows(stack, [(None, product.args[0]) for product in products], rows)
    whole = _call(stack, _aten.mm.default, errors, products[0].args[1])
    batch, width = products[0].meta["val"].shape
    steps = _call(stack, _aten.view.default, whole, [len(products), batch, width])
    if dimension % 3:
        steps = _call(stack, _aten.movedim.int, steps, 0, dimension % 3)
        steps = _call(stack, _aten.clone.default, steps)
    stack.replace_all_uses_with(steps)


def _sum_at_once(root: fx.Node, rows: dict[Hashable, fx.Node]) -> None:
    """The sum of mm(c_t e_t^T, x_t) -> mm(cat(c_t e_t)^T, cat(x_t)); the sum of c_t sum(e_t) -> sum(cat(c_t e_t))."""
    terms = terms_of(root)
    products = [found for term in terms if (found := _outer_product(term)) is not None]
    sums = [scaled for term in terms if (scaled := _row_sum(term)) is not None]
    if len(terms) < _FEWEST:
        return
    if len(products) == len(terms):
        errors = _rows(root, [error for error, _ in products], rows)
        values = _rows(root, [(None, value) for _, value in products], rows)
        total = _call(root, _aten.mm.default, _call(root, _aten.t.default, errors), values)
    elif len(sums) == len(terms):
        total = _call(root, _aten.sum.dim_IntList, _rows(root, sums, rows), [0])
    else:
        return
    root.replace_all_uses_with(total)


def _outer_product(term: fx.Node) -> tuple[Scaled, fx.Node] | None:
    """(c, e) and x of mm(c e^T, x)."""
    if not _is_lone(term, _aten.mm.default):
        return None
    left, value = term.args
    gain, turned = _factors(left)  # type: ignore[arg-type]
    return ((gain, turned.args[0]), value) if turned.target is _aten.t.default else None  # type: ignore[return-value]


def _row_sum(term: fx.Node) -> Scaled | None:
    """(c, e) of c sum(e, 0)."""
    gain, total = _factors(term)
    while total.target in _VIEWS and len(total.users) == 1:
        total = total.args[0]  # type: ignore[assignment]
    if total.target is not _aten.sum.dim_IntList or len(total.users) > 1 or list(total.args[1]) != [0]:  # type: ignore[arg-type]
        return None
    error: fx.Node = total.args[0]  # type: ignore[assignment]
    return (gain, error) if error.meta["val"].dim() == 2 and term.meta["val"].dim() == 1 else None


def _factors(node: fx.Node) -> Scaled:
    """c and a of c * a."""
    if node.target is operator.mul and len(node.users) == 1:
        gain, factor = node.args
        if isinstance(gain, fx.Node) and gain.meta.get("gain"):
            return gain, factor  # type: ignore[return-value]
    return None, node


def _is_lone(node: fx.Node, target: Any) -> bool:
    return node.target is target and len(node.users) == 1


def _rows(before: fx.Node, parts: Sequence[Scaled], known: dict[Hashable, fx.Node]) -> fx.Node:
    """The rows of some matrices, each times its gain; written once, where they are read first."""
    key = tuple(parts)
    if key not in known:
        scaled = [part if gain is None else _call(before, operator.mul, gain, part) for gain, part in parts]
        known[key] = _call(before, _aten.cat.default, scaled)
    return known[key]


def _call(before: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A new node before another."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args)
    with fakes():
        node.meta["val"] = target(*fx.node.map_arg(args, lambda read: read.meta["val"]))
    node.meta["origin"] = before.meta.get("origin")
    return node
