"""The prediction of a linear layer and its activation, in one launch.

Mathematics, for x (batch, in), W (out, in), b (out,):

    z  = x W^T + b
    mu = act(z)            (batch, out)

Kept for the error sweep is the smallest tensor from which act'(z) can be read: mu itself for tanh, sigmoid, relu and
leaky_relu, z for gelu, gelu_tanh, silu and softplus, nothing for the identity.

Launches: one, on a grid of ceil(batch / BLOCK_BATCH) * ceil(out / BLOCK_OUT) programs, each with the whole sum over the
inputs, in a fixed order: results repeat bit for bit. None where mu is empty.

Bytes, with s bytes an element: s * (batch * in + out * in + out) read at least once, s * batch * out written,
twice that where z is kept. Unfused, the activation costs up to 2 s * batch * out more. x is read once per tile of
outputs and W once per tile of the batch, from L2 where it fits.

    reference.py       the same in plain torch
    kernel.py          the Triton kernel and its launch
    operator.py        linear_predict, the torch.library operator pccompile::linear_predict
    configurations.py  tiles, warps and stages per architecture
"""

from __future__ import annotations

from pccompile.kernels.linear_predict.operator import Prediction, linear_predict

__all__ = ["Prediction", "linear_predict"]
