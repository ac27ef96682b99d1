"""Recurrent networks that capture opened, joined again where kernels are to run all their time steps at once.

Where every error is computed in one step, exactly (fixed prediction in closed form, whose vertices keep gains), errors
are those of backpropagation, and only what is learned has a gain: that of its vertex's level. So a network may be one
vertex again, if what its parameters learn gets, for each time step and gate, the gain of the vertex that read them.
The program says which vertex that was; it need not be the same at every step: a product with a constant first state is
no vertex of its own, but part of those that read it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import fx

from pccompile.capture.decompose import OpenedNetwork
from pccompile.derivatives import LocalFunction, local_function
from pccompile.ir.check import verify
from pccompile.ir.grammar import Action, Component, Kind, Program, Span, Update, Vertex
from pccompile.names import unique_name

__all__ = ["Apart", "Joined", "join", "name_of", "opened_networks", "without_gaps"]

_aten = torch.ops.aten

# By operator, who reads each gate's part of what inputs and hidden states contribute, where that is no vertex itself.
_READERS: dict[Any, dict[str, tuple[str, ...]]] = {
    _aten.lstm.input: {"input": ("gates",) * 4, "recurrent": ("gates",) * 4},
    _aten.gru.input: {"input": ("reset", "update", "candidate_sum"), "recurrent": ("reset", "update", "gated")},
    _aten.rnn_tanh.input: {"input": ("sum",), "recurrent": ("sum",)},
    _aten.rnn_relu.input: {"input": ("sum",), "recurrent": ("sum",)},
}


class Apart(Exception):
    """Why the time steps of a network stay apart.

    Attributes:
        network: which.
    """

    def __init__(self, reason: str, network: OpenedNetwork) -> None:
        super().__init__(reason)
        self.network = network


@dataclass(frozen=True)
class Joined:
    """A program in which a network is one vertex again.

    Attributes:
        program, functions: the program, and the local function of each of its vertices.
        vertex: the network's.
        inside: the vertices that it was before.
        gains: the clamped vertex of its gains, (layers and directions, 2, steps, gates): those of what the inputs'
            parameters learn, and of the hidden states'.
        levels: whose gains these are, as nested tuples; None where nothing is learned.
        apart: the vertex's function by the operators that the network was opened into; it reads no gains.
        network: what was opened.
    """

    program: Program
    functions: dict[str, LocalFunction]
    vertex: str
    inside: frozenset[str]
    gains: str
    levels: tuple[Any, ...]
    apart: LocalFunction
    network: OpenedNetwork


def opened_networks(functions: Mapping[str, LocalFunction]) -> list[OpenedNetwork]:
    """The networks whose parts are among the nodes of local functions, in the order of the feed-forward pass."""
    nodes = (node for function in functions.values() for node in function.fx_nodes)
    found = {id(node.meta["opened"]): node.meta["opened"] for node in nodes if "opened" in node.meta}
    return list(found.values())


def name_of(program: Program, network: OpenedNetwork) -> str:
    """The module that an opened network is in a program."""
    inside = (v for v in program.vertices if any(component.node in network.inside for component in v.components))
    return next((v.module for v in inside if v.module), _name_of(network.operator))


def join(program: Program, functions: Mapping[str, LocalFunction], network: OpenedNetwork, target: Any) -> Joined:
    """Make an opened network one vertex.

    Args:
        program: an optimised program.
        functions: the local functions of its vertices.
        target: what the vertex calls: (operator, gains, *the operator's arguments) -> the operator's results.

    Raises:
        Apart: its time steps stay apart, and why.
    """
    return _Join(program, functions, network).joined(target)


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


class _Join:
    """A network that is being joined in a program."""

    def __init__(self, program: Program, functions: Mapping[str, LocalFunction], network: OpenedNetwork) -> None:
        self.program, self.functions, self.network = program, functions, network
        self.nodes = {node.name: node for function in functions.values() for node in function.fx_nodes}
        self.inner = {v.name: v for v in program.vertices if self._is_inside(v)}
        self.owner = {c.node: v.name for v in program.vertices if v.name not in self.inner for c in v.components}
        self.inner_owner = {c.node: v for v in self.inner.values() for c in v.components}

    def _is_inside(self, vertex: Vertex) -> bool:
        return any(component.node in self.network.inside for component in vertex.components)

    def joined(self, target: Any) -> Joined:
        self._check()
        readers = self._readers()
        read = [name for name in self.network.results if any(name in reads for _, reads in readers.values())]
        graph, gains = self._local_graph(target, read)
        boundary = [node.name for node in graph.nodes if node.op == "placeholder" and node.name != gains]
        vertex = self._vertex(graph, read, readers)
        gain_vertex = Vertex(
            unique_name(f"{vertex.name}.gains", {v.name for v in self.program.vertices}),
            Kind.CONSTANT,
            Kind.CONSTANT.value,
            (),
            (Component(gains, (), "float32", free=False),),
            min(v.order for v in self.inner.values()),
        )
        program = verify(self._program(vertex, gain_vertex, boundary, readers))
        functions = {name: f for name, f in self.functions.items() if name not in self.inner}
        local = [node for node in graph.nodes if node.op == "call_function"]
        functions[vertex.name] = local_function(program, vertex, local)
        for name, (nodes, _) in readers.items():
            functions[name] = local_function(program, program.vertex(name), nodes, self.functions[name].random)
        apart = self._apart(functions[vertex.name], gain_vertex.name, read)
        names = vertex.name, frozenset(self.inner), gain_vertex.name
        return Joined(program, functions, *names, self._levels(), apart, self.network)

    def _apart_for(self, reason: str) -> Apart:
        return Apart(reason, self.network)

    # Whether it can be ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.program.observed:
            raise self._apart_for("the energy is read in every step")
        for vertex in self.inner.values():
            if any(component.node not in self.network.inside for component in vertex.components):
                raise self._apart_for(f"a state is kept beside {vertex.name}")
            if vertex.kind not in (Kind.HIDDEN, Kind.CONSTANT):
                raise self._apart_for(f"the loss reads {vertex.name}")
        for update in self.program.schedule:
            once = update.span.single and (update.exact or update.action is not Action.RELAX)
            if not once or update.action is Action.INFER:
                raise self._apart_for("its errors are not computed in one step, in closed form")
        if not any((Action.RELAX, name) in self.program.updates for name in self.inner):
            raise self._apart_for("no error reaches it")

    # What reads it ----------------------------------------------------------------------------------------------------

    def _readers(self) -> dict[str, tuple[list[fx.Node], set[str]]]:
        """The vertices that read its results: what they evaluate once these are given, and which results they read."""
        found: dict[str, tuple[list[fx.Node], set[str]]] = {}
        for name in dict.fromkeys(child for inner in self.inner for child in self.program.graph.successors(inner)):
            if name not in self.inner:
                found[name] = self._reading(name)
        return found

    def _reading(self, name: str) -> tuple[list[fx.Node], set[str]]:
        function, results = self.functions[name], set(self.network.results)
        own = {node.name: node for node in function.fx_nodes}
        reads: set[str] = set()
        kept: set[str] = set()
        stack = list(function.outputs)
        while stack:
            node = stack.pop()
            if node in results:
                reads.add(node)
            elif node in self.network.inside:
                raise self._apart_for(f"{name} reads time steps by themselves")
            elif node in own and node not in kept:
                kept.add(node)
                stack += [parent.name for parent in own[node].all_input_nodes]
        return [node for node in function.fx_nodes if node.name in kept], reads

    # What it computes -------------------------------------------------------------------------------------------------

    def _local_graph(self, target: Any, read: list[str]) -> tuple[fx.Graph, str]:
        """The network and what was evaluated inside its vertices before it; and the placeholder of its gains."""
        given, graph = self.network.arguments, fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        states = given["hx"] if isinstance(given["hx"], list | tuple) else [given["hx"]]
        for slot in ([given["input"]], states, given["params"]):
            before = self._before(slot)
            self._check_slot(before, slot is given["params"])
            for node in before:
                if node not in copies:
                    outside = node.name in self.owner
                    copy = graph.placeholder(node.name) if outside else graph.node_copy(node, copies.__getitem__)
                    copies[node] = self._named(copy, node.name)
        gains = graph.placeholder(unique_name(f"{self.network.results[0]}_gains", {node.name for node in copies}))
        arguments = fx.node.map_arg(tuple(given.values()), copies.__getitem__)
        call = graph.call_function(target, (_name_of(self.network.operator), gains, *arguments))
        for place, result in enumerate(self.network.results):
            if result in read:
                part = graph.create_node("call_function", operator.getitem, (call, place), name=result)
                self._named(part, result)
        return graph, gains.name

    def _named(self, node: fx.Node, name: str) -> fx.Node:
        """A node that has the name under which others read it."""
        if node.name != name:
            raise self._apart_for(f"a node cannot be called {name} again")
        return node

    def _before(self, slot: Iterable[fx.Node]) -> list[fx.Node]:
        """What leads from other vertices to some arguments, those vertices' components first, in order."""
        found: set[fx.Node] = set()
        stack = list(slot)
        while stack:
            node = stack.pop()
            if node in found:
                continue
            if node.name in self.network.inside:
                raise self._apart_for("it reads its own states")
            found.add(node)
            if node.name not in self.owner:
                if node.op == "placeholder":
                    raise self._apart_for("an input of it is no vertex")
                stack += node.all_input_nodes
        (graph,) = {node.graph for node in found}
        return [node for node in graph.nodes if node in found]

    def _check_slot(self, before: list[fx.Node], of_parameters: bool) -> None:
        for node in before:
            if node.name in self.owner:
                vertex = self.program.vertex(self.owner[node.name])
                if of_parameters and not vertex.clamped:
                    raise self._apart_for("its parameters have errors")
                if not of_parameters and vertex.clamped and vertex.requires_grad:
                    raise self._apart_for(f"{vertex.name} is learned through its states or inputs")

    def _apart(self, function: LocalFunction, gains: str, read: list[str]) -> LocalFunction:
        reads = {parent: leaves for parent, leaves in function.reads.items() if parent != gains}
        widths = {parent: width for parent, width in function.widths.items() if parent != gains}
        found: set[fx.Node] = set()
        stack = [self.nodes[name] for name in read]
        while stack:
            node = stack.pop()
            if node not in found and node.name not in self.owner:
                found.add(node)
                stack += node.all_input_nodes
        nodes = [node for node in self.nodes[read[0]].graph.nodes if node in found]
        return LocalFunction(function.vertex, nodes, reads, widths, function.targets, frozenset())

    # Where it stands --------------------------------------------------------------------------------------------------

    def _vertex(self, graph: fx.Graph, read: list[str], readers: Mapping[str, Any]) -> Vertex:
        last = max(self.inner.values(), key=lambda vertex: vertex.order)
        levels = [self.program.vertex(name).level for name in readers]
        nodes = tuple(node.name for node in graph.nodes if node.op == "call_function")
        return replace(
            last,
            name=unique_name(last.module or _name_of(self.network.operator), {v.name for v in self.program.vertices}),
            kind=Kind.HIDDEN,
            operator=_name_of(self.network.operator),
            nodes=nodes,
            components=tuple(Component(name, self._shape(name), last.components[0].dtype) for name in read),
            level=max(level for level in levels if level is not None) + 1,
        )

    def _shape(self, result: str) -> tuple[int, ...]:
        known = (c.shape for v in self.program.vertices for c in v.components if c.node == result)
        return next(known, tuple(self.nodes[result].meta["val"].shape))

    def _program(
        self,
        vertex: Vertex,
        gains: Vertex,
        boundary: list[str],
        readers: Mapping[str, tuple[list[fx.Node], set[str]]],
    ) -> Program:
        reads: dict[str, list[str]] = {gains.name: [gains.components[0].node]}
        for node in boundary:
            reads.setdefault(self.owner[node], []).append(node)
        graph = nx.DiGraph()
        for other in sorted((*self.program.vertices, vertex, gains), key=lambda v: v.order):
            if other.name in readers:
                other = replace(other, nodes=tuple(node.name for node in readers[other.name][0]))
            if other.name not in self.inner:
                graph.add_node(other.name, vertex=other)
        for name in graph:
            before = reads if name == vertex.name else self._reads_of(name, vertex, readers)
            for parent, read in before.items():
                graph.add_edge(parent, name, reads=tuple(read))
        schedule = [update for update in self.program.schedule if update.vertex not in self.inner]
        why = "errors in closed form are backpropagation's; what is learned at a time step has that step's gain"
        return self.program.after("join networks", why, [*schedule, *self._updates(vertex)], graph)

    def _reads_of(
        self, name: str, vertex: Vertex, readers: Mapping[str, tuple[list[fx.Node], set[str]]]
    ) -> dict[str, list[str]]:
        if name not in self.program.graph:
            return {}
        kept = {node.name for node in readers[name][0]} if name in readers else None
        found: dict[str, list[str]] = {}
        for parent in self.program.graph.predecessors(name):
            if parent in self.inner:
                found[vertex.name] = [c.node for c in vertex.components if c.node in readers[name][1]]
            elif kept is None or self._still_reads(name, parent, kept):
                found[parent] = list(self.program.graph.edges[parent, name]["reads"])
        return found

    def _still_reads(self, name: str, parent: str, kept: set[str]) -> bool:
        """Whether what a reader still evaluates reads another parent as well."""
        read = set(self.program.graph.edges[parent, name]["reads"])
        own = self.functions[name].fx_nodes
        return any(node.name in kept and read & {p.name for p in node.all_input_nodes} for node in own)

    def _updates(self, vertex: Vertex) -> Iterator[Update]:
        level = vertex.level or 0
        yield Update(Action.PREDICT, vertex.name, Span.steps(0, 1))
        yield Update(Action.RELAX, vertex.name, Span.steps(level - 1, level), exact=True)
        if any((Action.LEARN, name) in self.program.updates for name in self.inner):
            yield Update(Action.LEARN, vertex.name, Span.steps(level, level + 1))

    # What it learns ---------------------------------------------------------------------------------------------------

    def _levels(self) -> tuple[Any, ...]:
        readers = _READERS[self.network.operator]
        return tuple(
            tuple(
                tuple(tuple(self._level(cell, label, reader) for reader in readers[label]) for cell in cells)
                for label in ("input", "recurrent")
            )
            for cells in self.network.cells
        )

    def _level(self, cell: Mapping[str, str], label: str, reader: str) -> int | None:
        """The level at which a gate's part of a product learns."""
        vertex = self.inner_owner.get(cell[label]) or self.inner_owner.get(cell[reader])
        learns = self.program.updates.get((Action.LEARN, vertex.name)) if vertex is not None else None
        if not learns:
            return None
        gain = learns[0].gain
        return 0 if gain == "1" else int(gain[2:-1])


def _name_of(operator_: Any) -> str:
    """ "lstm", of `aten.lstm.input`."""
    return str(operator_.overloadpacket.__name__)
