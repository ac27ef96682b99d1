"""Which ATen operators are the kernels' activations, and which their derivatives: one row per activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pccompile.backends.patterns.match import argument

__all__ = ["IDENTITY", "Activated", "Sloped", "activated", "sloped"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activated:
    """An activation's call: the kernels' name for it, and leaky_relu's slope."""

    name: str
    negative_slope: float = 0.01


IDENTITY = Activated("identity")


@dataclass(frozen=True)
class Sloped:
    """A derivative's call: error * act'(z), with act' read from the residual."""

    activation: Activated
    error: fx.Node
    residual: fx.Node


_Named = Callable[[fx.Node], Activated | None]


def _plain(name: str) -> _Named:
    return lambda node: Activated(name)


def _leaky(node: fx.Node) -> Activated | None:
    slope = argument(node, "negative_slope")
    return Activated("leaky_relu", float(slope)) if slope >= 0 else None


def _gelu(node: fx.Node) -> Activated | None:
    return Activated({"none": "gelu", "tanh": "gelu_tanh"}[argument(node, "approximate")])


def _softplus(node: fx.Node) -> Activated | None:
    usual = argument(node, "beta") == 1 and argument(node, "threshold") == 20
    return Activated("softplus") if usual else None


def _relu_backward(node: fx.Node) -> Activated | None:
    return Activated("relu") if argument(node, "threshold") == 0 else None


_FORWARD: Mapping[Any, _Named] = {
    _aten.relu.default: _plain("relu"),
    _aten.leaky_relu.default: _leaky,
    _aten.tanh.default: _plain("tanh"),
    _aten.sigmoid.default: _plain("sigmoid"),
    _aten.gelu.default: _gelu,
    _aten.silu.default: _plain("silu"),
    _aten.softplus.default: _softplus,
}

# The derivative of relu is read from z or from its output, which have the same sign where either is positive; so is
# leaky_relu's. Every derivative has the error as its first argument and the residual as its second.
_BACKWARD: Mapping[Any, _Named] = {
    _aten.threshold_backward.default: _relu_backward,
    _aten.leaky_relu_backward.default: _leaky,
    _aten.tanh_backward.default: _plain("tanh"),
    _aten.sigmoid_backward.default: _plain("sigmoid"),
    _aten.gelu_backward.default: _gelu,
    _aten.silu_backward.default: _plain("silu"),
    _aten.softplus_backward.default: _softplus,
}


def activated(node: fx.Node) -> Activated | None:
    """The activation that a node is."""
    found = _FORWARD.get(node.target)
    return None if found is None else found(node)


def sloped(node: fx.Node) -> Sloped | None:
    """The derivative of an activation that a node is."""
    found = _BACKWARD.get(node.target)
    activation = None if found is None else found(node)
    if activation is None:
        return None
    error, residual = node.args[:2]
    assert isinstance(error, fx.Node) and isinstance(residual, fx.Node)
    return Sloped(activation, error, residual)
