"""Tiles, warps and stages of strict_sweep, per architecture and arithmetic. Starting values, not yet measured.

What a tuner measured takes their places (../tables.py). "tall" tiles are for batches that fill the device tile by tile;
"flat" ones leave more programs where the batch is small. sm_80's tables stay below 99 KiB of shared memory, all that
its relatives sm_86, sm_89 and sm_120 have.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.kernels.devices import PROCESSORS, Architecture
from pccompile.kernels.tables import Space, overlaid

__all__ = [
    "CONFIGURATIONS",
    "GRADIENTS",
    "GRADIENT_SPACE",
    "SPACE",
    "Configuration",
    "GradientConfiguration",
    "configuration_for",
]


@dataclass(frozen=True)
class Configuration:
    """How a sweep is cut up.

    Attributes:
        block_batch, block_out: the tile of values that a program holds at a time.
        block_sum: terms of a product summed per iteration.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
    """

    block_batch: int
    block_out: int
    block_sum: int
    warps: int
    stages: int


@dataclass(frozen=True)
class GradientConfiguration:
    """How the weights' gradients are cut up.

    Attributes:
        block_out, block_in: the tile of dW that a program owns.
        block_rows: rows (of a convolution, positions of images) summed per iteration.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipeline.
    """

    block_out: int
    block_in: int
    block_rows: int
    warps: int
    stages: int


_Table = dict[Architecture, dict[str, dict[str, Configuration]]]
_SHIPPED: _Table = {
    "sm_80": {
        "half": {"tall": Configuration(32, 64, 32, 8, 3), "flat": Configuration(16, 64, 32, 4, 3)},
        "tf32": {"tall": Configuration(32, 64, 32, 8, 3), "flat": Configuration(16, 64, 32, 4, 3)},
        "ieee": {"tall": Configuration(32, 32, 16, 4, 3), "flat": Configuration(16, 32, 16, 4, 3)},
    },
    "sm_90": {
        "half": {"tall": Configuration(32, 64, 64, 8, 3), "flat": Configuration(16, 64, 64, 4, 3)},
        "tf32": {"tall": Configuration(32, 64, 32, 8, 4), "flat": Configuration(16, 64, 32, 4, 4)},
        "ieee": {"tall": Configuration(32, 32, 16, 4, 3), "flat": Configuration(16, 32, 16, 4, 3)},
    },
    "sm_100": {
        "half": {"tall": Configuration(32, 64, 64, 8, 3), "flat": Configuration(16, 64, 64, 4, 3)},
        "tf32": {"tall": Configuration(32, 32, 32, 8, 3), "flat": Configuration(16, 64, 32, 4, 3)},
        "ieee": {"tall": Configuration(32, 32, 16, 8, 3), "flat": Configuration(16, 32, 16, 4, 3)},
    },
    "gfx942": {
        "half": {"tall": Configuration(32, 64, 64, 4, 2), "flat": Configuration(16, 64, 64, 4, 2)},
        "tf32": {"tall": Configuration(32, 64, 32, 4, 2), "flat": Configuration(16, 64, 32, 4, 2)},
        "ieee": {"tall": Configuration(32, 64, 32, 4, 2), "flat": Configuration(16, 64, 32, 4, 2)},
    },
    "interpreter": {precision: {"tall": Configuration(32, 32, 32, 1, 1)} for precision in ("half", "tf32", "ieee")},
}

_GradientTable = dict[Architecture, dict[str, GradientConfiguration]]
_SHIPPED_GRADIENTS: _GradientTable = {
    "sm_80": {
        "half": GradientConfiguration(64, 64, 32, 4, 3),
        "tf32": GradientConfiguration(64, 32, 32, 4, 3),
        "ieee": GradientConfiguration(32, 32, 16, 4, 3),
    },
    "sm_90": {
        "half": GradientConfiguration(64, 64, 32, 4, 3),
        "tf32": GradientConfiguration(64, 32, 32, 4, 3),
        "ieee": GradientConfiguration(32, 32, 16, 4, 3),
    },
    "sm_100": {
        "half": GradientConfiguration(32, 64, 32, 4, 3),
        "tf32": GradientConfiguration(32, 64, 32, 4, 3),
        "ieee": GradientConfiguration(32, 32, 16, 4, 3),
    },
    "gfx942": {
        "half": GradientConfiguration(64, 64, 32, 4, 2),
        "tf32": GradientConfiguration(64, 32, 32, 4, 2),
        "ieee": GradientConfiguration(64, 32, 32, 4, 2),
    },
    "interpreter": {precision: GradientConfiguration(32, 32, 32, 1, 1) for precision in ("half", "tf32", "ieee")},
}

SPACE = Space("strict_sweep", (("block_batch", "block_out", "block_sum"),))
GRADIENT_SPACE = Space("chain_gradients", (("block_out", "block_in", "block_rows"),))
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)
GRADIENTS: _GradientTable = overlaid(GRADIENT_SPACE, _SHIPPED_GRADIENTS)


def configuration_for(architecture: Architecture, precision: str, batch: int) -> Configuration:
    """The configuration for a batch: tall tiles where there is one for every multiprocessor.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half", "tf32" or "ieee".
        batch: rows.
    """
    sizes = CONFIGURATIONS[architecture][precision]
    tall = sizes["tall"]
    return tall if -(-batch // tall.block_batch) >= PROCESSORS[architecture] else sizes.get("flat", tall)
