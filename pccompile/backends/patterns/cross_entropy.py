"""cross_entropy_predict and cross_entropy_error: log_softmax and nll_loss in one launch each way.

The kernels keep the logarithm of the sum of exponentials of each row, not log_softmax: both graphs change together, and
hand it on under log_softmax's key. The error reads the logits again, in half precision where autocast made them float32
for the loss: no float32 of their size is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.calls import At, call, if_any, item
from pccompile.backends.patterns.match import Match, argument, declined, distinct, items_of, only_user
from pccompile.backends.patterns.pieces import Group, GroupPattern, Pieces, readers
from pccompile.kernels.cross_entropy.operator import error_of_loss, predict_loss
from pccompile.lowering.fragments import fakes

__all__ = ["PATTERN"]

_aten = torch.ops.aten
_BACKWARD = (_aten.nll_loss_backward.default, _aten.nll_loss2d_backward.default)
_HALVES = (torch.bfloat16, torch.float16)
_REDUCTIONS = ("none", "mean", "sum")


@dataclass(frozen=True)
class _Site:
    """The nodes of a loss: nll_loss of log_softmax of the logits, with its loss and total weight.

    `cast` made the logits float32, if something did.
    """

    node: fx.Node
    log_softmax: fx.Node
    cast: fx.Node | None
    logits: fx.Node
    dim: int
    items: dict[int, fx.Node]

    @property
    def kept(self) -> list[fx.Node]:
        """What the operators keep beside the loss."""
        return [self.log_softmax, *(item for place, item in self.items.items() if place == 1)]

    @property
    def kinds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Stand-ins for what the kernel keeps: of each row, and the total weight."""
        logits = self.logits.meta["val"]
        rows = logits.numel() // logits.shape[1]
        with fakes():
            made = [torch.empty(shape, dtype=torch.float32, device=logits.device) for shape in ((rows,), ())]
        return made[0], made[1]


def _find(node: fx.Node, pieces: Pieces) -> Iterator[Group]:
    site = _site(node)
    if site is None:
        return
    names = [pieces.names(kept) for kept in site.kept]
    stands_for = {name: kept for kept, found in zip(site.kept, names, strict=True) for name in found or ()}
    users = {user for found in names for user in readers(found or ())} - {site.node}
    ways = [_way_back(user, site, stands_for, pieces) for user in users if user.target in _BACKWARD]
    taken = {n for way in ways if way is not None for n in way.replaced}
    if any(found is None for found in names) or any(way is None for way in ways) or not users <= taken:
        declined(node, "its logarithms are read by others than its error")
        return
    kinds = dict(zip(site.kept, site.kinds, strict=False))
    changed = {name: kinds[kept] for name, kept in stands_for.items() if name.op == "placeholder"}
    yield Group("cross_entropy", node, (*(way for way in ways if way is not None), _writer(site, kinds)), changed)


def _site(node: fx.Node) -> _Site | None:
    log_softmax = argument(node, "self")
    items = items_of(node)
    if log_softmax.target is not _aten._log_softmax.default or not items:
        return None
    logits, dim, half_to_float = log_softmax.args
    kind = logits.meta["val"]
    if half_to_float or kind.dim() < 2 or dim % kind.dim() != 1 or kind.numel() == 0:
        declined(node, "a loss of this form has no kernel")
        return None
    cast = logits if _is_cast(logits) and only_user(logits) is log_softmax else None
    return _Site(node, log_softmax, cast, logits if cast is None else logits.args[0], dim, items)


def _is_cast(node: fx.Node) -> bool:
    """Whether a node makes a half precision float32, or the other way round, and nothing else."""
    if node.target is not _aten._to_copy.default or "memory_format" in node.kwargs:
        return False
    kinds = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    dtypes = {kind.dtype for kind in kinds}
    return kinds[0].device == kinds[1].device and dtypes in ({torch.float32, half} for half in _HALVES)


def _writer(site: _Site, kinds: Mapping[fx.Node, Any]) -> Match:
    targets, weight, reduction, ignored = (
        argument(site.node, name) for name in ("target", "weight", "reduction", "ignore_index")
    )
    loss, total = site.items.get(0), site.items.get(1)
    places = {loss: 0, site.log_softmax: 1, total: 2}
    read = site.log_softmax.users.keys() - {site.node}
    results = {n: p for n, p in places.items() if n is not None and (n is not site.log_softmax or read)}

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        given = (at(site.logits), at(targets), if_any(at, weight))
        dtype = site.log_softmax.meta["val"].dtype
        node = call(graph, predict_loss, (*given, _REDUCTIONS[reduction], ignored, 0.0, dtype), "cross_entropy")
        node.meta["val"] = tuple(map(match.kind, results))
        return [item(graph, node, place, match.kind(result)) for result, place in results.items()]

    inputs = distinct(site.logits, targets, weight)
    replaced = (*([site.cast] if site.cast is not None else []), site.log_softmax, site.node, *site.items.values())
    match = Match("cross_entropy", replaced, tuple(results), inputs, write, statistics=distinct(weight), kinds=kinds)
    return match


def _way_back(node: fx.Node, site: _Site, stands_for: Mapping[fx.Node, fx.Node], pieces: Pieces) -> Match | None:
    """The match that starts with nll_loss's backward operator."""
    upstream, log_softmax, targets, weight, reduction, ignored, total = node.args
    result = only_user(node)
    if result is None or result.target is not _aten._log_softmax_backward_data.default or result.args[0] is not node:
        return None
    output, dim, dtype = result.args[1:]
    back = only_user(result) if site.cast is not None else result
    if back is None or (back is not result and not _is_cast(back)):
        return None
    kind = back.meta["val"]
    logits = pieces.bring(site.logits, node.graph)
    if (
        logits is None
        or not all(isinstance(n, fx.Node) for n in (upstream, targets, total))
        or any(stands_for.get(kept) is not site.log_softmax for kept in (log_softmax, output))
        or stands_for.get(total) is not site.items.get(1)  # type: ignore[arg-type]
        or reduction != argument(site.node, "reduction")
        or dim != site.dim
        or dtype != site.log_softmax.meta["val"].dtype
        or kind.dtype != site.logits.meta["val"].dtype
    ):
        return None
    is_mean = _REDUCTIONS[reduction] == "mean"
    statistics = distinct(output, total if is_mean else None, weight, upstream)  # type: ignore[arg-type]
    inputs = distinct(logits, targets, *statistics)  # type: ignore[arg-type]

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        divisor = at(total) if is_mean else None  # type: ignore[arg-type]
        given = (at(logits), at(targets), if_any(at, weight), at(output), divisor, at(upstream))  # type: ignore[arg-type]
        found = call(graph, error_of_loss, (*given, ignored, 0.0, 1.0), "cross_entropy")
        found.meta["val"] = kind
        return [found]

    kinds = dict(zip((output, total), site.kinds, strict=True))
    replaced = distinct(node, result, back)
    return Match("cross_entropy", replaced, (back,), inputs, write, statistics=statistics, kinds=kinds)


PATTERN = GroupPattern(frozenset([_aten.nll_loss_forward.default, _aten.nll_loss2d_forward.default]), _find)
