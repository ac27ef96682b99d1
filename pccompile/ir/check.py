"""The verifier: what makes a program well-formed, and a proof that every update is local.

`verify` runs after every pass. Both checks are linear in the size of the program; what a pass left as it was is not
checked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import networkx as nx

from pccompile.errors import CycleError, Place, ProgramError, ShapeError
from pccompile.ir.grammar import Action, Kind, Program, Update, Vertex

__all__ = ["check_locality", "reads", "verify"]

# Which vertices may have which updates: the validity of the schedule as a table.
ALLOWED: dict[Action, frozenset[Kind]] = {
    Action.PREDICT: frozenset({Kind.HIDDEN, Kind.DELAY, Kind.OUTPUT, Kind.LOSS, Kind.CONSTANT}),
    Action.COMPARE: frozenset({Kind.HIDDEN, Kind.DELAY, Kind.OUTPUT}),
    Action.INFER: frozenset({Kind.HIDDEN, Kind.DELAY}),
    Action.RELAX: frozenset({Kind.HIDDEN, Kind.DELAY}),
    Action.LEARN: frozenset({Kind.HIDDEN, Kind.OUTPUT, Kind.LOSS}),
    Action.DESCEND: frozenset({Kind.PARAMETER}),
}


def verify(program: Program) -> Program:
    """Return the program if it is well-formed and local; else raise.

    The program that it was made of by a pass counts as verified.

    Raises:
        CycleError: predictions read each other in a circle.
        ShapeError: a delay, or an output's identity, differs in shape from what it repeats.
        ProgramError: anything else that the grammar forbids.
    """
    before = program.previous
    if before is None or before.graph is not program.graph:
        before = None
        _check_acyclic(program)
        for vertex in program.vertices:
            _check_vertex(program, vertex)
    known = before.updates.keys() if before is not None else ()
    new = [update for update in program.schedule if (update.action, update.vertex) not in known]
    for update in new:
        _check_update(program, update)
    for update in program.schedule:
        _check_span(program, update)
    _check_overlaps(program)
    check_locality(program, new)
    return program


def place(vertex: Vertex) -> Place:
    """Where a vertex comes from, for an error message."""
    return Place(vertex.module or vertex.name, vertex.nodes[-1] if vertex.nodes else vertex.name, vertex.source or None)


def _check_acyclic(program: Program) -> None:
    if nx.is_directed_acyclic_graph(program.graph):
        return
    circle = [edge[0] for edge in nx.find_cycle(program.graph)]
    raise CycleError(" -> ".join([*circle, circle[0]]), place(program.vertex(circle[0])))


def _check_vertex(program: Program, vertex: Vertex) -> None:
    for parent in program.parents(vertex.name):
        edge_reads = program.graph.edges[parent.name, vertex.name]["reads"]
        missing = set(edge_reads) - {component.node for component in parent.components}
        if missing:
            raise ProgramError(
                f"{vertex.name} reads {sorted(missing)}, which {parent.name} does not have", place(vertex)
            )
        if parent.order >= vertex.order:
            raise ProgramError(f"{parent.name} comes after {vertex.name}, which reads it", place(vertex))
        both = parent.level is not None and vertex.level is not None
        if both and not parent.clamped and parent.level <= vertex.level:  # type: ignore[operator]
            raise ProgramError(f"level of {parent.name} is not above that of its child {vertex.name}", place(vertex))
        if not vertex.nodes and vertex.kind in (Kind.DELAY, Kind.OUTPUT):
            _check_identity(parent, vertex)
    if vertex.clamped and vertex.level is not None:
        raise ProgramError(f"the clamped vertex {vertex.name} has a level", place(vertex))


def _check_identity(parent: Vertex, vertex: Vertex) -> None:
    shapes = {component.node: component.shape for component in parent.components}
    for component in vertex.components:
        if shapes[component.node] != component.shape:
            raise ShapeError(
                f"{vertex.name} repeats {parent.name}: shape {component.shape} instead of {shapes[component.node]}",
                place(vertex),
            )


def _check_update(program: Program, update: Update) -> None:
    if update.vertex not in program.graph:
        raise ProgramError(f"{update} updates a vertex that is not in the graph")
    vertex = program.vertex(update.vertex)
    if vertex.kind not in ALLOWED[update.action]:
        raise ProgramError(
            f"{update}: a vertex of kind {vertex.kind.value} has no {update.action.value}", place(vertex)
        )
    if update.action is Action.LEARN and not program.learned(update.vertex):
        raise ProgramError(f"{update}: the vertex has nothing to learn", place(vertex))


def _check_span(program: Program, update: Update) -> None:
    if update.span.empty:
        raise ProgramError(f"{update} never runs", place(program.vertex(update.vertex)))


def _check_overlaps(program: Program) -> None:
    for (action, name), updates in program.updates.items():
        if len(updates) < 2:
            continue
        spans = sorted((update.span for update in updates), key=lambda span: span.start)
        for first, second in pairwise(spans):
            if second.start < first.stop:
                raise ProgramError(f"{action.value}({name}) runs twice in the same step", place(program.vertex(name)))
    for name in {name for action, name in program.updates if action is Action.RELAX}:
        if any((action, name) in program.updates for action in (Action.INFER, Action.COMPARE)):
            raise ProgramError(f"{name} keeps both its value and its error as the state", place(program.vertex(name)))


def reads(program: Program, update: Update) -> Iterator[tuple[str, str]]:
    """The (quantity, vertex) pairs that an update reads; quantities are value, prediction, error and gradient."""
    name = update.vertex
    children = program.graph.successors(name)
    if update.action is Action.PREDICT:
        yield from (("value", parent) for parent in program.graph.predecessors(name))
    elif update.action is Action.COMPARE and program.vertex(name).kind is not Kind.OUTPUT:
        yield from (("value", name), ("prediction", name))
    elif update.action in (Action.INFER, Action.RELAX, Action.COMPARE):
        own = {Action.INFER: ("value", "error"), Action.RELAX: ("error",), Action.COMPARE: ()}[update.action]
        yield from ((quantity, name) for quantity in own)
        for child in children:
            yield from (("prediction", child), ("error", child))
    elif update.action is Action.LEARN:
        yield from (("prediction", name), ("error", name))
    else:
        yield from (("value", name), ("gradient", name))


def check_locality(program: Program, updates: Iterable[Update] | None = None) -> None:
    """Prove that every update, or each of these, reads its own vertex, its parents and its children, and nothing else.

    Raises:
        ProgramError: an update reads something further away.
    """
    neighbours: dict[str, set[str]] = {}
    for update in program.schedule if updates is None else updates:
        name = update.vertex
        near = neighbours.get(name)
        if near is None:
            near = {name, *program.graph.predecessors(name), *program.graph.successors(name)}
            neighbours[name] = near
        for quantity, vertex in reads(program, update):
            if vertex not in near:
                raise ProgramError(f"{update} reads the {quantity} of {vertex}, which is not its neighbour")
