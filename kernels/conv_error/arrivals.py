"""Counters of the programs that share a tile: zero before a launch, and left zero by it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["arrival_counters"]

_LEAST = 1024
_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def arrival_counters(device: torch.device, count: int) -> Tensor:
    """At least that many zeros, int32.

    Launches of one stream follow one another and share their counters, so that none has to be cleared; a launch that is
    being captured into a CUDA graph gets its own, as do interpreted ones, which may be interrupted.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    kept = _COUNTERS.get(key)
    if kept is None or kept.numel() < count:
        kept = _COUNTERS[key] = torch.zeros(max(count, _LEAST), dtype=torch.int32, device=device)
    return kept
