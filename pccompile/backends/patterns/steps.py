"""What a step of strict inference has around a layer: the comparison before it, and the parent's move behind it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from pccompile.backends.patterns.match import only_user

__all__ = ["Pull", "compared", "pulls"]

_aten = torch.ops.aten
_ADDITIONS = (_aten.add.Tensor, operator.add)
_SUBTRACTIONS = (_aten.sub.Tensor, operator.sub)


@dataclass(frozen=True)
class Pull:
    """What becomes of an error that was carried back to a layer's parent.

    Attributes:
        nodes: what computes it, the last one being the result.
        siblings: what the parent's other children give it, if that is added.
        parent_error, step_size: what else moves the parent's value, where it is moved.
    """

    nodes: tuple[fx.Node, ...]
    siblings: fx.Node | None = None
    parent_error: fx.Node | None = None
    step_size: fx.Node | None = None

    @property
    def result(self) -> fx.Node:
        """What others read."""
        return self.nodes[-1]

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """What it reads beside what was carried back and the parent's value."""
        return tuple(node for node in (self.siblings, self.parent_error, self.step_size) if node is not None)


def compared(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """v and mu, if a node is v - mu."""
    return _two(node) if node.target in _SUBTRACTIONS else None


def pulls(feedback: fx.Node, value: fx.Node) -> Iterator[Pull]:
    """What becomes of J^T e, as far as one launch can take it, most first.

    Args:
        feedback: J^T e.
        value: the parent's.
    """
    alone = Pull((feedback,))
    added = _with_siblings(alone)
    moved = _with_move(added or alone, value)
    yield from (pull for pull in (moved, added, alone) if pull is not None)


def _with_siblings(pull: Pull) -> Pull | None:
    reader = only_user(pull.result)
    parts = None if reader is None or reader.target not in _ADDITIONS else _two(reader)
    if reader is None or parts is None or not _alike(*parts, reader):
        return None
    left, right = parts
    others = left if right is pull.result else right
    return None if others is pull.result else Pull((*pull.nodes, reader), others)


def _with_move(pull: Pull, value: fx.Node) -> Pull | None:
    """value + step_size (feedback - error), plain descent."""
    direction = only_user(pull.result)
    parts = None if direction is None else compared(direction)
    if direction is None or parts is None or parts[0] is not pull.result or parts[1] is pull.result:
        return None
    moved = only_user(direction)
    if moved is None or moved.target is not torch.add or moved.args != (value, direction):
        return None
    step_size = moved.kwargs.get("alpha")
    if not isinstance(step_size, fx.Node) or not _alike(parts[1], value, moved):
        return None
    return Pull((*pull.nodes, direction, moved), pull.siblings, parts[1], step_size)


def _two(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The operands of a sum or difference of two tensors."""
    if node.kwargs or len(node.args) != 2:
        return None
    left, right = node.args
    return (left, right) if isinstance(left, fx.Node) and isinstance(right, fx.Node) else None


def _alike(*nodes: fx.Node) -> bool:
    """Whether their values are tensors of one shape and dtype."""
    values = [node.meta.get("val") for node in nodes]
    kinds = {(tuple(value.shape), value.dtype) for value in values if isinstance(value, torch.Tensor)}
    return len(kinds) == 1 and all(isinstance(value, torch.Tensor) for value in values)
