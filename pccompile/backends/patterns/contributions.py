"""What a kernel hands out in an error sweep, with the gain that multiplies it and the sum that it goes into."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import fx

from pccompile.backends.patterns.calls import At, item, view
from pccompile.backends.patterns.match import VIEWS, is_own, is_rows_of, items_of, only_user

__all__ = ["KINDS", "Contribution", "Contributions", "gain_of", "of_outputs", "with_gain", "with_sum", "without_gain"]

_ADDS = (torch.ops.aten.add.Tensor, operator.add)

Kind = Literal["parent", "weight", "bias"]
KINDS: tuple[Kind, ...] = ("parent", "weight", "bias")  # in the order in which kernels and ATen's operators return them


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


def gain_of(contributions: Iterable[Contribution]) -> fx.Node | None:
    """The gain of some contributions, if they have one."""
    return next((c.gain for c in contributions if c.gain is not None), None)


# Of operators that return them as a tuple -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Contributions:
    """What somebody reads of what a backward operator returns, by kind: at least one, with the same gain."""

    parts: Mapping[Kind, Contribution]

    @property
    def gain(self) -> fx.Node | None:
        """Of the gradients."""
        return gain_of(self.parts.values())

    @property
    def read(self) -> tuple[fx.Node | None, ...]:
        """The gain, and what the results are added to."""
        return self.gain, *(c.onto for c in self.parts.values())

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """What computes them, behind the operator."""
        return tuple(node for c in self.parts.values() for node in c.nodes)

    @property
    def results(self) -> tuple[fx.Node, ...]:
        """What others read."""
        return tuple(c.result for c in self.parts.values())

    @property
    def kinds(self) -> tuple[torch.Tensor | None, ...]:
        """A stand-in for each of the three results as the kernel writes it."""
        return tuple(self.parts[kind].nodes[0].meta["val"] if kind in self.parts else None for kind in KINDS)

    def best_first(self) -> Iterator[Contributions]:
        """With the sums that read the results, where there are any, and without."""
        added = Contributions({kind: with_sum(c) for kind, c in self.parts.items()})
        if added != self:
            yield added
        yield self

    def targets(self, graph: fx.Graph, at: At) -> list[fx.Node | tuple[int, ...] | None]:
        """What a kernel is told of each result: the tensor to add to, the strides of one to make, or None: leave it."""
        return [_target(graph, at, self.parts.get(kind)) for kind in KINDS]

    def factor(self, at: At) -> fx.Node | float:
        """What a kernel is told of the gain."""
        return 1.0 if self.gain is None else at(self.gain)

    def written(self, graph: fx.Graph, call: fx.Node, first: int = 0) -> list[fx.Node]:
        """The results as others read them, where a call returns the three from this place on."""
        return [
            view(graph, item(graph, call, first + KINDS.index(kind), c.nodes[0].meta["val"]), c.result.meta["val"])
            for kind, c in self.parts.items()
        ]


def of_outputs(node: fx.Node) -> Contributions | None:
    """What is read of the three results of a backward operator; None if that is nothing, or more than its items.

    Gains go along where they are all the same.
    """
    items = items_of(node)
    if not items:
        return None
    plain = {KINDS[place]: Contribution(KINDS[place], (found,)) for place, found in items.items()}
    scaled = {kind: with_gain(c) for kind, c in plain.items()}
    gains = {c.gain for kind, c in scaled.items() if kind != "parent"}
    return Contributions(scaled if len(gains) < 2 else plain)


def _target(graph: fx.Graph, at: At, found: Contribution | None) -> fx.Node | tuple[int, ...] | None:
    if found is None:
        return None
    kind = found.nodes[0].meta["val"]
    if found.onto is None:
        strides: tuple[int, ...] = tuple(kind.stride())
        return strides
    return view(graph, at(found.onto), kind)
