"""One captured and compiled variant of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from pccompile.backends import BACKENDS, LiteralBackend
from pccompile.backends.run import Run, State
from pccompile.build import build_graph
from pccompile.capture import Captured, leaf_value
from pccompile.derivatives import Value, local_functions
from pccompile.errors import UsageError
from pccompile.ir.grammar import Action, Kind, Program, Vertex
from pccompile.lowering import results_of
from pccompile.passes import run as run_passes
from pccompile.rules import Rule, literal_program

__all__ = ["Compiled", "Held", "compile_captured"]


class Backend(Protocol):
    """What executes a program; see `EagerBackend`."""

    def consumed(self, run: Run) -> frozenset[str]:
        """The clamped vertices that may be written into after the feed-forward pass."""

    def feed_forward(self, run: Run, clamped: dict[str, Value]) -> State:
        """Predict every vertex once."""

    def infer(self, run: Run, state: State, outputs: dict[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run everything after the feed-forward pass."""


@dataclass(frozen=True)
class Held:
    """The leaves of a captured model that are no inputs: parameters, buffers and constants.

    Attributes:
        leaves: by node.
        clamped: the values of the vertices among them, but for those that the forward changes.
        sources: those whose gradient the program computes, by vertex name.
    """

    leaves: dict[str, Any]
    clamped: dict[str, Value]
    sources: dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A captured model with its program and the back end that runs it."""

    captured: Captured
    program: Program
    backend: Backend

    @cached_property
    def loss_vertex(self) -> Vertex | None:
        """The loss vertex if the loss is inside the program."""
        return next((vertex for vertex in self.program.vertices if vertex.kind is Kind.LOSS and vertex.nodes), None)

    @cached_property
    def tracked(self) -> frozenset[str]:
        """The nodes of the outputs (or the loss) through which a gradient reaches something that wants it."""
        reaches: set[str] = set()
        found: set[str] = set()
        for vertex in self.program.vertices:
            if vertex.requires_grad or any(parent.name in reaches for parent in self.program.parents(vertex.name)):
                reaches.add(vertex.name)
            if vertex.name in reaches and vertex.follows:
                found |= {component.node for component in vertex.components if component.free}
        return frozenset(found)

    @cached_property
    def vertex_of_leaf(self) -> dict[str, Vertex]:
        """The clamped vertex of each placeholder or get_attr node."""
        return {v.components[0].node: v for v in self.program.vertices if v.clamped and not v.nodes}

    @cached_property
    def sources(self) -> dict[str, str]:
        """The leaf of each tensor whose gradient the program computes, by vertex name; inputs come last."""
        nodes = sorted(self.captured.leaves, key=lambda node: self.captured.leaves[node].kind is Kind.INPUT)
        found = {node: self.vertex_of_leaf.get(node) for node in nodes}
        return {vertex.name: node for node, vertex in found.items() if vertex is not None and vertex.requires_grad}

    @cached_property
    def learned_inputs(self) -> list[tuple[str, int]]:
        """The inputs among the sources: their vertices, and their places among the inputs."""
        leaves = [(vertex, self.captured.leaves[node]) for vertex, node in self.sources.items()]
        return [(vertex, leaf.index) for vertex, leaf in leaves if leaf.kind is Kind.INPUT]

    @cached_property
    def changed_leaves(self) -> frozenset[str]:
        """The leaves that the forward changes."""
        homes = {effect.leaf.home for effect in self.captured.effects}
        return frozenset(node for node, leaf in self.captured.leaves.items() if leaf.home in homes)

    @cached_property
    def place_of_node(self) -> dict[str, tuple[str, int]]:
        """For each FX node whose value is kept: the vertex that it is a component of, and the component's position."""
        kept = results_of(self.program)
        return {
            component.node: (vertex.name, position)
            for vertex in self.program.vertices
            if ("value", vertex.name) in kept
            for position, component in enumerate(vertex.components)
            if vertex.follows or not component.free
        }

    @cached_property
    def tracked_outputs(self) -> list[bool]:
        """For each output (or the loss alone) whether it is `tracked`."""
        captured = self.captured
        return [n in self.tracked for n in ([captured.loss] if captured.loss is not None else captured.outputs)]

    @cached_property
    def learned_vertices(self) -> frozenset[str]:
        """The clamped vertices of which a child learns."""
        program = self.program
        learns = {name for action, name in program.updates if action is Action.LEARN}
        return frozenset(
            v.name for v in program.vertices if v.clamped and any(c.name in learns for c in program.children(v.name))
        )

    @cached_property
    def descends(self) -> bool:
        """Whether parameters take steps while values move."""
        return any(action is Action.DESCEND for action, _ in self.program.updates)

    @cached_property
    def output_vertices(self) -> list[Vertex]:
        """The output vertices, in feed-forward order."""
        return [vertex for vertex in self.program.vertices if vertex.kind is Kind.OUTPUT]

    def hold(self, model: nn.Module, loss_fn: Callable[..., torch.Tensor] | None) -> Held:
        """The parameters, buffers and constants as they are now."""
        leaves = self.captured.leaves
        found = {n: leaf_value(leaf, model, loss_fn, []) for n, leaf in leaves.items() if leaf.kind is not Kind.INPUT}
        same = [(v.name, n) for n, v in self.vertex_of_leaf.items() if n in found and n not in self.changed_leaves]
        sources = {vertex: found[node] for vertex, node in self.sources.items() if node in found}
        return Held(found, {vertex: (found[node],) for vertex, node in same}, sources)

    @cached_property
    def inputs(self) -> list[tuple[str, int]]:
        """The clamped vertices of inputs that the forward leaves as they are, with their places among the inputs."""
        leaves, changed = self.captured.leaves, self.changed_leaves
        found = [(v.name, leaves[n]) for n, v in self.vertex_of_leaf.items() if n not in changed]
        return [(vertex, leaf.index) for vertex, leaf in found if leaf.kind is Kind.INPUT]

    @cached_property
    def changed(self) -> list[tuple[str, str]]:
        """The clamped vertices of what the forward changes, with their nodes."""
        return [(vertex.name, n) for n, vertex in self.vertex_of_leaf.items() if n in self.changed_leaves]

    @cached_property
    def learns(self) -> bool:
        """Whether an output (or the loss) has a gradient that the program computes."""
        return any(self.tracked_outputs)

    def batch_size(self, state: State) -> int:
        """The first dimension of the first output vertex that has one; 1 if none has."""
        for vertex in self.output_vertices:
            if state["value", vertex.name][0].dim():
                return int(state["value", vertex.name][0].shape[0])
        return 1


def compile_captured(
    captured: Captured,
    rule: Rule,
    vertices: str | Sequence[str],
    wanted: Sequence[str],
    optimize: bool,
    observed: bool = False,
    backend: str = "eager",
) -> Compiled:
    """Captured model -> graph -> literal program -> passes -> back end.

    Args:
        vertices: "auto" (every node for an exact rule, layers for the others), "nodes", "layers" or module paths.
        wanted: placeholder nodes whose gradient somebody wants.
        optimize: False runs the literal program (levelled, if the rule is) by the reference evaluator.
        observed: somebody reads the energy in every step.
        backend: one of `BACKENDS`.

    Raises:
        UsageError: the rule evaluates the loss and the model has none, or `vertices` names something that is not there.
        NoDerivativeError, ProgramError, CycleError, ShapeError: see `build_graph` and `passes.run`.
    """
    if vertices == "auto":
        vertices = "nodes" if rule.exact else "layers"
    if rule.needs_loss and captured.loss is None:
        captured = replace(captured, loss=_own_loss(captured))
    program = literal_program(rule, build_graph(captured, vertices, rule.exact, wanted), observed)
    passes = rule.passes if optimize else [name for name in rule.passes if name == "level"]
    program = run_passes(program, passes)
    functions = local_functions(program, captured)
    execute = BACKENDS[backend] if optimize else LiteralBackend
    return Compiled(captured, program, execute(program, functions))


def _own_loss(captured: Captured) -> str:
    """The output of a model that computes its loss itself: its only scalar, differentiable output."""
    scalars = [
        name
        for name in captured.outputs
        if name is not None and captured.facts[name].shape == () and captured.facts[name].differentiable
    ]
    if len(set(scalars)) != 1:
        raise UsageError(
            "this rule evaluates the loss in every step of inference, and the model has no loss of its own",
            cure="give loss_fn to pccompile.compile and train with pc.loss(x, y); predict under torch.no_grad(); "
            "or use ZIL or FixedPrediction, which take the loss from outside",
        )
    return scalars[0]
