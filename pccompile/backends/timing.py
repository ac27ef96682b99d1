"""How long calls take, one against the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["measure"]

_WARM_UPS, _REPETITIONS = 3, 9


def measure(calls: Mapping[str, Callable[[], Any]], on_cuda: bool) -> dict[str, list[float]]:
    """Seconds of each call, several times, one after the other in turn, after warming up."""
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(_WARM_UPS + _REPETITIONS):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if repetition >= _WARM_UPS:
                seconds[name].append(time.perf_counter() - start)
    return seconds
