"""What is compiled ahead of time: every shipped configuration of every operation, and what a launch may use."""

from __future__ import annotations

from importlib import import_module
from itertools import cycle
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


def launches_of(operation: str) -> dict[str, Launch]:
    """Its module's."""
    return import_module(f"launches_{operation}").LAUNCHES


def cases_of(operation: str) -> list[Case]:
    """Every launch, for every architecture and arithmetic of its; activations take turns."""
    cases: list[Case] = []
    activations = cycle(ACTIVATIONS)
    for place, (name, launch) in enumerate(launches_of(operation).items()):
        alternatives = cycle(("ieee", "half") if place % 2 else ("half", "ieee"))
        half = "float16" if place == 1 else "bfloat16"
        for architecture in launch.architectures or (
            ARCHITECTURES if launch.products else (NVIDIA[place % 3], "gfx942")
        ):
            for precision in launch.precisions or (PRECISIONS if launch.products else (next(alternatives),)):
                dtype = half if precision == "half" else "float32"
                activation = next(activations) if launch.activation == "each" else launch.activation
                cases.append(Case(operation, name, architecture, dtype, precision, activation, len(cases)))
    return cases


OPERATIONS = sorted(file.stem.removeprefix("launches_") for file in Path(__file__).parent.glob("launches_*.py"))
CASES = [case for operation in OPERATIONS for case in cases_of(operation)]
