"""How programs are laid over tiles, and how they round and write one, shared by the kernels."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["as_stored", "grouped_tile", "needs_wide_offsets", "tile_indices", "write_tile"]

_LARGEST_INT32 = 2**31 - 1
_LARGEST_TILE = 512


@triton.jit
def grouped_tile(program, row_tiles, column_tiles, GROUP: tl.constexpr):
    """(row tile, column tile) of a program: GROUP rows of tiles are walked column by column, so that they share L2."""
    per_group = GROUP * column_tiles
    first_row = program // per_group * GROUP
    rows = tl.minimum(row_tiles - first_row, GROUP)
    within = program % per_group
    return first_row + within % rows, within // rows


@triton.jit
def tile_indices(tile, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """(BLOCK,) indices of a tile along one dimension; int64 where index times stride may not fit in int32."""
    indices = tl.arange(0, BLOCK)
    if WIDE:
        indices = indices.to(tl.int64)
    return tile * BLOCK + indices


@triton.jit
def as_stored(prediction, value, UPCAST: tl.constexpr):
    """A prediction rounded as values are, so that one that has not moved has no error, rather than its rounding's."""
    if UPCAST and value.dtype == tl.bfloat16:  # the interpreter would cut off what it should round
        bits = prediction.to(tl.uint32, bitcast=True)
        prediction = (bits + (((bits >> 16) & 1) + 0x7FFF)).to(tl.float32, bitcast=True)
    return prediction.to(value.dtype).to(tl.float32)


@triton.jit
def write_tile(pointers, tile, mask, ACCUMULATE: tl.constexpr):
    """Store a float32 tile, rounded once to the dtype there: in the place of what is there, or added to it."""
    if ACCUMULATE:
        tile += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    tl.store(pointers, tile.to(pointers.dtype.element_ty), mask=mask)


def needs_wide_offsets(*tensors: Tensor | None) -> bool:
    """Whether an element, of any of the tensors, or of the tiles that overhang them, is 2**31 elements or more away."""
    return any(
        sum((size + _LARGEST_TILE) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        > _LARGEST_INT32
        for tensor in tensors
        if tensor is not None
    )
