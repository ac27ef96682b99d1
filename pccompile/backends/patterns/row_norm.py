"""row_norm: layer and root-mean-square normalisation over the last dimension, in one launch each way.

Means and deviations of rows are kept as the operators keep them, so either way may be a kernel without the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from pccompile.backends.patterns.calls import At, as_vector, call, if_any, item, view
from pccompile.backends.patterns.contributions import Contributions, of_outputs
from pccompile.backends.patterns.match import Match, Pattern, argument, declined, distinct, items_of
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

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        given = (at(x), if_any(at, weight), if_any(at, bias), added, centred)
        found = call(graph, predict_norm, given, "row_norm")
        found.meta["val"] = tuple(result.meta["val"] for result in results)
        written = []
        for place, result in items.items():
            kind = result.meta["val"]
            part = item(graph, found, place if centred or place == 0 else 2, kind if place == 0 else kind.reshape(-1))
            written.append(view(graph, part, kind))
        return written

    yield Match("row_norm", (node, *results), results, distinct(x, weight, bias), write)


def _errors(node: fx.Node) -> Iterator[Match]:
    tensors = [argument(node, name) for name in ("grad_out", "input", "weight")]
    statistics = [argument(node, "mean") if node.target is _LAYER_BACK else None, argument(node, "rstd")]
    given = [n for n in statistics if n is not None]
    contributions = of_outputs(node)
    if not _is_last_dimension(node) or not _are_float32(*given) or contributions is None:
        return
    parent = [contributions.parts["parent"].result] if "parent" in contributions.parts else []
    if all(n.meta["val"].is_contiguous() for n in (*given, *parent)):
        for found in contributions.best_first():
            yield _error(node, tensors, statistics, found)


def _error(
    heart: fx.Node,
    tensors: Sequence[fx.Node | None],
    statistics: Sequence[fx.Node | None],
    contributions: Contributions,
) -> Match:
    """The match of these results, computed from error, x and weight, and from mean and rstd."""

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        read = (if_any(at, node) for node in tensors)
        vectors = [None if node is None else as_vector(graph, at(node)) for node in statistics]
        targets = contributions.targets(graph, at)
        found = call(graph, sweep_norm, (*read, *vectors, *targets, contributions.factor(at)), "row_norm")
        found.meta["val"] = contributions.kinds
        return contributions.written(graph, found)

    replaced = distinct(heart, *contributions.nodes)
    inputs = distinct(*tensors, *statistics, *contributions.read)
    return Match("row_norm", replaced, contributions.results, inputs, write, statistics=distinct(*statistics))


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
