"""Tiles, bands, warps and stages of conv_step, per architecture and arithmetic. Starting values, not yet measured.

What a tuner measured takes their places (../tables.py). One size for each arithmetic, and "direct" for narrow groups: a
program walks over all tiles of its band. Tiles have at least as many rows as the largest pooling window has positions.
sm_80's tables stay below 99 KiB of shared memory, all that its relatives sm_86, sm_89 and sm_120 have.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.kernels.convolution_geometry import Geometry
from pccompile.kernels.devices import PROCESSORS, Architecture
from pccompile.kernels.tables import Space, overlaid

__all__ = ["CONFIGURATIONS", "SPACE", "Configuration", "bands_for"]


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up: the tiles of its two products, which share warps and stages.

    Attributes:
        block_rows, block_out: the tile of positions and outputs predicted at a time.
        block_in: channels (and taps) summed per iteration, for the prediction.
        parent_rows, parent_in: the tile of positions and channels of the feedback computed at a time.
        parent_out: outputs (and taps) summed per iteration, for the feedback.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
        bands: programs that share a sample; 0 for as many as fill the device.
    """

    block_rows: int
    block_out: int
    block_in: int
    parent_rows: int
    parent_in: int
    parent_out: int
    warps: int
    stages: int
    bands: int = 0


_DIRECT = Configuration(64, 32, 16, 64, 32, 16, 8, 2)
_NARROW = Configuration(64, 32, 32, 64, 32, 32, 8, 2)
_SQUARE = Configuration(64, 64, 32, 64, 64, 32, 8, 2)
_IEEE = {"product": Configuration(64, 64, 16, 64, 64, 16, 8, 2), "direct": _DIRECT}

_Table = dict[Architecture, dict[str, dict[str, Configuration]]]
_SHIPPED: _Table = {
    "sm_80": {
        "half": {"product": _NARROW, "direct": _DIRECT},
        "tf32": {"product": _SQUARE, "direct": _DIRECT},
        "ieee": _IEEE,
    },
    "sm_90": {
        "half": {"product": _SQUARE, "direct": _DIRECT},
        "tf32": {"product": _SQUARE, "direct": _DIRECT},
        "ieee": _IEEE,
    },
    "sm_100": {
        "half": {"product": _NARROW, "direct": _DIRECT},
        "tf32": {"product": _SQUARE, "direct": _DIRECT},
        "ieee": _IEEE,
    },
    "gfx942": {precision: {"product": _SQUARE, "direct": _DIRECT} for precision in ("half", "tf32", "ieee")},
    "interpreter": {
        precision: {
            "product": Configuration(64, 16, 64, 64, 16, 64, 1, 1),
            "direct": Configuration(64, 16, 16, 64, 16, 16, 1, 1),
        }
        for precision in ("half", "tf32", "ieee")
    },
}

# At least the positions of the largest pooling window.
SPACE = Space(
    "conv_step",
    (("block_rows", "block_out", "block_in"), ("parent_rows", "parent_in", "parent_out")),
    least={"block_rows": 64},
)
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)


def bands_for(architecture: Architecture, geometry: Geometry, batch: int, lines: int) -> int:
    """Programs that share a sample: enough to fill the device, each with twice the lines that the kernel reaches over.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        geometry: of the convolution.
        batch: samples.
        lines: rows of x, divided by the stride.
    """
    reach = geometry.dilation[0] * (geometry.kernel[0] - 1) // geometry.stride[0]
    over = max(reach, geometry.window_stride[0] - 1)
    most: int = lines // max(2 * over, 1)
    wanted: int = -(-PROCESSORS[architecture] // max(batch, 1))
    return max(1, min(most, wanted))
