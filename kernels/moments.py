"""Mean and sum of squared deviations of a stream, inside a program: Welford's update for each lane, merged at the end.

Welford, Technometrics 4 (1962); merging as in Chan, Golub and LeVeque, The American Statistician 37 (1983).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl

from pccompile.kernels.reductions import sum_of

__all__ = ["add_to_moments", "moments_along"]


@triton.jit
def add_to_moments(x, inside, count, mean, squares):
    """The lanes' counts, means and sums of squared deviations, float32, with x added where inside."""
    count += tl.where(inside, 1.0, 0.0)
    deviation = tl.where(inside, x - mean, 0.0)
    mean += deviation / tl.maximum(count, 1.0)
    squares += deviation * tl.where(inside, x - mean, 0.0)
    return count, mean, squares


@triton.jit
def moments_along(count, mean, squares, AXIS: tl.constexpr):
    """Mean and sum of squared deviations of all lanes along an axis, which is dropped."""
    total = tl.maximum(sum_of(count, AXIS), 1.0)
    centre = sum_of(count * mean, AXIS) / total
    apart = mean - tl.expand_dims(centre, AXIS)
    return centre, sum_of(squares + count * apart * apart, AXIS)
