"""conv_predict: a convolution and the activation that reads it, in one launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.activations import Activated, activated
from pccompile.backends.patterns.calls import At, call, if_any, item
from pccompile.backends.patterns.convolutions import NO_POOL, Convolution, Pooling, convolution
from pccompile.backends.patterns.match import Match, Pattern, distinct
from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.conv_predict.images import predict_images
from pccompile.kernels.devices import convolution_precision

__all__ = ["ARGMAX", "OUTPUT", "PATTERN", "RESIDUAL", "prediction"]

OUTPUT, RESIDUAL, ARGMAX = 0, 1, 2  # what the call returns


def prediction(
    found: Convolution,
    replaced: Sequence[fx.Node],
    results: Mapping[fx.Node, int],
    activation: Activated,
    pool: Pooling = NO_POOL,
    kinds: Mapping[fx.Node, Any] | None = None,
) -> Match:
    """The match of these nodes, of which `results` are read outside as these parts of what the call returns.

    Args:
        kinds: of results that are then of another kind than they were.
    """
    output = next(node for node, place in results.items() if place == OUTPUT)

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        strides = tuple(output.meta["val"].stride())
        function = activation.name, activation.negative_slope
        form = (*function, found.form, pool.kind, pool.window, convolution_precision(), strides)
        tensors = (at(found.x), at(found.weight), if_any(at, found.bias))
        node = call(graph, predict_images, (*tensors, *form), "conv_predict")
        node.meta["val"] = tuple(map(match.kind, results))
        items = {place: item(graph, node, place, match.kind(result)) for result, place in results.items()}
        return [items[place] for place in results.values()]

    inputs = distinct(found.x, found.weight, found.bias)
    match = Match("conv_predict", distinct(*replaced), tuple(results), inputs, write, kinds=kinds or {})
    return match


def _candidates(z: fx.Node) -> Iterator[Match]:
    found = convolution(z)
    if found is None:
        return
    functions = [(user, function) for user in z.users if (function := activated(user)) is not None]
    if len(functions) == 1:
        output, activation = functions[0]
        keeps_z = ACTIVATIONS[activation.name].residual == "preactivation"
        if keeps_z or len(z.users) == 1:
            results = {output: OUTPUT} if len(z.users) == 1 else {output: OUTPUT, z: RESIDUAL}
            yield prediction(found, (z, output), results, activation)
    yield prediction(found, (z,), {z: OUTPUT}, Activated("identity"))


PATTERN = Pattern("conv_predict", "prediction", frozenset([torch.ops.aten.convolution.default]), _candidates)
