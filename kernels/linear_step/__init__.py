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

What is read. Where in <= the configuration's `most_in` (1024 in half precision on NVIDIA's GPUs), a program holds its
rows of x and of the drive in registers, and each tile of whole rows of W that it loads serves both products: W is read
once per program. In wider layers that does not fit, and a program reads rows of W twice, d in between being stored: for
z, and then for the drive. What it reads the second time is to come from the cache and not from memory, so it takes only
so many outputs at a time that their rows of W fill half the cache (configurations.outputs_at_a_time), predicts them,
carries them back, and goes on to the next such group, adding to a sum in float32 that is its own. Programs go through
the same groups at the same time. So W comes from memory once, whatever its size, as long as these sums stay in the
cache too. Where they do not (4 * batch * in bytes), every group would read and write them in memory, which costs more
than reading W a second time, and all outputs are one group.

The smallest groups, single tiles, would need no stored d, but their sums go to the cache and back for every tile of
outputs: 8 block_batch in bytes for block_out in s spared. Programs that each own outputs would read W once and leave
partial drives to be added, batch * in floats a program: a gain for batches of a few samples alone.

Bytes, with s bytes an element, from L2: programs * s * out * in of W (twice that by tiles), s * batch * in of the drive
and s * 2 batch * out of v and e; by tiles x once for each tile of outputs, d once for each tile of inputs, and
8 * batch * in for every group but one.

    reference.py       the same in plain torch
    kernel.py          the Triton kernel and its launch
    operator.py        linear_step and linear_step_into, the operators pccompile::linear_step and ..._into
    rows.py            the same for callers that have checked
    configurations.py  tiles, warps and stages per architecture
"""

from __future__ import annotations

from pccompile.kernels.linear_step.operator import LayerStep, linear_step, linear_step_into

__all__ = ["LayerStep", "linear_step", "linear_step_into"]
