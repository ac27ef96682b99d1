"""Evaluate one torch.fx node on given inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from pccompile.errors import Place, ShapeError

__all__ = ["call_node", "isolated", "misfit"]


def call_node(
    node: fx.Node, values: Mapping[str, Any], instead: Mapping[Any, Callable[..., Any]] = MappingProxyType({})
) -> Any:
    """The value of a call node, given the values of its input nodes by name.

    Args:
        instead: functions that are called in the place of others, by these.
    """
    args, kwargs = _fill(node.args, values), _fill(node.kwargs, values)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return instead.get(node.target, node.target)(*args, **kwargs)  # type: ignore[operator]


def misfit(node: fx.Node, values: Mapping[str, Any], error: Exception, place: Place) -> ShapeError:
    """The error for a node that cannot run on its inputs: what it said, and their shapes."""
    shapes = {
        parent.name: list(values[parent.name].shape)
        for parent in node.all_input_nodes
        if isinstance(values[parent.name], torch.Tensor)
    }
    operator = getattr(node.target, "__name__", node.target)
    return ShapeError(f"{type(error).__name__}: {error} (inputs of {operator}: {shapes})", place)


def isolated(value: Any, like: Any = None) -> Any:
    """The value cut off from the graph it came from: tensors are detached.

    Args:
        like: a value of the same structure; where its tensors are tracked by autograd, the result's are, afresh.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_(isinstance(like, torch.Tensor) and like.requires_grad)
    if isinstance(value, tuple | list):
        parts = like if isinstance(like, tuple | list) else [None] * len(value)
        alone = [isolated(part, other) for part, other in zip(value, parts, strict=True)]
        return type(value)(alone) if type(value).__module__ == "torch.return_types" else tuple(alone)
    return value


def _fill(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument.name]
    if isinstance(argument, tuple):
        return tuple(_fill(part, values) for part in argument)
    if isinstance(argument, list):
        return [_fill(part, values) for part in argument]
    if isinstance(argument, dict):
        return {key: _fill(part, values) for key, part in argument.items()}
    if isinstance(argument, slice):
        return slice(_fill(argument.start, values), _fill(argument.stop, values), _fill(argument.step, values))
    return argument
