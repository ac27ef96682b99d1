"""The error sweep of a convolution, its activation and a pooling behind it, in one launch.

Mathematics, for the error e with respect to the output pool(act(z)), z = x * W + b (conv2d of any stride, padding,
dilation and groups), x (batch, channels, height, width), W (out, channels / groups, kernel height, kernel width):

    d  = act'(z) unpool(e)        formed tile by tile, never stored
    parent error  += W^T * d      the transposed convolution: J(c, parent)^T e_c, this layer's share of Infer(parent)
    dW            += gain d x     sums over images and positions; Learn, up to its sign
    db            += gain sum d

unpool puts e at the maximum of each window, from the argmax that conv_predict returned, or spreads it evenly under an
average. The gain is 1 in Z-IL and the closed form's factor c(level, n) in fixed prediction; its sign is minus where
errors are v - mu and the gradients are the energy's. Each of the three can be left out, and each either overwrites or
accumulates (`+=`).

Launches: one. Its grid is the tiles of the parent's error, followed by those of dW; db belongs to dW's first column of
tiles. The parent's error is gathered: a program owns positions of x that leave the same remainder by the stride, and
so meet the same taps, and sums over those taps and the outputs. A program of dW owns outputs of one group and weights
of theirs, and sums over positions; where there are too few such tiles to fill the device, several programs share one
tile's positions, leave partial sums in a workspace, and the last to arrive adds these in their fixed order. Nothing is
added atomically (only arrivals are counted so): results repeat bit for bit. Groups of at most 64 weights a tap
(depthwise) are summed elementwise, groups side by side.

Bytes, with s bytes an element, X, W and Y the elements of x, W and z, r = 1 where there is a residual, and a window of
p positions: error, residual and argmax are read 2 s (1 + r) Y without pooling, 2 (s (1 + r) + 1) Y / p under a maximum
and 2 s (1 / p + r) Y under an average, at least; x and W once, s (X + W); written are s (X + W + out). Partial sums add
8 bytes a program and weight of its tile. Unfused, d is written once and read three times, in four launches.

    reference.py       the same in plain torch
    kernel.py          the Triton kernel and its launch
    gradient.py        its tiles of dW and db
    operator.py        conv_error and conv_error_into, the operators pccompile::conv_error and ..._into
    images.py          the same without checks and dispatch, for callers that run it often
    configurations.py  tiles, warps and stages per architecture
"""

from __future__ import annotations

from pccompile.kernels.conv_error.operator import conv_error, conv_error_into

__all__ = ["conv_error", "conv_error_into"]
