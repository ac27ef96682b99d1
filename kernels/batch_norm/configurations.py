"""Tiles and warps of batch_norm. Bound by memory, they do not depend on the architecture. Not yet measured.

A program owns one channel where a channel's elements lie next to one another, and a few where channels do.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2

__all__ = ["Configuration", "configuration_for"]

_SECTOR = 8  # channels side by side: as many float32 as a device reads at once


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up.

    Attributes:
        block_channels: channels that a program owns.
        block_elements: elements of each that it holds at a time.
        warps: warps (wavefronts) per program.
    """

    block_channels: int
    block_elements: int
    warps: int = 8


def configuration_for(elements: int, channels: int, channels_adjacent: bool) -> Configuration:
    """The configuration for so many elements a channel, side by side with their channel's or with other channels'."""
    wide = next_power_of_2(max(elements, 1))
    if channels_adjacent:
        return Configuration(min(_SECTOR, next_power_of_2(channels)), min(wide, 256))
    return Configuration(1, min(wide, 2048))
