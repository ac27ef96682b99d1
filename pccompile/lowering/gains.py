"""Multiply errors by gains rather than gradients, where the error is the smaller of the two."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import fx

__all__ = ["scale_errors"]

_aten = torch.ops.aten
_VIEWS = (_aten.t.default, _aten.view.default, _aten._unsafe_view.default)
_LINEAR_IN_FIRST = (_aten.embedding_dense_backward.default, _aten.mm.default)


def scale_errors(graph: fx.Graph, gains: Collection[fx.Node]) -> None:
    """c * (e^T x) -> (c * e)^T x, for the placeholders c among `gains`; equal but for rounding."""
    done: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
    for product in list(graph.nodes):
        if product.target is not operator.mul or product.args[0] not in gains:
            continue
        gain, gradient = product.args
        source = gradient
        while source.target in _VIEWS and len(source.users) == 1:
            source = source.args[0]
        if source.target not in _LINEAR_IN_FIRST or len(source.users) > 1:
            continue
        error = source.args[0]
        if error.meta["val"].numel() >= source.meta["val"].numel():
            continue
        if (gain, error) not in done:
            with graph.inserting_after(error):
                done[gain, error] = graph.call_function(operator.mul, (gain, error))
            done[gain, error].meta = dict(error.meta)
        source.args = (done[gain, error], *source.args[1:])
        product.replace_all_uses_with(gradient)
        graph.erase_node(product)
