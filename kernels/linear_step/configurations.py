"""Tiles, warps and stages of linear_step, per architecture and arithmetic. Starting values, not yet measured.

sm_80's tables stay below 99 KiB of shared memory, all that its relatives sm_86, sm_89 and sm_120 have.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.kernels.devices import Architecture

__all__ = ["CONFIGURATIONS", "Configuration"]


@dataclass(frozen=True)
class Configuration:
    """How one launch is cut up.

    Attributes:
        block_batch: the rows that a program owns.
        narrow: inputs up to which a program holds whole rows of x, W and the drive.
        narrow_out: outputs per tile then.
        block_out, block_in: the tile of a wider layer that a program holds at a time: of errors, and of the drive.
        block_sum: terms summed per iteration of a wider layer's products.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
    """

    block_batch: int
    narrow: int
    narrow_out: int
    block_out: int
    block_in: int
    block_sum: int
    warps: int
    stages: int


CONFIGURATIONS: dict[Architecture, dict[str, Configuration]] = {
    "sm_80": {
        "half": Configuration(32, 256, 32, 64, 64, 32, 8, 2),
        "tf32": Configuration(32, 128, 32, 64, 64, 32, 8, 2),
        "ieee": Configuration(32, 64, 32, 32, 32, 16, 8, 2),
    },
    "sm_90": {
        "half": Configuration(32, 256, 32, 64, 64, 64, 8, 3),
        "tf32": Configuration(32, 128, 32, 64, 64, 32, 8, 3),
        "ieee": Configuration(32, 64, 32, 32, 32, 16, 8, 2),
    },
    "sm_100": {
        "half": Configuration(32, 256, 32, 64, 64, 64, 8, 3),
        "tf32": Configuration(32, 128, 32, 64, 64, 32, 8, 3),
        "ieee": Configuration(32, 64, 32, 32, 32, 16, 8, 2),
    },
    "gfx942": {
        "half": Configuration(32, 128, 32, 64, 64, 32, 8, 2),
        "tf32": Configuration(32, 64, 32, 64, 64, 32, 8, 2),
        "ieee": Configuration(32, 64, 32, 64, 64, 32, 8, 2),
    },
    "interpreter": {precision: Configuration(32, 32, 16, 32, 32, 32, 1, 1) for precision in ("half", "tf32", "ieee")},
}
