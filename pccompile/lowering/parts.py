"""Errors of parts of a tensor become its error by concatenation, not as a sum of tensors that are mostly zeros."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from pccompile.lowering.fragments import fakes

__all__ = ["is_inner_sum", "is_sum", "join_parts", "terms_of"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """A term that is zero but for `value`, at `start` to `stop` of a dimension; `selected` lacks that dimension."""

    value: fx.Node
    dimension: int
    start: int
    stop: int
    selected: bool = False


def join_parts(graph: fx.Graph) -> None:
    """Rewrite sums of parts that do not overlap, and of at most one other term, which is exact.

    A part is what the derivative of a selection or a slice makes of its error, or a concatenation with zeros.
    """
    joined = False
    for root in reversed(list(graph.nodes)):
        if not is_sum(root) or is_inner_sum(root):
            continue
        terms = terms_of(root)
        parts = {term: part for term in terms if (part := _part(term)) is not None and len(term.users) == 1}
        if len(parts) > 1 and len(terms) - len(parts) < 2 and _are_apart(list(parts.values())):
            _join(root, [term for term in terms if term not in parts], list(parts.values()))
            joined = True
    if joined:
        graph.eliminate_dead_code()


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds two tensors of its own kind."""
    if node.target not in (operator.add, _aten.add.Tensor) or node.kwargs or len(node.args) != 2:
        return False
    return all(isinstance(a, fx.Node) and _kind(a) == _kind(node) is not None for a in node.args)


def is_inner_sum(node: fx.Node) -> bool:
    """Whether a node is a term of one sum and read by nothing else."""
    return len(node.users) == 1 and is_sum(next(iter(node.users)))


def terms_of(root: fx.Node) -> list[fx.Node]:
    """What a tree of sums adds up, in order."""
    found: list[fx.Node] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is root or (is_sum(node) and is_inner_sum(node)):
            waiting += reversed(node.args)  # type: ignore[arg-type]
        else:
            found.append(node)
    return found


def _part(node: fx.Node) -> _Part | None:
    args: Any = node.args
    if node.target is _aten.select_backward.default:
        value, sizes, dimension, index = args
        dimension %= len(sizes)
        start = index % sizes[dimension]
        return _Part(value, dimension, start, start + 1, selected=True)
    if node.target is _aten.slice_backward.default:
        value, sizes, dimension, start, stop, step = args
        size = sizes[dimension]
        start, stop = (max(0, min(size, place + size if place < 0 else place)) for place in (start, stop))
        return _Part(value, dimension % len(sizes), start, stop) if step == 1 else None
    if node.target is _aten.cat.default:
        pieces, dimension = args[0], args[1] if len(args) > 1 else 0
        whole = [piece for piece in pieces if piece.target is not _aten.zeros.default]
        if len(whole) != 1 or len(pieces) == 1:
            return None
        dimension %= whole[0].meta["val"].dim()
        sizes = [piece.meta["val"].shape[dimension] for piece in pieces]
        start = sum(sizes[: pieces.index(whole[0])])
        return _Part(whole[0], dimension, start, start + whole[0].meta["val"].shape[dimension])
    return None


def _are_apart(parts: list[_Part]) -> bool:
    if len({(part.dimension, part.selected) for part in parts}) > 1:
        return False
    ordered = sorted(parts, key=lambda part: part.start)
    return all(a.stop <= b.start for a, b in pairwise(ordered))


def _join(root: fx.Node, others: list[fx.Node], parts: list[_Part]) -> None:
    """Put the concatenation of the parts, with zeros between them, in the place of a sum."""
    graph, dimension, selected = root.graph, parts[0].dimension, parts[0].selected
    pieces: list[fx.Node] = []
    place = 0
    with graph.inserting_before(root):
        for part in sorted(parts, key=lambda part: part.start):
            pieces += _zeros(root, dimension, part.start - place, selected)
            pieces.append(part.value)
            place = part.stop
        pieces += _zeros(root, dimension, root.meta["val"].shape[dimension] - place, selected)
        target = (_aten.stack if selected else _aten.cat).default
        total = graph.create_node("call_function", target, (pieces, dimension), name="joined")
        total.meta = dict(root.meta)
        for other in others:
            total = graph.call_function(operator.add, (total, other))
            total.meta = dict(root.meta)
    root.replace_all_uses_with(total)


def _zeros(root: fx.Node, dimension: int, length: int, selected: bool) -> list[fx.Node]:
    """So many zeros along the dimension: as one tensor, or where that is selected from, one for each place."""
    if length == 0:
        return []
    like = root.meta["val"]
    shape = [*like.shape[:dimension], *([] if selected else [length]), *like.shape[dimension + 1 :]]
    node = root.graph.call_function(_aten.zeros.default, (shape,), {"dtype": like.dtype, "device": like.device})
    with fakes():
        node.meta["val"] = torch.empty(shape, dtype=like.dtype, device=like.device)
    node.meta["origin"] = root.meta["origin"]
    return [node] * (length if selected else 1)


def _kind(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else None
