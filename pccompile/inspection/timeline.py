"""A program's schedule at a number of steps T: when each update runs, and when each error is there and still needed."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pccompile.ir.check import reads
from pccompile.ir.grammar import Action, Kind, Program, Update, Vertex

__all__ = ["Timeline", "timeline"]

Quantity = tuple[str, str]  # ("value" | "prediction" | "error", vertex)
NEVER = 10**9


@dataclass(frozen=True)
class Timeline:
    """A schedule with every time a number.

    Attributes:
        steps: T.
        length: how many steps there are in all.
        runs: (first step, step after the last) of every update.
        errors: for each vertex, the first step in which its error can differ from zero, and the step after the last
            in which an update reads it. Vertices whose error stays zero, or is never read, are left out.
    """

    steps: int
    length: int
    runs: dict[Update, tuple[int, int]]
    errors: dict[str, tuple[int, int]]


def timeline(program: Program, steps: int) -> Timeline:
    """The schedule of a program for T = steps."""
    runs = {u: (u.span.start.at(steps), u.span.stop.at(steps)) for u in program.schedule}
    runs = {update: (start, stop) for update, (start, stop) in runs.items() if start < stop}
    length = max((stop for _, stop in runs.values()), default=0)
    changes = _first_changes(program, runs)
    needed = _last_reads(program, runs)
    errors = {
        vertex.name: (changes["error", vertex.name], needed[vertex.name])
        for vertex in program.vertices
        if vertex.has_error and changes.get(("error", vertex.name), NEVER) < needed.get(vertex.name, 0)
    }
    return Timeline(steps, length, runs, errors)


def _first_changes(program: Program, runs: dict[Update, tuple[int, int]]) -> dict[Quantity, int]:
    """The first step whose updates can see an error that is not zero, a value or a prediction that has moved.

    Changes spread along the graph in order of time, from the errors of the outputs on.
    """
    by_vertex: dict[tuple[Action, str], list[tuple[int, int]]] = {}
    for update, span in runs.items():
        by_vertex.setdefault((update.action, update.vertex), []).append(span)
    found: dict[Quantity, int] = {}
    queue = [(0, "error", v.name) for v in program.vertices if v.kind is Kind.LOSS]
    heapq.heapify(queue)
    while queue:
        step, kind, name = heapq.heappop(queue)
        if (kind, name) in found:
            continue
        found[kind, name] = step
        for action, reader, result, delay in _consequences(program, kind, program.vertex(name)):
            first = min(
                (max(a, step) for a, b in by_vertex.get((action, reader), ()) if max(a, step) < b), default=None
            )
            if first is not None and (result, reader) not in found:
                heapq.heappush(queue, (first + delay, result, reader))
    return found


def _consequences(program: Program, kind: str, vertex: Vertex) -> Iterator[tuple[Action, str, str, int]]:
    """What can change once a quantity has: (action, its vertex, what it changes, how many steps later it is seen)."""
    parents, children = program.graph.predecessors(vertex.name), program.graph.successors(vertex.name)
    if kind == "error":
        for name in (vertex.name, *parents):
            parent = program.vertex(name)
            if parent.kind is Kind.OUTPUT and name != vertex.name:
                yield Action.COMPARE, name, "error", 0
            if parent.moves:
                yield Action.INFER, name, "value", 1
            if parent.moves and name != vertex.name:
                yield Action.RELAX, name, "error", 1
            if parent.clamped:
                yield Action.DESCEND, name, "value", 1
    elif kind == "value":
        yield Action.COMPARE, vertex.name, "error", 0
        for child in children:
            yield Action.PREDICT, child, "prediction", 0
    elif vertex.follows:
        yield Action.PREDICT, vertex.name, "value", 0
    else:
        yield Action.COMPARE, vertex.name, "error", 0


def _last_reads(program: Program, runs: dict[Update, tuple[int, int]]) -> dict[str, int]:
    """The step after the last in which an update reads each vertex's error."""
    last: dict[str, int] = {}
    for update, (_, stop) in runs.items():
        for name in _errors_read(program, update):
            last[name] = max(last.get(name, 0), stop)
    return last


def _errors_read(program: Program, update: Update) -> Iterable[str]:
    for quantity, name in reads(program, update):
        if quantity == "error" and not (update.action is Action.RELAX and update.exact and name == update.vertex):
            yield name
