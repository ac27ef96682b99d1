"""The prediction of a convolution, its activation and a pooling behind it, in one launch.

Mathematics, for x (batch, channels, height, width), W (out, channels / groups, kernel height, kernel width), b (out,):

    z  = x * W + b         conv2d with stride, padding, dilation, groups
    mu = pool(act(z))      the pooling may be left out

It is an implicit product of matrices: a tile has positions of the images as rows, outputs of one group as columns, and
sums over the kernel's taps and the group's channels, several taps side by side where channels are few. Groups of at
most 64 weights a tap (depthwise) are summed elementwise instead, groups side by side.

The poolings taken are those whose windows do not overlap (stride at least the window), without padding, dilation or
ceil_mode, of at most 64 positions: the usual 2 x 2, or the average over an 8 x 8 image. A window's positions are rows
of one tile. Others are pooled by a vertex of their own.

Kept for the error sweep is the smallest tensor from which act'(z) can be read. Without pooling: mu itself for tanh,
sigmoid, relu and leaky_relu, z for gelu, gelu_tanh, silu and softplus, nothing for the identity. Under a maximum: the
same, at the maximum of each window only (elsewhere the derivative is zero), and its argmax in the window as int8. The
maximum is taken of float32 values, before mu is rounded; of equal ones it is the first. Under an average: act(z) or z
at every position.

Launches: one, on a grid of tiles, each with the whole sum in a fixed order: results repeat bit for bit. None where mu
is empty.

Bytes, with s bytes an element, X, W and Y the elements of x, W and act(z), and a window of p positions: s * (X + W +
out) read at least once; written are s * Y without pooling, (s + 1) * Y / p under a maximum, s * Y / p (and s * Y, but
for the identity) under an average; a kept z costs as much as mu. Unfused, activation and maximum cost up to
s * (3 + 1 / p) * Y + 8 * Y / p more.

    reference.py       the same in plain torch
    kernel.py          the Triton kernel and its launch
    operator.py        conv_predict, the torch.library operator pccompile::conv_predict
    images.py          the same without checks and dispatch, for callers that run it often
    configurations.py  tiles, warps and stages per architecture

Shared with the other convolutions: ../convolution_geometry.py and ../convolution_tiles.py.
"""

from __future__ import annotations

from pccompile.kernels.conv_predict.operator import ConvPrediction, conv_predict

__all__ = ["ConvPrediction", "conv_predict"]
