"""The linear operations that are tuned, with the shapes that count: (batch, in, out)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from bench.gpu.tune import Launch, Operation
from pccompile.kernels.linear_error import configurations as error_configurations
from pccompile.kernels.linear_error.kernel import launch_linear_error
from pccompile.kernels.linear_error.reference import linear_error_reference
from pccompile.kernels.linear_predict import configurations as predict_configurations
from pccompile.kernels.linear_predict.kernel import launch_linear_predict
from pccompile.kernels.linear_predict.reference import linear_predict_reference
from pccompile.kernels.linear_step import configurations as step_configurations
from pccompile.kernels.linear_step.kernel import launch_linear_step
from pccompile.kernels.linear_step.reference import linear_step_reference

__all__ = [
    "LINEAR_ERROR",
    "LINEAR_PREDICT",
    "LINEAR_STEP",
    "exact",
    "input_precision_of",
    "launcher_of",
    "random_tensors",
    "size_in",
]

MLPS = tuple(
    (batch, *layer) for batch in (64, 128, 256, 512) for layer in ((784, 256), (256, 256), (256, 10), (1024, 1024))
)
CONV_HEADS = ((64, 1568, 10), (64, 16384, 256), (64, 256, 256), (32, 512, 10))
WIDE = ((8192, 4096, 4096), (2048, 4096, 4096), (4096, 1024, 4096), (4096, 4096, 1024))
STEPS = tuple(
    (batch, *layer)
    for batch in (64, 512)
    for layer in ((64, 256), (128, 256), (256, 256), (512, 512), (1024, 1024), (4096, 4096), (4096, 16384))
)
AWKWARD = ((131, 70, 133),)


def input_precision_of(precision: str) -> str:
    """What the launchers are told."""
    return "tf32" if precision == "tf32" else "ieee"


def launcher_of(
    launch: Callable[..., None],
    arguments: Sequence[Any],
    results: Sequence[torch.Tensor],
    precision: str,
    expected: Callable[[], Sequence[torch.Tensor]],
    **targets: torch.Tensor,
) -> Callable[[Any], Launch]:
    """The launch for a configuration, of a kernel's launcher, what it is given, and what its reference says."""
    given = partial(launch, *arguments, **targets, input_precision=input_precision_of(precision))
    return lambda configuration: Launch(partial(given, configuration=configuration), results, expected)


def random_tensors(precision: str, device: str, *sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """The same tensors in every run."""
    dtype = torch.bfloat16 if precision == "half" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(size, generator=generator, device=device).to(dtype) for size in sizes]


def exact(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Float32 in double precision; half precision as it is, for references round where the kernels do."""
    return [tensor.double() if tensor.dtype is torch.float32 else tensor for tensor in tensors]


def size_in(cells: Mapping[str, Any], chosen: Any) -> str:
    """The size whose configuration was chosen."""
    return next(size for size, configuration in cells.items() if configuration == chosen)


def _predict_size(architecture: Any, precision: str, shape: tuple[int, ...]) -> str:
    batch, _, out = shape
    chosen = predict_configurations.configuration_for(architecture, precision, batch, out)
    return size_in(predict_configurations.CONFIGURATIONS[architecture][precision], chosen)


def _predict(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """With gelu, which keeps its pre-activation."""
    batch, inputs, out = shape
    x, weight, bias = random_tensors(precision, device, (batch, inputs), (out, inputs), (out,))
    results = x.new_empty(batch, out), x.new_empty(batch, out)

    def expected() -> Sequence[torch.Tensor]:
        prediction, preactivation = linear_predict_reference(*exact(x, weight, bias), "gelu")
        assert preactivation is not None
        return prediction, preactivation

    return launcher_of(launch_linear_predict, (x, weight, bias, *results, "gelu"), results, precision, expected)


def _error_size(architecture: Any, precision: str, shape: tuple[int, ...]) -> str:
    batch, inputs, out = shape
    chosen = error_configurations.configuration_for(architecture, precision, batch, out, inputs)
    return size_in(error_configurations.CONFIGURATIONS[architecture][precision], chosen)


def _error(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """With gelu: the parent's error, dW and db."""
    batch, inputs, out = shape
    sizes = ((batch, out), (batch, out), (batch, inputs), (out, inputs))
    error, residual, x, weight = random_tensors(precision, device, *sizes)
    targets = {
        "parent_error": torch.empty_like(x),
        "weight_gradient": torch.empty_like(weight),
        "bias_gradient": x.new_empty(out),
    }
    arguments = (error, residual, x, weight)

    def expected() -> Sequence[torch.Tensor]:
        return linear_error_reference(*exact(*arguments), "gelu")

    results = tuple(targets.values())
    return launcher_of(launch_linear_error, (*arguments, "gelu"), results, precision, expected, **targets)


def _step_size(architecture: Any, precision: str, shape: tuple[int, ...]) -> str:
    chosen = step_configurations.configuration_for(architecture, precision, shape[1])
    return size_in(step_configurations.CONFIGURATIONS[architecture][precision], chosen)


def _step(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """With tanh: the error and the drive."""
    batch, inputs, out = shape
    sizes = ((batch, out), (batch, inputs), (out, inputs), (out,))
    value, x, weight, bias = random_tensors(precision, device, *sizes)
    weight /= inputs**0.5  # the prediction as large as x
    results = torch.empty_like(value), torch.empty_like(x)

    def expected() -> Sequence[torch.Tensor]:
        return linear_step_reference(*exact(value, x, weight, bias), "tanh")[:2]

    arguments = (value, x, weight, bias, *results, None, "tanh")
    return launcher_of(launch_linear_step, arguments, results, precision, expected)


LINEAR_PREDICT = Operation(
    predict_configurations.SPACE,
    predict_configurations.CONFIGURATIONS,
    (*MLPS, *CONV_HEADS, *WIDE),
    _predict_size,
    _predict,
    {"large": AWKWARD, "small": AWKWARD},
)
LINEAR_ERROR = Operation(
    error_configurations.SPACE,
    error_configurations.CONFIGURATIONS,
    (*MLPS, *CONV_HEADS, *WIDE),
    _error_size,
    _error,
    {"large": AWKWARD, "small": AWKWARD},
)
LINEAR_STEP = Operation(
    step_configurations.SPACE,
    step_configurations.CONFIGURATIONS,
    STEPS,
    _step_size,
    _step,
    {"whole": ((67, 60, 133),), "long": ((67, 60, 133),), "tiled": AWKWARD},
)
