"""The convolutions that are tuned, without pooling, on layers of the benchmark's networks.

Shapes are (batch, channels, height and width, out, kernel, stride), padded so that stride 1 keeps the size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.linear_operations import launcher_of, random_tensors, size_in
from bench.gpu.tune import Launch, Operation
from pccompile.kernels.conv_error import configurations as error_configurations
from pccompile.kernels.conv_error.kernel import launch_conv_error
from pccompile.kernels.conv_predict import configurations as predict_configurations
from pccompile.kernels.conv_predict.kernel import launch_conv_predict
from pccompile.kernels.conv_step import configurations as step_configurations
from pccompile.kernels.conv_step.kernel import launch_conv_step
from pccompile.kernels.convolution_geometry import Geometry, geometry_of

__all__ = ["CONV_ERROR", "CONV_PREDICT", "CONV_STEP"]

MNIST = ((64, 1, 28, 16, 3, 2), (64, 16, 14, 32, 3, 2))
CIFAR = ((64, 3, 32, 64, 3, 1), (64, 64, 32, 128, 3, 1), (64, 128, 16, 256, 3, 1))
RESNET = (
    (32, 64, 32, 64, 3, 1),
    (32, 64, 32, 128, 3, 2),
    (32, 128, 16, 128, 3, 1),
    (32, 256, 8, 256, 3, 1),
    (32, 512, 4, 512, 3, 1),
    (32, 128, 16, 256, 1, 2),
)


def _layer(shape: tuple[int, ...], precision: str, device: str) -> tuple[list[torch.Tensor], Geometry]:
    """x, weight, bias, output and error of a layer, images channels last, and its geometry."""
    batch, channels, size, out, kernel, stride = shape
    reach = -(-size // stride)
    sizes = ((batch, channels, size, size), (out, channels, kernel, kernel), (out,), *[(batch, out, reach, reach)] * 2)
    tensors = random_tensors(precision, device, *sizes)
    tensors = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    around = [kernel // 2] * 2
    return tensors, geometry_of("tune", *tensors[:2], [stride] * 2, around, [1, 1], 1, "none", [1, 1, 1, 1])


def _predict_size(architecture: Any, precision: str, shape: tuple[int, ...]) -> str:
    batch, _, size, out, _, stride = shape
    rows = batch * (-(-size // stride)) ** 2
    chosen = predict_configurations.configuration_for(architecture, precision, rows, out, 1, False)
    return size_in(predict_configurations.CONFIGURATIONS[architecture][precision], chosen)


def _predict(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """With gelu, which keeps its pre-activation."""
    (x, weight, bias, *results), geometry = _layer(shape, precision, device)
    return launcher_of(launch_conv_predict, (x, weight, bias, *results, None, geometry, "gelu"), results, precision)


def _error_size(architecture: Any, precision: str, shape: tuple[int, ...]) -> str:
    batch, channels, size, _, _, stride = shape
    rows = stride**2 * batch * (-(-size // stride)) ** 2
    chosen = error_configurations.configuration_for(architecture, precision, rows, channels, 1, False)
    return size_in(error_configurations.CONFIGURATIONS[architecture][precision], chosen)


def _error(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """With gelu: the parent's error, dW and db."""
    (x, weight, bias, residual, error), geometry = _layer(shape, precision, device)
    targets = {
        "parent_error": torch.empty_like(x),
        "weight_gradient": torch.empty_like(weight),
        "bias_gradient": torch.empty_like(bias),
    }
    arguments = (error, residual, None, x, weight, geometry, "gelu")
    return launcher_of(launch_conv_error, arguments, tuple(targets.values()), precision, **targets)


def _step(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """With tanh: the error, what its derivative is read from, and the feedback."""
    (x, weight, bias, value, error), geometry = _layer(shape, precision, device)
    results = error, torch.empty_like(error), torch.empty_like(x)
    error, residual, target = results
    arguments = (x, weight, bias, value, error, residual, None, target, geometry, "tanh")
    return launcher_of(launch_conv_step, arguments, results, precision)


_SHAPES = (*MNIST, *CIFAR, *RESNET)
CONV_PREDICT = Operation(
    predict_configurations.SPACE, predict_configurations.CONFIGURATIONS, _SHAPES, _predict_size, _predict
)
CONV_ERROR = Operation(error_configurations.SPACE, error_configurations.CONFIGURATIONS, _SHAPES, _error_size, _error)
CONV_STEP = Operation(
    step_configurations.SPACE, step_configurations.CONFIGURATIONS, _SHAPES, lambda *_: "product", _step
)
