"""Peak memory of a training step beyond what is there before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["highest", "peak_bytes"]


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Bytes that PyTorch's allocator holds at most while `step` runs, beyond what it holds before.

    On the CPU every allocation and release of the step is recorded and summed up, which gives the same number in every
    run; memory that libraries take for themselves is not seen.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    allocations = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return highest(nbytes for _, nbytes in sorted(allocations, key=lambda allocation: allocation[0]))


def highest(changes: Iterable[int]) -> int:
    """The largest running sum, at least zero."""
    return max(accumulate(changes, initial=0))
