"""linear_step: a linear layer's prediction, its error and what that gives the parent, in one launch.

    z = x W^T + b;  e = v - act(z);  (e * act'(z)) W

as the body of a loop of strict inference has them for a layer that the next step moves. Where the prediction or z is
read by somebody else as well, it stays several launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from pccompile.backends.patterns.activations import Activated, activated, sloped
from pccompile.backends.patterns.calls import At, call, if_any, item
from pccompile.backends.patterns.linear_predict import layer_of
from pccompile.backends.patterns.match import Match, Pattern, distinct
from pccompile.backends.patterns.steps import compared
from pccompile.kernels.devices import product_precision
from pccompile.kernels.linear_step.rows import step_rows

__all__ = ["PATTERN"]

_aten = torch.ops.aten
_PRODUCTS = (_aten.addmm.default, _aten.mm.default)


def _candidates(heart: fx.Node) -> Iterator[Match]:
    d, weight = heart.args
    slope = sloped(d)  # type: ignore[arg-type]
    error = d if slope is None else slope.error
    parts = compared(error)  # type: ignore[arg-type]
    if parts is None:
        return
    value, prediction = parts
    activation = activated(prediction)
    z = prediction if activation is None else prediction.args[0]
    if (activation is None) != (slope is None) or not isinstance(z, fx.Node) or z.target not in _PRODUCTS:
        return
    if slope is not None and (slope.activation != activation or slope.residual not in (z, prediction)):
        return
    layer = layer_of(z)
    if layer is None or layer.weight is not weight or value.meta["val"].shape != z.meta["val"].shape:
        return
    replaced = distinct(z, prediction, error, d, heart)  # type: ignore[arg-type]
    inputs = distinct(value, layer.x, layer.weight, layer.bias)

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        named = activation or Activated("identity")
        operands = at(value), at(layer.x), at(weight), if_any(at, layer.bias)  # type: ignore[arg-type]
        options = named.name, named.negative_slope, product_precision()
        found = call(graph, step_rows, (*operands, *options), "linear_step")
        found.meta["val"] = tuple(node.meta["val"] for node in (error, heart))  # type: ignore[union-attr]
        return [item(graph, found, index, kind) for index, kind in enumerate(found.meta["val"])]

    yield Match("linear_step", replaced, (error, heart), inputs, write)  # type: ignore[arg-type]


PATTERN = Pattern("linear_step", "error", frozenset([_aten.mm.default]), _candidates)
