"""The cross-entropy loss vertex: its prediction and its error, each in one launch.

Mathematics, for a row's logits z (classes,), its target y, class weights w and label smoothing s:

    l   = log sum_c exp(z_c)                                                         kept, float32
    L   = (1 - s) w_y (l - z_y) + s / classes * sum_c w_c (l - z_c)                  zero where y is ignored
    e_c = (1 - s) w_y (p_c - [c = y]) + s / classes * (p_c sum_k w_k - w_c)          p_c = exp(z_c - l), never stored

The loss is the sum of L over rows, that sum over the total of w_y ("mean"), or each L; the error is multiplied by a
gain and the derivative with respect to the loss, and divided by that total, all read at run time. The loss is formed
from differences of logits; p has the absolute precision of l, 1e-6 where logits are about ten.

Launches: one each. The prediction goes over a row's classes once, with a running maximum; a program sums its rows'
losses, and the last program to arrive adds up those sums in the order of the programs: results repeat bit for bit. The
error's programs are tiles of it. Where there are no logits nothing is launched.

Bytes, with s bytes an element: the prediction reads s * rows * classes and writes 4 * rows (log-sum-exp); the error
reads and writes s * rows * classes. Unfused, log_softmax writes and reads as much again, in its own dtype.

    reference.py       the same in plain torch
    kernel.py          the Triton kernels and their launches
    operator.py        cross_entropy_predict (differentiable) and cross_entropy_error, the operators pccompile::...
    configurations.py  tiles and warps
"""

from __future__ import annotations

from pccompile.kernels.cross_entropy.operator import LossPrediction, cross_entropy_error, cross_entropy_predict

__all__ = ["LossPrediction", "cross_entropy_error", "cross_entropy_predict"]
