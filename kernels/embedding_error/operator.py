"""embedding_error and embedding_error_into: the operators of the same names, and the functions to call."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.errors import ShapeError, UsageError
from pccompile.kernels.arguments import check_alike, check_device, check_fits, refusal
from pccompile.kernels.embedding_error.kernel import launch_embedding_error
from pccompile.kernels.operators import custom_operator, has_data

__all__ = ["embedding_error", "embedding_error_into", "table_gradient"]


def embedding_error(
    error: Tensor, indices: Tensor, rows: int, *, padding_idx: int | None = None, gain: float = 1.0
) -> Tensor:
    """The gradient of an embedding table: a sort, a fill with zeros and one launch. Not differentiable.

    Args:
        error: (..., columns), with respect to the looked-up rows; float32, bfloat16 or float16, any strides.
        indices: (...), int64 or int32; those that are no row of the table are left out.
        rows: of the table.
        padding_idx: a row without gradient, counted from the end where negative; None for none.
        gain: factor, read at run time.

    Returns:
        (rows, columns), of error's dtype.

    Raises:
        UsageError: no kernel takes this dtype or device, or padding_idx is no row.
        ShapeError: shapes or devices do not fit one another.
    """
    gradient: Tensor = torch.ops.pccompile.embedding_error(error, indices, rows, padding_idx, gain)
    return gradient


def embedding_error_into(
    error: Tensor, indices: Tensor, gradient: Tensor, *, padding_idx: int | None = None, gain: float = 1.0
) -> None:
    """embedding_error added to a gradient that exists: rows that are not used are not touched.

    Args:
        error, indices, padding_idx, gain: as for embedding_error.
        gradient: (rows, columns), of error's dtype and device, any strides; added to in float32 and rounded once.

    Raises:
        UsageError: no kernel takes this dtype or device, or padding_idx is no row.
        ShapeError: shapes, dtypes or devices do not fit one another.
    """
    torch.ops.pccompile.embedding_error_into(error, indices, gradient, padding_idx, gain)


def _check(
    error: Tensor, indices: Tensor, rows: int, padding_idx: int | None, gradient: Tensor | None = None
) -> int | None:
    """The padding row counted from the first, after checking everything."""
    name = "embedding_error"
    check_alike(name, error=error, gradient=gradient)
    if indices.dtype not in (torch.int64, torch.int32):
        raise UsageError(f"{name}: indices is {indices.dtype}", cure="use int64 or int32")
    check_device(name, "indices", indices, "error", error)
    check_fits(
        name, "indices", indices, tuple(error.shape[:-1]), "error's shape without columns", "error, (..., columns)"
    )
    if error.dim() == 0 or (gradient is not None and gradient.shape[1:] != error.shape[-1:]):
        shapes = f"error has shape {tuple(error.shape)}" + (
            "" if gradient is None else f", gradient {tuple(gradient.shape)}"
        )
        raise ShapeError(f"{name}: {shapes}", cure="error is (..., columns) and gradient is (rows, columns)")
    if padding_idx is None:
        return None
    if not -rows <= padding_idx < rows:
        raise UsageError(f"{name}: padding_idx={padding_idx} of a table of {rows} rows", cure="use one of its rows")
    return padding_idx % rows


def _add(error: Tensor, indices: Tensor, gradient: Tensor, padding_row: int | None, gain: float) -> None:
    uses = error.reshape(indices.numel(), error.shape[-1])
    launch_embedding_error(uses, indices.reshape(-1), gradient, padding_idx=padding_row, gain=gain)


def table_gradient(error: Tensor, indices: Tensor, rows: int, padding_row: int | None, gain: float) -> Tensor:
    """The operator without its checks and its dispatch, for callers that know what they pass."""
    gradient = error.new_zeros(rows, error.shape[-1])
    _add(error, indices, gradient, padding_row, gain)
    return gradient


@custom_operator("pccompile::embedding_error")
def _embedding_error(error: Tensor, indices: Tensor, rows: int, padding_idx: int | None, gain: float) -> Tensor:
    padding_row = _check(error, indices, rows, padding_idx)
    if not has_data(error):
        return error.new_empty(rows, error.shape[-1])
    return table_gradient(error, indices, rows, padding_row, gain)


_embedding_error.register_autograd(refusal("the gradient of an embedding was differentiated"))


@custom_operator("pccompile::embedding_error_into", mutates=("gradient",))
def _embedding_error_into(
    error: Tensor, indices: Tensor, gradient: Tensor, padding_idx: int | None, gain: float
) -> None:
    padding_row = _check(error, indices, gradient.shape[0], padding_idx, gradient)
    if has_data(error):
        _add(error, indices, gradient, padding_row, gain)
