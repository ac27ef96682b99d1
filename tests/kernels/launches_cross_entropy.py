"""Launches of cross_entropy to compile: logits of a language model, of a classifier and of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.kernels.cross_entropy.kernel import launch_cross_entropy_error, launch_cross_entropy_predict


def _launch(dtype: torch.dtype, outer: int, classes: int, inner: int, **options: float) -> None:
    def empty(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    logits, targets = empty(outer, classes, inner), empty(outer, inner, dtype=torch.int64)
    weight = empty(classes) if options else None
    log_sum_exp, total = empty(outer * inner, dtype=torch.float32), empty(dtype=torch.float32)
    launch_cross_entropy_predict(logits, targets, weight, empty(), log_sum_exp, total, **options)
    upstream = empty().expand(outer, inner)
    launch_cross_entropy_error(logits, targets, weight, log_sum_exp, total, upstream, empty(*logits.shape), **options)


LAUNCHES = {
    "language": lambda dtype: _launch(dtype, 8192, 50304, 1, label_smoothing=0.1),
    "wide": lambda dtype: _launch(dtype, 65536, 50304, 1),
    "classifier": lambda dtype: _launch(dtype, 256, 10, 1, label_smoothing=0.1),
    "image": lambda dtype: _launch(dtype, 8, 21, 512 * 512, label_smoothing=0.1),
}
