"""Tiles, warps and stages of network_sweep, per architecture and arithmetic. Starting values, not yet measured.

What a tuner measured takes their places (../tables.py). sm_80's tables stay below 99 KiB of shared memory, all that its
relatives sm_86, sm_89 and sm_120 have.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.kernels.devices import PROCESSORS, Architecture
from pccompile.kernels.strict_sweep.configurations import GradientConfiguration
from pccompile.kernels.tables import Space, overlaid

__all__ = [
    "CONFIGURATIONS",
    "GRADIENTS",
    "GRADIENT_SPACE",
    "SPACE",
    "Configuration",
    "samples_for",
]

_MOST_SAMPLES = 16


@dataclass(frozen=True)
class Configuration:
    """How a sweep is cut up.

    Attributes:
        block_rows: positions of images that a program computes at a time, going forward or back.
        block_columns: channels of these, or units; fewer where a layer has fewer.
        block_sum: terms of a product summed per iteration.
        warps: warps (wavefronts) per program.
        stages: depth of the software pipelines.
    """

    block_rows: int
    block_columns: int
    block_sum: int
    warps: int
    stages: int


_NVIDIA = {
    "half": Configuration(64, 32, 32, 8, 2),
    "tf32": Configuration(64, 32, 32, 8, 2),
    "ieee": Configuration(64, 32, 16, 8, 2),
}
_Table = dict[Architecture, dict[str, Configuration]]
_SHIPPED: _Table = {
    "sm_80": _NVIDIA,
    "sm_90": _NVIDIA,
    "sm_100": _NVIDIA | {precision: Configuration(32, 32, 32, 8, 2) for precision in ("half", "tf32")},
    "gfx942": {precision: Configuration(64, 32, 32, 4, 2) for precision in ("half", "tf32", "ieee")},
    "interpreter": {precision: Configuration(256, 32, 64, 1, 1) for precision in ("half", "tf32", "ieee")},
}

_NVIDIA_GRADIENTS = {
    "half": GradientConfiguration(32, 32, 32, 4, 2),
    "tf32": GradientConfiguration(32, 32, 32, 4, 2),
    "ieee": GradientConfiguration(32, 32, 16, 4, 2),
}
_GradientTable = dict[Architecture, dict[str, GradientConfiguration]]
_SHIPPED_GRADIENTS: _GradientTable = {
    "sm_80": _NVIDIA_GRADIENTS,
    "sm_90": _NVIDIA_GRADIENTS,
    "sm_100": _NVIDIA_GRADIENTS,
    "gfx942": {precision: GradientConfiguration(32, 32, 32, 4, 2) for precision in ("half", "tf32", "ieee")},
    "interpreter": {precision: GradientConfiguration(32, 64, 256, 1, 1) for precision in ("half", "tf32", "ieee")},
}

SPACE = Space("network_sweep", (("block_rows", "block_columns", "block_sum"),))
GRADIENT_SPACE = Space("network_gradients", (("block_out", "block_in", "block_rows"),))
CONFIGURATIONS: _Table = overlaid(SPACE, _SHIPPED)
GRADIENTS: _GradientTable = overlaid(GRADIENT_SPACE, _SHIPPED_GRADIENTS)


def samples_for(architecture: Architecture, batch: int) -> int:
    """Samples that a program owns: a power of two, as few as leave no processor without a program, at most 16.

    Args:
        architecture: from pccompile.kernels.devices.architecture_of.
        batch: samples.
    """
    share: int = max(batch // PROCESSORS[architecture], 1)
    return min(1 << (share.bit_length() - 1), _MOST_SAMPLES)
