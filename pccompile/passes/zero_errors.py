"""Drop updates that run while every error they read is still zero."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx

from pccompile.ir.grammar import Action, Kind, Program, Span, Time, Update

__all__ = ["first_error_steps", "zero_errors"]

WHY = "e_i(t) = 0 until the error wavefront arrives, after as many steps as the shortest path from the loss is long"


def zero_errors(program: Program) -> Program:
    """Infer(i) starts one step before its vertex's first error, Compare(i) with it."""
    arrival = first_error_steps(program)
    schedule: list[Update] = []
    for update in program.schedule:
        earliest = {Action.INFER: -1, Action.COMPARE: 0}.get(update.action)
        if earliest is not None and update.vertex in arrival:
            start = max(update.span.start, Time(False, arrival[update.vertex] + earliest))
            update = replace(update, span=Span(start, update.span.stop))
        if not update.span.empty:
            schedule.append(update)
    return program.after("zero errors", WHY, schedule)


def first_error_steps(program: Program) -> dict[str, int]:
    """The first step at which each vertex's error can differ from zero: its distance to the nearest output vertex."""
    arrival: dict[str, int] = {}
    for name in reversed(list(nx.topological_sort(program.graph))):
        vertex = program.vertex(name)
        if vertex.kind is Kind.OUTPUT:
            arrival[name] = 0
        elif vertex.moves:
            arrival[name] = min(arrival[child] + 1 for child in program.graph.successors(name) if child in arrival)
    return arrival
