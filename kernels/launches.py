"""Count what the kernels launch, by name, on a GPU as under the interpreter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["count_launch", "counting_launches"]

_counters: list[Counter[str]] = []


def count_launch(kernel: str) -> None:
    """What a kernel's launcher calls where it launches."""
    for counter in _counters:
        counter[kernel] += 1


@contextmanager
def counting_launches() -> Iterator[Counter[str]]:
    """Count the launches of this package's kernels inside the block, in every thread of the process."""
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters[:] = [other for other in _counters if other is not counter]
