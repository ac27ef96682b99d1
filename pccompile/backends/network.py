"""A small network's strict inference by the kernel that runs all its steps in one launch, on the tensors of a run."""

from __future__ import annotations

from math import prod

from torch import Tensor

from pccompile.backends.report import Row
from pccompile.backends.run import Run
from pccompile.backends.sweep import Sweep, Swept, Values, learn_factor_of, operations_of
from pccompile.kernels.devices import convolution_precision
from pccompile.kernels.network_sweep.choice import too_large
from pccompile.kernels.network_sweep.launch import launch_network_gradients, launch_network_sweep
from pccompile.kernels.network_sweep.layout import PLAIN, Layout, NetworkLayer, gradients_by_layer, known_layout
from pccompile.kernels.strict_sweep.launch import Form, empty_buffers

__all__ = ["NetworkSweep"]


class NetworkSweep(Sweep):
    """Of a chain with convolutions; see `Sweep`."""

    kernels = ("network_sweep", "network_gradients")

    def objection(self, run: Run, values: Values) -> str:
        """See `Sweep.objection`."""
        problem = super().objection(run, values)
        if not problem:
            layers = self._layers(values)
            problem = too_large(layers, self._layout(self._x(values), layers))
        return problem

    def forms(self) -> list[Form]:
        """See `Sweep.forms`."""
        return ["batch_tiles"]

    def likely_form(self, values: Values) -> Form:
        """See `Sweep.likely_form`."""
        return "batch_tiles"

    def rows(self, run: Run, values: Values, form: Form, reason: str) -> list[Row]:
        """See `Sweep.rows`."""
        x, target, layers = self._x(values), self._target(values), self._layers(values)
        layout = self._layout(x, layers)
        settings = self._settings(run, x, layout.places[-1].width)
        names, batch = tuple(layer.name for layer in self.chain.layers), x.shape[0]
        value_bytes, drive_bytes = (4 * batch * columns for columns in (layout.columns, layout.drive_columns))
        parameters = [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]
        read = sum(tensor.numel() * tensor.element_size() for tensor in (x, target, *parameters))
        swept = read + (2 + (settings.momentum != 0)) * value_bytes + drive_bytes
        learned = (x.numel() + layout.gradients) * x.element_size() + value_bytes + drive_bytes
        products = [
            2 * batch * prod(place.convolved[1:]) * layer.weight.numel()
            for layer, place in zip(layers, layout.places, strict=True)
        ]
        inference = 2 * products[0] + sum(products[1:]) + operations_of(products, settings)
        sweep, gradients = self.kernels
        whole = "all steps"
        return [
            Row((*names, "loss"), sweep, reason, 1, swept, inference, whole),
            Row(names, gradients, "follows the sweep", 1, learned, sum(products), whole),
        ]

    def _outputs(self, x: Tensor, values: Values) -> int:
        outputs: int = self._layout(x, self._layers(values)).places[-1].width
        return outputs

    def _layers(self, values: Values) -> list[NetworkLayer]:
        found = []
        for layer in self.chain.layers:
            bias = None if layer.bias is None else values[layer.bias][0].detach()
            parameters, name = (values[layer.weight][0].detach(), bias), layer.activation.name
            if layer.convolution is None:
                found.append(NetworkLayer(*parameters, name, PLAIN))
            else:
                pool = layer.convolution.pool
                found.append(NetworkLayer(*parameters, name, layer.convolution.form, pool.kind, pool.window))
        return found

    def _layout(self, x: Tensor, layers: list[NetworkLayer]) -> Layout:
        return known_layout(tuple(x.shape[1:]), tuple(layer.kind for layer in layers), self.chain.free_output)

    def _swept(self, run: Run, x: Tensor, values: Values, form: Form) -> Swept:
        layers = self._layers(values)
        layout, precision = self._layout(x, layers), convolution_precision()
        settings = self._settings(run, x, layout.places[-1].width)
        buffers = empty_buffers(x, layout.columns, settings, layout.drive_columns)
        launch_network_sweep(x, self._target(values), layers, settings, precision, buffers)
        flat = x.new_empty(layout.gradients)
        factor, upstream = learn_factor_of(run)
        swept = x, buffers.values, buffers.drives, layers
        launch_network_gradients(*swept, flat, factor, upstream, settings.input_precision, precision)
        gradients = zip(*gradients_by_layer(flat, layers, layout), strict=True)
        return Swept(buffers, [(place.own, place.width) for place in layout.places], list(gradients))
