"""The story of one vertex: who predicts it, who reads its error, when it learns, and what the passes removed."""

from __future__ import annotations

import difflib
from itertools import pairwise

from pccompile.errors import UsageError
from pccompile.ir.grammar import Action, Kind, Program, Vertex
from pccompile.ir.text import type_of

__all__ = ["explain"]


def explain(program: Program, name: str) -> str:
    """A few lines on one vertex of a program.

    Raises:
        UsageError: no stage of the program has a vertex of that name.
    """
    home = next((s for s in reversed(program.stages.values()) if name in s.graph), None)
    if home is None:
        known = {vertex for stage in program.stages.values() for vertex in stage.graph}
        near = difflib.get_close_matches(name, known) or sorted(known)[:5]
        raise UsageError(f"no vertex is called {name!r}", cure=f"perhaps {', '.join(map(repr, near))}")
    vertex = home.vertex(name)
    lines = [_title(vertex), *_neighbours(home, vertex), _learning(home, vertex)]
    lines += ["updates: " + (", ".join(map(str, home.updates_of(name))) or "none")]
    return "\n".join([*lines, *_history(program, name)])


def _title(vertex: Vertex) -> str:
    level = "" if vertex.level is None else f", level {vertex.level}"
    source = f"\nsource: {vertex.source}" if vertex.source else ""
    return f"{vertex.name}: {vertex.kind.value} vertex, {vertex.operator}, {type_of(vertex.components)}{level}{source}"


def _neighbours(program: Program, vertex: Vertex) -> list[str]:
    parents = ", ".join(parent.name for parent in program.parents(vertex.name)) or "nothing"
    children = ", ".join(child.name for child in reversed(program.children(vertex.name))) or "nothing"
    predicted = (
        f"clamped: its value is {vertex.kind.value}"
        if not vertex.nodes and vertex.clamped
        else f"predicted from: {parents}"
    )
    if vertex.has_error:
        moved_by = [p.name for p in program.parents(vertex.name) if p.name in program.pulls_back_to(vertex.name)]
        readers = ", ".join(moved_by) or "nobody"
        return [predicted, f"its value is read by: {children}", f"its error is read by: {vertex.name}, {readers}"]
    return [predicted, f"its value is read by: {children}"]


def _learning(program: Program, vertex: Vertex) -> str:
    learns = program.updates.get((Action.LEARN, vertex.name), ())
    if learns:
        parameters = ", ".join(parent.name for parent in program.learned(vertex.name))
        return f"learns: {parameters} at " + ", ".join(str(update.span) for update in learns)
    if vertex.kind is Kind.PARAMETER:
        users = [c.name for c in program.children(vertex.name) if (Action.LEARN, c.name) in program.updates]
        users = users if vertex.requires_grad else []
        return f"learned by: {', '.join(users)}" if users else "frozen: nobody learns it"
    return "learns: nothing"


def _history(program: Program, name: str) -> list[str]:
    """What each pass did to the vertex, with the pass's reason."""
    lines = []
    stages = list(program.stages.values())
    for before, after in pairwise(stages):
        old, new = list(before.updates_of(name)), list(after.updates_of(name))
        if name in before.graph and name not in after.graph:
            lines.append(f"{after.name}: removed the vertex ({after.why})")
            continue
        gone = [str(update) for update in old if update not in new]
        come = [str(update) for update in new if update not in old]
        if gone or come:
            change = f"{', '.join(gone) or 'nothing'} -> {', '.join(come) or 'removed'}"
            lines.append(f"{after.name}: {change} ({after.why})")
    return ["passes:", *(f"    {line}" for line in lines)] if lines else ["passes: none changed it"]
