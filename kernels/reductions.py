"""Sums and maxima over one dimension of a tile.

By the combining functions of Triton's own library: the interpreter knows them and reduces with numpy, where it would
call any other function once for every element. It need not be able to call them (see activations.py).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["largest_of", "sum_of"]


@triton.jit
def sum_of(tile, AXIS: tl.constexpr):
    """Sum along a dimension, in a fixed order."""
    return tl.reduce(tile, AXIS, tl.standard._sum_combine)


@triton.jit
def largest_of(tile, AXIS: tl.constexpr):
    """Largest element along a dimension."""
    return tl.reduce(tile, AXIS, tl.standard._elementwise_max)
