"""A recurrent network that capture opened, as a program has it: which vertices it is now, who reads it, what it learns.

Every question may end in `Apart`: the network cannot be one vertex again, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from pccompile.capture.decompose import OpenedNetwork
from pccompile.derivatives import LocalFunction
from pccompile.ir.grammar import Action, Kind, Program, Vertex

__all__ = ["Apart", "Levels", "Opened", "Reading", "opened_networks"]

_aten = torch.ops.aten

# By operator, who reads each gate's part of what inputs and hidden states contribute, where that is no vertex itself.
_READERS: dict[Any, dict[str, tuple[str, ...]]] = {
    _aten.lstm.input: {"input": ("gates",) * 4, "recurrent": ("gates",) * 4},
    _aten.gru.input: {"input": ("reset", "update", "candidate_sum"), "recurrent": ("reset", "update", "gated")},
    _aten.rnn_tanh.input: {"input": ("sum",), "recurrent": ("sum",)},
    _aten.rnn_relu.input: {"input": ("sum",), "recurrent": ("sum",)},
}
# By operator, who reads each of the first states, and who reads that where it is no vertex itself. A GRU's first state
# is read by several vertices, whose levels differ.
_READERS_OF_STATES: dict[Any, tuple[tuple[str, str], ...]] = {
    _aten.lstm.input: (("recurrent", "gates"), ("kept", "kept")),
    _aten.rnn_tanh.input: (("recurrent", "sum"),),
    _aten.rnn_relu.input: (("recurrent", "sum"),),
}

Levels = tuple[Any, ...]  # nested; None where nothing is learned


class Apart(Exception):
    """Why the time steps of a network stay apart.

    Attributes:
        name: which network.
    """

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(reason)
        self.name = name


@dataclass(frozen=True)
class Reading:
    """How a vertex reads a network's results.

    Attributes:
        nodes: what it evaluates once these are given.
        results: which of them it reads, by name.
    """

    nodes: tuple[fx.Node, ...]
    results: frozenset[str]


def opened_networks(functions: Mapping[str, LocalFunction]) -> list[OpenedNetwork]:
    """The networks whose parts are among the nodes of local functions, in the order of the feed-forward pass."""
    nodes = (node for function in functions.values() for node in function.fx_nodes)
    found = {id(node.meta["opened"]): node.meta["opened"] for node in nodes if "opened" in node.meta}
    return list(found.values())


@dataclass(frozen=True)
class Opened:
    """An opened network in a program.

    Attributes:
        program: the program.
        functions: the local functions of its vertices.
        network: where the network's parts are.
    """

    program: Program
    functions: Mapping[str, LocalFunction]
    network: OpenedNetwork

    @cached_property
    def kind(self) -> str:
        """ "lstm", of `aten.lstm.input`."""
        return str(self.network.operator.overloadpacket.__name__)

    @cached_property
    def name(self) -> str:
        """The path of its module."""
        return next((vertex.module for vertex in self.inside.values() if vertex.module), self.kind)

    @cached_property
    def inside(self) -> dict[str, Vertex]:
        """The vertices that it is, by name."""
        parts = self.network.inside
        return {v.name: v for v in self.program.vertices if any(c.node in parts for c in v.components)}

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The nodes that vertices evaluate, by name."""
        return {node.name: node for function in self.functions.values() for node in function.fx_nodes}

    @cached_property
    def outside(self) -> dict[str, str]:
        """By node, the vertex that it is a component of, if that is none of the network's."""
        vertices = [vertex for vertex in self.program.vertices if vertex.name not in self.inside]
        return {component.node: vertex.name for vertex in vertices for component in vertex.components}

    def apart(self, reason: str) -> Apart:
        """To be raised: its time steps stay apart."""
        return Apart(reason, self.name)

    def check(self) -> None:
        """Check that all errors are backpropagation's, and that nobody but the program needs those inside.

        Raises:
            Apart: they are not, or somebody does.
        """
        if self.program.observed:
            raise self.apart("the energy is read in every step")
        for vertex in self.inside.values():
            if any(component.node not in self.network.inside for component in vertex.components):
                raise self.apart(f"a state is kept beside {vertex.name}")
            if vertex.kind not in (Kind.HIDDEN, Kind.CONSTANT):
                raise self.apart(f"the loss reads {vertex.name}")
        for update in self.program.schedule:
            once = update.span.single and (update.exact or update.action is not Action.RELAX)
            if not once or update.action is Action.INFER:
                raise self.apart("its errors are not computed in one step, in closed form")
        if not any((Action.RELAX, name) in self.program.updates for name in self.inside):
            raise self.apart("no error reaches it")

    @cached_property
    def readings(self) -> dict[str, Reading]:
        """The vertices that read its results, and how.

        Raises:
            Apart: one reads what is inside.
        """
        children = dict.fromkeys(child for name in self.inside for child in self.program.graph.successors(name))
        return {name: self._reading(name) for name in children if name not in self.inside}

    def _reading(self, name: str) -> Reading:
        function = self.functions[name]
        own = {node.name: node for node in function.fx_nodes}
        results: set[str] = set()
        kept: set[str] = set()
        stack = list(function.outputs)
        while stack:
            node = stack.pop()
            if node in self.network.results:
                results.add(node)
            elif node in self.network.inside:
                raise self.apart(f"{name} reads time steps by themselves")
            elif node in own and node not in kept:
                kept.add(node)
                stack += [parent.name for parent in own[node].all_input_nodes]
        return Reading(tuple(node for node in function.fx_nodes if node.name in kept), frozenset(results))

    @cached_property
    def results(self) -> list[str]:
        """Those of its results that are read."""
        return [name for name in self.network.results if any(name in each.results for each in self.readings.values())]

    def before(self, arguments: Iterable[fx.Node]) -> list[fx.Node]:
        """What leads from other vertices to some arguments, those vertices' components among it, in order.

        Raises:
            Apart: something leads from inside.
        """
        found: set[fx.Node] = set()
        stack = list(arguments)
        while stack:
            node = stack.pop()
            if node in found:
                continue
            if node.name in self.network.inside:
                raise self.apart("it reads its own states")
            found.add(node)
            if node.name not in self.outside:
                if node.op == "placeholder":
                    raise self.apart("an input of it is no vertex")
                stack += node.all_input_nodes
        return [node for node in next(iter(found)).graph.nodes if node in found]

    @cached_property
    def states(self) -> list[fx.Node]:
        """The arguments that are its first states."""
        given = self.network.arguments["hx"]
        return list(given) if isinstance(given, list | tuple) else [given]

    # What it learns ---------------------------------------------------------------------------------------------------

    def levels(self) -> Levels:
        """At which levels its parameters learn: (layers and directions, 2, steps, gates), inputs' and hidden states'.

        Raises:
            Apart: something else is learned through its inputs, or its parameters have errors.
        """
        if self._learned([self.network.arguments["input"]]):
            raise self.apart(f"{self._learned([self.network.arguments['input']])[0]} is learned through its inputs")
        if self._moved(self.network.arguments["params"]):
            raise self.apart("its parameters have errors")
        readers = _READERS[self.network.operator]
        return tuple(
            tuple(
                tuple(tuple(self._level(cell, label, reader) for reader in readers[label]) for cell in cells)
                for label in ("input", "recurrent")
            )
            for cells in self.network.cells
        )

    def levels_of_states(self) -> Levels | None:
        """At which levels first states learn, (states, layers and directions); None where none does.

        Raises:
            Apart: a state is learned at several levels, or also has an error.
        """
        learned = [self._learned([state]) for state in self.states]
        if not any(learned):
            return None
        if self.network.operator not in _READERS_OF_STATES:
            raise self.apart(f"its first state, of {next(filter(None, learned))[0]}, is learned at several levels")
        if any(names and self._moved([state]) for names, state in zip(learned, self.states, strict=True)):
            raise self.apart("a first state is learned, and has an error")
        readers = _READERS_OF_STATES[self.network.operator]
        return tuple(
            tuple(self._level(cells[0], *reader) if names else 0 for cells in self.network.cells)
            for names, reader in zip(learned, readers, strict=True)
        )

    def _level(self, cell: Mapping[str, str], label: str, reader: str) -> int | None:
        vertex = self._owner.get(cell[label]) or self._owner.get(cell[reader])
        learns = self.program.updates.get((Action.LEARN, vertex)) if vertex is not None else None
        if not learns:
            return None
        gain = learns[0].gain
        return 0 if gain == "1" else int(gain[2:-1])

    @cached_property
    def _owner(self) -> dict[str, str]:
        return {component.node: vertex.name for vertex in self.inside.values() for component in vertex.components}

    def _leading_to(self, arguments: Iterable[fx.Node]) -> list[Vertex]:
        names = (self.outside.get(node.name) for node in self.before(arguments))
        return [self.program.vertex(name) for name in names if name is not None]

    def _learned(self, arguments: Iterable[fx.Node]) -> list[str]:
        return [vertex.name for vertex in self._leading_to(arguments) if vertex.clamped and vertex.requires_grad]

    def _moved(self, arguments: Iterable[fx.Node]) -> list[str]:
        return [vertex.name for vertex in self._leading_to(arguments) if not vertex.clamped]
