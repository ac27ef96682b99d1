"""embedding_error: the gradient of an embedding table, perhaps with a gain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from pccompile.backends.patterns.calls import At, call
from pccompile.backends.patterns.contributions import Contribution, with_gain
from pccompile.backends.patterns.match import Match, Pattern, argument, declined, distinct
from pccompile.kernels.embedding_error.operator import table_gradient

__all__ = ["PATTERN"]


def _candidates(node: fx.Node) -> Iterator[Match]:
    error, indices, rows, padding = (
        argument(node, name) for name in ("grad_output", "indices", "num_weights", "padding_idx")
    )
    if argument(node, "scale_grad_by_freq"):
        declined(node, "gradients scaled by frequency have no kernel")
        return
    if indices.meta["val"].dtype not in (torch.int64, torch.int32) or not error.meta["val"].numel():
        return
    found = with_gain(Contribution("weight", (node,)))

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        gain = 1.0 if found.gain is None else at(found.gain)
        padding_row = padding if padding >= 0 else None
        made = call(graph, table_gradient, (at(error), at(indices), rows, padding_row, gain), "embedding_error")
        made.meta["val"] = node.meta["val"]
        return [made]

    inputs = distinct(error, indices, found.gain)
    yield Match("embedding_error", found.nodes, (found.result,), inputs, write, launches=3)  # a sort, zeros, the kernel


PATTERN = Pattern("embedding_error", "error", frozenset([torch.ops.aten.embedding_dense_backward.default]), _candidates)
