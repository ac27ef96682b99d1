"""Launches of embedding_error to compile: the table of a language model."""

from __future__ import annotations

import torch

from pccompile.kernels.embedding_error.kernel import launch_embedding_error


def _launch(dtype: torch.dtype, uses: int, rows: int, columns: int) -> None:
    error, gradient = (torch.empty(size, columns, dtype=dtype, device="meta") for size in (uses, rows))
    launch_embedding_error(error, torch.empty(uses, dtype=torch.int64, device="meta"), gradient, padding_idx=0)


LAUNCHES = {
    "language": lambda dtype: _launch(dtype, 8192, 50304, 768),
    "wide": lambda dtype: _launch(dtype, 2**20, 128256, 4096),
    "small": lambda dtype: _launch(dtype, 64, 100, 20),
}
