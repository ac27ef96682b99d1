"""A chain's strict inference by the kernel that runs all its steps in one launch, on the tensors of a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.backends.chain import LayerChain
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

__all__ = ["ChainSweep", "Sweep", "Swept", "Values", "learn_factor_of", "operations_of"]

Values = Mapping[str, Value]


class Swept(NamedTuple):
    """What a sweep has left.

    Attributes:
        buffers: what it wrote.
        columns: of each layer in the buffers of values and errors: the first one, and how many.
        gradients: of each layer's weight and bias.
    """

    buffers: Buffers
    columns: Sequence[tuple[int, int]]
    gradients: Sequence[tuple[Tensor, Tensor]]


class Sweep(ABC):
    """Runs the inference of a program that is a chain. Every method takes what `values` has gathered.

    Args:
        program: the program.
        chain: what it is.

    Attributes:
        kernels: the names of the kernel of all steps, and of that of all gradients.
    """

    kernels: tuple[str, str]

    def __init__(self, program: Program, chain: LayerChain) -> None:
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
        if x.dim() != (2 if self.chain.layers[0].convolution is None else 4) or x.shape[0] == 0:
            return f"the input is {list(x.shape)}"
        outputs = x.shape[0], self._outputs(x, values)
        squared = self.chain.loss.kind == "squared_error"
        expected = outputs if squared else outputs[:1]
        if target.shape != expected:
            return f"the target is {list(target.shape)} where the output is {list(outputs)}"
        if target.device != x.device:
            return f"the target is on {target.device}"
        kinds = [x, *parameters, *([target] if squared else [])]
        return objection_to(kinds, kinds)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def run(self, run: Run, values: Values, form: Form) -> dict[str, Value]:
        """Infer for all steps; returns dF/dtheta by clamped vertex.

        Raises:
            NonFiniteError: inference ended with an error that is not finite.
        """
        swept = self._swept(run, self._x(values), values, form)
        gradients = self._gradients(swept)
        if run.records:
            run.energies.extend(swept.buffers.energies.sum(1).tolist())
        if not math.isfinite(float(torch.linalg.vector_norm(swept.buffers.errors))):
            raise first_non_finite(self.program, self._quantities(swept))
        return gradients

    @abstractmethod
    def forms(self) -> list[Form]:
        """The forms of launch that can run."""

    @abstractmethod
    def likely_form(self, values: Values) -> Form:
        """The form with the least to do, by counting."""

    @abstractmethod
    def rows(self, run: Run, values: Values, form: Form, reason: str) -> list[Row]:
        """What the report says of it: of all steps together."""

    @abstractmethod
    def _outputs(self, x: Tensor, values: Values) -> int:
        """Columns of the last layer's value."""

    @abstractmethod
    def _swept(self, run: Run, x: Tensor, values: Values, form: Form) -> Swept:
        """Launch the sweep, and the kernel of the gradients."""

    def _x(self, values: Values) -> Any:
        given = self.chain.input
        parts = {node: values[vertex][index] for node, vertex, index in given.reads}
        for node in given.before:
            parts[node.name] = call_node(node, parts)
        return parts[given.node].detach()

    def _target(self, values: Values) -> Any:
        return values[self.chain.loss.target][0]

    def _settings(self, run: Run, x: Tensor, outputs: int) -> Settings:
        loss, optimizer = self.chain.loss, value_optimizer(run.rule)
        factor = run.loss_scale * loss.factor
        if loss.kind == "squared_error" and loss.mean:
            factor /= x.shape[0] * outputs
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

    def _gradients(self, swept: Swept) -> dict[str, Value]:
        """By vertex; those of a parameter's uses are added, the last layer's first."""
        found: dict[str, Tensor] = {}
        for layer, (weight, bias) in reversed(list(zip(self.chain.layers, swept.gradients, strict=True))):
            parts = {layer.weight: weight} | ({} if layer.bias is None else {layer.bias: bias})
            for name in self.learned.intersection(parts):
                found[name] = found[name] + parts[name] if name in found else parts[name]
        return {name: (gradient,) for name, gradient in found.items()}

    def _quantities(self, swept: Swept) -> State:
        """Values and errors by vertex."""
        found: State = {}
        for layer, columns in zip(self.chain.layers, swept.columns, strict=True):
            found["value", layer.name] = (swept.buffers.values.narrow(1, *columns),)
            found["error", layer.name] = (swept.buffers.errors.narrow(1, *columns),)
        return found


class ChainSweep(Sweep):
    """Of a chain of linear layers; see `Sweep`."""

    kernels = ("strict_sweep", "chain_gradients")

    def forms(self) -> list[Form]:
        """See `Sweep.forms`."""
        return [form for form in FORMS if form != "cooperative" or not interpreted()]

    def likely_form(self, values: Values) -> Form:
        """See `Sweep.likely_form`."""
        x = self._x(values)
        architecture = architecture_of(x.device)
        configuration = configuration_for(architecture, precision_of(x.dtype, product_precision()), x.shape[0])
        shapes = [tuple(values[layer.weight][0].shape) for layer in self.chain.layers]
        return likely_form(architecture, configuration, x.shape[0], shapes)  # type: ignore[arg-type]

    def rows(self, run: Run, values: Values, form: Form, reason: str) -> list[Row]:
        """See `Sweep.rows`."""
        x, kernel_chain = self._x(values), self._kernel_chain(values)
        settings = self._settings(run, x, kernel_chain.widths[-1])
        layout = Layout.of([weight.shape for weight in kernel_chain.weights], settings.free_output)
        names = tuple(layer.name for layer in self.chain.layers)
        buffer = x.shape[0] * layout.columns * torch.float32.itemsize
        tensors = [x, *kernel_chain.weights, *(bias for bias in kernel_chain.biases if bias is not None)]
        read = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        target = self._target(values)
        swept = read + target.numel() * target.element_size() + (3 + (settings.momentum != 0)) * buffer
        learned = x.numel() * x.element_size() + 2 * buffer + layout.gradients * x.element_size()
        products = [2 * x.shape[0] * weight.numel() for weight in kernel_chain.weights]
        inference = sum(products) + operations_of(products, settings)
        launches = _launches(len(names), settings, form)
        whole = "all steps"
        return [
            Row((*names, "loss"), "strict_sweep", reason, launches, swept, inference, whole),
            Row(names, "chain_gradients", "follows the sweep", 1, learned, sum(products), whole),
        ]

    def _outputs(self, x: Tensor, values: Values) -> int:
        outputs: int = values[self.chain.layers[-1].weight][0].shape[0]
        return outputs

    def _kernel_chain(self, values: Values) -> Chain:
        layers = self.chain.layers
        return Chain(
            tuple(values[layer.weight][0].detach() for layer in layers),
            tuple(None if layer.bias is None else values[layer.bias][0].detach() for layer in layers),
            tuple(layer.activation.name for layer in layers),
        )

    def _swept(self, run: Run, x: Tensor, values: Values, form: Form) -> Swept:
        kernel_chain = self._kernel_chain(values)
        settings = self._settings(run, x, kernel_chain.widths[-1])
        layout = Layout.of([weight.shape for weight in kernel_chain.weights], settings.free_output)
        buffers = empty_buffers(x, layout.columns, settings)
        launch_strict_sweep(x, self._target(values), kernel_chain, settings, buffers, form)
        flat = x.new_empty(layout.gradients)
        factor, upstream = learn_factor_of(run)
        swept = buffers.values, buffers.drives
        launch_chain_gradients(x, *swept, kernel_chain, flat, factor, upstream, settings.input_precision)
        gradients = [
            (flat.narrow(0, first, weight.numel()).view(weight.shape), flat.narrow(0, vector, weight.shape[0]))
            for weight, first, vector in zip(
                kernel_chain.weights, layout.weight_gradients, layout.bias_gradients, strict=True
            )
        ]
        return Swept(buffers, list(zip(layout.starts, kernel_chain.widths, strict=False)), gradients)


def learn_factor_of(run: Run) -> tuple[float, Tensor | None]:
    """What gradients are multiplied by: a number, and one on the device, float32, or None."""
    upstream = run.learn_factor.float() if isinstance(run.learn_factor, Tensor) else None
    return (1.0 if upstream is not None else float(run.learn_factor)), upstream


def _launches(layers: int, settings: Settings, form: Form) -> int:
    if form != "half_steps":
        return 1
    ends = 2 if settings.learn_errors == "current" else 1
    launches: int = layers + 3 * settings.steps + ends
    return launches


def operations_of(products: list[int], settings: Settings) -> int:
    """Of the products in all steps: those of a layer, forward and back, once the loss has reached it."""
    steps: int = settings.steps
    total = 0
    for above, product in enumerate(reversed(products[1:]), start=int(settings.free_output)):
        total += product * (max(steps - max(above, 1) + 1, 0) + max(steps - above, 0))
    return total
