"""A step of strict inference at one linear layer, for graphs that are no chains: its error and its parent's drive.

Mathematics, for a layer's value v (batch, out), its parent's value x (batch, in), W (out, in), b (out,):

    z      = x W^T + b
    e      = v - act(z)           (batch, out)     Predict and Compare
    d      = e * act'(z)          formed tile by tile
    drive += d W                  (batch, in)      J(c, parent)^T e_c, this layer's share of Infer(parent)

Moving the values is left to the caller, who knows all children of a vertex: v + eta (drive - e). The gradients at the
end are linear_error's, with the same e.

Launches: one, on a grid of ceil(batch / block_batch) programs, each with all of its rows: d needs the whole of z, and
only within a program can the second product wait for the first. Every element is summed by one program in a fixed
order, with no atomics: results repeat bit for bit.

What is read. Where in <= the configuration's `narrow`, a program holds its rows of x and of the drive in registers, and
each tile of whole rows of W that it loads serves both products: W is read once per program. In wider layers that does
not fit, and W is read twice, d in between being stored: from memory once, as long as W stays in L2 (50 MB on sm_90). A
tile of W kept in shared memory between the products would save the second reading from L2, but the drive's sums would
then have to go to L2 and back for every tile of outputs: 8 block_batch in bytes for block_out in s saved, a loss
for every tile that fits. Programs that each own outputs would read W once and leave partial drives to be added,
batch * in floats a program: a gain for batches of a few samples alone.

Bytes, with s bytes an element, from L2: programs * s * out * in (twice that if wide), and s * (batch * in + 2 batch *
out) plus s * batch * in for the drive, and s * batch * out twice for d if wide.

    reference.py       the same in plain torch
    kernel.py          the Triton kernel and its launch
    operator.py        linear_step and linear_step_into, the operators pccompile::linear_step and ..._into
    rows.py            the same for callers that have checked
    configurations.py  tiles, warps and stages per architecture
"""

from __future__ import annotations

from pccompile.kernels.linear_step.operator import LayerStep, linear_step, linear_step_into

__all__ = ["LayerStep", "linear_step", "linear_step_into"]
