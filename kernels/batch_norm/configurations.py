"""Tiles and warps of batch_norm. Bound by memory, they ship the same for every architecture. Not yet measured.

What a tuner measured takes their places (../tables.py). A program owns one channel where a channel's elements lie next
to one another, and a few where channels do.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2

from pccompile.kernels.devices import Architecture
from pccompile.kernels.tables import Space, everywhere, overlaid

__all__ = ["CONFIGURATIONS", "SPACE", "Configuration", "can_pool", "configuration_for", "fitted", "size_for"]

_SECTOR = 8  # channels side by side: as many float32 as a device reads at once
_APART, _ADJACENT = 2048, 256  # elements of a channel that a program holds at a time; averages are over no more


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


SPACE = Space(
    "batch_norm",
    choices={
        "block_channels": (1, 2, 4, 8, 16, 32),
        "block_elements": (64, 128, 256, 512, 1024, 2048, 4096),
        "warps": (2, 4, 8, 16),
    },
)
CONFIGURATIONS: dict[Architecture, dict[str, dict[str, Configuration]]] = overlaid(
    SPACE,
    everywhere({"apart": Configuration(1, _APART, 8), "adjacent": Configuration(_SECTOR, _ADJACENT, 8)}),
)


def size_for(channels_adjacent: bool) -> str:
    """The size of a layout in the table."""
    return "adjacent" if channels_adjacent else "apart"


def configuration_for(
    architecture: Architecture,
    precision: str,
    outer: int,
    channels: int,
    inner: int,
    channels_adjacent: bool,
    pools: bool = False,
) -> Configuration:
    """The configuration for so many elements (outer times inner) a channel.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half" or "ieee".
        outer: samples.
        channels: of each.
        inner: elements of a sample's channel.
        channels_adjacent: whether elements lie side by side with other channels', not with their own channel's.
        pools: whether each sample's elements are averaged; then a block holds whole samples.
    """
    cell = CONFIGURATIONS[architecture][precision][size_for(channels_adjacent)]
    return fitted(cell, outer, channels, inner, pools)


def fitted(cell: Configuration, outer: int, channels: int, inner: int, pools: bool = False) -> Configuration:
    """A cell of the table for (outer, channels, inner)."""
    sample = next_power_of_2(inner) if pools else 1
    wide = next_power_of_2(max(outer * inner, sample, 1))
    block_elements = min(wide, max(cell.block_elements, sample))
    return Configuration(min(cell.block_channels, next_power_of_2(channels)), block_elements, cell.warps)


def can_pool(inner: int, channels_adjacent: bool) -> bool:
    """Whether a sample's elements fit into a block."""
    return bool(next_power_of_2(max(inner, 1)) <= (_ADJACENT if channels_adjacent else _APART))
