"""Tiles, warps and stages of linear_error, per architecture and arithmetic. Starting values, not yet measured.

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
    """How one launch is cut up: the tiles of its two products, which share warps and stages.

    Attributes:
        parent_batch, parent_in: the tile of the parent's error that a program owns.
        parent_out: outputs summed per iteration, for the parent's error.
        gradient_out, gradient_in: the tile of dW that a program owns.
        gradient_batch: rows summed per iteration, for dW.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
        group: rows of tiles that neighbouring programs walk together.
    """

    parent_batch: int
    parent_in: int
    parent_out: int
    gradient_out: int
    gradient_in: int
    gradient_batch: int
    warps: int
    stages: int
    group: int = 8


_SMALL_IEEE = Configuration(32, 32, 16, 32, 32, 16, 4, 3)
_LARGE_IEEE = Configuration(64, 64, 16, 64, 64, 16, 8, 3)

_Table = dict[Architecture, dict[str, dict[str, Configuration]]]
_SHIPPED: _Table = {
    "sm_80": {
        "half": {
            "large": Configuration(64, 128, 32, 64, 128, 32, 8, 3),
            "small": Configuration(32, 64, 32, 64, 32, 32, 4, 3),
        },
        "tf32": {
            "large": Configuration(64, 64, 32, 64, 64, 32, 8, 3),
            "small": Configuration(32, 64, 32, 64, 32, 32, 4, 3),
        },
        "ieee": {"large": _LARGE_IEEE, "small": _SMALL_IEEE},
    },
    "sm_90": {
        "half": {
            "large": Configuration(128, 128, 32, 128, 128, 32, 8, 3),
            "small": Configuration(64, 64, 32, 64, 64, 32, 4, 3),
        },
        "tf32": {
            "large": Configuration(128, 64, 32, 128, 64, 32, 8, 3),
            "small": Configuration(64, 32, 32, 64, 32, 32, 4, 3),
        },
        "ieee": {"large": _LARGE_IEEE, "small": _SMALL_IEEE},
    },
    "sm_100": {
        "half": {
            "large": Configuration(128, 128, 32, 128, 128, 32, 8, 3),
            "small": Configuration(64, 64, 32, 64, 64, 32, 8, 3),
        },
        "tf32": {
            "large": Configuration(128, 64, 32, 128, 64, 32, 8, 3),
            "small": Configuration(64, 32, 32, 64, 32, 32, 4, 3),
        },
        "ieee": {"large": _LARGE_IEEE, "small": _SMALL_IEEE},
    },
    "gfx942": {
        "half": {
            "large": Configuration(128, 128, 32, 128, 128, 32, 8, 2),
            "small": Configuration(32, 64, 32, 64, 32, 32, 4, 2),
        },
        "tf32": {
            "large": Configuration(64, 64, 32, 64, 64, 32, 8, 2),
            "small": Configuration(32, 64, 32, 64, 32, 32, 4, 2),
        },
        "ieee": {
            "large": Configuration(64, 64, 32, 64, 64, 32, 8, 2),
            "small": Configuration(32, 64, 32, 64, 32, 32, 4, 2),
        },
    },
    "interpreter": {
        precision: {"large": Configuration(32, 32, 32, 32, 32, 32, 1, 1, group=2)}
        for precision in ("half", "tf32", "ieee")
    },
}

SPACE = Space(
    "linear_error",
    (
        ("parent_batch", "parent_in", "parent_out"),
        ("gradient_out", "gradient_in", "gradient_batch"),
    ),
)
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)


def configuration_for(
    architecture: Architecture, precision: str, batch: int, out: int, in_features: int
) -> Configuration:
    """The configuration for a layer's sweep: large tiles where, together, they occupy the whole device.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        precision: "half", "tf32" or "ieee".
        batch: rows of the error.
        out: columns of the error.
        in_features: columns of the parent's error.
    """
    sizes = CONFIGURATIONS[architecture][precision]
    large = sizes["large"]
    tiles = -(-batch // large.parent_batch) * -(-in_features // large.parent_in)
    tiles += -(-out // large.gradient_out) * -(-in_features // large.gradient_in)
    return large if tiles >= PROCESSORS[architecture] else sizes.get("small", large)
