"""The operations bound by memory that are tuned: normalisations, losses, embeddings, pointwise kernels.

A prediction and its error share a configuration, and are timed together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bench.gpu.linear_operations import exact, random_tensors
from bench.gpu.tune import Launch, Operation
from pccompile.kernels.batch_norm import configurations as batch_configurations
from pccompile.kernels.batch_norm.error import ErrorBranch, launch_batch_norm_error
from pccompile.kernels.batch_norm.predict import Branch, launch_batch_norm_predict
from pccompile.kernels.batch_norm.reference import batch_norm_error_reference, batch_norm_reference
from pccompile.kernels.cross_entropy import configurations as loss_configurations
from pccompile.kernels.cross_entropy.kernel import launch_cross_entropy_error, launch_cross_entropy_predict
from pccompile.kernels.cross_entropy.reference import cross_entropy_error_reference, cross_entropy_reference
from pccompile.kernels.embedding_error import configurations as embedding_configurations
from pccompile.kernels.embedding_error.kernel import launch_embedding_error
from pccompile.kernels.embedding_error.reference import embedding_error_reference
from pccompile.kernels.pointwise import configurations as pointwise_configurations
from pccompile.kernels.pointwise.kernel import launch_pointwise
from pccompile.kernels.pointwise.operator import pointwise
from pccompile.kernels.pointwise.reference import pointwise_reference
from pccompile.kernels.row_norm import configurations as row_configurations
from pccompile.kernels.row_norm.error import launch_row_norm_error
from pccompile.kernels.row_norm.predict import launch_row_norm_predict
from pccompile.kernels.row_norm.reference import row_norm_error_reference, row_norm_reference

__all__ = ["BATCH_NORM", "CROSS_ENTROPY", "EMBEDDING_ERROR", "POINTWISE", "ROW_NORM"]

ROWS = ((512, 96), (8192, 768), (8192, 2048), (8192, 4096), (2048, 16384))  # (rows, columns)
LOGITS = ((512, 10, 1), (4096, 1000, 1), (2048, 50304, 1), (8, 21, 256 * 256))  # (outer, classes, inner)
TABLES = ((512, 1000, 64), (8192, 50304, 768))  # (uses, rows, columns)
# (outer, channels, inner, whether channels lie side by side)
CHANNELS = tuple((32, *image, last) for image in ((64, 32 * 32), (256, 8 * 8), (512, 4 * 4)) for last in (0, 1))
ELEMENTS = tuple((size, *matrix) for size in range(3) for matrix in ((512, 256), (8192, 4096)))  # (size, rows, columns)

_SUMS = ("each", "rows", "columns")


def _row_norm(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    rows, columns = shape
    x, error, weight, bias = random_tensors(precision, device, *[shape] * 2, *[(columns,)] * 2)
    output, parent, dw, db = (torch.empty_like(tensor) for tensor in (x, x, weight, bias))
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))

    def expected() -> Sequence[torch.Tensor]:
        e, values, scale, shift = exact(error, x, weight, bias)
        forward = row_norm_reference(values, scale, shift, 1e-5, True)
        return *forward, *row_norm_error_reference(e, values, scale, *forward[1:])

    def launcher(cell: Any) -> Launch:
        chosen = row_configurations.fitted(cell, rows, columns)
        targets = {"parent_error": parent, "weight_gradient": dw, "bias_gradient": db}

        def run() -> None:
            launch_row_norm_predict(x, weight, bias, output, mean, rstd, 1e-5, chosen)
            launch_row_norm_error(error, x, weight, mean, rstd, **targets, configuration=chosen)

        return Launch(run, (output, mean, rstd, parent, dw, db), expected)

    return launcher


def _batch_norm(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    *sizes, last = shape
    outer, channels, inner = sizes
    lying = (outer, inner, channels) if last else (outer, channels, inner)
    x, error, weight, bias = random_tensors(precision, device, *[lying] * 2, *[(channels,)] * 2)
    output, parent, dw, db = (torch.empty_like(tensor) for tensor in (x, x, weight, bias))
    if last:
        x, error, output, parent = (tensor.mT for tensor in (x, error, output, parent))
    running = [torch.ones(channels, device=device) for _ in range(2)]
    kept = [x.new_empty(channels, dtype=torch.float32) for _ in range(4)]
    branch = Branch(x, weight, bias, *running, *kept, 0.1, 1e-5)
    back = ErrorBranch(x, weight, *kept[:2], parent, dw, db)

    def expected() -> Sequence[torch.Tensor]:
        e, values, scale, shift = exact(error, x, weight, bias)
        y, mean, rstd, *moved = batch_norm_reference(values, scale, shift, *running, 0.1, 1e-5)
        found = (*moved, *batch_norm_error_reference(e, values, scale, mean, rstd))
        return y, mean, rstd, *(each for each in found if each is not None)

    def launcher(cell: Any) -> Launch:
        chosen = batch_configurations.fitted(cell, outer, channels, inner)

        def run() -> None:
            launch_batch_norm_predict(branch, output, configuration=chosen)
            launch_batch_norm_error(error, back, configuration=chosen)

        return Launch(run, (output, *kept, parent, dw, db), expected)

    return launcher


def _cross_entropy(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    outer, classes, inner = shape
    (logits,) = random_tensors(precision, device, shape)
    targets = (torch.arange(outer * inner, device=device) % classes).view(outer, inner)
    loss, error = logits.new_empty(()), torch.empty_like(logits)
    log_sum_exp, total = (logits.new_empty(size, dtype=torch.float32) for size in ((outer * inner,), ()))

    def expected() -> Sequence[torch.Tensor]:
        (z,) = exact(logits)
        return *cross_entropy_reference(z, targets), cross_entropy_error_reference(z, targets)

    def launcher(cell: Any) -> Launch:
        chosen = loss_configurations.fitted(cell, outer * inner, classes, inner)

        def run() -> None:
            launch_cross_entropy_predict(logits, targets, None, loss, log_sum_exp, total, configuration=chosen)
            launch_cross_entropy_error(logits, targets, None, log_sum_exp, total, None, error, configuration=chosen)

        return Launch(run, (loss, log_sum_exp, total, error), expected)

    return launcher


def _embedding_error(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    uses, rows, columns = shape
    (error,) = random_tensors(precision, device, (uses, columns))
    indices = torch.arange(uses, device=device) ** 2 % rows
    gradient = error.new_empty(rows, columns)

    def expected() -> Sequence[torch.Tensor]:
        return [embedding_error_reference(*exact(error), indices, rows)]

    def launcher(cell: Any) -> Launch:
        chosen = embedding_configurations.fitted(cell, columns)

        def run() -> None:
            gradient.zero_()  # what is added to
            launch_embedding_error(error, indices, gradient, configuration=chosen)

        return Launch(run, (gradient,), expected)

    return launcher


def _gelu_error(error: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.gelu_backward(error, z)


def _summed(dimension: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def function(error: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        d = _gelu_error(error, z)
        return d, d.sum(dimension)

    return function


def _pointwise(shape: tuple[int, ...], precision: str, device: str) -> Callable[[Any], Launch]:
    """The error of a gelu, by itself, summed over rows' elements, and summed over rows."""
    size, *sizes = shape
    inputs = random_tensors(precision, device, *[tuple(sizes)] * 2)
    function = (_gelu_error, _summed(1), _summed(0))[size]
    traced = make_fx(function)(*inputs)
    plan = pointwise(traced).plan(*inputs)
    outputs = [torch.empty_strided(*laid, dtype=dtype, device=device) for *laid, dtype in plan.outputs]
    rows, columns = sizes
    kept, reduced = ((rows * columns, None), (rows, columns), (columns, rows))[size]

    def launcher(cell: Any) -> Launch:
        chosen = pointwise_configurations.fitted(cell, kept, reduced, plan.space.reduced_fastest)
        return Launch(
            lambda: launch_pointwise(plan, inputs, outputs, chosen),
            outputs,
            lambda: pointwise_reference(traced.graph, *exact(*inputs)),
        )

    return launcher


ROW_NORM = Operation(
    row_configurations.SPACE,
    row_configurations.CONFIGURATIONS,
    ROWS,
    lambda architecture, precision, shape: row_configurations.size_for(shape[1]),
    _row_norm,
    {"short": ((19, 60),), "2048": ((5, 1030),), "4096": ((5, 2050),), "long": ((5, 4100),)},
)
BATCH_NORM = Operation(
    batch_configurations.SPACE,
    batch_configurations.CONFIGURATIONS,
    CHANNELS,
    lambda architecture, precision, shape: batch_configurations.size_for(bool(shape[3])),
    _batch_norm,
    {"apart": ((3, 5, 61, 0), (33, 5, 63, 0)), "adjacent": ((3, 5, 61, 1), (33, 19, 63, 1))},
)
CROSS_ENTROPY = Operation(
    loss_configurations.SPACE,
    loss_configurations.CONFIGURATIONS,
    LOGITS,
    lambda architecture, precision, shape: loss_configurations.size_for(shape[1], shape[2]),
    _cross_entropy,
    {"short": ((19, 60, 1),), "long": ((5, 2049, 1),), "image": ((3, 19, 77),)},
)
EMBEDDING_ERROR = Operation(
    embedding_configurations.SPACE,
    embedding_configurations.CONFIGURATIONS,
    TABLES,
    lambda *_: "rows",
    _embedding_error,
    {"rows": ((61, 7, 20), (61, 7, 520))},
)
POINTWISE = Operation(
    pointwise_configurations.SPACE,
    pointwise_configurations.CONFIGURATIONS,
    ELEMENTS,
    lambda architecture, precision, shape: _SUMS[shape[0]],
    _pointwise,
    {name: ((size, 33, 63),) for size, name in enumerate(_SUMS)},
)
