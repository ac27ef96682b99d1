"""Launches of embedding_error to compile: the table of a language model."""

from __future__ import annotations

from functools import partial

import torch
from recorded import Case, Launch

from pccompile.kernels.embedding_error.kernel import launch_embedding_error


def _launch(case: Case, uses: int, rows: int, columns: int) -> None:
    error, gradient = case.empty(uses, columns), case.empty(rows, columns)
    launch_embedding_error(error, case.empty(uses, dtype=torch.int64), gradient, padding_idx=0)


LAUNCHES = {
    "language": Launch(partial(_launch, uses=8192, rows=50304, columns=768)),
    "small": Launch(partial(_launch, uses=64, rows=100, columns=20)),
    "wide": Launch(partial(_launch, uses=2**20, rows=128256, columns=4096)),
}
