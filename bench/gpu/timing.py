"""Medians of launches' times by the GPU's own clock, all in turn, with a cold cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch

__all__ = ["Timer", "event_medians"]

Timer = Callable[[Mapping[str, Callable[[], object]]], dict[str, float]]

CACHE_BYTES = 256 * 2**20  # more than any L2
BUDGET_SECONDS = 1.0  # for all launches together
LEAST, MOST = 10, 100  # rounds


def event_medians(launches: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each launch: the median over rounds in which every launch has its turn.

    As triton.testing.do_bench does, a buffer as large as the L2 cache is written before each launch, and the time is
    that between two events on the stream.
    """
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")
    first = _round(launches, cache)
    total = sum(first.values()) + 1e-4 * len(first)  # writing the buffer takes time as well
    rounds = max(LEAST, min(MOST, int(BUDGET_SECONDS / total)))
    times: dict[str, list[float]] = {name: [] for name in launches}
    for _ in range(rounds):
        for name, seconds in _round(launches, cache).items():
            times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _round(launches: Mapping[str, Callable[[], object]], cache: torch.Tensor) -> dict[str, float]:
    events = {}
    for name, launch in launches.items():
        cache.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launch()
        end.record()
        events[name] = (begin, end)
    torch.cuda.synchronize()
    return {name: begin.elapsed_time(end) / 1e3 for name, (begin, end) in events.items()}
