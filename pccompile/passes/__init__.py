"""The passes: small pure functions from program to program, one a file, verified after each.

A rule names its passes in order; `run` applies them and keeps every stage in the program's history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pccompile.ir.check import verify
from pccompile.ir.grammar import Program
from pccompile.passes.bypass import bypass
from pccompile.passes.closed_form import closed_form
from pccompile.passes.error_state import error_state
from pccompile.passes.level import level
from pccompile.passes.liveness import liveness
from pccompile.passes.reuse import reuse
from pccompile.passes.zero_errors import zero_errors

__all__ = ["PASSES", "run"]

PASSES: dict[str, Callable[[Program], Program]] = {
    "level": level,
    "zero errors": zero_errors,
    "liveness": liveness,
    "reuse": reuse,
    "error state": error_state,
    "closed form": closed_form,
    "bypass": bypass,
}


def run(program: Program, names: Iterable[str]) -> Program:
    """Apply the named passes in order, verifying the program before the first and after each.

    Raises:
        ProgramError, CycleError, ShapeError: from the verifier.
    """
    verify(program)
    for name in names:
        program = verify(PASSES[name](program))
    return program
