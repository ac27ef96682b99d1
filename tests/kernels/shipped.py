"""What is compiled ahead of time: every shipped configuration of every operation, and what a launch may use."""

from __future__ import annotations

from importlib import import_module
from itertools import count, cycle
from pathlib import Path

from recorded import Case, Launch

from pccompile.kernels import ACTIVATIONS
from pccompile.kernels.devices import ARCHITECTURES

KIB = 1024
# What one program may have; sm_80's tables serve sm_86, sm_89 and sm_120 as well, hence less than its 163 KiB.
SHARED = {"sm_80": 99 * KIB, "sm_90": 227 * KIB, "sm_100": 227 * KIB, "gfx942": 64 * KIB}
REGISTERS = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512}

PRECISIONS = ("half", "tf32", "ieee")
NVIDIA = ("sm_80", "sm_90", "sm_100")
# Whose tiles have at least the 64 rows that wgmma (sm_90) and tcgen05.mma (sm_100) multiply.
_LARGE_TILES = ("linear_predict", "linear_error", "conv_predict", "conv_error", "conv_step")
WARP_GROUPS = {"sm_90": (*_LARGE_TILES, "chain_gradients"), "sm_100": _LARGE_TILES}


def launches_of(operation: str) -> dict[str, Launch]:
    """Its module's."""
    return import_module(f"launches_{operation}").LAUNCHES


def cases_of(operation: str) -> list[Case]:
    """Every launch, for every architecture and arithmetic of its; activations take turns.

    Half precision is bfloat16; an operation's second launch is compiled in float16, its products in both.
    """
    cases: list[Case] = []
    activations, turns = cycle(ACTIVATIONS), count()
    for place, (name, launch) in enumerate(launches_of(operation).items()):
        alternatives = cycle(("ieee", "half") if place % 2 else ("half", "ieee"))
        halves = (("float16", "bfloat16") if launch.products else ("float16",)) if place == 1 else ("bfloat16",)
        for architecture in launch.architectures or (
            ARCHITECTURES if launch.products else (NVIDIA[place % 3], "gfx942")
        ):
            for precision in launch.precisions or (PRECISIONS if launch.products else (next(alternatives),)):
                dtypes = halves if precision == "half" else ("float32",)
                activation = next(activations) if launch.activation == "each" else launch.activation
                turn = next(turns)
                cases += [Case(operation, name, architecture, each, precision, activation, turn) for each in dtypes]
    return cases


OPERATIONS = sorted(file.stem.removeprefix("launches_") for file in Path(__file__).parent.glob("launches_*.py"))
CASES = [case for operation in OPERATIONS for case in cases_of(operation)]
