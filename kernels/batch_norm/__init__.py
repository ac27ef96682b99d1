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

What follows a normalisation in a residual block goes along, forwards and back. With an addend a, which may be another
tensor normalised in the same way, an activation, and an average over the dimensions after the channels:

    y = act(mu + a)                 average = mean(y)
    d = e act'(z), read from y      parent error and the rest as above, with d for e

`d` is written where somebody else reads it: the skip. An error that was expanded from the average is read where it is,
and its divisor is a factor. The number of batches seen, an int64, is raised by one program.

Launches: one each, of one normalisation or two. A program owns a channel, or eight where the channels lie side by side
(channels last, or no dimensions after them), and goes over their elements twice, in a fixed order: results repeat bit
for bit. Statistics are Welford's, a stream for each lane. So a launch has no more programs than channels: few channels
leave a device idle.

Bytes, with s bytes an element: the prediction reads 2 s and writes s times batch * channels * inner, the error reads
4 s and writes s, the second reading from cache where a channel's elements fit. An addend costs the prediction s,
another normalised tensor 2 s, where operators write and read each step. With an activation, the error reads 6 s and
writes s; if d is kept, it reads 5 s and writes 2 s; of two normalisations it reads 8 s and writes 2 s.

    reference.py       the same in plain torch
    channels.py        where the elements of a block of channels lie
    predict.py         the Triton kernel of the prediction, and its launch
    error.py           the Triton kernel of the error sweep, and its launch
    branches.py        one normalisation or two with what follows, for callers that know what they pass
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
