"""The gradient of an embedding table in plain torch: what the kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["embedding_error_reference"]


def embedding_error_reference(
    error: Tensor, indices: Tensor, rows: int, padding_idx: int | None = None, gain: float = 1.0
) -> Tensor:
    """gain times the sum, for every row of the table, of the errors at its indices, in float32 or better.

    Args:
        error: (..., columns), of any floating dtype.
        indices: (...), of integers.
        rows: of the table.
        padding_idx: a row without gradient, or None.
        gain: factor.

    Returns:
        (rows, columns), of error's dtype.
    """
    columns = error.shape[-1]
    gradient = torch.zeros(rows, columns, dtype=torch.promote_types(error.dtype, torch.float32), device=error.device)
    gradient.index_add_(0, indices.reshape(-1).long(), error.reshape(indices.numel(), columns).to(gradient.dtype))
    if padding_idx is not None:
        gradient[padding_idx] = 0
    return (gain * gradient).to(error.dtype)
