"""Tiles, warps and stages of conv_predict, per architecture and arithmetic. Starting values, not yet measured.

What a tuner measured takes their places (../tables.py). "large" fills the device with big tiles; "small" is for
batches and layers that would leave it idle; "direct" is for narrow groups. Tiles have at least as many rows as the
largest pooling window has positions. sm_80's tables stay below 99 KiB of shared memory, all that its relatives sm_86,
sm_89 and sm_120 have.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.kernels.devices import PROCESSORS, Architecture
from pccompile.kernels.tables import Space, overlaid

__all__ = ["CONFIGURATIONS", "SPACE", "Configuration", "configuration_for"]


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up.

    Attributes:
        block_rows, block_out: the tile of positions and outputs that a program owns.
        block_in: channels (and taps) summed per iteration.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipeline.
        group: tiles of positions that neighbouring programs walk together.
    """

    block_rows: int
    block_out: int
    block_in: int
    warps: int
    stages: int
    group: int = 8


_DIRECT = Configuration(64, 32, 16, 4, 2)
_IEEE = {"large": Configuration(64, 64, 16, 8, 3), "small": Configuration(64, 32, 16, 4, 3), "direct": _DIRECT}

_Table = dict[Architecture, dict[str, dict[str, Configuration]]]
_SHIPPED: _Table = {
    "sm_80": {
        "half": {
            "large": Configuration(128, 64, 32, 8, 3),
            "small": Configuration(64, 32, 32, 4, 4),
            "direct": _DIRECT,
        },
        "tf32": {
            "large": Configuration(128, 64, 32, 8, 3),
            "small": Configuration(64, 32, 32, 4, 3),
            "direct": _DIRECT,
        },
        "ieee": _IEEE,
    },
    "sm_90": {
        "half": {
            "large": Configuration(128, 64, 64, 8, 3),
            "small": Configuration(64, 64, 64, 4, 3),
            "direct": _DIRECT,
        },
        "tf32": {
            "large": Configuration(128, 64, 32, 8, 3),
            "small": Configuration(64, 64, 32, 4, 3),
            "direct": _DIRECT,
        },
        "ieee": _IEEE,
    },
    "sm_100": {
        "half": {
            "large": Configuration(128, 64, 64, 8, 3),
            "small": Configuration(64, 64, 64, 4, 3),
            "direct": _DIRECT,
        },
        "tf32": {
            "large": Configuration(128, 64, 32, 8, 3),
            "small": Configuration(64, 64, 32, 4, 3),
            "direct": _DIRECT,
        },
        "ieee": _IEEE,
    },
    "gfx942": {
        precision: {
            "large": Configuration(128, 64, 32, 8, 2),
            "small": Configuration(64, 32, 32, 4, 2),
            "direct": _DIRECT,
        }
        for precision in ("half", "tf32", "ieee")
    },
    "interpreter": {
        precision: {"large": Configuration(64, 16, 64, 1, 1, group=2), "direct": Configuration(64, 16, 16, 1, 1)}
        for precision in ("half", "tf32", "ieee")
    },
}

# At least the positions of the largest pooling window.
SPACE = Space("conv_predict", (("block_rows", "block_out", "block_in"),), least={"block_rows": 64})
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)


def configuration_for(
    architecture: Architecture, precision: str, rows: int, out: int, groups: int, direct: bool
) -> Configuration:
    """The configuration for a prediction: large tiles where they occupy the whole device.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half", "tf32" or "ieee".
        rows: positions of all images, with those that pad pooling windows.
        out: outputs of each group.
        groups: how many groups there are.
        direct: whether groups are too narrow for products of matrices.
    """
    sizes = CONFIGURATIONS[architecture][precision]
    if direct:
        return sizes["direct"]
    large = sizes["large"]
    tiles = -(-rows // large.block_rows) * -(-out // large.block_out) * groups
    return large if tiles >= PROCESSORS[architecture] else sizes.get("small", large)
