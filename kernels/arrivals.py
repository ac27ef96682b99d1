"""The sums that the programs of one launch make together, in a fixed order.

A sum over more than one program's share is made in one launch and without floating-point atomics: every program writes
its partial sum to a place of its own and then arrives at a counter; the last to arrive, whichever it is, adds the
partial sums up in the order of their places. So results repeat bit for bit.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pccompile.kernels.devices import Architecture
from pccompile.kernels.reductions import sum_of

__all__ = [
    "FOLD",
    "arrival_counters",
    "arrives_last",
    "fold",
    "fold_rows",
    "release_lanes",
]

FOLD = 1024  # partial sums that fold() reads at once


@triton.jit
def arrives_last(counter_ptr, expected, RELEASE_LANES: tl.constexpr):
    """Whether this program is the last of `expected` to arrive; what the others wrote before is then visible to it.

    The last one sets the counter back to zero, for the next launch. RELEASE_LANES is release_lanes of the launch.
    """
    if RELEASE_LANES > 0:
        tl.atomic_add(counter_ptr + tl.full((RELEASE_LANES,), 0, tl.int32), 0)
    tl.debug_barrier()  # every thread's writes come before the one thread's arrival
    last = tl.atomic_add(counter_ptr, 1) == expected - 1
    if last:
        tl.atomic_xchg(counter_ptr, 0)
    return last


@triton.jit
def fold(partial_ptr, count, BLOCK: tl.constexpr):
    """The sum of `count` numbers that other programs wrote, float32."""
    accumulator = tl.full((BLOCK,), 0.0, tl.float32)
    for block in range(0, (count + BLOCK - 1) // BLOCK):
        places = block * BLOCK + tl.arange(0, BLOCK)
        # Past the first-level cache, which need not see other processors' writes.
        accumulator += tl.load(partial_ptr + places, mask=places < count, other=0.0, cache_modifier=".cg")
    return sum_of(accumulator, 0)


@triton.jit
def fold_rows(partial_ptr, row_stride, column, inside, count, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(BLOCK,) sums of `count` rows that other programs wrote, at the columns given, float32."""
    accumulator = tl.full((ROWS, BLOCK), 0.0, tl.float32)
    for block in range(0, (count + ROWS - 1) // ROWS):
        row = block * ROWS + tl.arange(0, ROWS)
        accumulator += tl.load(
            partial_ptr + row[:, None] * row_stride + column[None, :],
            mask=(row < count)[:, None] & inside[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
    return sum_of(accumulator, 0)


def release_lanes(architecture: Architecture, warps: int) -> int:
    """Lanes that have to release their writes themselves before a program's one arrival: none on NVIDIA's devices.

    On AMD's a barrier orders a program's wavefronts, but does not wait for their writes to reach the second-level
    cache, which a release by one of them then writes back: each has to wait for its own.
    """
    return 64 * warps if architecture == "gfx942" else 0


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def arrival_counters(device: torch.device, count: int) -> Tensor:
    """(count,) int32 zeros for arrives_last, which leaves them zero: kept for each stream, so that none are cleared.

    Launches of one stream follow one another, so they may share. A CUDA graph may be replayed on any stream, so it gets
    counters of its own, and a node that clears them.
    """
    if device.type != "cuda":
        key = (device, 0)
    elif torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    else:
        key = (device, torch.cuda.current_stream(device).cuda_stream)
    known = _COUNTERS.get(key)
    if known is None or known.numel() < count:
        known = _COUNTERS[key] = torch.zeros(max(count, FOLD), dtype=torch.int32, device=device)
    return known[:count]
