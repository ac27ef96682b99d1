"""Launches of batch_norm to compile: an image, channels last, and features."""

from __future__ import annotations

from functools import partial

import torch
from recorded import Case, Launch

from pccompile.kernels.batch_norm.kernel import launch_batch_norm_error, launch_batch_norm_predict


def _launch(case: Case, outer: int, channels: int, inner: int, last: bool = False) -> None:
    shape = (outer, inner, channels) if last else (outer, channels, inner)
    x = case.empty(*shape)
    x = x.mT if last else x
    weight, running = case.empty(channels), case.empty(channels, dtype=torch.float32)
    statistics = (running, running)
    launch_batch_norm_predict(x, weight, weight, *statistics, x, *statistics, *statistics, 0.1, 1e-5)
    launch_batch_norm_error(
        x,
        x,
        weight,
        running,
        running,
        parent_error=x,
        weight_gradient=weight,
        bias_gradient=weight,
        accumulate_parent=True,
        accumulate_weight=True,
        accumulate_bias=True,
    )


LAUNCHES = {
    "image": Launch(partial(_launch, outer=256, channels=64, inner=56 * 56)),
    "channels_last": Launch(partial(_launch, outer=256, channels=64, inner=56 * 56, last=True)),
    "features": Launch(partial(_launch, outer=256, channels=1024, inner=1)),
    "wide": Launch(partial(_launch, outer=4096, channels=256, inner=56 * 56)),
}
