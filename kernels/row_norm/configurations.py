"""Tiles and warps of row_norm. Bound by memory, they do not depend on the architecture. Not yet measured.

A program holds whole rows where they have at most 4096 columns; longer ones it goes over in runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import cdiv, next_power_of_2

__all__ = ["GROUP", "MOST_PROGRAMS", "Configuration", "configuration_for", "programs_for"]

# The error's programs, in groups that sum their shares of the gradients; the groups' sums are summed last. Two rounds
# of 16 are short, and 256 programs keep the largest of these devices' memory busy.
GROUP = 16
MOST_PROGRAMS = GROUP * GROUP
_WHOLE = 4096
_RUN = 2048
_TILE = 1024


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


def configuration_for(rows: int, columns: int) -> Configuration:
    """The configuration for (rows, columns): whole rows, several where they are short, or runs of one long row."""
    if columns > _WHOLE:
        return Configuration(1, _RUN, False, 8)
    block_columns = next_power_of_2(columns)
    block_rows = max(min(_TILE // block_columns, next_power_of_2(rows)), 1)
    return Configuration(block_rows, block_columns, True, max(block_columns // 256, 4))


def programs_for(rows: int, configuration: Configuration) -> int:
    """Programs of an error sweep over so many rows: few enough that partial sums are a small part of its traffic."""
    programs: int = cdiv(rows, max(configuration.block_rows, 4))
    return min(programs, MOST_PROGRAMS)
