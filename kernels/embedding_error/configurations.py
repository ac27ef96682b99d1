"""Tiles and warps of embedding_error. Bound by memory, they ship the same for every architecture. Not yet measured.

What a tuner measured takes their places (../tables.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from triton import next_power_of_2

from pccompile.kernels.devices import Architecture
from pccompile.kernels.tables import Space, everywhere, overlaid

__all__ = ["CONFIGURATIONS", "SPACE", "Configuration", "configuration_for", "fitted"]


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up.

    Attributes:
        block_uses: uses of a row of the table that are summed at once.
        block_columns: columns of a row that are summed at once.
        warps: warps (wavefronts) per program.
    """

    block_uses: int
    block_columns: int
    warps: int = 4


SPACE = Space(
    "embedding_error",
    choices={"block_uses": (1, 2, 4, 8, 16, 32), "block_columns": (64, 128, 256, 512, 1024), "warps": (1, 2, 4, 8)},
)
# Most rows are used a few times, some very often.
CONFIGURATIONS: dict[Architecture, dict[str, dict[str, Configuration]]] = overlaid(
    SPACE, everywhere({"rows": Configuration(8, 512, 4)})
)


def configuration_for(architecture: Architecture, precision: str, columns: int) -> Configuration:
    """The configuration for a table of so many columns.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half" or "ieee".
        columns: of a row.
    """
    return fitted(CONFIGURATIONS[architecture][precision]["rows"], columns)


def fitted(cell: Configuration, columns: int) -> Configuration:
    """A cell of the table for so many columns."""
    return replace(cell, block_columns=min(next_power_of_2(max(columns, 1)), cell.block_columns))
