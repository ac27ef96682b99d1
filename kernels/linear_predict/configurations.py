"""Tiles, warps and stages of linear_predict, per architecture and arithmetic. Starting values, not yet measured.

What a tuner measured takes their places (../tables.py). "large" fills the device with big tiles; "small" is for batches
and layers that would leave it idle. sm_80's tables stay below 99 KiB of shared memory, all that its relatives sm_86,
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
        block_batch, block_out: the tile of the prediction that a program owns.
        block_in: inputs summed per iteration.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipeline.
        group: tiles of the batch that neighbouring programs walk together.
    """

    block_batch: int
    block_out: int
    block_in: int
    warps: int
    stages: int
    group: int = 8


_Table = dict[Architecture, dict[str, dict[str, Configuration]]]
_SHIPPED: _Table = {
    "sm_80": {
        "half": {"large": Configuration(128, 128, 32, 8, 4), "small": Configuration(32, 64, 64, 4, 4)},
        "tf32": {"large": Configuration(128, 64, 32, 8, 3), "small": Configuration(32, 64, 32, 4, 4)},
        "ieee": {"large": Configuration(64, 64, 16, 8, 3), "small": Configuration(32, 32, 16, 4, 3)},
    },
    "sm_90": {
        "half": {"large": Configuration(128, 128, 64, 8, 4), "small": Configuration(64, 64, 64, 4, 4)},
        "tf32": {"large": Configuration(128, 128, 32, 8, 4), "small": Configuration(64, 64, 32, 4, 4)},
        "ieee": {"large": Configuration(64, 64, 16, 8, 3), "small": Configuration(32, 32, 16, 4, 3)},
    },
    "sm_100": {
        "half": {"large": Configuration(128, 128, 64, 8, 4), "small": Configuration(64, 64, 64, 4, 4)},
        "tf32": {"large": Configuration(128, 128, 32, 8, 4), "small": Configuration(64, 64, 32, 4, 4)},
        "ieee": {"large": Configuration(64, 64, 16, 8, 3), "small": Configuration(32, 32, 16, 4, 3)},
    },
    "gfx942": {
        "half": {"large": Configuration(128, 128, 64, 8, 2), "small": Configuration(32, 64, 64, 4, 2)},
        "tf32": {"large": Configuration(128, 64, 32, 8, 2), "small": Configuration(32, 64, 32, 4, 2)},
        "ieee": {"large": Configuration(128, 64, 32, 8, 2), "small": Configuration(32, 64, 32, 4, 2)},
    },
    "interpreter": {
        precision: {"large": Configuration(32, 32, 32, 1, 1, group=2)} for precision in ("half", "tf32", "ieee")
    },
}

SPACE = Space("linear_predict", (("block_batch", "block_out", "block_in"),))
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)


def configuration_for(architecture: Architecture, precision: str, batch: int, out: int) -> Configuration:
    """The configuration for a prediction of (batch, out): large tiles where they occupy the whole device.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half", "tf32" or "ieee".
        batch: rows.
        out: columns.
    """
    sizes = CONFIGURATIONS[architecture][precision]
    large = sizes["large"]
    tiles = -(-batch // large.block_batch) * -(-out // large.block_out)
    return large if tiles >= PROCESSORS[architecture] else sizes.get("small", large)
