"""What a pass changed: a unified diff of two stages."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pccompile.errors import UsageError
from pccompile.ir.grammar import Program

__all__ = ["diff"]


def diff(stages: Mapping[str, Program], before: str, after: str) -> str:
    """Vertices and updates that only one of two stages has, as a unified diff; empty if they are the same.

    Raises:
        UsageError: there is no stage of that name.
    """
    for name in (before, after):
        if name not in stages:
            raise UsageError(f"no stage is called {name!r}", cure=f"choose one of {', '.join(map(repr, stages))}")
    lines = difflib.unified_diff(_lines(stages[before]), _lines(stages[after]), before, after, n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith("@@"))


def _lines(program: Program) -> list[str]:
    """One line per vertex and one per update, grouped by vertex, so that a diff stays local."""
    lines = []
    for vertex in program.vertices:
        level = "" if vertex.level is None else f" level {vertex.level}"
        lines.append(f"{vertex.kind.value} {vertex.name}{level}")
        lines += [f"    {update}" for update in program.updates_of(vertex.name)]
    return lines
