"""Tiles and warps of cross_entropy. Bound by memory, they ship the same for every architecture. Not yet measured.

What a tuner measured takes their places (../tables.py). Where the classes of a row lie next to one another, a program
reads a long run of one row, or several short rows whole; where rows lie next to one another (an image's pixels), it
reads the classes of many rows one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2

from pccompile.kernels.devices import Architecture
from pccompile.kernels.tables import Space, everywhere, overlaid

__all__ = ["CONFIGURATIONS", "MOST_PROGRAMS", "SPACE", "Configuration", "configuration_for", "fitted", "size_for"]

MOST_PROGRAMS = 4096  # of a prediction: its last program adds up as many partial sums
_SHORT = 1024  # classes of a short row


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


SPACE = Space(
    "cross_entropy",
    choices={
        "block_rows": (1, 2, 4, 8, 16, 32, 64, 128, 256),
        "block_classes": (4, 8, 16, 32, 64, 512, 1024, 2048, 4096, 8192),
        "warps": (2, 4, 8, 16),
    },
)
# "short" is the tile of a row that has as many classes; of shorter rows it holds more.
CONFIGURATIONS: dict[Architecture, dict[str, dict[str, Configuration]]] = overlaid(
    SPACE,
    everywhere(
        {"image": Configuration(128, 16, 4), "short": Configuration(1, _SHORT, 4), "long": Configuration(1, 2048, 4)}
    ),
)


def size_for(classes: int, inner: int) -> str:
    """The size of logits in the table."""
    if inner > 1:
        return "image"
    return "short" if classes <= _SHORT else "long"


def configuration_for(architecture: Architecture, precision: str, rows: int, classes: int, inner: int) -> Configuration:
    """The configuration for logits of (rows / inner, classes, inner).

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half" or "ieee".
        rows: targets in all.
        classes: logits of each.
        inner: rows that lie side by side: 1 for (batch, classes), height * width for an image.
    """
    return fitted(CONFIGURATIONS[architecture][precision][size_for(classes, inner)], rows, classes, inner)


def fitted(cell: Configuration, rows: int, classes: int, inner: int) -> Configuration:
    """A cell of the table for logits of (rows / inner, classes, inner)."""
    rows, wide = max(next_power_of_2(rows), 1), max(next_power_of_2(classes), 1)
    block_rows, block_classes = cell.block_rows, min(wide, cell.block_classes)
    if size_for(classes, inner) == "short":
        block_rows = max(block_rows * cell.block_classes // block_classes, 1)
    return Configuration(min(rows, block_rows), block_classes, cell.warps)
