"""Tiles of generated pointwise kernels. Bound by memory, they do not depend on the architecture. Not yet measured."""

from __future__ import annotations

from dataclasses import dataclass

from triton import cdiv, next_power_of_2

__all__ = ["Configuration", "configuration_for"]

_TILE = 1024
_PROGRAMS = 1024  # enough to fill the largest of these devices
_MOST_SHARES = 64  # partial sums that the last program to arrive adds up


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


def configuration_for(kept: int, reduced: int | None, reduced_fastest: bool) -> Configuration:
    """The configuration for so many kept and reduced elements (None: nothing is summed).

    Args:
        kept: elements of a result that is summed, or of all.
        reduced: elements that each such sum has.
        reduced_fastest: whether neighbouring elements are of the same sum.
    """
    wide = next_power_of_2(max(kept, 1))
    if reduced is None:
        return Configuration(min(wide, _TILE), 1, 1)
    deep = next_power_of_2(max(reduced, 1))
    if reduced_fastest:
        block_reduced = min(deep, _TILE)
        block_kept = min(wide, max(_TILE // block_reduced, 1))
    else:
        block_kept = min(wide, 64)
        block_reduced = min(deep, _TILE // block_kept)
    shares = max(min(cdiv(reduced, block_reduced), _PROGRAMS // cdiv(kept, block_kept), _MOST_SHARES), 1)
    return Configuration(block_kept, block_reduced, shares)
