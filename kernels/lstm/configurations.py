"""Tiles, warps and stages of the LSTM's recurrence, per architecture and arithmetic. Starting values, not yet measured.

A program owns a tile of the batch for all time steps: the smallest that matrix units take gives the most programs.
"""

from __future__ import annotations

from pccompile.kernels.devices import Architecture
from pccompile.kernels.recurrences import Configuration

__all__ = ["CONFIGURATIONS", "configuration_for"]


_NVIDIA = {
    "half": Configuration(16, 32, 32, 4, 4),
    "tf32": Configuration(16, 32, 32, 4, 3),
    "ieee": Configuration(16, 16, 16, 4, 3),
}

CONFIGURATIONS: dict[Architecture, dict[str, Configuration]] = {
    "sm_80": _NVIDIA,
    "sm_90": _NVIDIA,
    "sm_100": _NVIDIA,
    "gfx942": {
        "half": Configuration(16, 32, 64, 4, 2),
        "tf32": Configuration(16, 32, 32, 4, 2),
        "ieee": Configuration(16, 32, 32, 4, 2),
    },
    "interpreter": {precision: Configuration(16, 32, 32, 1, 1) for precision in ("half", "tf32", "ieee")},
}


def configuration_for(architecture: Architecture, precision: str) -> Configuration:
    """The configuration of an architecture for an arithmetic: "half", "tf32" or "ieee"."""
    return CONFIGURATIONS[architecture][precision]
