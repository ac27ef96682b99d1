"""The operations of a training step, and the speed of a large matrix multiplication, which no such step can exceed."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["CountedOperations", "multiply_ceiling"]

SIZES = {"cpu": 2048, "cuda": 8192}


def multiply_ceiling(device: str, dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> float:
    """Floating-point operations a second of torch.mm in a dtype: the best of a few."""
    size = SIZES[device]
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


class CountedOperations(TorchDispatchMode):
    """Counts floating-point operations by the formulas of torch.utils.flop_counter.

    FlopCounterMode itself hooks every module, which a compiled module refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and add what it costs; an operator made of others is opened."""
        kwargs = kwargs or {}
        formula = flop_registry.get(function._overloadpacket)
        if formula is None:
            with self:
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = function(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out
