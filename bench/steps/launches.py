"""What a training step runs on a GPU: kernels that compute, copies and fills, each counted by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["Event", "Launched", "count_launches", "launched", "sorted_events"]

CALLS = (
    *("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch"),
    *("cudaLaunchCooperativeKernel", "cuLaunchCooperativeKernel"),
    *("hipLaunchKernel", "hipModuleLaunchKernel", "hipExtModuleLaunchKernel", "hipGraphLaunch"),
    *("hipLaunchCooperativeKernel", "hipModuleLaunchCooperativeKernel"),
)
# The driver's, and PyTorch's kernels for copy_, _foreach_copy_, fill_, zeros, ones_like and _foreach_zero_. A
# concatenation (CatArrayBatchedCopy) computes, and so does what Inductor generates, whatever it is.
_COPY = re.compile(r"^(Memcpy|Copy(Device|Host)To|__amd_rocclr_copy)|copy_kernel_cuda|\bCopy(Functor)?<")
_FILL = re.compile(r"^(Memset|FillBuffer|__amd_rocclr_fill)|\b(Fill|Zero)Functor<")


class Event(Protocol):
    """What is read of the profiler's events."""

    def name(self) -> str:
        """A kernel's, or that of a call of the host."""

    def device_type(self) -> DeviceType:
        """Where it happened; `CUDA` for AMD's GPUs too."""

    def is_user_annotation(self) -> bool:
        """Whether it is a stretch of time that a program has named, such as an optimizer's step."""


@dataclass
class Launched:
    """What a step runs.

    Attributes:
        calls: of the host that launch; a CUDA graph is one.
        kernels: how often each kernel runs that computes something.
        copies: how often each copy runs, by the driver or by one of PyTorch's kernels for it.
        fills: likewise, of memory with one number.
    """

    calls: int = 0
    kernels: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    fills: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Everything that runs on the device: kernels, copies and fills."""
        return self.kernels.total() + self.copies.total() + self.fills.total()


def count_launches(step: Callable[[], object]) -> tuple[int, int]:
    """Launch calls of the host (a CUDA graph is one), and all that runs on the device, copies and fills as well."""
    found = launched(step)
    return found.calls, found.total


def launched(step: Callable[[], object]) -> Launched:
    """Run a step and see what it runs."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    return sorted_events(recorded.profiler.kineto_results.events())


def sorted_events(events: Iterable[Event]) -> Launched:
    """Tell launch calls, kernels, copies and fills apart; all other events of the host, and annotations, are none."""
    found = Launched()
    for event in events:
        name = event.name()
        if event.is_user_annotation():
            continue
        if event.device_type() != DeviceType.CUDA:
            found.calls += name.startswith(CALLS)
        elif _COPY.search(name):
            found.copies[name] += 1
        elif _FILL.search(name):
            found.fills[name] += 1
        else:
            found.kernels[name] += 1
    return found
