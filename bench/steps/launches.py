"""How many kernels a training step launches on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["count_launches"]

CALLS = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch", "cudaLaunchCooperativeKernel")


def count_launches(step: Callable[[], object]) -> tuple[int, int]:
    """Launch calls of the host (a CUDA graph is one), and kernels that run on the device."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    calls = kernels = 0
    for event in recorded.profiler.kineto_results.events():
        name = event.name()
        if event.device_type() == DeviceType.CUDA:
            kernels += not name.startswith(("Memcpy", "Memset"))
        else:
            calls += name.startswith(CALLS)
    return calls, kernels
