"""Elementwise functions that Triton has not, float32, for generated kernels."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.activations import activate

__all__ = ["expm1", "larger", "log1p", "mish_slope", "sign", "smaller"]

# Kahan's forms: exact where 1 + x rounds.


@triton.jit
def log1p(x):
    """log(1 + x)."""
    u = 1.0 + x
    exact = (u == 1.0) | (u == float("inf"))
    return tl.where(exact, x, tl.log(u) * (x / tl.where(exact, 1.0, u - 1.0)))


@triton.jit
def expm1(x):
    """exp(x) - 1."""
    u = tl.exp(x)
    near = (tl.abs(x) < 1.0) & (u != 1.0)
    return tl.where(u == 1.0, x, tl.where(near, (u - 1.0) * (x / tl.where(near, tl.log(u), 1.0)), u - 1.0))


@triton.jit
def mish_slope(x):
    """The derivative of x tanh(softplus(x))."""
    t = activate(activate(x, 0.0, "softplus"), 0.0, "tanh")
    return t + x * activate(x, 0.0, "sigmoid") * (1.0 - t * t)


@triton.jit
def sign(x):
    """-1, 0 or 1; zero for what is not a number."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def larger(x, y):
    """The larger of two; not a number where one is not."""
    return tl.where((x > y) | (x != x), x, y)


@triton.jit
def smaller(x, y):
    """The smaller of two; not a number where one is not."""
    return tl.where((x < y) | (x != x), x, y)
