"""What a kernel hands out in an error sweep, with the gain that multiplies it and the sum that it goes into."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import fx

from pccompile.backends.patterns.match import VIEWS, is_own, is_rows_of, items_of, only_user, view

__all__ = [
    "KINDS",
    "PLACES",
    "Contribution",
    "Kind",
    "gain_of",
    "kinds_of",
    "of_outputs",
    "target",
    "with_gain",
    "with_sum",
    "without_gain",
]

_ADDS = (torch.ops.aten.add.Tensor, operator.add)

Kind = Literal["parent", "weight", "bias"]
KINDS: tuple[Kind, ...] = ("parent", "weight", "bias")
PLACES: Mapping[int, Kind] = dict(enumerate(KINDS))  # of what ATen's backward operators return


@dataclass(frozen=True)
class Contribution:
    """One of the results.

    Attributes:
        kind: which.
        nodes: what computes it, the last one being the result.
        gain: the factor among the nodes.
        onto: what the last node adds the result to.
    """

    kind: Kind
    nodes: tuple[fx.Node, ...]
    gain: fx.Node | None = None
    onto: fx.Node | None = None

    @property
    def result(self) -> fx.Node:
        """What others read."""
        return self.nodes[-1]


_C = TypeVar("_C", bound=Contribution)


def without_gain(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The node that a gain multiplies, and the gain."""
    if node.target is operator.mul and isinstance(node.args[0], fx.Node) and node.args[0].meta.get("gain"):
        return node.args[1], node.args[0]  # type: ignore[return-value]
    return node, None


def with_gain(found: _C) -> _C:
    """A contribution with the gain that multiplies its result, if there is one; the parent's error has none."""
    reader = only_user(found.result)
    if found.kind == "parent" or found.gain is not None or reader is None:
        return found
    scaled, gain = without_gain(reader)
    if gain is None or scaled is not found.result:
        return found
    return replace(found, nodes=(*found.nodes, reader), gain=gain)


def with_sum(found: _C) -> _C:
    """A contribution with the sum that reads its result, where what it is added to may be written into."""
    nodes = found.nodes
    reader = only_user(found.result)
    if reader is not None and reader.target in VIEWS and is_rows_of(found.result, reader):
        nodes, reader = (*nodes, reader), only_user(reader)
    if reader is None or reader.target not in _ADDS or reader.kwargs or len(reader.args) != 2:
        return found
    left, right = reader.args
    onto = left if right is nodes[-1] else right
    if not isinstance(onto, fx.Node) or onto is nodes[-1] or not is_own(onto):
        return found
    mine, summed = (node.meta["val"] for node in (onto, reader))
    alike = mine.shape == summed.shape and mine.dtype == summed.dtype and mine.stride() == summed.stride()
    fits = alike and (mine.is_contiguous() or len(nodes) == len(found.nodes))
    return replace(found, nodes=(*nodes, reader), onto=onto) if fits else found


# Of operators that return them as a tuple -----------------------------------------------------------------------------


def of_outputs(node: fx.Node, places: Mapping[int, Kind]) -> dict[str, Contribution] | None:
    """The contributions among a tuple's items, by their places, with their gains; None if the gains differ."""
    items = items_of(node)
    if items is None or not set(items) <= set(places):
        return None
    found: dict[str, Contribution] = {
        places[place]: with_gain(Contribution(places[place], (item,))) for place, item in items.items()
    }
    gains = {c.gain for kind, c in found.items() if kind != "parent"}
    if len(gains) > 1:
        found = {kind: Contribution(c.kind, c.nodes[:1]) for kind, c in found.items()}
    return found


def gain_of(contributions: Iterable[Contribution]) -> fx.Node | None:
    """The gain of some contributions, if they have one."""
    return next((c.gain for c in contributions if c.gain is not None), None)


def target(
    graph: fx.Graph, at: Callable[[fx.Node], fx.Node], found: Contribution | None
) -> fx.Node | tuple[int, ...] | None:
    """What a kernel is told of a result: the tensor to add to, or the strides of one to make; None: not asked for."""
    if found is None:
        return None
    kind = found.nodes[0].meta["val"]
    if found.onto is None:
        strides: tuple[int, ...] = tuple(kind.stride())
        return strides
    return view(graph, at(found.onto), kind)


def kinds_of(contributions: Mapping[str, Contribution]) -> tuple[Any, ...]:
    """A stand-in for each of the three results as the kernel writes it."""
    return tuple(contributions[kind].nodes[0].meta["val"] if kind in contributions else None for kind in KINDS)
