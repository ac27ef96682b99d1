"""The sweeps of strict inference that are tuned.

Shapes are those of chains of linear layers, (batch, width, width, ...), and of a small network's images, (batch,
channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch.nn.grad import conv2d_weight

from bench.gpu.linear_operations import input_precision_of, random_tensors, size_in
from bench.gpu.tune import Launch, Operation
from pccompile.kernels.devices import architecture_of
from pccompile.kernels.network_sweep import configurations as network_configurations
from pccompile.kernels.network_sweep.launch import launch_network_gradients, launch_network_sweep
from pccompile.kernels.network_sweep.layout import NetworkLayer, layout_of
from pccompile.kernels.network_sweep.reference import network_sweep_reference
from pccompile.kernels.strict_sweep import configurations
from pccompile.kernels.strict_sweep.choice import likely_form
from pccompile.kernels.strict_sweep.launch import (
    Settings,
    empty_buffers,
    launch_chain_gradients,
    launch_strict_sweep,
)
from pccompile.kernels.strict_sweep.layout import Chain, Layout
from pccompile.kernels.strict_sweep.reference import strict_sweep_reference

__all__ = ["CHAIN_GRADIENTS", "NETWORK_GRADIENTS", "NETWORK_SWEEP", "STRICT_SWEEP"]

STEPS = 20
SHAPES = (
    (64, 784, 256, 256, 10),
    (512, 784, 256, 256, 10),
    (64, 1024, 1024, 1024, 1024),
    (16384, 784, 256, 256, 10),
    (16384, 1024, 1024, 1024, 1024),
)
IMAGES = ((64, 1, 28, 28), (4096, 1, 28, 28))
CLASSES = 10
AWKWARD_CHAIN, AWKWARD_IMAGE = ((35, 33, 70, 45, CLASSES),), ((3, 1, 11, 12),)


def _chain(shape: tuple[int, ...], precision: str, device: str) -> tuple[torch.Tensor, Chain]:
    """x, and layers whose weights keep values of the same size."""
    batch, *widths = shape
    sizes = [(out, inputs) for inputs, out in pairwise(widths)]
    x, *weights = random_tensors(precision, device, (batch, widths[0]), *sizes)
    weights = [weight / weight.shape[1] ** 0.5 for weight in weights]
    biases = tuple(weight.new_zeros(weight.shape[0]) for weight in weights)
    return x, Chain(tuple(weights), biases, (*["tanh"] * (len(sizes) - 1), "identity"))


def _settings(precision: str) -> Settings:
    return Settings(
        loss="cross_entropy",
        free_output=False,
        learn_errors="current",
        record=False,
        steps=STEPS,
        step_size=0.1,
        momentum=0.0,
        loss_factor=1.0,
        ignore_index=-100,
        negative_slope=0.01,
        input_precision=input_precision_of(precision),
    )


def _side_by_side(pieces: Iterable[torch.Tensor], starts: Iterable[int], like: torch.Tensor) -> torch.Tensor:
    """A buffer in double precision with pieces where they start, zeros between them."""
    buffer = torch.zeros_like(like, dtype=torch.float64)
    for piece, start in zip(pieces, starts, strict=True):
        flat = piece.flatten(like.dim() - 1)
        buffer.narrow(-1, start, flat.shape[-1]).copy_(flat)
    return buffer


def _learned(
    sources: Sequence[torch.Tensor], drives: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Every layer's dW, then every layer's db, in double precision."""
    sources, drives = ([each.double() for each in tensors] for tensors in (sources, drives))
    products = [
        drive.flatten(1).mT @ source.flatten(1) if weight.dim() == 2 else conv2d_weight(source, weight.shape, drive)
        for source, drive, weight in zip(sources, drives, weights, strict=True)
    ]
    return [*products, *(drive.transpose(0, 1).flatten(1).sum(1) for drive in drives)]


def _sweep_size(architecture: Any, precision: str, shape: tuple[int, ...]) -> str:
    chosen = configurations.configuration_for(architecture, precision, shape[0])
    return size_in(configurations.CONFIGURATIONS[architecture][precision], chosen)


def _sweep(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """In the form that is likely the quickest for a configuration."""
    x, chain = _chain(shape, precision, device)
    target = torch.arange(shape[0], device=device) % shape[-1]
    settings = _settings(precision)
    sizes = [weight.shape for weight in chain.weights]
    layout = Layout.of(sizes)
    buffers = empty_buffers(x, layout.columns, settings)

    def expected() -> Sequence[torch.Tensor]:
        weights, biases = ([each.double() for each in tensors] for tensors in (chain.weights, chain.biases))
        given = x.double(), target, weights, biases, chain.activations
        found = strict_sweep_reference(*given, steps=settings.steps, step_size=settings.step_size)
        return [_side_by_side(found.values, layout.starts, buffers.values)]

    def launcher(configuration: configurations.Configuration) -> Launch:
        form = likely_form(architecture_of(x.device), configuration, shape[0], [(out, into) for out, into in sizes])
        given = (x, target, chain, settings, buffers, form, configuration)
        return Launch(partial(launch_strict_sweep, *given), (buffers.values,), expected)

    return launcher


def _gradients(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    x, chain = _chain(shape, precision, device)
    layout = Layout.of([weight.shape for weight in chain.weights])
    values, drives = (each.float() for each in random_tensors(precision, device, *[(shape[0], layout.columns)] * 2))
    gradients = x.new_empty(layout.gradients)
    given = (x, values, drives, chain, gradients, 1.0, None, input_precision_of(precision))

    def expected() -> Sequence[torch.Tensor]:
        own, errors = (
            [each.narrow(1, start, width) for start, width in zip(layout.starts, chain.widths, strict=True)]
            for each in (values, drives)
        )
        starts = (*layout.weight_gradients, *layout.bias_gradients)
        return [_side_by_side(_learned([x, *own[:-1]], errors, chain.weights), starts, gradients)]

    return lambda configuration: Launch(partial(launch_chain_gradients, *given, configuration), (gradients,), expected)


def _network(shape: tuple[int, ...], precision: str, device: str) -> tuple[torch.Tensor, list[NetworkLayer]]:
    """Images, and the CNN of `pccompile demo` on them, whose weights keep values of the same size."""
    _, channels, height, width = shape
    features = 5 * ((height - 2) // 2 - 2) * ((width - 2) // 2 - 2)
    sizes = ((10, channels, 3, 3), (5, 10, 3, 3), (50, features), (30, 50), (CLASSES, 30))
    x, *weights = random_tensors(precision, device, shape, *sizes)
    weights = [weight / weight[0].numel() ** 0.5 for weight in weights]
    options: list[dict[str, Any]] = [{"pool": "max", "window": (2, 2, 2, 2)}, *[{}] * 4]
    activations = (*["relu"] * 4, "identity")
    return x, [
        NetworkLayer(weight, weight.new_zeros(weight.shape[0]), activation, **more)
        for weight, activation, more in zip(weights, activations, options, strict=True)
    ]


def _network_sweep(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    x, layers = _network(shape, precision, device)
    target = torch.arange(shape[0], device=device) % CLASSES
    layout, settings = layout_of(x.shape[1:], layers), _settings(precision)
    buffers = empty_buffers(x, layout.columns, settings, layout.drive_columns)
    given = (x, target, layers, settings, settings.input_precision, buffers, None)

    def expected() -> Sequence[torch.Tensor]:
        exact = [replace(each, weight=each.weight.double(), bias=each.bias.double()) for each in layers]
        options = {"steps": settings.steps, "step_size": settings.step_size}
        found = network_sweep_reference(x.double(), target, exact, **options)
        return [_side_by_side(found.values, [place.own for place in layout.places], buffers.values)]

    return lambda configuration: Launch(
        partial(launch_network_sweep, *given, configuration), (buffers.values,), expected
    )


def _network_gradients(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    x, layers = _network(shape, precision, device)
    layout, products = layout_of(x.shape[1:], layers), input_precision_of(precision)
    sizes = [(shape[0], columns) for columns in (layout.columns, layout.drive_columns)]
    values, drives = (each.float() for each in random_tensors(precision, device, *sizes))
    gradients = x.new_empty(layout.gradients)
    given = (x, values, drives, layers, gradients, 1.0, None, products, products)

    def expected() -> Sequence[torch.Tensor]:
        places, weights = layout.places, [layer.weight for layer in layers]
        own = [values.narrow(1, place.own, place.width).unflatten(1, place.image) for place in places]
        errors = [
            drives.narrow(1, place.drives, prod(place.convolved)).unflatten(1, place.convolved) for place in places
        ]
        starts = [*(place.weight_gradient for place in places), *(place.bias_gradient for place in places)]
        return [_side_by_side(_learned([x, *own[:-1]], errors, weights), starts, gradients)]

    return lambda configuration: Launch(
        partial(launch_network_gradients, *given, configuration), (gradients,), expected
    )


STRICT_SWEEP = Operation(
    configurations.SPACE,
    configurations.CONFIGURATIONS,
    SHAPES,
    _sweep_size,
    _sweep,
    {"tall": AWKWARD_CHAIN, "flat": AWKWARD_CHAIN},
)
CHAIN_GRADIENTS = Operation(
    configurations.GRADIENT_SPACE,
    configurations.GRADIENTS,
    SHAPES,
    lambda *_: None,
    _gradients,
    {None: AWKWARD_CHAIN},
)
NETWORK_SWEEP = Operation(
    network_configurations.SPACE,
    network_configurations.CONFIGURATIONS,
    IMAGES,
    lambda *_: None,
    _network_sweep,
    {None: AWKWARD_IMAGE},
)
NETWORK_GRADIENTS = Operation(
    network_configurations.GRADIENT_SPACE,
    network_configurations.GRADIENTS,
    IMAGES,
    lambda *_: None,
    _network_gradients,
    {None: AWKWARD_IMAGE},
)
