"""Launches of batch_norm to compile: an image, channels last, and features."""

from __future__ import annotations

import torch

from pccompile.kernels.batch_norm.kernel import launch_batch_norm_error, launch_batch_norm_predict


def _launch(dtype: torch.dtype, outer: int, channels: int, inner: int, last: bool = False) -> None:
    shape = (outer, inner, channels) if last else (outer, channels, inner)
    x = torch.empty(shape, dtype=dtype, device="meta")
    x = x.mT if last else x
    weight, running = (torch.empty(channels, dtype=kind, device="meta") for kind in (dtype, torch.float32))
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
    "image": lambda dtype: _launch(dtype, 256, 64, 56 * 56),
    "image_wide": lambda dtype: _launch(dtype, 4096, 256, 56 * 56),
    "channels_last": lambda dtype: _launch(dtype, 256, 64, 56 * 56, last=True),
    "features": lambda dtype: _launch(dtype, 256, 1024, 1),
}
