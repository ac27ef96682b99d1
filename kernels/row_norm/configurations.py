"""Tiles and warps of row_norm. Bound by memory, they ship the same for every architecture. Not yet measured.

What a tuner measured takes their places (../tables.py). A program holds whole rows where they have at most 4096 columns
(several where they have at most 1024, "short"); longer ones it goes over in runs ("long").
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import cdiv, next_power_of_2

from pccompile.kernels.devices import Architecture
from pccompile.kernels.tables import Space, Streamed, everywhere, overlaid

__all__ = [
    "CONFIGURATIONS",
    "GROUP",
    "MOST_PROGRAMS",
    "SPACE",
    "Configuration",
    "configuration_for",
    "fitted",
    "programs_for",
    "size_for",
]

# The error's programs, in groups that sum their shares of the gradients; the groups' sums are summed last. Two rounds
# of 16 are short, and 256 programs keep the largest of these devices' memory busy.
GROUP = 16
MOST_PROGRAMS = GROUP * GROUP


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up.

    Attributes:
        block_rows, block_columns: the tile that a program holds.
        whole: whether block_columns are all of a row's.
        warps: warps (wavefronts) per program.
    """

    block_rows: int
    block_columns: int
    whole: bool
    warps: int


SPACE = Space("row_norm", choices={"elements": (512, 1024, 2048, 4096, 8192), "warps": (2, 4, 8, 16)})
CONFIGURATIONS: dict[Architecture, dict[str, dict[str, Streamed]]] = overlaid(
    SPACE,
    everywhere(
        {
            "short": Streamed(1024, 4),
            "2048": Streamed(2048, 8),
            "4096": Streamed(4096, 16),
            "long": Streamed(2048, 8),
        }
    ),
)


def size_for(columns: int) -> str:
    """The size of a row in the table."""
    if columns > 4096:
        return "long"
    return "short" if columns <= 1024 else str(next_power_of_2(columns))


def configuration_for(architecture: Architecture, precision: str, rows: int, columns: int) -> Configuration:
    """The configuration for (rows, columns).

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half" or "ieee".
        rows: how many.
        columns: of each.
    """
    return fitted(CONFIGURATIONS[architecture][precision][size_for(columns)], rows, columns)


def fitted(cell: Streamed, rows: int, columns: int) -> Configuration:
    """A cell of the table for (rows, columns): whole rows, several where they are short, or runs of one long row."""
    if size_for(columns) == "long":
        return Configuration(1, cell.elements, False, cell.warps)
    block_columns = next_power_of_2(columns)
    block_rows = max(min(cell.elements // block_columns, next_power_of_2(rows)), 1)
    return Configuration(block_rows, block_columns, True, cell.warps)


def programs_for(rows: int, configuration: Configuration) -> int:
    """Programs of an error sweep over so many rows: few enough that partial sums are a small part of its traffic."""
    programs: int = cdiv(rows, max(configuration.block_rows, 4))
    return min(programs, MOST_PROGRAMS)
