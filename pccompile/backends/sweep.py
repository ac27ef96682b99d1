"""A chain's strict inference by the kernel that runs all its steps in one launch, on the tensors of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pccompile.backends.chain import LinearChain
from pccompile.backends.choice import objection_to
from pccompile.backends.report import Row
from pccompile.backends.run import Run, State, first_non_finite, value_optimizer
from pccompile.derivatives import Value
from pccompile.ir.grammar import Program
from pccompile.kernels.devices import architecture_of, interpreted, precision_of, product_precision
from pccompile.kernels.strict_sweep.choice import likely_form
from pccompile.kernels.strict_sweep.configurations import configuration_for
from pccompile.kernels.strict_sweep.launch import (
    FORMS,
    Buffers,
    Form,
    Settings,
    empty_buffers,
    launch_chain_gradients,
    launch_strict_sweep,
)
from pccompile.kernels.strict_sweep.layout import Chain, Layout
from pccompile.nodes import call_node

__all__ = ["ChainSweep", "Values"]

Values = Mapping[str, Value]


class ChainSweep:
    """Runs the inference of a program that is a chain. Every method takes what `values` has gathered.

    Args:
        program: the program.
        chain: what it is.
    """

    def __init__(self, program: Program, chain: LinearChain) -> None:
        self.program, self.chain = program, chain
        self.learned = {vertex.name for vertex in program.vertices if vertex.clamped and vertex.requires_grad}
        leaves = [name for layer in chain.layers for name in (layer.weight, layer.bias) if name is not None]
        self.leaves = tuple(dict.fromkeys(leaves))
        self._read = (*self.leaves, chain.loss.target, *(vertex for _, vertex, _ in chain.input.reads))

    def values(self, state: State, clamped: Mapping[str, Value]) -> Values:
        """What a sweep reads, by vertex.

        Args:
            state: after the feed-forward pass.
            clamped: the values of the clamped leaves.
        """
        return {name: clamped[name] if name in clamped else state["value", name] for name in self._read}

    def objection(self, run: Run, values: Values) -> str:
        """Why this run's inference has no kernel; "" if it has."""
        optimizer = value_optimizer(run.rule)
        if optimizer.kind == "adam":
            return "the values' optimizer is adam"
        if getattr(run.rule, "tolerance", 0.0) > 0:
            return "inference may stop early"
        x, target = self._x(values), self._target(values)
        parameters = [values[name][0] for name in self.leaves]
        odd = next((t for t in (x, target, *parameters) if type(t) not in (Tensor, torch.nn.Parameter)), None)
        if odd is not None:
            return f"a tensor is a {type(odd).__name__}"
        if x.dim() != 2 or x.shape[0] == 0:
            return f"the input is {list(x.shape)}"
        outputs = x.shape[0], values[self.chain.layers[-1].weight][0].shape[0]
        squared = self.chain.loss.kind == "squared_error"
        expected = outputs if squared else outputs[:1]
        if target.shape != expected:
            return f"the target is {list(target.shape)} where the output is {list(outputs)}"
        if target.device != x.device:
            return f"the target is on {target.device}"
        kinds = [x, *parameters, *([target] if squared else [])]
        return objection_to(kinds, kinds)

    def forms(self) -> list[Form]:
        """The forms of launch that can run."""
        return [form for form in FORMS if form != "cooperative" or not interpreted()]

    def likely_form(self, values: Values) -> Form:
        """The form with the least to do, by counting."""
        x = self._x(values)
        architecture = architecture_of(x.device)
        configuration = configuration_for(architecture, precision_of(x.dtype, product_precision()), x.shape[0])
        shapes = [tuple(values[layer.weight][0].shape) for layer in self.chain.layers]
        return likely_form(architecture, configuration, x.shape[0], shapes)  # type: ignore[arg-type]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def run(self, run: Run, values: Values, form: Form) -> dict[str, Value]:
        """Infer for all steps; returns dF/dtheta by clamped vertex.

        Raises:
            NonFiniteError: inference ended with an error that is not finite.
        """
        x, kernel_chain = self._x(values), self._kernel_chain(values)
        settings = self._settings(run, x, kernel_chain)
        layout = Layout.of([weight.shape for weight in kernel_chain.weights], settings.free_output)
        buffers = empty_buffers(x, layout.columns, settings)
        launch_strict_sweep(x, self._target(values), kernel_chain, settings, buffers, form)
        gradients = self._gradients(run, x, kernel_chain, layout, buffers, settings.input_precision)
        if run.records:
            run.energies.extend(buffers.energies.sum(1).tolist())
        if not math.isfinite(float(torch.linalg.vector_norm(buffers.errors))):
            raise first_non_finite(self.program, self._quantities(layout, buffers, kernel_chain.widths))
        return gradients

    def rows(self, run: Run, values: Values, form: Form, reason: str) -> list[Row]:
        """What the report says of it: of all steps together."""
        x, kernel_chain = self._x(values), self._kernel_chain(values)
        settings = self._settings(run, x, kernel_chain)
        layout = Layout.of([weight.shape for weight in kernel_chain.weights], settings.free_output)
        names = tuple(layer.name for layer in self.chain.layers)
        buffer = x.shape[0] * layout.columns * torch.float32.itemsize
        tensors = [x, *kernel_chain.weights, *(bias for bias in kernel_chain.biases if bias is not None)]
        read = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        target = self._target(values)
        swept = read + target.numel() * target.element_size() + (3 + (settings.momentum != 0)) * buffer
        learned = x.numel() * x.element_size() + 2 * buffer + layout.gradients * x.element_size()
        products = [2 * x.shape[0] * weight.numel() for weight in kernel_chain.weights]
        inference = sum(products) + _operations(products, settings)
        launches = _launches(len(names), settings, form)
        whole = "all steps"
        return [
            Row((*names, "loss"), "strict_sweep", reason, launches, swept, inference, whole),
            Row(names, "chain_gradients", "follows the sweep", 1, learned, sum(products), whole),
        ]

    def _x(self, values: Values) -> Any:
        given = self.chain.input
        parts = {node: values[vertex][index] for node, vertex, index in given.reads}
        for node in given.before:
            parts[node.name] = call_node(node, parts)
        return parts[given.node].detach()

    def _target(self, values: Values) -> Any:
        return values[self.chain.loss.target][0]

    def _kernel_chain(self, values: Values) -> Chain:
        layers = self.chain.layers
        return Chain(
            tuple(values[layer.weight][0].detach() for layer in layers),
            tuple(None if layer.bias is None else values[layer.bias][0].detach() for layer in layers),
            tuple(layer.activation.name for layer in layers),
        )

    def _settings(self, run: Run, x: Tensor, kernel_chain: Chain) -> Settings:
        loss, optimizer = self.chain.loss, value_optimizer(run.rule)
        factor = run.loss_scale * loss.factor
        if loss.kind == "squared_error" and loss.mean:
            factor /= x.shape[0] * kernel_chain.widths[-1]
        return Settings(
            loss.kind,
            self.chain.free_output,
            run.rule.learn_errors,  # type: ignore[union-attr]
            run.records,
            run.rule.steps,
            run.rule.step_size,
            optimizer.momentum if optimizer.kind == "momentum" else 0.0,
            factor,
            loss.ignore_index,
            self.chain.negative_slope,
            product_precision(),
            averaged=loss.kind == "cross_entropy" and loss.mean,
        )

    def _gradients(
        self, run: Run, x: Tensor, kernel_chain: Chain, layout: Layout, buffers: Buffers, input_precision: str
    ) -> dict[str, Value]:
        """Of all layers in one launch; those of a parameter's uses are added, the last layer's first."""
        flat = x.new_empty(layout.gradients)
        upstream = run.learn_factor.float() if isinstance(run.learn_factor, Tensor) else None
        factor = 1.0 if upstream is not None else float(run.learn_factor)
        launch_chain_gradients(x, buffers.values, buffers.drives, kernel_chain, flat, factor, upstream, input_precision)
        found: dict[str, Tensor] = {}
        for index, layer in reversed(list(enumerate(self.chain.layers))):
            weight, vector = kernel_chain.weights[index], layout.bias_gradients[index]
            parts = {layer.weight: flat.narrow(0, layout.weight_gradients[index], weight.numel()).view(weight.shape)}
            if layer.bias is not None:
                parts[layer.bias] = flat.narrow(0, vector, weight.shape[0])
            for name in self.learned.intersection(parts):
                found[name] = found[name] + parts[name] if name in found else parts[name]
        return {name: (gradient,) for name, gradient in found.items()}

    def _quantities(self, layout: Layout, buffers: Buffers, widths: Sequence[int]) -> State:
        """Values and errors by vertex."""
        found: State = {}
        for layer, start, width in zip(self.chain.layers, layout.starts, widths, strict=False):
            found["value", layer.name] = (buffers.values.narrow(1, start, width),)
            found["error", layer.name] = (buffers.errors.narrow(1, start, width),)
        return found


def _launches(layers: int, settings: Settings, form: Form) -> int:
    if form != "half_steps":
        return 1
    ends = 2 if settings.learn_errors == "current" else 1
    launches: int = layers + 3 * settings.steps + ends
    return launches


def _operations(products: list[int], settings: Settings) -> int:
    """Of the products in all steps: those of a layer, forward and back, once the loss has reached it."""
    steps: int = settings.steps
    total = 0
    for above, product in enumerate(reversed(products[1:]), start=int(settings.free_output)):
        total += product * (max(steps - max(above, 1) + 1, 0) + max(steps - above, 0))
    return total
