"""Move out of a loop what is the same in each of its steps."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from pccompile.lowering.fragments import is_random, is_write
from pccompile.lowering.symbols import Space, Writer

__all__ = ["hoist"]

_aten = torch.ops.aten
_NLL_FORWARD = (_aten.nll_loss_forward.default, _aten.nll_loss2d_forward.default)
_NLL_BACKWARD = (_aten.nll_loss_backward.default, _aten.nll_loss2d_backward.default)


def hoist(space: Space, before: Writer, loop: Writer, changing: Collection[str]) -> None:
    """Compute in `before`, which runs once before the loop, what none of the changing inputs enters.

    Args:
        changing: keys of the inputs that differ from step to step.
    """
    _read_shapes_only(loop.graph)
    inputs = {node: key for key, node in loop.imports.items()}
    moved: dict[fx.Node, fx.Node] = {}
    for node in loop.graph.nodes:
        if node.op != "call_function" or not _is_movable(node):
            continue
        if all(inputs[n] not in changing if n in inputs else n in moved for n in node.all_input_nodes):
            moved[node] = _copy(node, before, inputs, moved)
    exported = set(loop.exports.values())
    for node, copy in moved.items():
        if node in exported or any(user not in moved for user in node.users):
            key = space.unique(node.name)
            before.exports[key] = copy
            inside = loop.placeholder(key, node.meta.get("val"))
            if node.target is _aten.t.default and node.args[0] in inputs:
                inside.meta["transpose_of"] = inputs[node.args[0]]
            node.replace_all_uses_with(inside)
            loop.exports.update({key: inside for key, found in loop.exports.items() if found is node})
    for node in reversed(moved):
        loop.graph.erase_node(node)


def _copy(node: fx.Node, before: Writer, inputs: dict[fx.Node, str], moved: dict[fx.Node, fx.Node]) -> fx.Node:
    def outside(parent: fx.Node) -> fx.Node:
        return moved[parent] if parent in moved else _given(before, inputs[parent], parent.meta.get("val"))

    args, kwargs = fx.node.map_arg(node.args, outside), fx.node.map_arg(node.kwargs, outside)
    copy = before.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    copy.meta = dict(node.meta)
    copy._rename(node.name)
    return copy


def _given(writer: Writer, key: str, kind: Any) -> fx.Node:
    """The node of a key in a graph: its own if it computes it, else a placeholder."""
    if key in writer.exports and key not in writer.imports:
        return writer.exports[key]
    return writer.placeholder(key, kind)


def _is_movable(node: fx.Node) -> bool:
    """Whether it computes the same from the same inputs, and nothing writes into the result."""
    return not is_write(node) and not is_random(node) and not any(map(is_write, node.users))


def _read_shapes_only(graph: fx.Graph) -> None:
    """The derivative of the negative log likelihood, and its weight, depend on the target and on the shape of the rest.

    Given a tensor of zeros of that shape, they are the same in every step.
    """
    for node in list(graph.nodes):
        if node.target in _NLL_BACKWARD:
            with graph.inserting_before(node):
                zeros = _zeros_like(graph, node.args[1])
            node.args = (node.args[0], zeros, *node.args[2:])
        elif node.target in _NLL_FORWARD:
            for user in list(node.users):
                if user.target is operator.getitem and user.args[1] == 1:
                    with graph.inserting_before(node):
                        zeros = _zeros_like(graph, node.args[0])
                        other = graph.call_function(node.target, (zeros, *node.args[1:]))
                        other._rename(f"{node.name}_of_zeros")
                        other.meta = dict(node.meta)
                    user.args = (other, 1)


def _zeros_like(graph: fx.Graph, node: Any) -> fx.Node:
    like = node.meta["val"]
    zeros = graph.call_function(torch.zeros, (tuple(like.shape),), {"dtype": like.dtype, "device": like.device})
    zeros._rename(f"{node.name}_zeros")
    zeros.meta["val"] = like
    return zeros
