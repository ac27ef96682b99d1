"""batch_norm_predict: batch normalisation in training mode with what follows it in a residual block, in one launch.

That is the sum with a skip, which may be normalised itself; the activation; and the average over positions at the end
of a network. The counts of batches go along. Statistics of the batch are kept as the operators keep them, so either
sweep may be a kernel without the other.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.activations import IDENTITY, Activated, activated
from pccompile.backends.patterns.calls import At, call, if_any, item, view
from pccompile.backends.patterns.match import Match, Pattern, argument, declined, distinct, items_of, only_user
from pccompile.kernels.activations import ACTIVATIONS
from pccompile.kernels.batch_norm.branches import predict_branches
from pccompile.kernels.batch_norm.configurations import can_pool
from pccompile.lowering.fragments import fakes

__all__ = ["PATTERN", "inner_is_one"]

_aten = torch.ops.aten
_NO_STATISTICS = _aten._native_batch_norm_legit.no_stats
_HEARTS = frozenset([_aten._native_batch_norm_legit_functional.default, _NO_STATISTICS])
_ADDS = (_aten.add.Tensor, operator.add)

_OUTPUT, _POOLED, _FIRST, _EACH = 0, 1, 2, 5  # places of the call's results: then so many of each branch


@dataclass(frozen=True)
class _Norm:
    """A normalisation: the operator, its results by place, what it reads, and the count of batches that goes along."""

    node: fx.Node
    items: dict[int, fx.Node]
    x: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    running: tuple[fx.Node | None, fx.Node | None]
    count: fx.Node | None

    @property
    def read(self) -> list[fx.Node | None]:
        """The tensors, as the kernel takes them."""
        before = None if self.count is None else self.count.args[0]
        return [self.x, self.weight, self.bias, *self.running, before]  # type: ignore[list-item]

    @property
    def numbers(self) -> tuple[Any, Any]:
        """Momentum and eps."""
        return argument(self.node, "momentum"), argument(self.node, "eps")

    @property
    def kept(self) -> dict[int, fx.Node]:
        """Mean, rstd, moved statistics and the count, by their places among what the call returns of a branch."""
        found = {place - 1: node for place, node in self.items.items() if place > 0}
        return found if self.count is None else {**found, 4: self.count}


@dataclass(frozen=True)
class _Block:
    """One normalisation or two, what is added, the activation, the average: nodes, the last being the output."""

    norms: tuple[_Norm, ...]
    nodes: tuple[fx.Node, ...]
    addend: fx.Node | None = None
    activation: Activated = IDENTITY
    mean: fx.Node | None = None

    @property
    def output(self) -> fx.Node:
        """What everybody reads but the average."""
        return self.nodes[-1]


def _candidates(heart: fx.Node) -> Iterator[Match]:
    norm = _norm(heart)
    if norm is None or 0 not in norm.items:
        return
    plain = _Block((norm,), (norm.items[0],))
    for summed in [*_summed(plain), plain]:
        for whole in [*_activated(summed), summed]:
            for block in [*_pooled(whole), whole]:
                yield _match(block)


def _norm(node: fx.Node, beside: _Norm | None = None) -> _Norm | None:
    """What a node is if the kernel takes it, perhaps beside another normalisation."""
    x = argument(node, "input")
    kind, items = x.meta["val"], items_of(node)
    training = argument(node, "training")
    if not training:
        declined(node, "running statistics have no kernel")
    if not items or not training or not inner_is_one(kind) or kind.shape[0] * kind.shape[2:].numel() < 2:
        return None
    if any(item.meta["val"].dtype is not torch.float32 for place, item in items.items() if place in (1, 2)):
        return None
    without = node.target is _NO_STATISTICS
    running = (None, None) if without else (argument(node, "running_mean"), argument(node, "running_var"))
    count = _count_before(node, None if beside is None else beside.count)
    return _Norm(node, items, x, argument(node, "weight"), argument(node, "bias"), running, count)


def _count_before(norm: fx.Node, taken: fx.Node | None = None) -> fx.Node | None:
    """The last count of batches that is raised before a normalisation and that no other has taken along."""
    node = norm.prev
    while node.op == "call_function":
        kind = node.meta.get("val")
        raises = node.target is _aten.add.Tensor and node.args[1:] == (1,) and not node.kwargs
        if raises and node is not taken and isinstance(kind, torch.Tensor) and "chosen" not in node.meta:
            before: Any = node.args[0]
            is_count = kind.dtype is before.meta["val"].dtype is torch.int64 and kind.dim() == 0
            if is_count and before.op == "placeholder" and kind.device == norm.args[0].meta["val"].device:  # type: ignore[union-attr]
                return node
        node = node.prev
    return None


def _summed(block: _Block) -> Iterator[_Block]:
    """With what is added to the output: normalised in the same launch, or a tensor."""
    total = only_user(block.output)
    if total is None or total.target not in _ADDS or total.kwargs or len(total.args) != 2:
        return
    left, right = total.args
    skip = right if left is block.output else left
    if not isinstance(skip, fx.Node) or skip is block.output or not _alike(skip, block.output):
        return
    source = skip.args[0] if skip.target is operator.getitem and skip.args[1] == 0 else None
    if isinstance(source, fx.Node) and source.target in _HEARTS and only_user(skip) is total:
        other = _norm(source, beside=block.norms[0])
        if other is not None and _alike(other.x, block.norms[0].x):
            yield _Block((*block.norms, other), (*block.nodes, skip, total))
    yield _Block(block.norms, (*block.nodes, total), skip)


def _activated(block: _Block) -> Iterator[_Block]:
    """With an activation whose derivative is read from the output."""
    reader = only_user(block.output)
    activation = None if reader is None else activated(reader)
    if reader is not None and activation is not None and ACTIVATIONS[activation.name].residual == "output":
        yield _Block(block.norms, (*block.nodes, reader), block.addend, activation)


def _pooled(block: _Block) -> Iterator[_Block]:
    """With the average over all dimensions after the channels."""
    kind = block.output.meta["val"]
    dimensions = set(range(2, kind.dim()))
    adjacent = block.norms[0].x.meta["val"].stride(1) == 1
    if not dimensions or not can_pool(kind.shape[2:].numel(), adjacent):
        return
    for user in block.output.users:
        if user.target is _aten.mean.dim and not user.kwargs:
            given: Any = user.args[1] or ()
            if {d % kind.dim() for d in given} == dimensions:
                yield _Block(block.norms, block.nodes, block.addend, block.activation, user)
                return


def _alike(a: fx.Node, b: fx.Node) -> bool:
    mine, other = a.meta.get("val"), b.meta["val"]
    same = isinstance(mine, torch.Tensor) and mine.shape == other.shape and mine.dtype == other.dtype
    return same and inner_is_one(mine)


def inner_is_one(kind: torch.Tensor) -> bool:
    """Whether the dimensions after the channels can be seen as one."""
    last = kind.dim() == 4 and kind.is_contiguous(memory_format=torch.channels_last)
    return bool(kind.dim() >= 2 and (kind.is_contiguous() or last))


def _match(block: _Block) -> Match:
    output, norms = block.output, block.norms
    places = {output: _OUTPUT}
    if block.mean is not None:
        places[block.mean] = _POOLED
    for index, norm in enumerate(norms):
        places.update({node: _FIRST + _EACH * index + place for place, node in norm.kept.items()})
    replaced = distinct(*(norm.node for norm in norms), *block.nodes, *places)

    def write(graph: fx.Graph, at: At) -> Sequence[fx.Node]:
        branches = tuple((*(if_any(at, node) for node in norm.read), *norm.numbers) for norm in norms)
        strides = tuple(output.meta["val"].stride())
        function = block.activation.name, block.activation.negative_slope
        given = (branches, if_any(at, block.addend), *function, strides, block.mean is not None)
        found = call(graph, predict_branches, given, "batch_norm")
        found.meta["val"] = tuple(node.meta["val"] for node in places)
        return [_item(graph, found, node, place, output) for node, place in places.items()]

    inputs = distinct(*(node for norm in norms for node in norm.read), block.addend)
    statistics = distinct(*(node for norm in norms for node in norm.running))
    return Match("batch_norm", replaced, tuple(places), inputs, write, statistics=statistics)


def _item(graph: fx.Graph, found: fx.Node, node: fx.Node, place: int, output: fx.Node) -> fx.Node:
    kind = node.meta["val"]
    if place != _POOLED:
        return item(graph, found, place, kind)
    whole = output.meta["val"]
    with fakes():
        averages = torch.empty((*whole.shape[:2], *[1] * (whole.dim() - 2)), dtype=kind.dtype, device=kind.device)
    return view(graph, item(graph, found, place, averages), kind)


PATTERN = Pattern("batch_norm", "prediction", _HEARTS, _candidates)
