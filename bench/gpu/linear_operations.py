"""The linear operations that are tuned, with the shapes that count: (batch, in, out)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bench.gpu.tune import Launch
from pccompile.kernels.linear_error import configurations as error_configurations
from pccompile.kernels.linear_error.kernel import launch_linear_error
from pccompile.kernels.linear_predict import configurations as predict_configurations
from pccompile.kernels.linear_predict.kernel import launch_linear_predict
from pccompile.kernels.tables import Product

__all__ = ["PRECISIONS", "LinearError", "LinearPredict", "launcher_of", "random_tensors", "size_in"]

PRECISIONS = ("half", "tf32", "ieee")
Shape = tuple[int, int, int]

MLPS = tuple(
    (batch, *layer) for batch in (64, 128, 256, 512) for layer in ((784, 256), (256, 256), (256, 10), (1024, 1024))
)
CONV_HEADS = ((64, 1568, 10), (64, 16384, 256), (64, 256, 256), (32, 512, 10))
WIDE = ((8192, 4096, 4096), (2048, 4096, 4096), (4096, 1024, 4096), (4096, 4096, 1024))


def _dtype_of(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "half" else torch.float32


def _input_precision_of(precision: str) -> str:
    """What the launchers are told."""
    return "tf32" if precision == "tf32" else "ieee"


@dataclass(frozen=True)
class LinearPredict:
    """linear_predict with gelu, which keeps its pre-activation."""

    name: str = "linear_predict"
    products: Sequence[Product] = predict_configurations.PRODUCTS
    least: Mapping[str, int] = field(default_factory=dict)
    shapes: Sequence[Shape] = (*MLPS, *CONV_HEADS, *WIDE)
    device: str = "cuda"

    def cells(self, architecture: str, precision: str) -> Mapping[str | None, Any]:
        """The shipped configurations by size."""
        return predict_configurations.CONFIGURATIONS[architecture][precision]  # type: ignore[no-any-return, index, return-value]

    def size_of(self, architecture: str, precision: str, shape: tuple[int, ...]) -> str | None:
        """The size whose configuration a shape gets."""
        batch, _, out = shape
        chosen = predict_configurations.configuration_for(architecture, precision, batch, out)  # type: ignore[arg-type]
        return size_in(self.cells(architecture, precision), chosen)

    def prepare(self, shape: tuple[int, ...], precision: str) -> Callable[[Any], Launch]:
        """Random tensors, and the launch for a configuration."""
        batch, inputs, out = shape
        x, weight, bias = random_tensors(precision, self.device, (batch, inputs), (out, inputs), (out,))
        prediction, preactivation = x.new_empty(batch, out), x.new_empty(batch, out)

        return launcher_of(
            launch_linear_predict,
            (x, weight, bias, prediction, preactivation, "gelu"),
            (prediction, preactivation),
            precision,
        )


@dataclass(frozen=True)
class LinearError:
    """linear_error with gelu: the parent's error, dW and db."""

    name: str = "linear_error"
    products: Sequence[Product] = error_configurations.PRODUCTS
    least: Mapping[str, int] = field(default_factory=dict)
    shapes: Sequence[Shape] = (*MLPS, *CONV_HEADS, *WIDE)
    device: str = "cuda"

    def cells(self, architecture: str, precision: str) -> Mapping[str | None, Any]:
        """The shipped configurations by size."""
        return error_configurations.CONFIGURATIONS[architecture][precision]  # type: ignore[no-any-return, index, return-value]

    def size_of(self, architecture: str, precision: str, shape: tuple[int, ...]) -> str | None:
        """The size whose configuration a shape gets."""
        batch, inputs, out = shape
        chosen = error_configurations.configuration_for(architecture, precision, batch, out, inputs)  # type: ignore[arg-type]
        return size_in(self.cells(architecture, precision), chosen)

    def prepare(self, shape: tuple[int, ...], precision: str) -> Callable[[Any], Launch]:
        """Random tensors, and the launch for a configuration."""
        batch, inputs, out = shape
        sizes = ((batch, out), (batch, out), (batch, inputs), (out, inputs))
        error, residual, x, weight = random_tensors(precision, self.device, *sizes)
        targets = {
            "parent_error": torch.empty_like(x),
            "weight_gradient": torch.empty_like(weight),
            "bias_gradient": x.new_empty(out),
        }

        return launcher_of(
            launch_linear_error, (error, residual, x, weight, "gelu"), tuple(targets.values()), precision, **targets
        )


def launcher_of(
    launch: Callable[..., None],
    arguments: Sequence[Any],
    results: Sequence[torch.Tensor],
    precision: str,
    **targets: torch.Tensor,
) -> Callable[[Any], Launch]:
    """The launch for a configuration, of a kernel's launcher and what it is given."""
    given = partial(launch, *arguments, **targets, input_precision=_input_precision_of(precision))
    return lambda configuration: Launch(partial(given, configuration=configuration), results)


def random_tensors(precision: str, device: str, *sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """The same tensors in every run."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(size, generator=generator, device=device).to(_dtype_of(precision)) for size in sizes]


def size_in(cells: Mapping[str | None, Any], chosen: Any) -> str | None:
    """The size whose configuration was chosen."""
    return next(size for size, configuration in cells.items() if configuration == chosen)
