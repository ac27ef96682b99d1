"""One batch through a compiled model, and what links it to autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import Any

import torch
from torch import nn
from torch.autograd.function import Function, FunctionCtx

from pccompile.backends.cudagraph import copy_together
from pccompile.backends.run import Run, State
from pccompile.capture import leaf_value
from pccompile.compiled import Compiled, Held
from pccompile.derivatives import Value
from pccompile.errors import DoubleBackwardError, UsageError

__all__ = ["Execution", "linked", "second_backward", "without_autocast"]


@dataclass(eq=False)
class Execution:
    """One batch through a compiled model: the feed-forward pass, then at most one inference at a time.

    Attributes:
        flat_inputs: the flattened arguments and targets.
        held: the leaves that are no inputs.
        state: what the feed-forward pass left; None before it, and when no inference from it will follow.
        autocast: the devices whose autocast the nodes run under: whether it is enabled for them, and its dtype.
    """

    compiled: Compiled
    run: Run
    model: nn.Module
    loss_fn: Callable[..., torch.Tensor] | None
    flat_inputs: list[Any]
    held: Held
    state: State | None = None
    autocast: tuple[tuple[str, bool, torch.dtype], ...] = ()

    @property
    def sources(self) -> dict[str, torch.Tensor]:
        """The live tensors whose gradient the program computes, by vertex name, in the order of `Compiled.sources`."""
        found = self.held.sources
        inputs = self.compiled.learned_inputs
        return {**found, **{vertex: self.flat_inputs[index] for vertex, index in inputs}} if inputs else found

    def _leaf(self, node: str) -> Any:
        held = self.held.leaves
        return held[node] if node in held else self.flat_inputs[self.compiled.captured.leaves[node].index]

    def feed_forward(self) -> list[Any]:
        """Run the feed-forward pass, and what the forward does to buffers.

        Returns:
            The flattened outputs, or the loss alone if it is inside the program. What the program computed is
            detached; an input or parameter that the model returns as it is comes back as it is.
        """
        if not torch._C._is_any_autocast_enabled():
            return self._feed_forward()
        inside = self.compiled.captured.autocast
        enabled = [device for device in _devices() if torch.is_autocast_enabled(device)]
        self.autocast = tuple([(device, inside, torch.get_autocast_dtype(device)) for device in enabled])
        with self._environment():
            return self._feed_forward()

    def _feed_forward(self) -> list[Any]:
        compiled, captured, run = self.compiled, self.compiled.captured, self.run
        clamped = dict(self.held.clamped)
        for vertex, index in compiled.inputs:
            clamped[vertex] = (self.flat_inputs[index],)
        if compiled.changed:
            consumed = compiled.backend.consumed(run)
            for vertex, node in compiled.changed:
                value = self._leaf(node).detach()
                clamped[vertex] = (value if vertex in consumed else value.clone(),)
        self.state = compiled.backend.feed_forward(run, clamped)
        if run.rule.needs_loss:
            run.loss_scale = self._loss_scale()
        if captured.effects:
            written = [leaf_value(e.leaf, self.model, self.loss_fn, self.flat_inputs) for e in captured.effects]
            with torch.no_grad():
                copy_together(written, [self._computed(effect.node) for effect in captured.effects])
        if captured.loss is not None:
            return [self._computed(captured.loss)]
        return [
            constant if node is None else self.value(node)
            for node, constant in zip(captured.outputs, captured.constants, strict=True)
        ]

    def value(self, node: str) -> Any:
        """The value of an FX node after the feed-forward pass; None if the program does not keep it."""
        return self._leaf(node) if node in self.compiled.captured.leaves else self._computed(node)

    def _computed(self, node: str) -> Any:
        assert self.state is not None
        place = self.compiled.place_of_node.get(node)
        return None if place is None else self.state["value", place[0]][place[1]]

    def _loss_scale(self) -> float:
        """How many samples the loss is the mean of, where inference descends each sample's own energy."""
        per_sample = getattr(self.run.rule, "batch_energy", "") == "per_sample"
        if not per_sample or not self.compiled.captured.mean_loss or self.state is None:
            return 1.0
        return float(self.compiled.batch_size(self.state))

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
            raise second_backward()
        outputs = self._output_derivatives(gradients)
        matters = self.autocast or torch._C._is_any_autocast_enabled()
        with self._environment() if matters else nullcontext():
            found = self.compiled.backend.infer(self.run, self.state, outputs, keep)
        if not keep:
            self.state = None
        result = {name: value[0] for name, value in found.items() if value[0] is not None}
        return result if self.run.rule.exact else result | self._unreached(result)

    def _unreached(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Zeros for what is learned but has no error yet: too few steps for the wavefront to arrive is no absence."""
        return {
            name: torch.zeros_like(source)
            for name, source in self.sources.items()
            if name not in found and name in self.compiled.learned_vertices
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
        return without_autocast({device: (enabled, dtype) for device, enabled, dtype in self.autocast})


def linked(execution: Execution, done: Callable[[Execution], None]) -> list[Any]:
    """The outputs of the feed-forward pass; a backward pass through them is the error sweep.

    Args:
        execution: of which nothing has run yet.
        done: called with it after the error sweep.
    """
    outputs = execution.feed_forward()
    compiled = execution.compiled
    if not compiled.learns:
        return outputs
    wrapped = torch._C._are_functorch_transforms_active()  # else nothing is to be unwrapped, tensor by tensor
    apply = _Sweep.apply if wrapped else super(Function, _Sweep).apply
    found = apply(execution, outputs, done, *execution.sources.values())
    return _placed(found, compiled.tracked_outputs, outputs)


def _placed(found: Sequence[Any], places: Sequence[bool], others: Sequence[Any]) -> list[Any]:
    """What was found, one for each place that is marked; the others elsewhere."""
    if len(found) == len(places):
        return list(found)
    rest = iter(found)
    return [next(rest) if marked else other for marked, other in zip(places, others, strict=True)]


class _Sweep(Function):
    """Links a program to autograd: forward hands on the outputs of the feed-forward pass, backward is the error sweep.

    It takes the real parameters, so that gradients reach p.grad the way autograd's do: scaled, averaged, hooked.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, execution: Execution, outputs: list[Any], done: Callable[[Execution], None], *sources: Any
    ) -> Any:
        ctx.execution, ctx.done = execution, done  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)  # an output that nobody read has no gradient, rather than a gradient of zero
        tracked = compress(outputs, execution.compiled.tracked_outputs)
        # an alias, for autograd hangs this node, and with it the execution, on what is returned: a cycle never freed
        return tuple([value if value.requires_grad else value.detach() for value in tracked])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor | None) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise DoubleBackwardError("backward was called with create_graph=True")
        execution: Execution = ctx.execution  # type: ignore[attr-defined]
        tracked = execution.compiled.tracked_outputs
        by_output = _placed(gradients, tracked, [None] * len(tracked))
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        found = execution.infer(by_output, keep)
        ctx.done(execution)  # type: ignore[attr-defined]
        return None, None, None, *map(found.get, execution.compiled.sources)


def second_backward() -> UsageError:
    """What is raised where a state that the first backward pass let go of is asked for again."""
    return UsageError("backward a second time", cure="call the first backward with retain_graph=True")


def without_autocast(but: Mapping[str, tuple[bool, torch.dtype]] | None = None) -> AbstractContextManager[Any]:
    """A context in which no device has autocast, but for these, with what is wanted of them."""
    stack = ExitStack()
    for device in _devices():
        enabled, dtype = (but or {}).get(device, (False, None))
        stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False))
    return stack


@cache
def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
