"""Tiles and warps of cross_entropy. Bound by memory, they do not depend on the architecture. Not yet measured.

Where the classes of a row lie next to one another, a program reads a long run of one row, or several short rows whole;
where rows lie next to one another (an image's pixels), it reads the classes of many rows one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2

__all__ = ["MOST_PROGRAMS", "Configuration", "configuration_for"]

MOST_PROGRAMS = 4096  # of a prediction: its last program adds up as many partial sums
_LONGEST_RUN = 2048
_TILE = 1024


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up.

    Attributes:
        block_rows, block_classes: the tile of logits that a program holds.
        warps: warps (wavefronts) per program.
    """

    block_rows: int
    block_classes: int
    warps: int = 4


def configuration_for(rows: int, classes: int, inner: int) -> Configuration:
    """The configuration for logits of (rows / inner, classes, inner).

    Args:
        rows: targets in all.
        classes: logits of each.
        inner: rows that lie side by side: 1 for (batch, classes), height * width for an image.
    """
    rows, classes = max(next_power_of_2(rows), 1), max(next_power_of_2(classes), 1)
    if inner > 1:
        return Configuration(min(rows, 128), min(classes, 16))
    block_classes = min(classes, _LONGEST_RUN)
    return Configuration(min(rows, max(_TILE // block_classes, 1)), block_classes)
