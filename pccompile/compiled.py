"""One captured and compiled variant of a model, and its execution for one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
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

__all__ = ["Compiled", "Execution", "compile_captured"]


class Backend(Protocol):
    """What executes a program; see `EagerBackend`."""

    def feed_forward(self, run: Run, clamped: dict[str, Value]) -> State:
        """Predict every vertex once."""

    def infer(self, run: Run, state: State, outputs: dict[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run everything after the feed-forward pass."""


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
        """The leaf of each tensor whose gradient the program computes, by vertex name."""
        found = {node: self.vertex_of_leaf.get(node) for node in self.captured.leaves}
        return {vertex.name: node for node, vertex in found.items() if vertex is not None and vertex.requires_grad}

    @cached_property
    def changed_leaves(self) -> frozenset[str]:
        """The leaves that the forward changes."""
        homes = {effect.leaf.home for effect in self.captured.effects}
        return frozenset(node for node, leaf in self.captured.leaves.items() if leaf.home in homes)

    @cached_property
    def place_of_node(self) -> dict[str, tuple[str, int]]:
        """For each FX node whose value is kept: the vertex that it is a component of, and the component's position."""
        kept = results_of(self.program)
        vertices = [vertex for vertex in self.program.vertices if ("value", vertex.name) in kept]
        return {c.node: (vertex.name, position) for vertex in vertices for position, c in enumerate(vertex.components)}

    @cached_property
    def tracked_outputs(self) -> list[bool]:
        """For each output (or the loss alone) whether it is `tracked`."""
        captured = self.captured
        return [n in self.tracked for n in ([captured.loss] if captured.loss is not None else captured.outputs)]

    @cached_property
    def descends(self) -> bool:
        """Whether parameters take steps while values move."""
        return any(action is Action.DESCEND for action, _ in self.program.updates)

    @cached_property
    def output_vertices(self) -> list[Vertex]:
        """The output vertices, in feed-forward order."""
        return [vertex for vertex in self.program.vertices if vertex.kind is Kind.OUTPUT]

    def held_leaves(self, model: nn.Module, loss_fn: Callable[..., torch.Tensor] | None) -> dict[str, Any]:
        """The leaves that are no inputs: parameters, buffers and constants, by node."""
        leaves = self.captured.leaves
        return {n: leaf_value(leaf, model, loss_fn, []) for n, leaf in leaves.items() if leaf.kind is not Kind.INPUT}

    @cached_property
    def input_leaves(self) -> dict[str, int]:
        """The leaves that are inputs, with their positions among the flattened inputs."""
        return {node: leaf.index for node, leaf in self.captured.leaves.items() if leaf.kind is Kind.INPUT}

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
        observed: somebody reads the energy in every step.
        backend: one of `BACKENDS`.
        optimize: False runs the literal program (levelled, if the rule is) by the reference evaluator.
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


@dataclass(eq=False)
class Execution:
    """One batch through a compiled model: the feed-forward pass, then at most one inference at a time.

    Attributes:
        flat_inputs: the flattened arguments and targets.
        held: the leaves that are no inputs, if they are known.
    """

    compiled: Compiled
    run: Run
    model: nn.Module
    loss_fn: Callable[..., torch.Tensor] | None
    flat_inputs: list[Any]
    held: Mapping[str, Any] | None = None
    state: State | None = None
    leaves: dict[str, Any] = field(default_factory=dict, init=False)
    autocast: list[tuple[str, bool, torch.dtype]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        held = self.compiled.held_leaves(self.model, self.loss_fn) if self.held is None else self.held
        self.leaves = dict(held)
        for node, index in self.compiled.input_leaves.items():
            self.leaves[node] = self.flat_inputs[index]
        if torch._C._is_any_autocast_enabled():
            inside = self.compiled.captured.autocast
            self.autocast = [
                (d, inside, torch.get_autocast_dtype(d)) for d in _devices() if torch.is_autocast_enabled(d)
            ]

    @property
    def sources(self) -> dict[str, torch.Tensor]:
        """The live tensors whose gradient the program computes, by vertex name."""
        return {name: self.leaves[node] for name, node in self.compiled.sources.items()}

    def feed_forward(self) -> list[Any]:
        """Run the feed-forward pass, and what the forward does to buffers.

        Returns:
            The flattened outputs, or the loss alone if it is inside the program. What the program computed is
            detached; an input or parameter that the model returns as it is comes back as it is.
        """
        captured, changed = self.compiled.captured, self.compiled.changed_leaves
        clamped: dict[str, Value] = {
            vertex.name: (self.leaves[node].detach().clone() if node in changed else self.leaves[node],)
            for node, vertex in self.compiled.vertex_of_leaf.items()
        }
        with self._environment():
            self.state = self.compiled.backend.feed_forward(self.run, clamped)
            self.run.loss_scale = self._loss_scale()
            for effect in captured.effects:
                with torch.no_grad():
                    written = leaf_value(effect.leaf, self.model, self.loss_fn, self.flat_inputs)
                    written.copy_(self._computed(effect.node))
        if captured.loss is not None:
            return [self.value(captured.loss)]
        return [
            constant if node is None else self.value(node)
            for node, constant in zip(captured.outputs, captured.constants, strict=True)
        ]

    def value(self, node: str) -> Any:
        """The value of an FX node after the feed-forward pass; None if the program does not keep it."""
        return self.leaves[node] if node in self.leaves else self._computed(node)

    def _computed(self, node: str) -> Any:
        assert self.state is not None
        place = self.compiled.place_of_node.get(node)
        return None if place is None else self.state["value", place[0]][place[1]]

    def _loss_scale(self) -> float:
        """How many samples the loss is the mean of, where inference descends each sample's own energy."""
        if not self.run.rule.needs_loss:
            return 1.0
        per_sample = getattr(self.run.rule, "batch_energy", "") == "per_sample"
        if not per_sample or not self.compiled.captured.mean_loss or self.state is None:
            return 1.0
        return float(self.compiled.batch_size(self.state))

    @property
    def tracked(self) -> list[bool]:
        """Which of the outputs that `feed_forward` returns have a gradient that the program computes."""
        return self.compiled.tracked_outputs

    def infer(self, gradients: Sequence[torch.Tensor | None], keep: bool) -> dict[str, torch.Tensor]:
        """Run the error sweep.

        Args:
            gradients: the derivative of what is outside by each of the outputs that `feed_forward` returned.
            keep: another inference from the same state will follow.

        Returns:
            The gradient of every source that the errors reach, by vertex name.

        Raises:
            UsageError: the state of the feed-forward pass is gone.
        """
        if self.state is None:
            raise UsageError("backward a second time", cure="call the first backward with retain_graph=True")
        outputs = self._output_derivatives(gradients)
        with self._environment():
            found = self.compiled.backend.infer(self.run, self.state, outputs, keep)
        if not keep:
            self.state = None
        with torch.no_grad():
            result = {name: value[0] for name, value in found.items() if value[0] is not None}
            if not self.run.rule.exact:
                result |= self._unreached(result)
            return result

    def _unreached(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Zeros for what is learned but has no error yet: too few steps for the wavefront to arrive is no absence."""
        program = self.compiled.program
        return {
            name: torch.zeros_like(source)
            for name, source in self.sources.items()
            if name not in found
            and any((Action.LEARN, child.name) in program.updates for child in program.children(name))
        }

    def _output_derivatives(self, gradients: Sequence[torch.Tensor | None]) -> dict[str, Value]:
        """dF/dmu by vertex. Inference that is not linear in it follows the loss itself; Learn gets the factor."""
        loss = self.compiled.loss_vertex
        if loss is None:
            return self._external_derivatives(gradients)
        given = gradients[0]
        assert given is not None
        if not self.run.rule.needs_loss:
            return {loss.name: (given,)}
        if not self.compiled.descends:  # else the run divides what it hands to the optimizer
            self.run.learn_factor = given / -self.run.loss_scale
        return {loss.name: (torch.full_like(given, self.run.loss_scale),)}

    def _external_derivatives(self, gradients: Sequence[torch.Tensor | None]) -> dict[str, Value]:
        by_node: dict[str, torch.Tensor] = {}
        for name, gradient in zip(self.compiled.captured.outputs, gradients, strict=True):
            if name is not None and gradient is not None:
                by_node[name] = by_node[name] + gradient if name in by_node else gradient
        return {
            vertex.name: tuple(by_node.get(component.node) for component in vertex.components)
            for vertex in self.compiled.output_vertices
        }

    def _environment(self) -> AbstractContextManager[Any]:
        """The autocast state in which the nodes run: none for an exported graph, the caller's for a symbolic one."""
        if not self.autocast and not torch._C._is_any_autocast_enabled():
            return nullcontext()
        stack = ExitStack()
        wanted = {device: (enabled, dtype) for device, enabled, dtype in self.autocast}
        for device in _devices():
            enabled, dtype = wanted.get(device, (False, None))
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False))
        return stack


@cache
def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
