"""The space that a pointwise kernel iterates over: kept and reduced dimensions, merged where every tensor allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Space", "iteration_space"]


@dataclass(frozen=True)
class Space:
    """Sizes of the merged dimensions, the last one fastest, and each tensor's strides along them.

    Attributes:
        kept: sizes of the dimensions that are not summed over; at least one.
        reduced: sizes of those that are; none where nothing is.
        kept_strides: for each tensor, one for each of kept; zero where it is broadcast.
        reduced_strides: likewise, of reduced.
        reduced_fastest: whether the dimension in which elements lie side by side is summed over.
    """

    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    kept_strides: tuple[tuple[int, ...], ...]
    reduced_strides: tuple[tuple[int, ...], ...]
    reduced_fastest: bool


def iteration_space(
    shape: Sequence[int], reduced: frozenset[int], strides: Sequence[Sequence[int]], leading: int
) -> Space:
    """The space of a kernel over `shape` that sums some results over the dimensions in `reduced`.

    Args:
        shape: what all tensors are broadcast to.
        reduced: dimensions of it.
        strides: each tensor's, one for each dimension of shape; zero where it is broadcast, or was summed.
        leading: the tensor whose layout decides the order of the dimensions.
    """
    order = sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: -strides[leading][d])
    groups = []
    for chosen in ([d for d in order if d not in reduced], [d for d in order if d in reduced]):
        merged: list[tuple[int, list[int]]] = []  # (size, each tensor's stride)
        for d in chosen:
            size, steps = shape[d], [each[d] for each in strides]
            if merged and all(outer == inner * size for outer, inner in zip(merged[-1][1], steps, strict=True)):
                merged[-1] = (merged[-1][0] * size, steps)
            else:
                merged.append((size, steps))
        groups.append(merged)
    kept, summed = groups[0] or [(1, [0] * len(strides))], groups[1]
    if reduced and not summed:
        summed = [(1, [0] * len(strides))]
    return Space(
        kept=tuple(size for size, _ in kept),
        reduced=tuple(size for size, _ in summed),
        kept_strides=tuple(tuple(steps[i] for _, steps in kept) for i in range(len(strides))),
        reduced_strides=tuple(tuple(steps[i] for _, steps in summed) for i in range(len(strides))),
        reduced_fastest=bool(order) and order[-1] in reduced,
    )
