"""Insert delay vertices, so that every edge joins consecutive levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import networkx as nx

from pccompile.ir.grammar import Action, Kind, Program, Update, Vertex, Work

__all__ = ["level"]

WHY = "a delay repeats its parent and passes its error on one step later: every path to a vertex becomes equally long"


def level(program: Program) -> Program:
    """The levelled program: an edge that spans k levels goes through k - 1 delays; one line a source serves all."""
    graph = nx.DiGraph()
    order = 0
    line_of: dict[str, dict[int, str]] = {}
    for vertex in program.vertices:
        graph.add_node(vertex.name, vertex=replace(vertex, order=order))
        order += 1
        line_of[vertex.name] = {}
        for delay in _delays(program, vertex):
            graph.add_node(delay.name, vertex=replace(delay, order=order))
            line_of[vertex.name][delay.level or 0] = delay.name
            order += 1
    for parent, child, data in program.graph.in_edges([v.name for v in program.vertices], data=True):
        source = line_of[parent].get((program.vertex(child).level or 0) + 1, parent) if line_of[parent] else parent
        graph.add_edge(source if _spans_levels(program, parent, child) else parent, child, reads=data["reads"])
    schedule = list(program.schedule)
    for source, line in line_of.items():
        before = source
        for _, name in sorted(line.items(), reverse=True):
            reads = tuple(component.node for component in graph.nodes[name]["vertex"].components)
            graph.add_edge(before, name, reads=reads)
            schedule += _updates_of_delay(program, source, name)
            before = name
    return program.after("level", WHY, schedule, graph)


def _delays(program: Program, vertex: Vertex) -> Iterator[Vertex]:
    skips = [child for child in program.children(vertex.name) if _spans_levels(program, vertex.name, child.name)]
    if not skips:
        return
    read = {node for child in skips for node in program.graph.edges[vertex.name, child.name]["reads"]}
    components = tuple(component for component in vertex.components if component.node in read)
    top, bottom = vertex.level or 0, min(child.level for child in skips if child.level is not None)
    for position, delay_level in enumerate(range(top - 1, bottom, -1), start=1):
        yield replace(
            vertex,
            name=f"{vertex.name}.delay_{position}",
            kind=Kind.DELAY,
            operator="identity",
            nodes=(),
            components=components,
            level=delay_level,
            work=Work(),
        )


def _spans_levels(program: Program, parent: str, child: str) -> bool:
    above, below = program.vertex(parent), program.vertex(child)
    if above.clamped or above.level is None or below.level is None:
        return False
    return above.level - below.level > 1


def _updates_of_delay(program: Program, source: str, name: str) -> Iterator[Update]:
    for update in program.updates_of(source):
        if update.action in (Action.PREDICT, Action.COMPARE, Action.INFER):
            yield replace(update, vertex=name)
