"""Tiles, warps and stages of linear_step, per architecture and arithmetic. Starting values, not yet measured.

What a tuner measured takes their places (../tables.py). "whole" and "long" hold whole rows of the inputs, as long as
there are few enough, "long" fewer or shorter ones at a time; "tiled" goes over tiles of them. sm_80's tables stay below
99 KiB of shared memory, all that its relatives sm_86, sm_89 and sm_120 have.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.kernels.devices import CACHE_BYTES, Architecture
from pccompile.kernels.tables import Space, overlaid

__all__ = ["CONFIGURATIONS", "SPACE", "Configuration", "Tiled", "Whole", "configuration_for", "outputs_at_a_time"]


@dataclass(frozen=True)
class Whole:
    """How a launch is cut up whose programs hold whole rows of x, of W and of the drive.

    Attributes:
        block_batch: the rows that a program owns.
        block_out: outputs per tile.
        most_in: inputs up to which it is so.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipeline.
    """

    block_batch: int
    block_out: int
    most_in: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiled:
    """How a launch is cut up where inputs are more than that.

    Attributes:
        block_batch: the rows that a program owns.
        block_out, block_in: the tile that it holds at a time: of errors, and of the drive.
        block_sum: terms summed per iteration, of both products.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
    """

    block_batch: int
    block_out: int
    block_in: int
    block_sum: int
    warps: int
    stages: int


Configuration = Whole | Tiled

_Table = dict[Architecture, dict[str, dict[str, Configuration]]]
_SHIPPED: _Table = {
    "sm_80": {
        "half": {
            "whole": Whole(32, 32, 256, 8, 2),
            "long": Whole(16, 16, 1024, 8, 2),
            "tiled": Tiled(32, 64, 64, 32, 8, 2),
        },
        "tf32": {
            "whole": Whole(32, 32, 128, 8, 2),
            "long": Whole(32, 16, 256, 8, 2),
            "tiled": Tiled(32, 64, 64, 32, 8, 2),
        },
        "ieee": {
            "whole": Whole(32, 32, 64, 8, 2),
            "long": Whole(16, 16, 128, 8, 2),
            "tiled": Tiled(32, 32, 32, 16, 8, 2),
        },
    },
    "sm_90": {
        "half": {
            "whole": Whole(32, 32, 256, 8, 3),
            "long": Whole(16, 16, 1024, 8, 2),
            "tiled": Tiled(32, 64, 64, 64, 8, 3),
        },
        "tf32": {
            "whole": Whole(32, 32, 128, 8, 3),
            "long": Whole(32, 16, 512, 8, 2),
            "tiled": Tiled(32, 64, 64, 32, 8, 3),
        },
        "ieee": {
            "whole": Whole(32, 32, 64, 8, 2),
            "long": Whole(16, 16, 128, 8, 2),
            "tiled": Tiled(32, 32, 32, 16, 8, 2),
        },
    },
    "sm_100": {
        "half": {
            "whole": Whole(32, 32, 256, 8, 3),
            "long": Whole(16, 16, 1024, 8, 2),
            "tiled": Tiled(32, 64, 64, 64, 8, 3),
        },
        "tf32": {
            "whole": Whole(32, 32, 128, 8, 3),
            "long": Whole(32, 16, 512, 8, 2),
            "tiled": Tiled(32, 64, 64, 32, 8, 3),
        },
        "ieee": {
            "whole": Whole(32, 32, 64, 8, 2),
            "long": Whole(16, 16, 128, 8, 2),
            "tiled": Tiled(32, 32, 32, 16, 8, 2),
        },
    },
    "gfx942": {
        "half": {
            "whole": Whole(32, 32, 128, 8, 2),
            "long": Whole(16, 16, 512, 4, 2),
            "tiled": Tiled(32, 64, 64, 32, 8, 2),
        },
        "tf32": {
            "whole": Whole(32, 32, 64, 8, 2),
            "long": Whole(16, 16, 256, 8, 2),
            "tiled": Tiled(32, 64, 64, 32, 8, 2),
        },
        "ieee": {
            "whole": Whole(32, 32, 64, 8, 2),
            "long": Whole(16, 16, 128, 8, 2),
            "tiled": Tiled(32, 64, 64, 32, 8, 2),
        },
    },
    "interpreter": {
        precision: {"whole": Whole(32, 16, 32, 1, 1), "tiled": Tiled(32, 32, 32, 32, 1, 1)}
        for precision in ("half", "tf32", "ieee")
    },
}

SPACE = Space(
    "linear_step",
    (("block_batch", "block_out", "block_sum"), ("block_batch", "block_in", "block_sum")),
    {"block_batch": (16, 32, 64, 128), "block_out": (16, 32, 64, 128)},
)
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)


def configuration_for(architecture: Architecture, precision: str, in_features: int) -> Configuration:
    """The configuration for a layer of so many inputs: whole rows where they fit.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half", "tf32" or "ieee".
        in_features: columns of x.
    """
    sizes = CONFIGURATIONS[architecture][precision]
    fitting = [each for each in sizes.values() if isinstance(each, Whole) and in_features <= each.most_in]
    return min(fitting, key=lambda each: each.most_in, default=sizes["tiled"])


def outputs_at_a_time(
    architecture: Architecture, tiles: Tiled, batch: int, out: int, in_features: int, element_bytes: int
) -> int:
    """Outputs of a wide layer that are predicted before they are carried back, by the fewest bytes from memory.

    All of them, where half of the cache holds W (the other half is for what else goes through it). Otherwise W would
    come from memory twice, and so many are taken that their rows of W are still in the cache when they are read again;
    the drive is then a sum over such groups, in a buffer of float32. Where these sums would not stay in the cache they
    would cost more than the second reading, and all outputs are taken.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        tiles: the launch's.
        batch: rows of x.
        out: columns of the error.
        in_features: columns of x.
        element_bytes: of an element of W.

    Returns:
        A multiple of tiles.block_out, or all outputs.
    """
    budget, row = CACHE_BYTES[architecture] // 2, element_bytes * max(in_features, 1)
    if out * row <= budget:
        return out
    group = budget // row // tiles.block_out * tiles.block_out
    return group if group and 4 * batch * in_features <= budget else out
