"""Local derivatives from the autograd engine: f_i of one vertex on detached parents, and its Jacobian products.

A value is a tuple with one tensor per component of the vertex. Every operator that PyTorch can differentiate works,
with any shape, because nothing here knows what the operator is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from pccompile.capture import Captured
from pccompile.errors import NoDerivativeError, PCCompileError
from pccompile.ir.check import place
from pccompile.ir.grammar import Action, Program, Vertex
from pccompile.nodes import call_node, misfit

__all__ = ["Linearisation", "LocalFunction", "RandomStates", "Value", "local_function", "local_functions"]

Value = tuple[Any, ...]
RandomStates = dict[str, tuple[torch.Tensor, dict[int, torch.Tensor]]]


class Linearisation:
    """f_i evaluated at its parents' values: the prediction, and products with the Jacobian at that point.

    Args:
        vertex: the vertex, for errors.
        outputs: the components, still attached to the local graph.
        leaves: for each parent whose contribution may be asked for, its components that the function reads, as
            (position in the parent's value, the tensor the local graph starts from).
        widths: how many components each of those parents has.

    Attributes:
        prediction: mu_i, detached.
        keep: never free the local graph (somebody will go backward through it again).
    """

    __slots__ = ("keep", "leaves", "outputs", "prediction", "vertex", "widths")

    def __init__(
        self,
        vertex: Vertex,
        outputs: Value,
        leaves: dict[str, list[tuple[int, torch.Tensor]]],
        widths: dict[str, int],
    ) -> None:
        self.vertex, self.outputs, self.leaves, self.widths, self.keep = vertex, outputs, leaves, widths, False
        self.prediction: Value = tuple(o.detach() if isinstance(o, torch.Tensor) else o for o in outputs)

    def pull_back(self, error: Value | None, targets: Sequence[str], release: bool = False) -> dict[str, Value]:
        """J(i, parent)^T e_i for each target that the error reaches; other targets are left out.

        Args:
            error: one tensor, shaped like the prediction, per component; None where there is none.
            targets: names of parents.
            release: free the local graph afterwards, unless `keep` is set.

        Raises:
            NoDerivativeError: PyTorch has no derivative of an operator of the vertex.
        """
        release = release and not self.keep
        seeds = [
            (output, part)
            for output, part in zip(self.outputs, error or (), strict=False)
            if part is not None and isinstance(output, torch.Tensor) and output.requires_grad
        ]
        places = [(name, index, leaf) for name in targets for index, leaf in self.leaves.get(name, ())]
        contributions: dict[str, Value] = {}
        if seeds and places:
            outputs, errors = zip(*seeds, strict=True)
            leaves = [leaf for _, _, leaf in places]
            try:
                found = torch.autograd.grad(outputs, leaves, errors, retain_graph=not release, allow_unused=True)
            except RuntimeError as error:
                if "derivative" in str(error) and "not implemented" in str(error):
                    raise NoDerivativeError(str(error), place(self.vertex)) from error
                raise
            parts: dict[str, list[torch.Tensor | None]] = {}
            for (name, index, _), part in zip(places, found, strict=True):
                if part is not None:
                    parts.setdefault(name, [None] * self.widths[name])[index] = part
            contributions = {name: tuple(found_parts) for name, found_parts in parts.items()}
        if release:
            self.outputs, self.leaves = (), {}
        return contributions


class LocalFunction(nn.Module):
    """f_i of one vertex: evaluates its FX nodes on its parents' values.

    Args:
        vertex: the vertex.
        nodes: its FX nodes, in order; none for an identity (a delay, or an output read by others as well).
        reads: for each parent, in order, the components that the function reads: position, node, and whether a
            derivative flows to it.
        widths: how many components each parent has.
        targets: the parents whose contributions will be asked for.
        random: the nodes that draw random numbers.
    """

    def __init__(
        self,
        vertex: Vertex,
        nodes: Sequence[fx.Node],
        reads: Mapping[str, list[tuple[int, str, bool]]],
        widths: Mapping[str, int],
        targets: Iterable[str],
        random: frozenset[str],
    ) -> None:
        super().__init__()
        self.vertex, self.fx_nodes, self.reads, self.random = vertex, tuple(nodes), dict(reads), random
        self.targets = frozenset(targets)
        self.widths = dict(widths)
        self.outputs = tuple(component.node for component in vertex.components)

    def forward(self, states: RandomStates, *parents: Value) -> Linearisation:
        """Evaluate f_i on the parents' values, given in the order of `reads`.

        Args:
            states: random states of earlier evaluations in this forward pass; a random node repeats its draw.

        Raises:
            ShapeError: a node cannot run on its inputs.
        """
        values: dict[str, Any] = {}
        leaves: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for (name, read), parent in zip(self.reads.items(), parents, strict=True):
            for index, node, tracked in read:
                part = parent[index]
                if isinstance(part, torch.Tensor):
                    part = part.detach()
                    if tracked and name in self.targets:
                        part.requires_grad_()
                        leaves.setdefault(name, []).append((index, part))
                values[node] = part
        with torch.set_grad_enabled(bool(leaves)):
            for node in self.fx_nodes:
                try:
                    values[node.name] = self._call(node, values, states)
                except (PCCompileError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    raise misfit(node, values, error, place(self.vertex)) from error
        return Linearisation(self.vertex, tuple(values[node] for node in self.outputs), leaves, self.widths)

    def _call(self, node: fx.Node, values: Mapping[str, Any], states: RandomStates) -> Any:
        if node.name not in self.random:
            return call_node(node, values)
        devices = sorted({v.device.index for v in values.values() if isinstance(v, torch.Tensor) and v.is_cuda})
        if node.name not in states:
            states[node.name] = torch.get_rng_state(), {d: torch.cuda.get_rng_state(d) for d in devices}
            return call_node(node, values)
        with torch.random.fork_rng(devices=devices):
            on_cpu, on_cuda = states[node.name]
            torch.set_rng_state(on_cpu)
            for device, state in on_cuda.items():
                torch.cuda.set_rng_state(state, device)
            return call_node(node, values)


def local_functions(program: Program, captured: Captured) -> dict[str, LocalFunction]:
    """The local function of every vertex that is predicted, by name."""
    by_name = {node.name: node for node in captured.graph.nodes}
    random = frozenset(name for name, fact in captured.facts.items() if fact.random)
    return {
        vertex.name: local_function(program, vertex, [by_name[node] for node in vertex.nodes], random)
        for vertex in program.vertices
        if (Action.PREDICT, vertex.name) in program.updates
    }


def local_function(
    program: Program, vertex: Vertex, nodes: Sequence[fx.Node], random: frozenset[str] = frozenset()
) -> LocalFunction:
    """The local function of a vertex of a program.

    Args:
        nodes: its FX nodes, in order.
        random: names of nodes that draw random numbers, its own among them.
    """
    reads: dict[str, list[tuple[int, str, bool]]] = {}
    widths: dict[str, int] = {}
    for parent in program.parents(vertex.name):
        read = program.graph.edges[parent.name, vertex.name]["reads"]
        reads[parent.name] = [
            (index, component.node, parent.clamped or component.free)
            for index, component in enumerate(parent.components)
            if component.node in read
        ]
        widths[parent.name] = len(parent.components)
    own = random & frozenset(vertex.nodes)
    return LocalFunction(vertex, nodes, reads, widths, program.pulls_back_to(vertex.name), own)
