"""What every kernel refuses: dtypes, devices, dimensions and shapes that it cannot take, second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from pccompile.errors import DoubleBackwardError, ShapeError, UsageError
from pccompile.kernels.activations import activation_named

__all__ = [
    "check_alike",
    "check_device",
    "check_fits",
    "check_input_precision",
    "check_residual",
    "check_shape",
    "check_statistics",
    "refusal",
    "rows_of",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_alike(operation: str, **tensors: Tensor | None) -> None:
    """Check that the tensors given have one device, and one dtype that the kernels take.

    Args:
        operation: its name, for the message.
        tensors: by argument name; the first sets what the others must be.

    Raises:
        UsageError: the first tensor's dtype has no kernel.
        ShapeError: a tensor's dtype or device is not the first one's.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first_name, first = next(iter(given.items()))
    if first.dtype not in _DTYPES:
        raise UsageError(
            f"{operation}: {first_name} is {first.dtype}",
            cure="use float32, bfloat16 or float16, or the operation's reference, which takes every floating dtype",
        )
    for name, tensor in given.items():
        if tensor.dtype != first.dtype:
            raise ShapeError(
                f"{operation}: {name} is {tensor.dtype}, but {first_name} is {first.dtype}",
                cure=f"cast {name}, or run under one dtype",
            )
        if tensor.device != first.device:
            raise _elsewhere(operation, name, tensor, first_name, first)


def check_device(operation: str, name: str, tensor: Tensor | None, first_name: str, first: Tensor) -> None:
    """Check that a tensor, if there is one, is where another is.

    Args:
        operation: its name, for the message.
        name: the argument's name.
        tensor: the argument.
        first_name, first: the other argument.

    Raises:
        ShapeError: it is on another device.
    """
    if tensor is not None and tensor.device != first.device:
        raise _elsewhere(operation, name, tensor, first_name, first)


def check_statistics(operation: str, first_name: str, first: Tensor, **statistics: Tensor | None) -> None:
    """Check that what a prediction kept of its rows or channels is float32, and where another tensor is.

    Args:
        operation: its name, for the message.
        first_name, first: the other argument.
        statistics: by argument name.

    Raises:
        ShapeError: one is of another dtype, or on another device.
    """
    for name, tensor in statistics.items():
        if tensor is not None and tensor.dtype is not torch.float32:
            raise ShapeError(
                f"{operation}: {name} is {tensor.dtype}, but statistics are torch.float32",
                cure=f"pass the {name} that the prediction returned",
            )
        check_device(operation, name, tensor, first_name, first)


def _elsewhere(operation: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> ShapeError:
    return ShapeError(
        f"{operation}: {name} is on {tensor.device}, but {first_name} is on {first.device}",
        cure=f"move {name} to {first.device}",
    )


def check_shape(
    operation: str,
    name: str,
    tensor: Tensor | None,
    shape: tuple[int, ...],
    meaning: str,
    weight: str = "(out, in)",
) -> None:
    """Check a tensor's shape, if there is one, where a weight decides it.

    Args:
        operation: its name, for the message.
        name: the argument's name.
        tensor: the argument.
        shape: what it must be.
        meaning: the shape in words, such as "(batch, out)".
        weight: the weight's shape in words.

    Raises:
        ShapeError: it is another.
    """
    check_fits(operation, name, tensor, shape, meaning, against=f"the weight, which is {weight}")


def check_input_precision(input_precision: str) -> None:
    """Check the arithmetic asked for float32 products.

    Raises:
        UsageError: it is neither "ieee" nor "tf32".
    """
    if input_precision not in ("ieee", "tf32"):
        raise UsageError(f"input_precision={input_precision!r}", cure='use "ieee" or "tf32"')


def check_fits(
    operation: str, name: str, tensor: Tensor | None, shape: tuple[int, ...], meaning: str, against: str
) -> None:
    """Check a tensor's shape, if there is one, where something other than a weight decides it.

    Args:
        operation: its name, for the message.
        name: the argument's name.
        tensor: the argument.
        shape: what it must be.
        meaning: the shape in words, such as "(rows,)".
        against: what decides it, such as "x, which is (rows, columns)".

    Raises:
        ShapeError: it is another.
    """
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ShapeError(
            f"{operation}: {name} has shape {tuple(tensor.shape)}, expected {meaning} = {tuple(shape)}",
            cure=f"check {name} against {against}",
        )


def check_residual(operation: str, residual: Tensor | None, activation: str, negative_slope: float) -> None:
    """Check that the prediction's residual is there where the activation's slope is read from one.

    Args:
        operation: its name, NAME_error, for the message; that of the prediction is NAME_predict.
        residual: the argument.
        activation: a key of pccompile.kernels.ACTIVATIONS.
        negative_slope: of leaky_relu.

    Raises:
        UsageError: there is no such activation.
        ShapeError: the residual is missing.
    """
    kind = activation_named(activation, negative_slope).residual
    if residual is None and kind != "none":
        prediction = operation.replace("_error", "_predict")
        raise ShapeError(
            f"{operation}: {activation} needs a residual, its {kind}",
            cure=f"pass the residual that {prediction} returned",
        )


def refusal(message: str) -> Callable[..., NoReturn]:
    """The derivative of an operator that has none: it raises DoubleBackwardError with that message."""

    def refuse(ctx: object, *gradients: object) -> NoReturn:
        raise DoubleBackwardError(message)

    return refuse


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor (rows, features), its leading dimensions made one; it has at least one dimension."""
    return tensor if tensor.dim() == 2 else tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
