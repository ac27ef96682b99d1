"""The convolutions that are tuned, without pooling, on layers of the benchmark's networks.

Shapes are (batch, channels, height and width, out, kernel, stride, groups), padded so that stride 1 keeps the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.gpu.linear_operations import exact, launcher_of, random_tensors, size_in
from bench.gpu.tune import Launch, Operation
from pccompile.kernels.conv_error import configurations as error_configurations
from pccompile.kernels.conv_error.kernel import launch_conv_error
from pccompile.kernels.conv_error.reference import conv_error_reference
from pccompile.kernels.conv_predict import configurations as predict_configurations
from pccompile.kernels.conv_predict.kernel import launch_conv_predict
from pccompile.kernels.conv_predict.reference import conv_predict_reference
from pccompile.kernels.conv_step import configurations as step_configurations
from pccompile.kernels.conv_step.kernel import launch_conv_step
from pccompile.kernels.conv_step.reference import conv_step_reference
from pccompile.kernels.convolution_geometry import Geometry, geometry_of

__all__ = ["CONV_ERROR", "CONV_PREDICT", "CONV_STEP"]

MNIST = ((64, 1, 28, 16, 3, 2, 1), (64, 16, 14, 32, 3, 2, 1))
CIFAR = ((64, 3, 32, 64, 3, 1, 1), (64, 64, 32, 128, 3, 1, 1), (64, 128, 16, 256, 3, 1, 1))
RESNET = (
    (32, 64, 32, 64, 3, 1, 1),
    (32, 64, 32, 128, 3, 2, 1),
    (32, 128, 16, 128, 3, 1, 1),
    (32, 256, 8, 256, 3, 1, 1),
    (32, 512, 4, 512, 3, 1, 1),
    (32, 128, 16, 256, 1, 2, 1),
)
AWKWARD, DEPTHWISE = ((3, 35, 7, 67, 3, 2, 1),), ((3, 35, 7, 35, 3, 1, 35),)


def _layer(shape: tuple[int, ...], precision: str, device: str) -> tuple[list[torch.Tensor], Geometry]:
    """x, weight, bias, output and error of a layer, images channels last, and its geometry."""
    batch, channels, size, out, kernel, stride, groups = shape
    reach = -(-size // stride)
    weight = (out, channels // groups, kernel, kernel)
    sizes = ((batch, channels, size, size), weight, (out,), *[(batch, out, reach, reach)] * 2)
    tensors = random_tensors(precision, device, *sizes)
    tensors[1] /= math.prod(weight[1:]) ** 0.5  # the output as large as x
    tensors = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    around = [kernel // 2] * 2
    return tensors, geometry_of("tune", *tensors[:2], [stride] * 2, around, [1, 1], groups, "none", [1, 1, 1, 1])


def _options(geometry: Geometry) -> dict[str, Any]:
    """What references take."""
    return {"stride": geometry.stride, "padding": geometry.padding, "groups": geometry.groups}


def _predict_size(architecture: Any, precision: str, shape: tuple[int, ...]) -> str:
    batch, _, size, out, _, stride, _ = shape
    rows = batch * (-(-size // stride)) ** 2
    chosen = predict_configurations.configuration_for(architecture, precision, rows, out, 1, False)
    return size_in(predict_configurations.CONFIGURATIONS[architecture][precision], chosen)


def _predict(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """With gelu, which keeps its pre-activation."""
    (x, weight, bias, *results), geometry = _layer(shape, precision, device)

    def expected() -> Sequence[torch.Tensor]:
        output, preactivation, _ = conv_predict_reference(*exact(x, weight, bias), "gelu", **_options(geometry))
        assert preactivation is not None
        return output, preactivation

    arguments = (x, weight, bias, *results, None, geometry, "gelu")
    return launcher_of(launch_conv_predict, arguments, results, precision, expected)


def _error_size(architecture: Any, precision: str, shape: tuple[int, ...]) -> str:
    batch, channels, size, _, _, stride, _ = shape
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

    def expected() -> Sequence[torch.Tensor]:
        given = exact(error, residual, x, weight)
        return conv_error_reference(*given[:2], None, *given[2:], "gelu", **_options(geometry))

    arguments = (error, residual, None, x, weight, geometry, "gelu")
    return launcher_of(launch_conv_error, arguments, tuple(targets.values()), precision, expected, **targets)


def _step(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """With tanh: the error, what its derivative is read from, and the feedback."""
    (x, weight, bias, value, error), geometry = _layer(shape, precision, device)
    results = error, torch.empty_like(error), torch.empty_like(x)
    error, residual, target = results

    def expected() -> Sequence[torch.Tensor]:
        found = conv_step_reference(*exact(x, weight, bias, value), "tanh", **_options(geometry))
        assert found[1] is not None
        return found[0], found[1], found[3]

    arguments = (x, weight, bias, value, error, residual, None, target, geometry, "tanh")
    return launcher_of(launch_conv_step, arguments, results, precision, expected)


_SHAPES = (*MNIST, *CIFAR, *RESNET)
_AWKWARD = {"large": AWKWARD, "small": AWKWARD, "direct": DEPTHWISE}
CONV_PREDICT = Operation(
    predict_configurations.SPACE, predict_configurations.CONFIGURATIONS, _SHAPES, _predict_size, _predict, _AWKWARD
)
CONV_ERROR = Operation(
    error_configurations.SPACE, error_configurations.CONFIGURATIONS, _SHAPES, _error_size, _error, _AWKWARD
)
CONV_STEP = Operation(
    step_configurations.SPACE,
    step_configurations.CONFIGURATIONS,
    _SHAPES,
    lambda *_: "product",
    _step,
    {"product": AWKWARD, "direct": DEPTHWISE},
)
