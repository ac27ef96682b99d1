"""What the kernels for chains refuse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.activations import activation_named
from pccompile.kernels.arguments import check_alike, check_input_precision, check_shape
from pccompile.kernels.devices import interpreted
from pccompile.kernels.strict_sweep.launch import FORMS, Settings
from pccompile.kernels.strict_sweep.layout import Layout
from pccompile.kernels.strict_sweep.plan import LOSSES

__all__ = ["check_buffers", "check_chain", "check_gradients", "check_sweep"]


def check_chain(
    operation: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    negative_slope: float,
) -> None:
    """Check that the layers are a chain from x.

    Raises:
        UsageError: no kernel takes this dtype or activation, or there is no layer.
        ShapeError: numbers of layers, shapes, dtypes or devices do not fit one another.
    """
    if not weights:
        raise UsageError(f"{operation}: a chain of no layers", cure="give at least one weight")
    if not len(weights) == len(biases) == len(activations):
        raise ShapeError(
            f"{operation}: {len(weights)} weights, {len(biases)} biases and {len(activations)} activations",
            cure='give one of each for every layer; None is no bias, "identity" no activation',
        )
    _check_weights(operation, x, weights)
    tensors = {f"biases[{index}]": bias for index, bias in enumerate(biases)}
    check_alike(operation, x=x, **tensors)
    for index, (weight, bias, activation) in enumerate(zip(weights, biases, activations, strict=True)):
        check_shape(operation, f"biases[{index}]", bias, (weight.shape[0],), "(out,)")
        activation_named(activation, negative_slope)


def check_sweep(
    operation: str, x: Tensor, target: Tensor, outputs: int, settings: Settings, form: str = "batch_tiles"
) -> None:
    """Check the target of an output of that width, and what inference is told.

    Raises:
        UsageError: no such loss, form, learn_errors or input_precision; fewer than one step; averaged where no sample
            can be ignored.
        ShapeError: the target does not fit.
    """
    check_input_precision(settings.input_precision)
    choices = (
        ("loss", settings.loss, LOSSES),
        ("learn_errors", settings.learn_errors, ("current", "previous")),
        ("form", form, (*FORMS, "auto", "measured")),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise UsageError(f"{operation}: {name}={value!r}", cure=f"use one of {', '.join(allowed)}")
    if settings.steps < 1:
        raise UsageError(f"{operation}: steps={settings.steps}", cure="choose at least one inference step")
    if form == "cooperative" and interpreted():
        raise UsageError(
            f'{operation}: form="cooperative" under the interpreter, which runs programs one after another',
            cure='use "batch_tiles" or "half_steps", which compute the same',
        )
    if settings.averaged and settings.loss != "cross_entropy":
        raise UsageError(f"{operation}: averaged={settings.averaged} of {settings.loss}", cure="divide loss_factor")
    if settings.loss == "cross_entropy":
        check_shape(operation, "target", target, (x.shape[0],), "(batch,)")
        if target.dtype != torch.int64 or target.device != x.device:
            raise ShapeError(
                f"{operation}: target is {target.dtype} on {target.device}", cure=f"give int64 classes on {x.device}"
            )
    else:
        check_alike(operation, x=x, target=target)
        check_shape(operation, "target", target, (x.shape[0], outputs), "(batch, out)")


def check_gradients(
    operation: str,
    x: Tensor,
    values: Tensor,
    drives: Tensor,
    weights: Sequence[Tensor],
    upstream: Tensor | None,
    input_precision: str,
) -> None:
    """Check what the gradients of a chain are computed from.

    Raises:
        UsageError: no kernel takes this dtype or input_precision.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    _check_weights(operation, x, weights)
    check_input_precision(input_precision)
    shapes = [weight.shape for weight in weights]
    columns, with_free_output = Layout.of(shapes).columns, Layout.of(shapes, True).columns
    expected = with_free_output if values.shape[-1] == with_free_output else columns
    check_buffers(operation, x, {"values": (values, expected), "drives": (drives, expected)}, upstream)


def check_buffers(operation: str, x: Tensor, buffers: dict[str, tuple[Tensor, int]], upstream: Tensor | None) -> None:
    """Check what gradients are computed from: each buffer with its number of columns, and the factor on the device.

    Raises:
        ShapeError: one is not what a sweep returned.
    """
    for name, (buffer, columns) in buffers.items():
        check_shape(operation, name, buffer, (x.shape[0], columns), "(batch, columns)")
        if buffer.dtype != torch.float32 or buffer.device != x.device or not buffer.is_contiguous():
            raise ShapeError(
                f"{operation}: {name} is {buffer.dtype} on {buffer.device}", cure="pass on what the sweep returned"
            )
    if upstream is not None and (
        upstream.shape != () or upstream.dtype != torch.float32 or upstream.device != x.device
    ):
        raise ShapeError(
            f"{operation}: upstream is {upstream.dtype} {tuple(upstream.shape)} on {upstream.device}",
            cure=f"give a scalar of float32 on {x.device}",
        )


def _check_weights(operation: str, x: Tensor, weights: Sequence[Tensor]) -> None:
    check_alike(operation, x=x, **{f"weights[{index}]": weight for index, weight in enumerate(weights)})
    for index, weight in enumerate(weights):
        if weight.dim() != 2 or weight.shape[0] == 0:
            raise ShapeError(
                f"{operation}: weights[{index}] has shape {tuple(weight.shape)}", cure="a weight is (out, in)"
            )
    if x.dim() != 2:
        raise ShapeError(f"{operation}: x has shape {tuple(x.shape)}", cure="x is (batch, in)")
    width = x.shape[1]
    for index, weight in enumerate(weights):
        check_shape(operation, f"weights[{index}]", weight, (weight.shape[0], width), "(out, in)")
        width = weight.shape[0]
