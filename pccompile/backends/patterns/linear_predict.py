"""linear_predict: a product with a transposed weight, a bias, and the activation that reads them, in one launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pccompile.backends.patterns.activations import Activated, activated
from pccompile.backends.patterns.calls import At, call, if_any, item, view
from pccompile.backends.patterns.match import VIEWS, Match, Pattern, distinct, is_rows_of, only_user
from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.devices import product_precision
from pccompile.kernels.linear_predict.operator import predict_rows

__all__ = ["PATTERN", "Layer", "layer_of"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """x W^T + b as the graph has it: `right` is W^T, and the weight a node that is W, if there is one."""

    product: fx.Node
    x: fx.Node
    right: fx.Node
    bias: fx.Node | None

    @property
    def weight(self) -> fx.Node | None:
        """W, where the graph has it."""
        if self.right.target is _aten.t.default:
            return self.right.args[0]  # type: ignore[return-value]
        key = self.right.meta.get("transpose_of")  # what hoisting took out of a loop
        return next((node for node in self.product.graph.find_nodes(op="placeholder") if node.target == key), None)

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The nodes that the call reads."""
        return distinct(self.x, self.weight or self.right, self.bias)

    def write(self, graph: fx.Graph, at: At, activation: Activated) -> fx.Node:
        """The call, on (batch, in), (out, in) and (out,)."""
        if self.weight is not None:
            weight = at(self.weight)
        else:
            weight = graph.call_function(_aten.t.default, (at(self.right),))
            weight.meta["val"] = self.right.meta["val"].t()
        function = activation.name, activation.negative_slope
        args = (at(self.x), weight, if_any(at, self.bias), *function, product_precision())
        return call(graph, predict_rows, args, "linear_predict")


def _candidates(product: fx.Node) -> Iterator[Match]:
    layer = layer_of(product)
    if layer is None:
        return
    viewed = only_user(product)
    is_view = viewed is not None and viewed.target in VIEWS and is_rows_of(product, viewed)
    z = viewed if viewed is not None and is_view else product
    functions = [(user, found) for user in z.users if (found := activated(user)) is not None]
    if len(functions) == 1:
        output, activation = functions[0]
        keeps_z = ACTIVATIONS[activation.name].residual == "preactivation"
        if keeps_z or len(z.users) == 1:
            results = [output] if len(z.users) == 1 else [output, z]
            yield _match(layer, (product, z, output), results, activation)
    yield _match(layer, (product,), [product], Activated("identity"))


def layer_of(product: fx.Node) -> Layer | None:
    """The layer whose product a node is."""
    if product.kwargs:
        return None
    *biases, x, right = product.args
    bias = biases[0] if biases else None
    if bias is not None and bias.meta["val"].shape != product.meta["val"].shape[1:]:
        return None
    return Layer(product, x, right, bias)


def _match(layer: Layer, replaced: Sequence[fx.Node], results: Sequence[fx.Node], activation: Activated) -> Match:
    """The match whose results are the activation's output, and z where somebody else reads it."""

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        found, kind = layer.write(graph, at, activation), layer.product.meta["val"]
        found.meta["val"] = (kind,) * len(results)
        return [view(graph, item(graph, found, i, kind), node.meta["val"]) for i, node in enumerate(results)]

    return Match("linear_predict", distinct(*replaced), tuple(results), layer.inputs, write)


PATTERN = Pattern("linear_predict", "prediction", frozenset([_aten.addmm.default, _aten.mm.default]), _candidates)
