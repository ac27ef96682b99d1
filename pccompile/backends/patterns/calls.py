"""Writing the call of a kernel, and what is read of it, into a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["At", "Write", "as_vector", "call", "if_any", "item", "view"]

At = Callable[[fx.Node], fx.Node]  # what stands for a node of the graph that was matched, where the call is written
Write = Callable[[fx.Graph, At], Sequence[fx.Node]]


def if_any(at: At, node: fx.Node | None) -> fx.Node | None:
    """What stands for a node, if there is one."""
    return None if node is None else at(node)


def call(graph: fx.Graph, function: Callable[..., Any], args: tuple[Any, ...], kernel: str) -> fx.Node:
    """The call of a kernel; who writes it says in its `val` what it returns."""
    node = graph.call_function(function, args)
    node.meta["kernel"] = kernel
    return node


def item(graph: fx.Graph, node: fx.Node, index: int, kind: torch.Tensor) -> fx.Node:
    """One of a kernel's results: a tensor of this kind."""
    result = graph.call_function(operator.getitem, (node, index))
    result.meta.update(val=kind, kernel=node.meta["kernel"])
    return result


def view(graph: fx.Graph, node: fx.Node, kind: torch.Tensor) -> fx.Node:
    """A node's value in the shape of a tensor of this kind."""
    if node.meta["val"].shape == kind.shape:
        return node
    result = graph.call_function(torch.ops.aten.view.default, (node, list(kind.shape)))
    result.meta["val"] = kind
    return result


def as_vector(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A node's value with its dimensions made one."""
    kind = node.meta["val"]
    return node if kind.dim() == 1 else view(graph, node, kind.reshape(-1))
