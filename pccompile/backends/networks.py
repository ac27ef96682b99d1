"""Recurrent networks that capture opened, joined again where kernels are to run all their time steps at once.

Where every error is computed in one step, exactly (fixed prediction in closed form, whose vertices keep gains), errors
are those of backpropagation, and only what is learned has a gain: that of its vertex's level. So a network may be one
vertex again, if what its parameters learn gets, for each time step and gate, the gain of the vertex that read them.
The program says which vertex that was; it need not be the same at every step: a product with a constant first state is
no vertex of its own, but part of those that read it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
from torch import fx

from pccompile.backends.opened import Levels, Opened
from pccompile.capture.decompose import OpenedNetwork
from pccompile.derivatives import LocalFunction, local_function
from pccompile.ir.check import verify
from pccompile.ir.grammar import Action, Component, Kind, Program, Span, Update, Vertex
from pccompile.names import unique_name

__all__ = ["Joined", "join", "without_gaps"]

_WHY = "errors in closed form are backpropagation's; what is learned at a time step has that step's gain"


@dataclass(frozen=True)
class Joined:
    """A program in which a network is one vertex again.

    Attributes:
        program, functions: the program, and the local function of each of its vertices.
        name: the network's.
        vertex: its vertex.
        inside: the vertices that it was before.
        gains: by clamped vertex of gains, whose gains these are; see `Opened.levels` and `Opened.levels_of_states`.
        apart: the vertex's function by the operators that the network was opened into; it reads no gains.
        network: what was opened.
    """

    program: Program
    functions: dict[str, LocalFunction]
    name: str
    vertex: str
    inside: frozenset[str]
    gains: dict[str, Levels]
    apart: LocalFunction
    network: OpenedNetwork


def join(opened: Opened, target: Callable[..., Any]) -> Joined:
    """Make an opened network one vertex.

    Args:
        opened: the network, in an optimised program.
        target: what the vertex calls, with the operator's name, gains, gains of first states or None, and the
            operator's arguments; it returns the operator's results.

    Raises:
        Apart: its time steps stay apart, and why.
    """
    opened.check()
    levels = {"gains": opened.levels(), "first_gains": opened.levels_of_states()}
    graph, placeholders = _local_graph(opened, target, [name for name, found in levels.items() if found is not None])
    vertex = _vertex(opened, graph)
    gains = {name: _gains_vertex(opened, f"{vertex.name}.{name}", node) for name, node in placeholders.items()}
    program = verify(_program(opened, graph, vertex, list(gains.values())))
    functions = {name: function for name, function in opened.functions.items() if name not in opened.inside}
    random = frozenset[str]().union(
        *(opened.functions[name].random for name in opened.inside if name in opened.functions)
    )
    functions[vertex.name] = local_function(program, vertex, _calls(graph), random)
    for name, reading in opened.readings.items():
        functions[name] = local_function(program, program.vertex(name), reading.nodes, opened.functions[name].random)
    return Joined(
        program,
        functions,
        opened.name,
        vertex.name,
        frozenset(opened.inside),
        {gains[name].name: found for name, found in levels.items() if found is not None},
        _apart(opened, functions[vertex.name], {vertex.name for vertex in gains.values()}),
        opened.network,
    )


def without_gaps(program: Program) -> Program:
    """The program without steps in which nothing runs, so that it lowers to straight lines.

    Every update of it has to run in one step, none of them to infer: only the order matters then.
    """
    starts = sorted({update.span.start.offset for update in program.schedule})
    place = {start: position for position, start in enumerate(starts)}
    moved = [
        replace(update, span=update.span.later(place[update.span.start.offset] - update.span.start.offset))
        for update in program.schedule
    ]
    return program.after("without gaps", "no step changes places with another", moved)


# The vertex -----------------------------------------------------------------------------------------------------------


def _local_graph(opened: Opened, target: Callable[..., Any], gains: Iterable[str]) -> tuple[fx.Graph, dict[str, str]]:
    """The network, and what was evaluated inside its vertices before it; and the placeholders of gains, by name."""
    given, graph = opened.network.arguments, fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in opened.before([given["input"], *opened.states, *given["params"]]):
        outside = node.name in opened.outside
        copies[node] = graph.placeholder(node.name) if outside else graph.node_copy(node, copies.__getitem__)
        _check_name(opened, copies[node], node.name)
    taken = {node.name for node in copies}
    placeholders = {
        name: graph.placeholder(unique_name(f"{opened.network.results[0]}_{name}", taken)) for name in gains
    }
    arguments = fx.node.map_arg(tuple(given.values()), copies.__getitem__)
    first = [placeholders.get("gains"), placeholders.get("first_gains")]
    call = graph.call_function(target, (opened.kind, *first, *arguments))
    for place, result in enumerate(opened.network.results):
        if result in opened.results:
            _check_name(
                opened, graph.create_node("call_function", operator.getitem, (call, place), name=result), result
            )
    return graph, {name: node.name for name, node in placeholders.items()}


def _check_name(opened: Opened, node: fx.Node, name: str) -> None:
    """Others read a node by its name."""
    if node.name != name:
        raise opened.apart(f"a node cannot be called {name} again")


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op != "placeholder"]


def _vertex(opened: Opened, graph: fx.Graph) -> Vertex:
    last = max(opened.inside.values(), key=lambda vertex: vertex.order)
    levels = [opened.program.vertex(name).level for name in opened.readings]
    return replace(
        last,
        name=unique_name(opened.name, {vertex.name for vertex in opened.program.vertices}),
        kind=Kind.HIDDEN,
        operator=opened.kind,
        nodes=tuple(node.name for node in _calls(graph)),
        components=tuple(Component(name, _shape(opened, name), last.components[0].dtype) for name in opened.results),
        level=max(level for level in levels if level is not None) + 1,
    )


def _shape(opened: Opened, result: str) -> tuple[int, ...]:
    known = (c.shape for vertex in opened.program.vertices for c in vertex.components if c.node == result)
    return next(known, tuple(opened.nodes[result].meta["val"].shape))


def _gains_vertex(opened: Opened, name: str, node: str) -> Vertex:
    return Vertex(
        unique_name(name, {vertex.name for vertex in opened.program.vertices}),
        Kind.CONSTANT,
        Kind.CONSTANT.value,
        (),
        (Component(node, (), "float32", free=False),),
        min(vertex.order for vertex in opened.inside.values()),
    )


def _apart(opened: Opened, function: LocalFunction, gains: set[str]) -> LocalFunction:
    reads = {parent: leaves for parent, leaves in function.reads.items() if parent not in gains}
    widths = {parent: width for parent, width in function.widths.items() if parent not in gains}
    found: set[fx.Node] = set()
    stack = [opened.nodes[name] for name in opened.results]
    while stack:
        node = stack.pop()
        if node not in found and node.name not in opened.outside:
            found.add(node)
            stack += node.all_input_nodes
    nodes = [node for node in opened.nodes[opened.results[0]].graph.nodes if node in found]
    return LocalFunction(function.vertex, nodes, reads, widths, function.targets, function.random)


# The program ----------------------------------------------------------------------------------------------------------


def _program(opened: Opened, local: fx.Graph, vertex: Vertex, gains: list[Vertex]) -> Program:
    reads: dict[str, list[str]] = {each.name: [each.components[0].node] for each in gains}
    for node in local.nodes:
        if node.op == "placeholder" and node.name in opened.outside:
            reads.setdefault(opened.outside[node.name], []).append(node.name)
    graph = nx.DiGraph()
    for other in sorted((*opened.program.vertices, vertex, *gains), key=lambda each: each.order):
        if other.name in opened.readings:
            other = replace(other, nodes=tuple(node.name for node in opened.readings[other.name].nodes))
        if other.name not in opened.inside:
            graph.add_node(other.name, vertex=other)
    for name in graph:
        before = reads if name == vertex.name else _reads_of(opened, name, vertex)
        for parent, read in before.items():
            graph.add_edge(parent, name, reads=tuple(read))
    schedule = [update for update in opened.program.schedule if update.vertex not in opened.inside]
    return opened.program.after("join networks", _WHY, [*schedule, *_updates(opened, vertex)], graph)


def _reads_of(opened: Opened, name: str, vertex: Vertex) -> Mapping[str, Iterable[str]]:
    """What a vertex reads of others, once the network is one of these."""
    if name not in opened.program.graph:
        return {}
    found: dict[str, Iterable[str]] = {}
    reading = opened.readings.get(name)
    inputs = None if reading is None else {parent.name for node in reading.nodes for parent in node.all_input_nodes}
    for parent in opened.program.graph.predecessors(name):
        read = opened.program.graph.edges[parent, name]["reads"]
        if parent in opened.inside:
            assert reading is not None
            found[vertex.name] = [c.node for c in vertex.components if c.node in reading.results]
        elif inputs is None or inputs.intersection(read):
            found[parent] = read
    return found


def _updates(opened: Opened, vertex: Vertex) -> Iterator[Update]:
    level = vertex.level or 0
    yield Update(Action.PREDICT, vertex.name, Span.steps(0, 1))
    yield Update(Action.RELAX, vertex.name, Span.steps(level - 1, level), exact=True)
    if any((Action.LEARN, name) in opened.program.updates for name in opened.inside):
        yield Update(Action.LEARN, vertex.name, Span.steps(level, level + 1))
