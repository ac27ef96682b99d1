"""Tiles of generated pointwise kernels. Bound by memory, they ship the same for every architecture. Not yet
measured; what a tuner measured takes their places (../tables.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import cdiv, next_power_of_2

from pccompile.kernels.devices import Architecture
from pccompile.kernels.tables import Space, Streamed, everywhere, overlaid

__all__ = ["CONFIGURATIONS", "SPACE", "Configuration", "configuration_for", "fitted", "size_for"]

_PROGRAMS = 1024  # enough to fill the largest of these devices
_MOST_SHARES = 64  # partial sums that the last program to arrive adds up
_SIDE_BY_SIDE = 64  # sums that lie next to one another, of a program


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up.

    Attributes:
        block_kept, block_reduced: the tile that a program holds at a time; one reduced element where nothing is summed.
        shares: programs among which the reduced elements are divided.
        warps: warps (wavefronts) per program.
    """

    block_kept: int
    block_reduced: int
    shares: int
    warps: int = 4


SPACE = Space("pointwise", choices={"elements": (256, 512, 1024, 2048, 4096), "warps": (2, 4, 8, 16)})
# Nothing is summed; neighbours are of the same sum; neighbours are of different sums.
CONFIGURATIONS: dict[Architecture, dict[str, dict[str, Streamed]]] = overlaid(
    SPACE, everywhere({size: Streamed(1024, 4) for size in ("each", "rows", "columns")})
)


def size_for(summed: bool, reduced_fastest: bool) -> str:
    """The size of a kernel in the table."""
    if not summed:
        return "each"
    return "rows" if reduced_fastest else "columns"


def configuration_for(
    architecture: Architecture, precision: str, kept: int, reduced: int | None, reduced_fastest: bool
) -> Configuration:
    """The configuration for so many kept and reduced elements (None: nothing is summed).

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half" or "ieee".
        kept: elements of a result that is summed, or of all.
        reduced: elements that each such sum has.
        reduced_fastest: whether neighbouring elements are of the same sum.
    """
    size = size_for(reduced is not None, reduced_fastest)
    return fitted(CONFIGURATIONS[architecture][precision][size], kept, reduced, reduced_fastest)


def fitted(cell: Streamed, kept: int, reduced: int | None, reduced_fastest: bool) -> Configuration:
    """A cell of the table for so many kept and reduced elements."""
    wide = next_power_of_2(max(kept, 1))
    if reduced is None:
        return Configuration(min(wide, cell.elements), 1, 1, cell.warps)
    deep = next_power_of_2(max(reduced, 1))
    if reduced_fastest:
        block_reduced = min(deep, cell.elements)
        block_kept = min(wide, max(cell.elements // block_reduced, 1))
    else:
        block_kept = min(wide, _SIDE_BY_SIDE)
        block_reduced = min(deep, cell.elements // block_kept)
    shares = max(min(cdiv(reduced, block_reduced), _PROGRAMS // cdiv(kept, block_kept), _MOST_SHARES), 1)
    return Configuration(block_kept, block_reduced, shares, cell.warps)
