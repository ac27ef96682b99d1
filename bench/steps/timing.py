"""Training-step times: all contestants of a model in turn, so that whatever disturbs the machine disturbs all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bench.steps.task import Prepared

__all__ = ["Effort", "time_steps"]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        repetitions: blocks of steps for each contestant.
        block_seconds: how long a block of steps lasts, at least one step.
        contestant_seconds: no more blocks for a contestant than fit in this, but three.
    """

    repetitions: int = 30
    block_seconds: float = 0.1
    contestant_seconds: float = 20.0


@dataclass
class _Entry:
    prepared: Prepared
    steps: int  # in a block
    blocks: int
    times: list[float]


def time_steps(
    contestants: Mapping[str, Prepared],
    effort: Effort,
    failed: Callable[[str, Exception], None],
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, list[float]]:
    """Seconds a step, one number for each block of steps.

    Args:
        contestants: what to time, by name.
        effort: how long.
        failed: is told of a contestant that raises; the others go on.
        advance: is told which share of the work another block was.
    """
    gc.collect()
    gc.freeze()  # collections between blocks are quick then
    try:
        return _in_turn(contestants, effort, failed, advance)
    finally:
        gc.unfreeze()


def _in_turn(
    contestants: Mapping[str, Prepared],
    effort: Effort,
    failed: Callable[[str, Exception], None],
    advance: Callable[[float], None],
) -> dict[str, list[float]]:
    entries = {}
    for name, prepared in contestants.items():
        try:
            entries[name] = _warmed_up(prepared, effort)
        except Exception as error:
            failed(name, error)
    total = sum(entry.blocks for entry in entries.values())
    for round_number in range(effort.repetitions):
        for name in _rotated(list(entries), round_number):
            entry = entries[name]
            # a contestant with fewer blocks takes part in rounds spread over the whole run
            before, after = (n * entry.blocks // effort.repetitions for n in (round_number, round_number + 1))
            if before == after:
                continue
            try:
                entry.times.append(_block(entry.prepared, entry.steps))
            except Exception as error:
                failed(name, error)
                del entries[name]
            advance(1 / total)
    return {name: entry.times for name, entry in entries.items()}


def _warmed_up(prepared: Prepared, effort: Effort) -> _Entry:
    """Run a few steps, and see from the quickest how many make a block."""
    seconds = [_block(prepared, 1)]
    while len(seconds) < 5 and sum(seconds) < 10 * effort.block_seconds:
        seconds.append(_block(prepared, 1))
    quickest = min(seconds)
    steps = max(1, min(1000, round(effort.block_seconds / quickest)))
    affordable = int(effort.contestant_seconds / (quickest * steps))
    return _Entry(prepared, steps, min(effort.repetitions, max(3, affordable)), [])


def _block(prepared: Prepared, steps: int) -> float:
    """Seconds a step of several steps from the initial state."""
    prepared.reset()
    if steps > 1:  # an untimed step fills the caches
        prepared.step()
    _synchronize(prepared)
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(steps):
            prepared.step()
        _synchronize(prepared)
        return (time.perf_counter() - start) / steps
    finally:
        gc.enable()


def _synchronize(prepared: Prepared) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    prepared.synchronize()


def _rotated(names: list[str], by: int) -> list[str]:
    """Another one begins in each round."""
    start = by % len(names) if names else 0
    return names[start:] + names[:start]
