"""Tiles and warps of batch_norm. Bound by memory, they do not depend on the architecture. Not yet measured.

A program owns one channel where a channel's elements lie next to one another, and a few where channels do.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2

__all__ = ["Configuration", "can_pool", "configuration_for"]

_SECTOR = 8  # channels side by side: as many float32 as a device reads at once
_APART, _ADJACENT = 2048, 256  # elements of a channel that a program holds at a time


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


def configuration_for(
    outer: int, channels: int, inner: int, channels_adjacent: bool, pools: bool = False
) -> Configuration:
    """The configuration for so many elements (outer times inner) a channel.

    Args:
        outer: samples.
        channels: of each.
        inner: elements of a sample's channel.
        channels_adjacent: whether elements lie side by side with other channels', not with their own channel's.
        pools: whether each sample's elements are averaged; then a block holds whole samples.
    """
    wide = next_power_of_2(max(outer * inner, next_power_of_2(inner) if pools else 1, 1))
    if channels_adjacent:
        return Configuration(min(_SECTOR, next_power_of_2(channels)), min(wide, _ADJACENT))
    return Configuration(1, min(wide, _APART))


def can_pool(inner: int, channels_adjacent: bool) -> bool:
    """Whether a sample's elements fit into a block."""
    return bool(next_power_of_2(max(inner, 1)) <= (_ADJACENT if channels_adjacent else _APART))
