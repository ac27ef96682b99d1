"""Layer and root-mean-square normalisation over the last dimension: prediction and error sweep, each in one launch.

Mathematics, for a row x (columns,), weight w and bias b (each may be missing), and means over the row's columns:

    m  = mean(x)  (layer)   0  (root mean square)
    r  = 1 / sqrt(mean((x - m)^2) + eps)                 m and r are kept, float32
    n  = (x - m) r
    mu = n w + b

    g  = e w
    parent error  += r (g - n mean(g n) - mean(g))       the last term for layer normalisation only
    dw            += gain sum over rows of e n
    db            += gain sum over rows of e

Each of the three can be left out, and each either overwrites or accumulates (`+=`): with an accumulated parent error
the addition of a skip connection's error costs nothing of its own.

Launches: one each. The error's at most 256 programs each own a run of rows and sum their shares of dw and db over it in
registers (in memory of their own, where a row has more than 4096 columns). They are divided into groups of 16: the
last of a group to arrive sums the group's shares in the order of its programs, and the last group to arrive sums the
groups'. No atomics but the counters of arrivals, which end as they began: results repeat bit for bit.

Bytes, with s bytes an element: the prediction reads and writes s * rows * columns; the error reads 2 s * rows * columns
and writes s * rows * columns (reading it once more where it accumulates), and 16 * (programs + groups) * columns for
the shares, written and read once. Rows of more than 4096 columns are read twice, the second time from cache.

    reference.py       the same in plain torch
    predict.py         the prediction's Triton kernel and its launch
    error.py           the error's
    operator.py        the functions to call, and the operators pccompile::row_norm_predict (differentiable), ..._error
                       and ..._error_into
    configurations.py  tiles and warps
"""

from __future__ import annotations

from pccompile.kernels.row_norm.operator import (
    NormErrorSweep,
    NormPrediction,
    layer_norm_predict,
    rms_norm_predict,
    row_norm_error,
    row_norm_error_into,
)

__all__ = [
    "NormErrorSweep",
    "NormPrediction",
    "layer_norm_predict",
    "rms_norm_predict",
    "row_norm_error",
    "row_norm_error_into",
]
