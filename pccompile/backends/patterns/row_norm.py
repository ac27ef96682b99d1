"""row_norm: layer and root-mean-square normalisation over the last dimension, in one launch each way.

Means and deviations of rows are kept as the operators keep them, so either way may be a kernel without the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import fx

from pccompile.backends.patterns.match import Match, Pattern, argument, call, declined, item, items_of, view
from pccompile.backends.patterns.norms import norm_sweeps
from pccompile.kernels.row_norm.operator import predict_norm, sweep_norm

__all__ = ["PATTERNS"]

_aten = torch.ops.aten
_LAYER, _LAYER_BACK = _aten.native_layer_norm.default, _aten.native_layer_norm_backward.default
_RMS, _RMS_BACK = _aten._fused_rms_norm.default, _aten._fused_rms_norm_backward.default


def _predictions(node: fx.Node) -> Iterator[Match]:
    centred = node.target is _LAYER
    x, weight = argument(node, "input"), argument(node, "weight")
    bias = argument(node, "bias") if centred else None
    items = items_of(node)
    if not items or not _is_last_dimension(node) or not _are_float32(*(n for place, n in items.items() if place)):
        return
    eps = argument(node, "eps")
    added = torch.finfo(x.meta["val"].dtype).eps if eps is None else eps
    results = tuple(items.values())

    def write(graph: fx.Graph, at: Callable[[fx.Node], fx.Node]) -> Sequence[fx.Node]:
        given = (at(x), *(None if n is None else at(n) for n in (weight, bias)), added, centred)
        found = call(graph, predict_norm, given, "row_norm")
        found.meta["val"] = tuple(result.meta["val"] for result in results)
        written = []
        for place, result in items.items():
            kind = result.meta["val"]
            part = item(graph, found, place if centred or place == 0 else 2, kind if place == 0 else kind.reshape(-1))
            written.append(view(graph, part, kind))
        return written

    inputs = tuple(dict.fromkeys(n for n in (x, weight, bias) if n is not None))
    yield Match("row_norm", (node, *results), results, inputs, write)


def _errors(node: fx.Node) -> Iterator[Match]:
    error, x, rstd, weight = (argument(node, name) for name in ("grad_out", "input", "rstd", "weight"))
    mean = argument(node, "mean") if node.target is _LAYER_BACK else None
    statistics = [n for n in (mean, rstd) if n is not None]
    if (
        _is_last_dimension(node)
        and _are_float32(*statistics)
        and all(n.meta["val"].is_contiguous() for n in statistics)
    ):
        tensors = (error, x, weight)
        yield from norm_sweeps("row_norm", sweep_norm, node, tensors, (mean, rstd), torch.Tensor.is_contiguous)


def _is_last_dimension(node: fx.Node) -> bool:
    x = argument(node, "input").meta["val"]
    if len(argument(node, "normalized_shape")) != 1:
        declined(node, "normalisation over several dimensions has no kernel")
        return False
    return bool(x.numel() > 0)


def _are_float32(*nodes: fx.Node) -> bool:
    return all(node.meta["val"].dtype is torch.float32 for node in nodes)


PATTERNS = (
    Pattern("row_norm", "prediction", frozenset([_LAYER, _RMS]), _predictions),
    Pattern("row_norm", "error", frozenset([_LAYER_BACK, _RMS_BACK]), _errors),
)
