"""One captured and compiled variant of a model, and its execution for one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pccompile.backends import BACKENDS, LiteralBackend
from pccompile.backends.run import Run, State
from pccompile.build import build_graph
from pccompile.capture import Captured, leaf_value
from pccompile.derivatives import Value, local_functions
from pccompile.errors import UsageError
from pccompile.ir.grammar import Action, Kind, Program, Vertex
from pccompile.passes import run as run_passes
from pccompile.rules import Rule, literal_program

__all__ = ["Compiled", "Execution", "compile_captured", "flatten"]


class Backend(Protocol):
    """What executes a program; see `EagerBackend`."""

    def feed_forward(self, run: Run, clamped: dict[str, Value]) -> State:
        """Predict every vertex once."""

    def infer(self, run: Run, state: State, outputs: dict[str, Value], keep: bool = False) -> dict[str, Value]:
        """Run everything after the feed-forward pass."""


@dataclass(frozen=True)
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
    def source_of_leaf(self) -> dict[str, str]:
        """The name of the vertex of each leaf whose gradient the program computes, by node."""
        found = {node: self.vertex_of_leaf.get(node) for node in self.captured.leaves}
        return {node: vertex.name for node, vertex in found.items() if vertex is not None and vertex.requires_grad}

    @cached_property
    def changed_leaves(self) -> frozenset[str]:
        """The leaves that the forward changes."""
        homes = {effect.leaf.home for effect in self.captured.effects}
        return frozenset(node for node, leaf in self.captured.leaves.items() if leaf.home in homes)

    @cached_property
    def nodes_of_vertex(self) -> dict[str, tuple[str, ...]]:
        """The FX node of each component, by vertex."""
        return {v.name: tuple(component.node for component in v.components) for v in self.program.vertices}

    @cached_property
    def tracked_outputs(self) -> list[bool]:
        """For each output (or the loss alone) whether it is `tracked`."""
        captured = self.captured
        return [n in self.tracked for n in ([captured.loss] if captured.loss is not None else captured.outputs)]

    def batch_size(self, state: State) -> int:
        """The first dimension of the first output vertex that has one; 1 if none has."""
        for vertex in self.program.vertices:
            if vertex.kind is Kind.OUTPUT and state["value", vertex.name][0].dim():
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


@dataclass
class Execution:
    """One batch through a compiled model: the feed-forward pass, then at most one inference at a time."""

    compiled: Compiled
    run: Run
    model: nn.Module
    loss_fn: Callable[..., torch.Tensor] | None
    flat_inputs: list[Any]
    state: State | None = None
    leaves: dict[str, Any] = field(default_factory=dict, init=False)
    autocast: list[tuple[str, bool, torch.dtype]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        captured = self.compiled.captured
        self.leaves = {
            node: leaf_value(leaf, self.model, self.loss_fn, self.flat_inputs) for node, leaf in captured.leaves.items()
        }
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        ambient = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
        self.autocast = [(d, enabled and captured.autocast, dtype) for d, enabled, dtype in ambient]

    @cached_property
    def sources(self) -> dict[str, torch.Tensor]:
        """The live tensors whose gradient the program computes, by vertex name."""
        return {name: self.leaves[node] for node, name in self.compiled.source_of_leaf.items()}

    def feed_forward(self) -> list[Any]:
        """Run the feed-forward pass, and what the forward does to buffers.

        Returns:
            The flattened outputs, or the loss alone if it is inside the program. What the program computed is
            detached; an input or parameter that the model returns as it is comes back as it is.
        """
        captured, changed = self.compiled.captured, self.compiled.changed_leaves
        clamped: dict[str, Value] = {}
        for node, vertex in self.compiled.vertex_of_leaf.items():
            value = self.leaves[node]
            if isinstance(value, torch.Tensor):
                value = value.detach().clone() if node in changed else value.detach()
            clamped[vertex.name] = (value,)
        with self._environment():
            self.state = self.compiled.backend.feed_forward(self.run, clamped)
            self.run.loss_scale = self._loss_scale()
            values = self.values()
            for effect in captured.effects:
                leaf_value(effect.leaf, self.model, self.loss_fn, self.flat_inputs).copy_(values[effect.node])
            values |= self.leaves
        if captured.loss is not None:
            return [values[captured.loss]]
        return [constant if name is None else values[name] for name, constant in self._named_outputs()]

    def _loss_scale(self) -> float:
        """How many samples the loss is the mean of, where inference descends each sample's own energy."""
        per_sample = self.run.rule.needs_loss and getattr(self.run.rule, "batch_energy", "") == "per_sample"
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
        outer, outputs = self._output_derivatives(gradients)
        with torch.no_grad(), self._environment():
            found = self.compiled.backend.infer(self.run, self.state, outputs, keep)
            if not keep:
                self.state = None
            result = {name: value[0] for name, value in found.items() if value[0] is not None}
            if not self.run.rule.exact:
                result |= self._unreached(result)
            return result if outer is None else {name: outer * gradient for name, gradient in result.items()}

    def _unreached(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Zeros for what is learned but has no error yet: too few steps for the wavefront to arrive is no absence."""
        program = self.compiled.program
        return {
            name: torch.zeros_like(source)
            for name, source in self.sources.items()
            if name not in found
            and any((Action.LEARN, child.name) in program.updates for child in program.children(name))
        }

    def _output_derivatives(
        self, gradients: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor | None, dict[str, Value]]:
        """dF/dmu by vertex, and the factor left for the end where inference is not linear in it."""
        loss = self.compiled.loss_vertex
        if loss is None:
            return None, self._external_derivatives(gradients)
        given = gradients[0]
        assert given is not None
        if not self.run.rule.needs_loss:
            return None, {loss.name: (given,)}
        return given / self.run.loss_scale, {loss.name: (torch.full_like(given, self.run.loss_scale),)}

    def _external_derivatives(self, gradients: Sequence[torch.Tensor | None]) -> dict[str, Value]:
        by_node: dict[str, torch.Tensor] = {}
        for (name, _), gradient in zip(self._named_outputs(), gradients, strict=True):
            if name is not None and gradient is not None:
                by_node[name] = by_node[name] + gradient if name in by_node else gradient
        return {
            vertex.name: tuple(by_node.get(component.node) for component in vertex.components)
            for vertex in self.compiled.program.vertices
            if vertex.kind is Kind.OUTPUT
        }

    def _named_outputs(self) -> list[tuple[str | None, Any]]:
        return list(zip(self.compiled.captured.outputs, self.compiled.captured.constants, strict=True))

    def values(self) -> dict[str, Any]:
        """Values after the feed-forward pass by FX node, as far as the program keeps them."""
        values: dict[str, Any] = {}
        state = self.state or {}
        for name, nodes in self.compiled.nodes_of_vertex.items():
            parts = state.get(("value", name))
            if parts is not None:
                values.update(zip(nodes, parts, strict=False))
        return values

    def _environment(self) -> AbstractContextManager[Any]:
        """The autocast state in which the nodes run: none for an exported graph, the caller's for a symbolic one."""
        if not any(torch.is_autocast_enabled(device) or enabled for device, enabled, _ in self.autocast):
            return nullcontext()
        stack = ExitStack()
        for device, enabled, dtype in self.autocast:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False))
        return stack


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any], targets: tuple[Any, ...]) -> list[Any]:
    """The flattened inputs that a capture's leaves index."""
    leaves: list[Any] = pytree.tree_leaves((args, kwargs, targets))
    return leaves
