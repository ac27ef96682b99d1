"""Elementwise activations, their derivatives, and the residual that each derivative reads: one row per activation.

The derivative is read from the smallest tensor that determines it: the output where the activation can be inverted (it
exists anyway), the pre-activation z elsewhere, and nothing for the identity. Every function exists twice, in torch for
the references and in Triton for the kernels; the tests hold them together.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from pccompile.errors import UsageError

__all__ = ["ACTIVATIONS", "Activation", "activate", "activation_named", "activation_slope"]


@dataclass(frozen=True)
class Activation:
    """An elementwise activation.

    Attributes:
        residual: what the derivative is read from: "none", "output" (act(z)) or "preactivation" (z).
        function: (z, negative_slope) -> act(z), in torch.
        slope: (residual, negative_slope) -> act'(z), in torch; its residual is float32.
    """

    residual: Literal["none", "output", "preactivation"]
    function: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]


def _gelu_slope(z: Tensor, negative_slope: float) -> Tensor:
    return 0.5 * (1 + torch.erf(z * 0.5**0.5)) + z * torch.exp(-0.5 * z * z) * (2 * torch.pi) ** -0.5


def _gelu_tanh_slope(z: Tensor, negative_slope: float) -> Tensor:
    scale = (2 / torch.pi) ** 0.5
    t = torch.tanh(scale * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * scale * (1 + 3 * 0.044715 * z * z)


def _silu_slope(z: Tensor, negative_slope: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation("none", lambda z, _: z, lambda z, _: torch.ones_like(z)),
    "relu": Activation("output", lambda z, _: torch.relu(z), lambda y, _: (y > 0).to(y.dtype)),
    "leaky_relu": Activation(
        "output",
        lambda z, negative_slope: functional.leaky_relu(z, negative_slope),
        lambda y, negative_slope: torch.where(y > 0, 1.0, negative_slope).to(y.dtype),
    ),
    "tanh": Activation("output", lambda z, _: torch.tanh(z), lambda y, _: 1 - y * y),
    "sigmoid": Activation("output", lambda z, _: torch.sigmoid(z), lambda y, _: y * (1 - y)),
    "gelu": Activation("preactivation", lambda z, _: functional.gelu(z), _gelu_slope),
    "gelu_tanh": Activation("preactivation", lambda z, _: functional.gelu(z, approximate="tanh"), _gelu_tanh_slope),
    "silu": Activation("preactivation", lambda z, _: functional.silu(z), _silu_slope),
    "softplus": Activation(
        "preactivation",
        lambda z, _: functional.softplus(z),
        lambda z, _: torch.where(z > 20, 1.0, torch.sigmoid(z)),
    ),
}


def activation_named(name: str, negative_slope: float = 0.01) -> Activation:
    """The activation of that name.

    Args:
        name: a key of ACTIVATIONS.
        negative_slope: the slope of leaky_relu below zero; the others ignore it.

    Raises:
        UsageError: there is none of that name, or leaky_relu's sign could not be read back from its output.
    """
    if name not in ACTIVATIONS:
        raise UsageError(f"no kernel for the activation {name!r}", cure=f"use one of {', '.join(ACTIVATIONS)}")
    if name == "leaky_relu" and not negative_slope >= 0:
        raise UsageError(
            f"leaky_relu with negative_slope={negative_slope}: its derivative cannot be read from its output",
            cure="use a negative_slope of zero or more",
        )
    return ACTIVATIONS[name]


# Written with the language's built-ins alone (no tl.sigmoid, tl.zeros, tl.sum): those are compiled functions of
# Triton's own library, which an interpreted kernel can only call if TRITON_INTERPRET was set when Triton was imported.


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _tanh(z):
    # Near zero 1 - exp(-2|z|) cancels; five terms of the series are exact to float32 below 1/4.
    t = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - t) / (1.0 + t)
    s = z * z
    near = z * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
    return tl.where(s < 0.0625, near, tl.where(z < 0, -far, far))


@triton.jit
def _softplus(z):
    # log1p(t) = log(u) t / (u - 1) with u = 1 + t, exact where 1 + t rounds.
    t = tl.exp(-tl.abs(z))
    u = 1.0 + t
    log1p = tl.where(u == 1.0, t, tl.log(u) * t / tl.where(u == 1.0, 1.0, u - 1.0))
    return tl.where(z > 20.0, z, tl.maximum(z, 0.0) + log1p)


@triton.jit
def activate(z, negative_slope, ACTIVATION: tl.constexpr):
    """act(z), float32 elementwise."""
    if ACTIVATION == "relu":
        y = tl.where(z > 0, z, 0.0)
    elif ACTIVATION == "leaky_relu":
        y = tl.where(z > 0, z, z * negative_slope)
    elif ACTIVATION == "tanh":
        y = _tanh(z)
    elif ACTIVATION == "sigmoid":
        y = _sigmoid(z)
    elif ACTIVATION == "gelu":
        y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = 0.5 * z * (1.0 + _tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))
    elif ACTIVATION == "silu":
        y = z * _sigmoid(z)
    elif ACTIVATION == "softplus":
        y = _softplus(z)
    else:
        tl.static_assert(ACTIVATION == "identity")
        y = z
    return y


@triton.jit
def activation_slope(residual, negative_slope, ACTIVATION: tl.constexpr):
    """act'(z) from the activation's residual, float32 elementwise; not for the identity, which has none."""
    if ACTIVATION == "relu":
        slope = tl.where(residual > 0, 1.0, 0.0)
    elif ACTIVATION == "leaky_relu":
        slope = tl.where(residual > 0, 1.0, negative_slope)
    elif ACTIVATION == "tanh":
        slope = 1.0 - residual * residual
    elif ACTIVATION == "sigmoid":
        slope = residual * (1.0 - residual)
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(residual * 0.7071067811865476))
        slope = cdf + residual * tl.exp(-0.5 * residual * residual) * 0.3989422804014327
    elif ACTIVATION == "gelu_tanh":
        s = residual * residual
        t = _tanh(0.7978845608028654 * residual * (1.0 + 0.044715 * s))
        inner = 0.7978845608028654 * (1.0 + 0.134145 * s)
        slope = 0.5 * (1.0 + t) + 0.5 * residual * (1.0 - t * t) * inner
    elif ACTIVATION == "silu":
        s = _sigmoid(residual)
        slope = s * (1.0 + residual * (1.0 - s))
    else:
        tl.static_assert(ACTIVATION == "softplus")
        slope = tl.where(residual > 20.0, 1.0, _sigmoid(residual))
    return slope
