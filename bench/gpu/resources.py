"""What the kernels use on each architecture, from the machine code that the tests compile ahead of time: a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bench.gpu.state import ROOT
from bench.steps.report import table_line
from pccompile.kernels.devices import ARCHITECTURES

__all__ = ["Use", "measured", "resource_table"]


@dataclass(frozen=True)
class Use:
    """What one compiled kernel uses.

    Attributes:
        operation: whose kernel it is.
        case: under which configuration, in words.
        architecture: for which it was compiled.
        registers: of a thread.
        shared: bytes of a program.
        spilled: bytes of a thread.
    """

    operation: str
    case: str
    architecture: str
    registers: int
    shared: int
    spilled: int


def measured() -> Iterator[Use]:
    """Compile everything that the tests hold to a budget; takes minutes, and no GPU."""
    sys.path[:0] = [str(ROOT / "tests" / "kernels")]
    from ahead_of_time import measure
    from shipped import CASES

    for case, kernels in measure(CASES).items():
        for found in kernels:
            used = (found.registers, found.shared, found.spilled)
            yield Use(case.operation, f"{case.launch}, {case.precision}", case.architecture, *used)


def resource_table(uses: Iterator[Use]) -> str:
    """A line for each configuration, a column for each architecture: the largest of each number over its variants."""
    rows: dict[tuple[str, str], dict[str, list[Use]]] = {}
    for use in uses:
        rows.setdefault((use.operation, use.case), {}).setdefault(use.architecture, []).append(use)
    lines = [
        table_line(("kernel", "configuration", *ARCHITECTURES)),
        table_line(["---", "---", *["---:"] * len(ARCHITECTURES)]),
    ]
    for (operation, case), found in sorted(rows.items()):
        cells = [_cell(found.get(architecture, [])) for architecture in ARCHITECTURES]
        lines.append(table_line((operation, case, *cells)))
    return "\n".join(lines)


def _cell(uses: list[Use]) -> str:
    if not uses:
        return ""
    registers, shared, spilled = (
        max(getattr(use, name) for use in uses) for name in ("registers", "shared", "spilled")
    )
    return f"{registers}, {shared / 1024:.0f} KiB" + (f", {spilled} B spilled" if spilled else "")
