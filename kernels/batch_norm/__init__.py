"""Batch normalisation in training mode: prediction and error sweep, each in one launch.

Mathematics, for the elements x of a channel (over the batch and the dimensions after the channels), weight w, bias b:

    m  = mean(x)                    r = 1 / sqrt(mean((x - m)^2) + eps)        kept, float32
    n  = (x - m) r
    mu = n w + b
    running mean  <- running mean + momentum (m - running mean); the variance likewise, with its unbiased estimate

    parent error  += w r (e - mean(e) - n mean(e n))
    dw            += gain sum e n
    db            += gain sum e

Each of the three can be left out, and each either overwrites or accumulates (`+=`).

Launches: one each. A program owns a channel, or eight where the channels lie side by side (channels last, or no
dimensions after them), and goes over their elements twice, in a fixed order: results repeat bit for bit. Statistics are
Welford's, a stream for each lane. So a launch has no more programs than channels: few channels leave a device idle.

Bytes, with s bytes an element: the prediction reads 2 s and writes s times batch * channels * inner, the error reads
4 s and writes s, the second reading from cache where a channel's elements fit.

    reference.py       the same in plain torch
    kernel.py          the Triton kernels and their launches
    operator.py        batch_norm_predict (differentiable), batch_norm_error and ..._into, the operators pccompile::...
    configurations.py  tiles and warps
"""

from __future__ import annotations

from pccompile.kernels.batch_norm.operator import (
    BatchNormPrediction,
    batch_norm_error,
    batch_norm_error_into,
    batch_norm_predict,
)

__all__ = ["BatchNormPrediction", "batch_norm_error", "batch_norm_error_into", "batch_norm_predict"]
