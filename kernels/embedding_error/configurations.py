"""Tiles and warps of embedding_error. Bound by memory, they do not depend on the architecture. Not yet measured."""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2

__all__ = ["Configuration", "configuration_for"]


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


def configuration_for(columns: int) -> Configuration:
    """The configuration for a table of so many columns: most rows are used a few times, some very often."""
    return Configuration(8, min(next_power_of_2(max(columns, 1)), 512))
