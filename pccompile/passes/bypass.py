"""Remove delay vertices once every error is computed in a single step and kept."""

from __future__ import annotations

import networkx as nx

from pccompile.ir.grammar import Action, Kind, Program

__all__ = ["bypass"]

WHY = "a delay hands its child's error on unchanged; the child still holds that error when the source reads it"


def bypass(program: Program) -> Program:
    """The program without delays: their sources read the errors of the delayed children directly.

    Applies when every error is written once, by a Relax of step size 1 or by the loss, so that it is still there later;
    otherwise the program is left as it is.
    """
    if not _written_once(program):
        return program.after("bypass", "does not apply: errors are written more than once", program.schedule)
    source: dict[str, str] = {}
    for name in nx.topological_sort(program.graph):
        if program.vertex(name).kind is Kind.DELAY:
            parent = next(iter(program.graph.predecessors(name)))
            source[name] = source.get(parent, parent)
    graph = nx.DiGraph()
    for vertex in program.vertices:
        if vertex.name not in source:
            graph.add_node(vertex.name, vertex=vertex)
    for parent, child, data in program.graph.in_edges([v.name for v in program.vertices], data=True):
        if child not in source:
            start = source.get(parent, parent)
            known = graph.edges[start, child]["reads"] if graph.has_edge(start, child) else ()
            graph.add_edge(start, child, reads=(*known, *data["reads"]))
    schedule = [update for update in program.schedule if update.vertex not in source]
    return program.after("bypass", WHY, schedule, graph)


def _written_once(program: Program) -> bool:
    writes = [update for update in program.schedule if update.action in (Action.RELAX, Action.COMPARE, Action.INFER)]
    return all(update.span.single and update.action is not Action.INFER for update in writes) and all(
        update.exact or update.action is Action.COMPARE for update in writes
    )
