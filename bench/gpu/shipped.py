"""Every shipped configuration of an operation on the GPU at hand, against the reference in plain torch.

Each is launched on the smallest shape that it is chosen for and, chosen there or not, on small ones that fit no tile.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.tune import Operation, named, relative_error, results_of
from bench.gpu.work import Work
from pccompile.kernels.devices import architecture_of

__all__ = ["TOLERANCES", "Row", "check_shipped", "judge", "rows_of"]

TOLERANCES = {"half": 3e-2, "tf32": 5e-3, "ieee": 1e-5}  # RMS of the difference by RMS of the reference
ROW_SECONDS = 30.0


@dataclass(frozen=True)
class Row:
    """A cell of an operation's table, and a shape to launch it on.

    Attributes:
        precision, size: of the cell; None is the size of a table without sizes.
        configuration: what the table has there.
        shape: one of the operation's.
    """

    precision: str
    size: str | None
    configuration: Any
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.precision, self.size, named(self.shape))))


def rows_of(operation: Operation, architecture: str) -> Iterator[Row]:
    """Every cell of an architecture, on its awkward shapes and on the smallest of those that it is chosen for."""
    for precision in operation.precisions:
        for size, configuration in operation.cells(architecture, precision).items():
            served = [s for s in operation.shapes if operation.size_of(architecture, precision, s) == size]
            for shape in (*operation.awkward[size], *sorted(served, key=math.prod)[:1]):
                yield Row(precision, size, configuration, shape)


def judge(operation: Operation, row: Row, device: str) -> dict[str, Any]:
    """Whether a row's results are right, how far they are off, and why they are not."""
    try:
        launch = operation.prepare(row.shape, row.precision, device)(row.configuration)
        found, expected = results_of(launch), launch.expected()
        errors = [relative_error(a, b.view_as(a)) for a, b in zip(found, expected, strict=True)]
    except Exception as error:  # out of resources, or what the compiler cannot do
        return {"right": False, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
    right = all(error <= TOLERANCES[row.precision] for error in errors)
    why = "" if right else f"its results are off by {', '.join(f'{error:.1e}' for error in errors)}"
    return {"right": right, "errors": errors, "why": why}


def check_shipped(operation: Operation, device: str = "cuda") -> Callable[[Work], None]:
    """A part that judges every row of an operation; those that were right before are not judged again."""

    def run(work: Work) -> None:
        for row in rows_of(operation, architecture_of(torch.device(device))):
            if work.items.get(str(row), {}).get("right"):
                continue
            work.begin(ROW_SECONDS)
            verdict = judge(operation, row, device)
            work.add(str(row), verdict)
            if not verdict["right"]:
                work.fail(f"{operation.name}: {row}: {verdict['why']}")
            gc.collect()

    return run
