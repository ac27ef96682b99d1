"""linear_error: an activation's derivative, the parent's error, dW and db of a linear layer, in one launch.

Around d = e * act'(z), (batch, out), the graph has up to three results, each only where somebody asked for it:

    d W                (batch, in)     the parent's error, perhaps added to what other children gave it
    gain d^T x         (out, in)       dW, perhaps added to what other uses of the weight gave it
    gain sum(d)        (out,)          db, likewise
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pccompile.backends.patterns.activations import Sloped, sloped
from pccompile.backends.patterns.calls import At, call, if_any, item, view
from pccompile.backends.patterns.contributions import KINDS, Contribution, gain_of, with_gain, with_sum, without_gain
from pccompile.backends.patterns.match import VIEWS, Match, Pattern, distinct, is_rows_of, only_user
from pccompile.kernels.devices import product_precision
from pccompile.kernels.linear_error.rows import sweep_rows

__all__ = ["PATTERN"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Product(Contribution):
    """One of the results.

    Attributes:
        operand: the weight, x, or nothing for the bias.
        transposed: dW is (in, out).
    """

    operand: fx.Node | None = None
    transposed: bool = False


def _candidates(heart: fx.Node) -> Iterator[Match]:
    d = _error_of(heart)
    products = {} if d is None else _products(d, heart)
    if d is None or set(products) <= {"bias"}:
        return
    added = {kind: with_sum(product) for kind, product in products.items()}
    folded = _activation_before(d, products)
    if added != products:
        if folded is not None:
            yield _match(d, added, folded)
        yield _match(d, added, None)
    if folded is not None:
        yield _match(d, products, folded)
    yield _match(d, products, None)


# Finding --------------------------------------------------------------------------------------------------------------


def _error_of(heart: fx.Node) -> fx.Node | None:
    """What d would be if a node is one of the products with it."""
    if heart.target is _aten.sum.dim_IntList:
        return heart.args[0]  # type: ignore[return-value]
    left, right = heart.args
    transposed = without_gain(left)[0]  # type: ignore[arg-type]
    if transposed.target is not _aten.t.default:
        return left  # type: ignore[return-value]
    of_left: fx.Node = transposed.args[0]  # type: ignore[assignment]
    # d^T x, or x^T d where the weight is used as it is: d depends on an error, x does not
    return of_left if _is_error(of_left) or not _is_error(right) else right  # type: ignore[arg-type, return-value]


def _is_error(node: fx.Node) -> bool:
    origin = node.meta.get("origin")
    return origin is not None and origin.part == "error"


def _products(d: fx.Node, heart: fx.Node) -> dict[str, _Product]:
    """The products with d that the kernel forms: the heart's, and of the other kinds one each that goes with it."""
    if d.meta["val"].dim() != 2:
        return {}
    every = [with_gain(product) for user in d.users for product in _products_through(d, user)]
    found: dict[str, _Product] = {product.kind: product for product in every if heart in product.nodes}
    for product in every:
        if found and product.kind not in found and all(_go_together(product, other) for other in found.values()):
            found[product.kind] = product
    return found


def _go_together(a: _Product, b: _Product) -> bool:
    """Whether two products are of layers of the same size, and have the same gain; the parent's error has none."""
    sizes = {product.operand.meta["val"].shape[1] for product in (a, b) if product.operand is not None}
    return len(sizes) < 2 and ("parent" in (a.kind, b.kind) or a.gain is b.gain)


def _products_through(d: fx.Node, user: fx.Node) -> Iterator[_Product]:
    if user.target is _aten.sum.dim_IntList and user.args[1:] == ([0], True) and not user.kwargs:
        viewed = only_user(user)
        if viewed is not None and viewed.target is _aten.view.default and viewed.meta["val"].dim() == 1:
            yield _Product("bias", (user, viewed))
    elif user.target is _aten.mm.default:
        left, right = user.args
        if left is d and right is not d and _is_error(user):
            yield _Product("parent", (user,), operand=right)  # type: ignore[arg-type]
        elif right is d:
            flipped, gain = without_gain(left)  # type: ignore[arg-type]
            if flipped.target is _aten.t.default:
                nodes: tuple[fx.Node, ...] = (user,) if gain is None else (left, user)  # type: ignore[assignment]
                yield _Product("weight", nodes, gain, operand=flipped.args[0], transposed=True)  # type: ignore[arg-type]
    elif user.target is _aten.t.default:
        for reader in user.users:
            scaled, gain = (only_user(reader), reader) if without_gain(reader)[0] is user else (reader, None)
            if scaled is not None and scaled.target is _aten.mm.default and scaled.args[0] in (user, gain):
                nodes = (user, scaled) if gain is None else (user, gain, scaled)
                factor = None if gain is None else gain.args[0]
                yield _Product("weight", nodes, factor, operand=scaled.args[1])  # type: ignore[arg-type]


def _activation_before(d: fx.Node, products: dict[str, _Product]) -> tuple[Sloped, tuple[fx.Node, ...]] | None:
    """The activation whose derivative d is, with its nodes, if the kernel can form it: nothing else reads it."""
    inside = {node for product in products.values() for node in product.nodes}
    if not all(user in inside for user in d.users) or not all(
        user in inside for node in inside if node.target is _aten.t.default for user in node.users
    ):
        return None
    nodes: tuple[fx.Node, ...] = (d,)
    source = d
    if d.target in VIEWS and isinstance(d.args[0], fx.Node) and is_rows_of(d, d.args[0]):
        nodes, source = (d.args[0], d), d.args[0]
        if only_user(source) is not d:
            return None
    found = sloped(source)
    if found is None or not all(_has_rows(node) for node in (found.error, found.residual)):
        return None
    return found, nodes


def _has_rows(node: fx.Node) -> bool:
    """Whether a tensor can be seen as a matrix of its last dimension."""
    kind = node.meta["val"]
    return bool(kind.dim() == 2 or (kind.dim() > 0 and kind.is_contiguous()))


# Writing --------------------------------------------------------------------------------------------------------------


def _match(d: fx.Node, products: dict[str, _Product], folded: tuple[Sloped, tuple[fx.Node, ...]] | None) -> Match:
    formed: tuple[fx.Node, ...] = () if folded is None else folded[1]
    replaced = [node for product in products.values() for node in product.nodes]
    gone = {*replaced, *formed}
    kept = {n for n in replaced if n.target is _aten.t.default and not all(user in gone for user in n.users)}
    results = [product.result for product in products.values()]
    residual = None if folded is None else folded[0].residual
    error = d if folded is None else folded[0].error
    gain = gain_of(products.values())
    operands = (node for p in products.values() for node in (p.operand, p.onto))

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        def rows(node: fx.Node) -> fx.Node:
            return view(graph, at(node), d.meta["val"])

        def operand(kind: str) -> fx.Node | None:
            found = products.get(kind)
            return None if found is None else if_any(at, found.operand)

        def asked(kind: str) -> fx.Node | bool:
            found = products.get(kind)
            if found is None or found.onto is None:
                return found is not None
            return view(graph, at(found.onto), found.nodes[0].meta["val"]) if kind == "parent" else at(found.onto)

        activation = None if folded is None else folded[0].activation
        args = (
            rows(error),
            None if residual is None else rows(residual),
            operand("weight"),
            operand("parent"),
            asked("parent"),
            asked("weight"),
            asked("bias"),
            any(product.transposed for product in products.values()),
            "identity" if activation is None else activation.name,
            0.01 if activation is None else activation.negative_slope,
            1.0 if gain is None else at(gain),
            product_precision(),
        )
        found = call(graph, sweep_rows, args, "linear_error")
        found.meta["val"] = tuple(_kind(products[kind]) if kind in products else None for kind in KINDS)
        return [
            view(graph, item(graph, found, KINDS.index(p.kind), _kind(p)), p.result.meta["val"])
            for p in products.values()
        ]

    nodes = tuple(node for node in distinct(*formed, *replaced) if node not in kept)
    return Match("linear_error", nodes, tuple(results), distinct(error, residual, gain, *operands), write)


def _kind(product: _Product) -> Tensor:
    """A stand-in for a result as the kernel writes it: the product's, or that of the sum over the batch as a vector."""
    node = next(node for node in product.nodes if node.target is _aten.mm.default or node.meta["val"].dim() == 1)
    kind: Tensor = node.meta["val"]
    return kind


PATTERN = Pattern("linear_error", "error", frozenset([_aten.mm.default, _aten.sum.dim_IntList]), _candidates)
