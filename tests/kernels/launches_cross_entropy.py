"""Launches of cross_entropy to compile: logits of a language model, of a classifier and of an image."""

from __future__ import annotations

from functools import partial

import torch
from recorded import Case, Launch

from pccompile.kernels.cross_entropy.kernel import launch_cross_entropy_error, launch_cross_entropy_predict


def _launch(case: Case, outer: int, classes: int, inner: int, **options: float) -> None:
    logits, targets = case.empty(outer, classes, inner), case.empty(outer, inner, dtype=torch.int64)
    weight = case.empty(classes) if options else None
    log_sum_exp, total = case.empty(outer * inner, dtype=torch.float32), case.empty(dtype=torch.float32)
    launch_cross_entropy_predict(logits, targets, weight, case.empty(), log_sum_exp, total, **options)
    upstream = case.empty().expand(outer, inner)
    launch_cross_entropy_error(
        logits, targets, weight, log_sum_exp, total, upstream, case.empty(*logits.shape), **options
    )


LAUNCHES = {
    "language": Launch(partial(_launch, outer=8192, classes=50304, inner=1, label_smoothing=0.1)),
    "classifier": Launch(partial(_launch, outer=256, classes=10, inner=1, label_smoothing=0.1)),
    "image": Launch(partial(_launch, outer=8, classes=21, inner=512 * 512, label_smoothing=0.1)),
    "wide": Launch(partial(_launch, outer=65536, classes=50304, inner=1)),
}
