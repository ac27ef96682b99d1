"""The error sweep of a linear layer and its activation, in one launch.

Mathematics, for a layer's error e (batch, out) with respect to its output act(z), z = x W^T + b, and x (batch, in):

    d  = e * act'(z)              formed tile by tile, never stored
    parent error  += d W          (batch, in)     J(c, parent)^T e_c, this layer's share of Infer(parent)
    dW            += gain d^T x   (out, in)       Learn, up to its sign
    db            += gain sum d   (out,)

The gain is 1 in Z-IL and the closed form's factor c(level, n) in fixed prediction; its sign is minus where errors are
v - mu and the gradients are the energy's.

Each of the three can be left out, and each either overwrites or accumulates (`+=`). act' is read from the residual that
linear_predict returns.

Launches: one. Its grid is the tiles of the parent's error, each summing over the outputs, followed by the tiles of dW,
each summing over the batch; db belongs to dW's first column of tiles. Every element is summed by one program in a fixed
order, with no atomics: results repeat bit for bit.

Bytes, with s bytes an element and a residual counted as 1 (identity: 0): the two products read
2 s * (1 + residual) * batch * out + s * (out * in + batch * in) at least once and write s * (batch * in + out * in +
out), and an accumulated output is read once more. Unfused, d is written once and read three times, in four launches.

    reference.py       the same in plain torch
    kernel.py          the Triton kernel and its launch
    operator.py        linear_error and linear_error_into, the operators pccompile::linear_error and ..._into
    rows.py            the same on matrices, unchecked
    configurations.py  tiles, warps and stages per architecture
"""

from __future__ import annotations

from pccompile.kernels.linear_error.operator import ErrorSweep, linear_error, linear_error_into

__all__ = ["ErrorSweep", "linear_error", "linear_error_into"]
