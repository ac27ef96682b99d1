"""The convolutions that are tuned, without pooling, on layers of the benchmark's networks.

Shapes are (batch, channels, height and width, out, kernel, stride), padded so that stride 1 keeps the size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.gpu.linear_operations import launcher_of, random_tensors, size_in
from bench.gpu.tune import Launch
from pccompile.kernels.conv_error import configurations as error_configurations
from pccompile.kernels.conv_error.kernel import launch_conv_error
from pccompile.kernels.conv_predict import configurations as predict_configurations
from pccompile.kernels.conv_predict.kernel import launch_conv_predict
from pccompile.kernels.convolution_geometry import Geometry, geometry_of
from pccompile.kernels.tables import Product

__all__ = ["ConvError", "ConvPredict"]

Shape = tuple[int, int, int, int, int, int]

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


@dataclass(frozen=True)
class ConvPredict:
    """conv_predict with gelu, which keeps its pre-activation."""

    name: str = "conv_predict"
    products: Sequence[Product] = predict_configurations.PRODUCTS
    least: Mapping[str, int] = field(default_factory=lambda: predict_configurations.LEAST)
    shapes: Sequence[Shape] = (*MNIST, *CIFAR, *RESNET)
    device: str = "cuda"

    def cells(self, architecture: str, precision: str) -> Mapping[str | None, Any]:
        """The shipped configurations by size."""
        return predict_configurations.CONFIGURATIONS[architecture][precision]  # type: ignore[index, return-value, no-any-return]

    def size_of(self, architecture: str, precision: str, shape: tuple[int, ...]) -> str | None:
        """The size whose configuration a shape gets."""
        batch, _, size, out, _, stride = shape
        rows = batch * (-(-size // stride)) ** 2
        chosen = predict_configurations.configuration_for(architecture, precision, rows, out, 1, False)  # type: ignore[arg-type]
        return size_in(self.cells(architecture, precision), chosen)

    def prepare(self, shape: tuple[int, ...], precision: str) -> Callable[[Any], Launch]:
        """Random tensors, and the launch for a configuration."""
        (x, weight, bias, output, residual), geometry = _layer(shape, precision, self.device)

        return launcher_of(
            launch_conv_predict,
            (x, weight, bias, output, residual, None, geometry, "gelu"),
            (output, residual),
            precision,
        )


@dataclass(frozen=True)
class ConvError:
    """conv_error with gelu: the parent's error, dW and db."""

    name: str = "conv_error"
    products: Sequence[Product] = error_configurations.PRODUCTS
    least: Mapping[str, int] = field(default_factory=dict)
    shapes: Sequence[Shape] = (*MNIST, *CIFAR, *RESNET)
    device: str = "cuda"

    def cells(self, architecture: str, precision: str) -> Mapping[str | None, Any]:
        """The shipped configurations by size."""
        return error_configurations.CONFIGURATIONS[architecture][precision]  # type: ignore[index, return-value, no-any-return]

    def size_of(self, architecture: str, precision: str, shape: tuple[int, ...]) -> str | None:
        """The size whose configuration a shape gets."""
        batch, channels, size, _, _, stride = shape
        rows = stride**2 * batch * (-(-size // stride)) ** 2
        chosen = error_configurations.configuration_for(architecture, precision, rows, channels, 1, False)  # type: ignore[arg-type]
        return size_in(self.cells(architecture, precision), chosen)

    def prepare(self, shape: tuple[int, ...], precision: str) -> Callable[[Any], Launch]:
        """Random tensors, and the launch for a configuration."""
        (x, weight, bias, residual, error), geometry = _layer(shape, precision, self.device)
        targets = {
            "parent_error": torch.empty_like(x),
            "weight_gradient": torch.empty_like(weight),
            "bias_gradient": torch.empty_like(bias),
        }

        return launcher_of(
            launch_conv_error,
            (error, residual, None, x, weight, geometry, "gelu"),
            tuple(targets.values()),
            precision,
            **targets,
        )
