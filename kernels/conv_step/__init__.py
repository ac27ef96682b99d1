"""One step of inference for a convolution, its activation and a pooling behind it, in one launch: the strict rule.

Mathematics, for the parent's value x (batch, channels, height, width), this vertex's value v, and
f = pool(act(x * W + b)):

    Predict   mu = f(x)
    Compare   e  = v - mu                            mu rounded as v is: what has not moved has no error
    feedback     = W^T * (act'(z) unpool(e))      J^T e, with respect to x

and, where it is asked for, the parent's move, by its own error of the same step:

    Infer     x' = x + step_size (feedback + siblings - parent_error)

siblings is the feedback of the parent's other children, if it has some. x' is written beside x, which neighbouring
programs still read: a sweep over a chain keeps two buffers a value, and launches once per layer and step, in the order
of the prediction (a layer's move reads the error that the launch before it wrote).

Launches: one. A program owns a band of rows of one sample's x (small images: the whole image), in all channels. It
first computes e wherever its feedback reads it, tile by tile: under the band and, along its edges, as far as the kernel
reaches. Then, behind a barrier of the block, it gathers the feedback from what it has just written, still in cache.
Rows of e along an edge are computed by both neighbours, from the same numbers in the same order, and written twice with
the same bits; so no program waits for another, and no grid barrier is needed. Bands are made only until the device is
filled, and not so narrow that (but for the rounding of pooling windows) more than a third of the predictions are
computed for a neighbour. Results repeat bit for bit.

Learn, after the last step, is conv_error on the returned error, residual and argmax, which mean what conv_predict's do.

Bytes, with s bytes an element, X, W and Y the elements of x, W and v: s (X + W + Y) read at least once; s Y written for
e, s Y more for what act' is read from, s X for the feedback. W is read by every program, from L2 where it fits. Apart
(predict, compare, error sweep, move: four launches) mu, e and the feedback are written and read once more each.

    reference.py       the same in plain torch
    kernel.py          the Triton kernel and its launch
    operator.py        conv_step, the torch.library operator pccompile::conv_step
    images.py          the same for callers that have checked
    configurations.py  tiles, bands, warps and stages per architecture
"""

from __future__ import annotations

from pccompile.kernels.conv_step.operator import ConvStep, conv_step

__all__ = ["ConvStep", "conv_step"]
