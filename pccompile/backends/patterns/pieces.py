"""The flat graphs of a program together: who reads, in a later graph, what an earlier one computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.match import Match
from pccompile.lowering.expand import FlatPiece, Key
from pccompile.lowering.fragments import fakes

__all__ = ["Group", "GroupPattern", "Pieces", "like", "readers"]


@dataclass(frozen=True)
class Group:
    """Matches that are taken together or not at all: what one keeps, in whatever form, only the others read.

    Attributes:
        kernel: a name for them.
        heart: the node at which they were found.
        matches: readers first.
        changed: inputs of later graphs that are of another kind then.
    """

    kernel: str
    heart: fx.Node
    matches: tuple[Match, ...]
    changed: dict[fx.Node, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupPattern:
    """How a group is found.

    Attributes:
        hearts: the operators of which one is in every group.
        find: the groups around a heart, best first.
    """

    hearts: frozenset[Any]
    find: Callable[[fx.Node, Pieces], Iterator[Group]]


class Pieces:
    """Copies of the flat graphs of a program, to be changed together.

    Args:
        pieces: the prediction, and after it the one error sweep there can be.
    """

    def __init__(self, pieces: Sequence[FlatPiece]) -> None:
        self._pieces = pieces
        self.graphs = [copy.deepcopy(piece.graph) for piece in pieces]
        self._outputs = [list(piece.outputs) for piece in pieces]
        self._asked = {key for piece in pieces for parts in piece.results.values() for key in _keys(parts)}
        self._asked.update(key for piece in pieces for _, key in piece.descents if key is not None)

    def nodes(self, targets: frozenset[Any]) -> Iterator[fx.Node]:
        """The nodes that call one of these operators, in order."""
        for graph in self.graphs:
            yield from [node for node in graph.nodes if node.op == "call_function" and node.target in targets]

    def names(self, node: fx.Node) -> list[fx.Node] | None:
        """A node and what stands for it in other graphs; None where somebody reads it who is in none of them."""
        keys = self._keys_of(node)
        if any(key in self._asked or sum(key in names for names in self._outputs) > 1 for key in keys):
            return None
        others = [n for graph in self.graphs for n in graph.find_nodes(op="placeholder") if n.target in keys]
        return None if any(user.op == "output" for other in others for user in other.users) else [node, *others]

    def bring(self, node: fx.Node, graph: fx.Graph) -> fx.Node | None:
        """What stands for a node in a later graph, made an input there if it was none; None where that cannot be."""
        if node.graph is graph:
            return node
        keys = [node.target] if node.op == "placeholder" else self._keys_of(node)
        keys = [key for key in keys if sum(key in names for names in self._outputs) < 2]
        for found in graph.find_nodes(op="placeholder"):
            if found.target in keys:
                return found  # type: ignore[no-any-return]
        if not keys:
            keys = [self._export(node)]
        with graph.inserting_before(next(iter(graph.nodes))):
            made = graph.placeholder(str(keys[0]))
        made.meta["val"] = node.meta["val"]
        return made

    def finish(self) -> list[FlatPiece]:
        """The pieces as they are now."""
        found = []
        for piece, graph, outputs in zip(self._pieces, self.graphs, self._outputs, strict=True):
            placeholders = graph.find_nodes(op="placeholder")
            for node in placeholders:
                if not node.users:
                    graph.erase_node(node)
            inputs = tuple(str(node.target) for node in placeholders if node in set(graph.nodes))
            graph.lint()
            found.append(replace(piece, graph=graph, inputs=inputs, outputs=tuple(outputs)))
        return found

    def _keys_of(self, node: fx.Node) -> list[str]:
        index = self.graphs.index(node.graph)
        returned = node.graph.output_node().args[0]
        return [key for key, part in zip(self._outputs[index], returned, strict=True) if part is node]  # type: ignore[arg-type]

    def _export(self, node: fx.Node) -> str:
        output = node.graph.output_node()
        output.args = ((*output.args[0], node),)  # type: ignore[misc]
        self._outputs[self.graphs.index(node.graph)].append(node.name)
        return str(node.name)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, tuple):
        for part in value:
            yield from _keys(part)
    elif isinstance(value, Key):
        yield value


def readers(names: Sequence[fx.Node]) -> set[fx.Node]:
    """Everything that reads a node under any of its names, but the results of graphs."""
    return {user for name in names for user in name.users if user.op != "output"}


def like(kind: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A stand-in of another dtype."""
    with fakes():
        return torch.empty_strided(kind.shape, kind.stride(), dtype=dtype, device=kind.device)
