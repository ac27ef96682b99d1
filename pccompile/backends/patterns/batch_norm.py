"""batch_norm_predict and batch_norm_error: batch normalisation in training mode, in one launch each way.

Statistics of the batch are kept as the operators keep them, so either may be a kernel without the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import fx

from pccompile.backends.patterns.match import Match, Pattern, argument, call, declined, item, items_of
from pccompile.backends.patterns.norms import norm_sweeps
from pccompile.kernels.batch_norm.operator import predict_channels, sweep_channels

__all__ = ["PATTERNS"]

_aten = torch.ops.aten
_NO_STATISTICS = _aten._native_batch_norm_legit.no_stats


def _predictions(node: fx.Node) -> Iterator[Match]:
    x, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    running = (
        [None, None] if node.target is _NO_STATISTICS else [argument(node, f"running_{n}") for n in ("mean", "var")]
    )
    kind, items = x.meta["val"], items_of(node)
    if not argument(node, "training"):
        declined(node, "running statistics have no kernel")
    if not items or not argument(node, "training") or not _inner_is_one(kind) or kind.shape[0] * kind[0, 0].numel() < 2:
        return
    if any(item.meta["val"].dtype is not torch.float32 for place, item in items.items() if place in (1, 2)):
        return
    results = tuple(items.values())

    def write(graph: fx.Graph, at: Callable[[fx.Node], fx.Node]) -> Sequence[fx.Node]:
        tensors = [None if n is None else at(n) for n in (x, weight, bias, *running)]
        given = (*tensors, argument(node, "momentum"), argument(node, "eps"))
        found = call(graph, predict_channels, given, "batch_norm")
        found.meta["val"] = tuple(result.meta["val"] for result in results)
        return [item(graph, found, place, result.meta["val"]) for place, result in items.items()]

    inputs = tuple(dict.fromkeys(n for n in (x, weight, bias, *running) if n is not None))
    statistics = tuple(n for n in running if n is not None)
    yield Match("batch_norm", (node, *results), results, inputs, write, statistics=statistics)


def _errors(node: fx.Node) -> Iterator[Match]:
    error, x, weight, mean, rstd = (
        argument(node, name) for name in ("grad_out", "input", "weight", "save_mean", "save_invstd")
    )
    if not argument(node, "train") or mean is None or rstd is None:
        declined(node, "running statistics have no kernel")
        return
    if mean.meta["val"].dtype is torch.float32 and _inner_is_one(x.meta["val"]) and x.meta["val"].numel():
        yield from norm_sweeps("batch_norm", sweep_channels, node, (error, x, weight), (mean, rstd), _inner_is_one)


def _inner_is_one(kind: torch.Tensor) -> bool:
    """Whether the dimensions after the channels can be seen as one."""
    last = kind.dim() == 4 and kind.is_contiguous(memory_format=torch.channels_last)
    return bool(kind.dim() >= 2 and (kind.is_contiguous() or last))


PATTERNS = (
    Pattern(
        "batch_norm",
        "prediction",
        frozenset([_aten._native_batch_norm_legit_functional.default, _NO_STATISTICS]),
        _predictions,
    ),
    Pattern("batch_norm", "error", frozenset([_aten.native_batch_norm_backward.default]), _errors),
)
