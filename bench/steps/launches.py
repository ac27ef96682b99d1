"""How many kernels a training step launches on a GPU, and which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["count_launches", "launched_kernels"]

CALLS = (
    *("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch", "cudaLaunchCooperativeKernel"),
    *("hipLaunchKernel", "hipModuleLaunchKernel", "hipExtModuleLaunchKernel", "hipGraphLaunch"),
)


def count_launches(step: Callable[[], object]) -> tuple[int, int]:
    """Launch calls of the host (a CUDA graph is one), and kernels that run on the device."""
    calls, kernels = launched_kernels(step)
    return calls, kernels.total()


def launched_kernels(step: Callable[[], object]) -> tuple[int, Counter[str]]:
    """Launch calls of the host, and how often each kernel runs on the device; copies and fills are none."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    calls, kernels = 0, Counter[str]()
    for event in recorded.profiler.kineto_results.events():
        name = event.name()
        if event.device_type() == DeviceType.CUDA:
            if not name.startswith(("Memcpy", "Memset")):
                kernels[name] += 1
        else:
            calls += name.startswith(CALLS)
    return calls, kernels
