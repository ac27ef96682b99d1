"""Tiles, warps and stages of conv_error, per architecture and arithmetic. Starting values, not yet measured.

What a tuner measured takes their places (../tables.py). "large" fills the device with big tiles; "small" is for
batches and layers that would leave it idle; "direct" is for narrow groups. sm_80's tables stay below 99 KiB of shared
memory, all that its relatives sm_86, sm_89 and sm_120 have.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.kernels.devices import PROCESSORS, Architecture
from pccompile.kernels.tables import Space, overlaid

__all__ = ["CONFIGURATIONS", "SPACE", "Configuration", "configuration_for", "splits_for"]

_LEAST_TILES_PER_SPLIT = 8
_MOST_SPLITS = 64


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up: the tiles of its two products, which share warps and stages.

    Attributes:
        parent_rows, parent_in: the tile of positions and channels of the parent's error that a program owns.
        parent_out: outputs (and taps) summed per iteration, for the parent's error.
        gradient_out, gradient_in: the tile of outputs and weights of dW that a program owns.
        gradient_rows: positions summed per iteration, for dW.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
        group: tiles of positions that neighbouring programs walk together.
        splits: programs that share the positions of one tile of dW; 0 for as many as fill the device.
    """

    parent_rows: int
    parent_in: int
    parent_out: int
    gradient_out: int
    gradient_in: int
    gradient_rows: int
    warps: int
    stages: int
    group: int = 8
    splits: int = 0


_DIRECT = Configuration(64, 32, 16, 32, 1, 64, 4, 2)
_IEEE = {
    "large": Configuration(64, 32, 16, 64, 32, 16, 8, 2),
    "small": Configuration(32, 32, 16, 32, 32, 16, 8, 2),
    "direct": _DIRECT,
}

_Table = dict[Architecture, dict[str, dict[str, Configuration]]]
_SHIPPED: _Table = {
    "sm_80": {
        precision: {
            "large": Configuration(64, 64, 32, 64, 64, 32, 8, 3),
            "small": Configuration(32, 32, 32, 32, 32, 32, 4, 3),
            "direct": _DIRECT,
        }
        for precision in ("half", "tf32")
    }
    | {"ieee": _IEEE},
    "sm_90": {
        "half": {
            "large": Configuration(128, 64, 32, 64, 128, 32, 8, 3),
            "small": Configuration(64, 64, 32, 64, 64, 32, 4, 3),
            "direct": _DIRECT,
        },
        "tf32": {
            "large": Configuration(128, 64, 32, 64, 128, 32, 8, 3),
            "small": Configuration(64, 32, 32, 64, 32, 32, 4, 3),
            "direct": _DIRECT,
        },
        "ieee": _IEEE,
    },
    "sm_100": {
        "half": {
            "large": Configuration(128, 64, 32, 64, 128, 32, 8, 3),
            "small": Configuration(64, 64, 32, 64, 64, 32, 8, 3),
            "direct": _DIRECT,
        },
        "tf32": {
            "large": Configuration(128, 64, 32, 64, 128, 32, 8, 3),
            "small": Configuration(64, 32, 32, 64, 32, 32, 4, 3),
            "direct": _DIRECT,
        },
        "ieee": _IEEE,
    },
    "gfx942": {
        precision: {
            "large": Configuration(64, 64, 32, 64, 64, 32, 8, 2),
            "small": Configuration(32, 64, 32, 64, 32, 32, 4, 2),
            "direct": _DIRECT,
        }
        for precision in ("half", "tf32", "ieee")
    },
    "interpreter": {
        precision: {
            "large": Configuration(64, 16, 64, 16, 64, 64, 1, 1, group=2),
            "direct": Configuration(64, 16, 16, 16, 1, 64, 1, 1, group=2),
        }
        for precision in ("half", "tf32", "ieee")
    },
}

# At least the positions of the largest pooling window.
SPACE = Space(
    "conv_error",
    (
        ("parent_rows", "parent_in", "parent_out"),
        ("gradient_out", "gradient_in", "gradient_rows"),
    ),
)
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)


def configuration_for(
    architecture: Architecture, precision: str, rows: int, channels: int, groups: int, direct: bool
) -> Configuration:
    """The configuration for a sweep: large tiles where those of the parent's error occupy the whole device.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half", "tf32" or "ieee".
        rows: positions of all of the parent's images.
        channels: the parent's, in each group.
        groups: how many groups there are.
        direct: whether groups are too narrow for products of matrices.
    """
    sizes = CONFIGURATIONS[architecture][precision]
    if direct:
        return sizes["direct"]
    large = sizes["large"]
    tiles = -(-rows // large.parent_rows) * -(-channels // large.parent_in) * groups
    return large if tiles >= PROCESSORS[architecture] else sizes.get("small", large)


def splits_for(architecture: Architecture, tiles: int, row_tiles: int) -> int:
    """Programs that share the sum of each tile of dW, so that two for each processor run, none with too short a sum.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        tiles: tiles of dW.
        row_tiles: iterations that sum over all positions.
    """
    most = min(_MOST_SPLITS, row_tiles // _LEAST_TILES_PER_SPLIT)
    wanted: int = 2 * PROCESSORS[architecture] // max(tiles, 1)
    return max(1, min(most, wanted))
